//! Weights times activations, weights decoded a row at a time.

use kilotok_weights::{Tensor, TensorData};
use pulp::Simd;
use rayon::current_num_threads;
use rayon::prelude::*;

use crate::math::Vectorised;
use crate::prefetch::prefetch;
use crate::products::Products;

/// Multiply-adds below which another thread costs more than it saves.
const TASK_MIN: usize = 1 << 16;
/// Tasks for each thread; with more of them, making them takes longer than they save.
const TASKS: usize = 8;
/// Multiply-adds that take as long as decoding a weight.
const DECODE_COST: usize = 4;
/// Rows decoded together: each vector is used this many times while it is in the L1 cache.
const TILE_ROWS: usize = 8;

/// The products of several matrices with the same vectors: for each vector, those of one matrix
/// after those of the other.
pub(crate) fn matmul(matrices: &[Tensor], x: &[&[f32]]) -> Vec<f32> {
    let width: usize = matrices.iter().map(|w| w.rows).sum();
    let mut out = vec![0.0; x.len() * width];
    let mut places: Vec<_> = out.chunks_exact_mut(width).collect();
    let tasks: Vec<_> =
        matrices.iter().flat_map(|w| tasks(w, x, &mut places, matrices.len())).collect();
    tasks.into_par_iter().for_each_init(Vec::new, |decoded, task| task.run(decoded));
    out
}

/// Vectors that lie one after the other.
pub(crate) fn vectors(x: &[f32], cols: usize) -> Vec<&[f32]> {
    x.chunks_exact(cols).collect()
}

/// Some rows of a matrix times all vectors.
pub(crate) struct Task<'a, 'b> {
    pub(crate) w: &'a Tensor,
    pub(crate) first: usize,
    pub(crate) x: &'a [&'a [f32]],
    /// For each vector the products.
    pub(crate) out: Vec<&'b mut [f32]>,
}

/// Cuts the product of one of `matrices` matrices, which are worked on at once, into tasks. The
/// tasks take as many places of each vector as the matrix has rows.
pub(crate) fn tasks<'a, 'b>(
    w: &'a Tensor,
    x: &'a [&'a [f32]],
    places: &mut [&'b mut [f32]],
    matrices: usize,
) -> Vec<Task<'a, 'b>> {
    if x.is_empty() {
        return Vec::new();
    }
    let least = TASK_MIN.div_ceil(w.cols * (x.len() + DECODE_COST));
    let share = w.rows.div_ceil((TASKS * current_num_threads()).div_ceil(matrices));
    let rows = least.max(share).next_multiple_of(TILE_ROWS);
    let task = |first| {
        let count = rows.min(w.rows - first);
        let out = places
            .iter_mut()
            .map(|place| place.split_off_mut(..count).expect("a place for every row"));
        Task { w, first, x, out: out.collect() }
    };
    (0..w.rows).step_by(rows).map(task).collect()
}

impl Task<'_, '_> {
    /// `decoded` is memory for a few rows' values.
    pub(crate) fn run(self, decoded: &mut Vec<f32>) {
        let Self { w, first, x, mut out } = self;
        RowsTimes { w, first, x, decoded, out: &mut out }.dispatch();
    }
}

/// Rows `first..` of the product, as many as each of `out` holds.
pub(crate) struct RowsTimes<'a, 'b> {
    pub(crate) w: &'a Tensor,
    pub(crate) first: usize,
    pub(crate) x: &'a [&'a [f32]],
    /// Memory for a few rows' values.
    pub(crate) decoded: &'a mut Vec<f32>,
    pub(crate) out: &'a mut [&'b mut [f32]],
}

impl Vectorised for RowsTimes<'_, '_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { w, first, x, decoded, out } = self;
        let (cols, count) = (w.cols, out[0].len());
        decoded.resize(TILE_ROWS * cols, 0.0);
        prefetch(w.rows_memory(first..first + TILE_ROWS));
        for tile in (0..count).step_by(TILE_ROWS) {
            let (place, rows) = (first + tile, TILE_ROWS.min(count - tile));
            let ahead = w.rows_memory(place + TILE_ROWS..place + 2 * TILE_ROWS);
            let weights = if let TensorData::F32(values) = &w.data {
                &values[place * cols..][..rows * cols]
            } else {
                for (row, decoded) in decoded.chunks_exact_mut(cols).take(rows).enumerate() {
                    w.decode_row(place + row, decoded);
                }
                &decoded[..rows * cols]
            };
            Products { cols, w: weights, x, out: &mut *out, first: tile, ahead }.compute(simd);
        }
    }
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
        let (w, x) = ([w], vectors(&x, cols));
        let together = matmul(&w, &x);
        for (n, x) in x.iter().enumerate() {
            assert_eq!(together[n * rows..][..rows], matmul(&w, &[x]), "vector {n}");
        }
    }

    #[test]
    fn matrices_follow_each_other_for_each_vector() {
        let value = |i: usize| ((i * 31 % 57) as f32 - 20.0) / 7.0;
        let matrix = |rows: usize| Tensor {
            rows,
            cols: 9,
            data: TensorData::F32((0..rows * 9).map(|i| value(i + rows)).collect()),
        };
        let (matrices, x) = ([matrix(3), matrix(11)], [[1.5; 9], [-0.25; 9]]);
        for (x, products) in x.iter().zip(matmul(&matrices, &[&x[0], &x[1]]).chunks_exact(14)) {
            let [first, second] = [0, 1].map(|i| matmul(&matrices[i..=i], &[x]));
            assert_eq!(products, [first, second].concat());
        }
    }

    #[test]
    fn no_vectors_no_output() {
        let w = Tensor { rows: 2, cols: 3, data: TensorData::F32(vec![0.0; 6]) };
        assert!(matmul(&[w], &[]).is_empty());
    }
}
