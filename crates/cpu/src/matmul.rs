//! Weights times activations, weights decoded a row at a time.

use kilotok_weights::{Tensor, TensorData};
use pulp::Simd;
use rayon::prelude::*;

use crate::math::Vectorised;
use crate::products::Products;

/// Multiply-adds below which another thread costs more than it saves.
const TASK_MIN: usize = 1 << 16;
/// Multiply-adds that take as long as decoding a weight.
const DECODE_COST: usize = 4;
/// Rows decoded together, so that a vector is used as often while it is in the nearest cache.
const TILE_ROWS: usize = 8;

/// The product of a matrix with `n` vectors, laid out `[rows, n]`: `x` is `[n, cols]`.
pub(crate) fn matmul(w: &Tensor, x: &[f32]) -> Vec<f32> {
    let n = x.len() / w.cols;
    let mut out = vec![0.0; w.rows * n];
    if n > 0 {
        let rows = task_rows(w, n);
        out.par_chunks_mut(rows * n).enumerate().for_each_init(Vec::new, |decoded, (task, out)| {
            RowsTimes { w, first: task * rows, x, decoded, out }.dispatch();
        });
    }
    out
}

/// Like [`matmul`], laid out `[n, rows]`.
pub(crate) fn matmul_rows(w: &Tensor, x: &[f32]) -> Vec<f32> {
    transpose(&matmul(w, x), x.len() / w.cols)
}

/// Rows that make one task.
pub(crate) fn task_rows(w: &Tensor, n: usize) -> usize {
    TASK_MIN.div_ceil(w.cols * (n + DECODE_COST)).next_multiple_of(TILE_ROWS).min(w.rows)
}

/// Rows `first..` of the product, as many as `out` holds, `[rows, n]`.
pub(crate) struct RowsTimes<'a> {
    pub(crate) w: &'a Tensor,
    pub(crate) first: usize,
    pub(crate) x: &'a [f32],
    /// Memory for a few rows' values.
    pub(crate) decoded: &'a mut Vec<f32>,
    pub(crate) out: &'a mut [f32],
}

impl Vectorised for RowsTimes<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { w, first, x, decoded, out } = self;
        let (cols, n) = (w.cols, x.len() / w.cols);
        decoded.resize(TILE_ROWS * cols, 0.0);
        for (tile, out) in out.chunks_mut(TILE_ROWS * n).enumerate() {
            let (first, rows) = (first + tile * TILE_ROWS, out.len() / n);
            let weights = if let TensorData::F32(values) = &w.data {
                &values[first * cols..][..rows * cols]
            } else {
                for (row, decoded) in decoded.chunks_exact_mut(cols).take(rows).enumerate() {
                    w.decode_row(first + row, decoded);
                }
                &decoded[..rows * cols]
            };
            Products { cols, w: weights, x, strides: [n, 1], out }.compute(simd);
        }
    }
}

/// `[rows, n]` to `[n, rows]`.
pub(crate) fn transpose(x: &[f32], n: usize) -> Vec<f32> {
    let rows = x.len().checked_div(n).unwrap_or(0);
    let mut out = vec![0.0; x.len()];
    for (row, values) in x.chunks_exact(n.max(1)).enumerate() {
        for (i, value) in values.iter().enumerate() {
            out[i * rows + row] = *value;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_vectors_gives_the_same_bits() {
        let (rows, cols) = (5, 70);
        let value = |i: usize| ((i * 29 % 83) as f32 - 40.0) / 13.0;
        let w = Tensor { rows, cols, data: TensorData::F32((0..rows * cols).map(value).collect()) };
        let x: Vec<f32> = (0..7 * cols).map(|i| value(i + 11)).collect();
        let together = matmul_rows(&w, &x);
        for (n, x) in x.chunks_exact(cols).enumerate() {
            assert_eq!(together[n * rows..][..rows], matmul_rows(&w, x), "vector {n}");
        }
    }

    #[test]
    fn no_vectors_no_output() {
        let w = Tensor { rows: 2, cols: 3, data: TensorData::F32(vec![0.0; 6]) };
        assert!(matmul_rows(&w, &[]).is_empty());
    }
}
