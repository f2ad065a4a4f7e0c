//! Extracts a rank's part of a weight and checks every number in it. The bytes come from any source
//! that can fill part of a row; this module knows no files.

use std::fmt;
use std::ops::Range;

use half::bf16;
use half::vec::HalfBitsVecExt;
use kilotok_model::{Dtype, FP8_TILE, Format, MXFP4_GROUP, Slice, Stride, WeightDecl};

use crate::codes::e4m3_code;
use crate::tensor::{Tensor, TensorData, tile_count};

#[cfg(target_endian = "big")]
compile_error!("safetensors are little-endian, and are read as they are");

/// The largest E4M3 value.
const E4M3_MAX: f32 = 448.0;

/// The bytes of a stored tensor, row by row.
pub(crate) trait Rows {
    /// Writes the bytes of a row from `first` on.
    fn fill(&self, row: usize, first: usize, out: &mut [u8]);
}

/// Bytes in memory, rows back to back.
pub(crate) struct Bytes<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) row_bytes: usize,
}

impl Rows for Bytes<'_> {
    fn fill(&self, row: usize, first: usize, out: &mut [u8]) {
        let start = row * self.row_bytes + first;
        out.copy_from_slice(&self.bytes[start..start + out.len()]);
    }
}

/// The first invalid element and its place in the whole stored tensor. If the tensor stacks several
/// weights, rows count through all of them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Flaw {
    /// Whether it is among the scales and not the values.
    pub(crate) in_scales: bool,
    pub(crate) row: usize,
    pub(crate) col: usize,
    pub(crate) what: &'static str,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { row, col, what, .. } = self;
        write!(f, "element [{row}, {col}] {what}")
    }
}

/// Whether the slice lies within the weight and does not split codes that share a byte.
pub(crate) fn check_slice(decl: &WeightDecl, slice: &Slice) -> Result<(), String> {
    let (rows, cols) = (decl.rows(), decl.cols());
    let inside = |range: &Range<usize>, size| range.start <= range.end && range.end <= size;
    if !inside(&slice.cols, cols) || !slice.rows.iter().all(|range| inside(range, rows)) {
        return Err(format!("its part {slice:?} is not within [{rows}, {cols}]"));
    }
    let splits = |at: usize| !at.is_multiple_of(MXFP4_GROUP);
    if decl.format == Format::Mxfp4 && (splits(slice.cols.start) || splits(slice.cols.end)) {
        return Err(format!("its part {slice:?} splits a group of {MXFP4_GROUP} columns"));
    }
    Ok(())
}

/// Reads a slice that [`check_slice`] accepts. `stored` has the weight's values, followed by its
/// scales unless the values are floats of type `dtype`.
pub(crate) fn gather(
    decl: &WeightDecl,
    slice: &Slice,
    dtype: Dtype,
    stored: &[&dyn Rows],
) -> Result<Tensor, Flaw> {
    let part = Part { decl, slice };
    let data = match (decl.format, dtype) {
        (Format::Float, Dtype::F32) => part.f32(stored[0])?,
        (Format::Float, _) => part.bf16(stored[0])?,
        (Format::FloatToFp8, _) => part.float_to_fp8(dtype, stored[0])?,
        (Format::Fp8 { .. }, _) => part.fp8(stored[0], stored[1])?,
        (Format::Mxfp4, _) => part.mxfp4(stored[0], stored[1])?,
    };
    Ok(Tensor { rows: slice.row_count(), cols: slice.cols.len(), data })
}

struct Part<'a> {
    decl: &'a WeightDecl,
    slice: &'a Slice,
}

