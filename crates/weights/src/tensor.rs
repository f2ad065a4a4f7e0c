//! A weight in memory, in the checkpoint's own number format, and its values as F32. This module
//! knows neither files nor models.

use std::ops::Range;

use half::bf16;
use half::slice::HalfFloatSliceExt;
use kilotok_model::{FP8_TILE, MXFP4_GROUP};

use crate::codes::{bf16_value, e2m1_halves, e4m3_value, e8m0_value};

/// A rank's part of a weight, in the checkpoint's own format: `rows` x `cols` values, row by row.
/// A vector is one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub rows: usize,
    pub cols: usize,
    pub data: TensorData,
}

#[derive(Clone, Debug, PartialEq)]
pub enum TensorData {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    /// E4M3 codes, and a scale per row and column tile: `[rows, tiles]`. `first_col` is the index
    /// of the first column in the whole matrix, where tiles of 128 columns begin: column c belongs
    /// to tile `(first_col + c) / 128 - first_col / 128`.
    Fp8 {
        codes: Vec<u8>,
        scales: Vec<f32>,
        first_col: usize,
    },
    /// E2M1 codes, two a byte, the even column in the low nibble, and an E8M0 scale per 32
    /// columns: `[rows, cols / 2]` and `[rows, cols / 32]`.
    Mxfp4 {
        codes: Vec<u8>,
        scales: Vec<u8>,
    },
}

/// Number of column tiles that contain any of `cols` columns from `first_col` on.
pub(crate) fn tile_count(first_col: usize, cols: usize) -> usize {
    (first_col + cols).div_ceil(FP8_TILE) - first_col / FP8_TILE
}

impl Tensor {
    /// Writes the values of a row: code times scale, rounded once to F32. `out` has `cols`
    /// elements.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "the caller chooses the vector unit")]
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols, "a row and its place");
        let span = row * self.cols..(row + 1) * self.cols;
        match &self.data {
            TensorData::F32(values) => out.copy_from_slice(&values[span]),
            TensorData::Bf16(values) => {
                for (out, value) in out.iter_mut().zip(&values[span]) {
                    *out = bf16_value(value.to_bits());
                }
            }
            TensorData::Fp8 { codes, scales, first_col } => {
                let tiles = tile_count(*first_col, self.cols);
                decode_fp8(&codes[span], &scales[row * tiles..(row + 1) * tiles], *first_col, out);
            }
            TensorData::Mxfp4 { codes, scales } => {
                let groups = self.cols / MXFP4_GROUP;
                let codes = &codes[span.start / 2..span.end / 2];
                decode_mxfp4(codes, &scales[row * groups..(row + 1) * groups], out);
            }
        }
    }

    /// The memory from which rows are decoded, without scales; empty if a row does not exist.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "the caller is one loop")]
    pub fn rows_memory(&self, rows: Range<usize>) -> &[u8] {
        let span = rows.start * self.cols..rows.end * self.cols;
        let memory = match &self.data {
            TensorData::F32(values) => values.get(span).map(bytemuck::cast_slice),
            TensorData::Bf16(values) => {
                values.get(span).map(|row| bytemuck::cast_slice(row.reinterpret_cast()))
            }
            TensorData::Fp8 { codes, .. } => codes.get(span),
            TensorData::Mxfp4 { codes, .. } => codes.get(span.start / 2..span.end / 2),
        };
        memory.unwrap_or_default()
    }

    /// Bytes of the values and scales.
    pub fn bytes(&self) -> usize {
        match &self.data {
            TensorData::F32(values) => size_of_val(values.as_slice()),
            TensorData::Bf16(values) => size_of_val(values.as_slice()),
            TensorData::Fp8 { codes, scales, .. } => codes.len() + size_of_val(scales.as_slice()),
            TensorData::Mxfp4 { codes, scales } => codes.len() + scales.len(),
        }
    }
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "the caller chooses the vector unit")]
fn decode_fp8(codes: &[u8], scales: &[f32], first_col: usize, out: &mut [f32]) {
    // The first tile may begin left of the slice. The others begin in it; the last may be
    // incomplete.
    let lead = (FP8_TILE - first_col % FP8_TILE).min(codes.len());
    let (lead_codes, codes) = codes.split_at(lead);
    let (lead_out, out) = out.split_at_mut(lead);
    let tiles = codes.chunks(FP8_TILE).zip(out.chunks_mut(FP8_TILE));
    for ((codes, out), scale) in std::iter::once((lead_codes, lead_out)).chain(tiles).zip(scales) {
        for (out, code) in out.iter_mut().zip(codes) {
            *out = e4m3_value(*code) * scale;
        }
    }
}

#[inline(always)]
fn decode_mxfp4(codes: &[u8], scales: &[u8], out: &mut [f32]) {
    /// Number of groups whose codes become integers before any of them becomes a float: a vector
    /// register holds four times as many bytes as floats.
    const RUN: usize = 8;
    let mut halves = [0_i8; RUN * MXFP4_GROUP];
    let runs = codes.chunks(RUN * MXFP4_GROUP / 2).zip(out.chunks_mut(RUN * MXFP4_GROUP));
    for ((codes, out), scales) in runs.zip(scales.chunks(RUN)) {
        for (pair, code) in halves.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
            *pair = [e2m1_halves(code & 15), e2m1_halves(code >> 4)];
        }
        let groups = out.as_chunks_mut::<MXFP4_GROUP>().0.iter_mut();
        for ((out, halves), scale) in groups.zip(halves.as_chunks::<MXFP4_GROUP>().0).zip(scales) {
            let scale = e8m0_value(*scale) * 0.5;
            for (out, halves) in out.iter_mut().zip(halves) {
                *out = f32::from(*halves) * scale;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_mxfp4_row_of_any_number_of_groups_is_its_codes_times_their_scales() {
        const VALUES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        for groups in [1, 2, 7, 8, 9, 16, 19] {
            let (rows, cols) = (3, groups * MXFP4_GROUP);
            let codes: Vec<u8> = (0..rows * cols / 2).map(|i| (i * 151 + i / 256) as u8).collect();
            let scales: Vec<u8> = (0..rows * groups).map(|i| (i * 29 % 250) as u8).collect();
            let data = TensorData::Mxfp4 { codes: codes.clone(), scales: scales.clone() };
            let tensor = Tensor { rows, cols, data };
            let mut out = vec![f32::NAN; cols];
            for row in 0..rows {
                tensor.decode_row(row, &mut out);
                for (col, value) in out.iter().enumerate() {
                    let place = row * cols + col;
                    let code = codes[place / 2] >> (4 * (col % 2)) & 15;
                    let sign = if code < 8 { 1.0 } else { -1.0 };
                    let scale = 2.0_f64.powi(i32::from(scales[place / MXFP4_GROUP]) - 127);
                    let exact = sign * f64::from(VALUES[usize::from(code % 8)]) * scale;
                    assert_eq!(f64::from(*value), exact, "{groups} groups, [{row}, {col}]");
                }
            }
        }
    }
}