impl Part<'_> {
    fn f32(&self, rows: &dyn Rows) -> Result<TensorData, Flaw> {
        let cols = &self.slice.cols;
        let mut values = vec![0.0_f32; self.slice.row_count() * cols.len()];
        self.fill(rows, bytemuck::cast_slice_mut(&mut values), cols.start * 4..cols.end * 4, false);
        self.check(&values, |value| !value.is_finite(), "is NaN or infinite")?;
        Ok(TensorData::F32(values))
    }

    fn bf16(&self, rows: &dyn Rows) -> Result<TensorData, Flaw> {
        const EXPONENT: u16 = 0x7f80;
        let cols = &self.slice.cols;
        let mut bits = vec![0_u16; self.slice.row_count() * cols.len()];
        self.fill(rows, bytemuck::cast_slice_mut(&mut bits), cols.start * 2..cols.end * 2, false);
        self.check(&bits, |bits| bits & EXPONENT == EXPONENT, "is NaN or infinite")?;
        Ok(TensorData::Bf16(bits.reinterpret_into::<bf16>()))
    }

    fn fp8(&self, values: &dyn Rows, scale_rows: &dyn Rows) -> Result<TensorData, Flaw> {
        let cols = self.slice.cols.clone();
        let mut codes = vec![0_u8; self.slice.row_count() * cols.len()];
        self.fill(values, &mut codes, cols.clone(), false);
        self.check(&codes, |code| code & 0x7f == 0x7f, "is NaN")?;
        let (first_tile, tiles) = (cols.start / FP8_TILE, tile_count(cols.start, cols.len()));
        let mut scales = vec![0.0_f32; self.slice.row_count() * tiles];
        let span = first_tile * 4..(first_tile + tiles) * 4;
        self.fill(scale_rows, bytemuck::cast_slice_mut(&mut scales), span, true);
        // This also refuses NaN. The upper bound refuses all scales with which a value could
        // overflow F32.
        let good = |scale: f32| (0.0..=f32::MAX / E4M3_MAX).contains(&scale);
        if let Some(at) = find(&scales, |scale| !good(scale)) {
            let row = self.decl.format.scale_row(self.whole_row(at / tiles));
            let col = first_tile + at % tiles;
            let what = "is a scale that is negative, NaN or too large";
            return Err(Flaw { in_scales: true, row, col, what });
        }
        Ok(TensorData::Fp8 { codes, scales, first_col: cols.start })
    }

    /// Rounds floats to FP8. The scale of a row in a column tile maps the tile's largest value to
    /// the largest code. Tiles are those of the whole weight, so ranks agree about the tiles that
    /// they share.
    fn float_to_fp8(&self, dtype: Dtype, values: &dyn Rows) -> Result<TensorData, Flaw> {
        let cols = self.slice.cols.clone();
        let first = cols.start / FP8_TILE * FP8_TILE;
        let end = cols.end.next_multiple_of(FP8_TILE).min(self.decl.cols());
        let tiles = Slice { rows: self.slice.rows.clone(), cols: first..end };
        let decl = WeightDecl { format: Format::Float, ..self.decl.clone() };
        let tensor = gather(&decl, &tiles, dtype, &[values])?;
        let (mut codes, mut scales) = (Vec::new(), Vec::new());
        let mut row = vec![0.0; tensor.cols];
        for index in 0..tensor.rows {
            tensor.decode_row(index, &mut row);
            for (place, tile) in (first..).step_by(FP8_TILE).zip(row.chunks(FP8_TILE)) {
                let largest = tile.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
                let scale = if largest > 0.0 { largest / E4M3_MAX } else { 1.0 };
                scales.push(scale);
                let own = (place..).zip(tile).filter(|(col, _)| cols.contains(col));
                codes.extend(own.map(|(_, value)| e4m3_code(value / scale)));
            }
        }
        Ok(TensorData::Fp8 { codes, scales, first_col: cols.start })
    }

    fn mxfp4(&self, values: &dyn Rows, scale_rows: &dyn Rows) -> Result<TensorData, Flaw> {
        /// 2^125. Twice that, times the largest code, 6, overflows F32. 255 is NaN.
        const SCALE_MAX: u8 = 252;
        let cols = &self.slice.cols;
        let mut codes = vec![0_u8; self.slice.row_count() * cols.len() / 2];
        self.fill(values, &mut codes, cols.start / 2..cols.end / 2, false);
        let groups = cols.start / MXFP4_GROUP..cols.end / MXFP4_GROUP;
        let mut scales = vec![0_u8; self.slice.row_count() * groups.len()];
        self.fill(scale_rows, &mut scales, groups.clone(), false);
        if let Some(at) = find(&scales, |scale| scale > SCALE_MAX) {
            let row = self.decl.stored_row(self.whole_row(at / groups.len()));
            let col = groups.start + at % groups.len();
            let what = "is a scale that is NaN or too large";
            return Err(Flaw { in_scales: true, row, col, what });
        }
        Ok(TensorData::Mxfp4 { codes, scales })
    }

    /// Fills `out` with the bytes `span` of each row of the slice, or of each row's scales.
    fn fill(&self, stored: &dyn Rows, out: &mut [u8], span: Range<usize>, by_scale_row: bool) {
        if span.is_empty() {
            return;
        }
        let rows = self.slice.rows.iter().cloned().flatten();
        for (row, out) in rows.zip(out.chunks_exact_mut(span.len())) {
            let row = if by_scale_row { self.decl.format.scale_row(row) } else { row };
            let row = self.decl.stored_row(row);
            if self.has_cols_apart() {
                let width = span.len() / self.slice.cols.len();
                for (col, out) in self.slice.cols.clone().zip(out.chunks_exact_mut(width)) {
                    stored.fill(row, self.decl.stored_col(col) * width, out);
                }
            } else {
                stored.fill(row, span.start, out);
            }
        }
    }

    /// Whether adjacent columns of the weight are apart in the stored tensor.
    fn has_cols_apart(&self) -> bool {
        self.decl.stack.as_ref().is_some_and(|stack| stack.cols != Stride::run_from(0))
    }

    fn check<T: Copy>(
        &self,
        values: &[T],
        bad: impl Fn(T) -> bool,
        what: &'static str,
    ) -> Result<(), Flaw> {
        find(values, bad).map_or(Ok(()), |at| {
            let cols = &self.slice.cols;
            let row = self.decl.stored_row(self.whole_row(at / cols.len()));
            let col = self.decl.stored_col(cols.start + at % cols.len());
            Err(Flaw { in_scales: false, row, col, what })
        })
    }

    /// The row of the whole weight that is this row of the slice.
    fn whole_row(&self, row: usize) -> usize {
        let mut rows = self.slice.rows.iter().cloned().flatten();
        rows.nth(row).expect("a row of the slice")
    }
}

/// The place of the first bad value. Whole runs are checked without an early exit, so that the
/// check is vectorised.
fn find<T: Copy>(values: &[T], bad: impl Fn(T) -> bool) -> Option<usize> {
    const RUN: usize = 4096;
    let has_bad = |run: &[T]| run.iter().fold(false, |found, value| found | bad(*value));
    let run = values.chunks(RUN).position(has_bad)?;
    let at = values[run * RUN..].iter().position(|value| bad(*value))?;
    Some(run * RUN + at)
}

#[cfg(test)]
mod tests;
