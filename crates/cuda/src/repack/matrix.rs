//! Matrices as units of chunks, see `kernels/include/kilotok/gemm/matrix.cuh`.

use kilotok_model::{FP8_TILE, WeightFormat};
use kilotok_weights::{Tensor, TensorData};

use super::chunk::{Chunk, FloatChunk, Fp8Chunk, GROUP_SCALE_MAX, Mxfp4Chunk, TILE_SCALE_MAX};
use crate::buffers::{CHUNK_COLUMNS, CHUNK_ROWS, GATE_ROWS, Matrix};
use crate::constants::Attention;

/// Rows of a chunk that lie above those with which they are rotated.
const PAIR_ROWS: usize = CHUNK_ROWS / 2;

/// A row of one of the tensors of a matrix; `None` is a row of zeros.
type Source = Option<(usize, usize)>;

/// The rows of the tensors one after the other; those of the first are padded with zeros to a
/// multiple of `first_rows`.
pub(super) fn stacked(tensors: &[Tensor], first_rows: usize) -> Vec<Source> {
    in_turn(tensors.iter().map(|tensor| tensor.rows), first_rows)
}

/// The same for tensors with these numbers of rows.
pub(super) fn in_turn(row_counts: impl Iterator<Item = usize>, first_rows: usize) -> Vec<Source> {
    let mut rows = Vec::new();
    for (index, row_count) in row_counts.enumerate() {
        rows.extend((0..row_count).map(|row| Some((index, row))));
        if index == 0 {
            rows.resize(rows.len().next_multiple_of(first_rows), None);
        }
    }
    rows
}

/// The rows of a fused projection, with zeros between those of the queries and the others.
pub(super) fn fused(row_count: usize, query_rows: usize, key_row: usize) -> Vec<Source> {
    let mut rows: Vec<_> = (0..query_rows).map(|row| Some((0, row))).collect();
    rows.resize(key_row, None);
    rows.extend((query_rows..row_count).map(|row| Some((0, row))));
    rows
}

/// Pairs the rows of q and k where the kernels require it: eight rows of a head above those that
/// are rotated with them.
pub(super) fn pair(rows: &mut [Source], attention: &Attention) {
    if !attention.is_paired() {
        return;
    }
    let (heads, pairs) = (attention.q_heads + attention.kv_heads, attention.rope.dims / 2);
    for head in rows.chunks_exact_mut(attention.qk_dim).take(heads) {
        let natural = head[..2 * pairs].to_vec();
        for (place, row) in head[..2 * pairs].iter_mut().enumerate() {
            let (chunk, in_chunk) = (place / CHUNK_ROWS, place % CHUNK_ROWS);
            *row = natural[in_chunk / PAIR_ROWS * pairs + chunk * PAIR_ROWS + in_chunk % PAIR_ROWS];
        }
    }
}

/// Eight rows of gate, the first tensor, above the same rows of up, the second.
pub(super) fn interleaved(width: usize) -> Vec<Source> {
    let mut rows = Vec::new();
    for first in (0..width).step_by(GATE_ROWS) {
        for tensor in 0..2 {
            let eight = first..first + GATE_ROWS;
            rows.extend(eight.map(|row| (row < width).then_some((tensor, row))));
        }
    }
    rows
}

/// The matrix of these rows, in the kernels' layout.
///
/// # Errors
/// A format that the kernels cannot read.
pub(super) fn pack(matrix: Matrix, tensors: &[Tensor], rows: &[Source]) -> Result<Vec<u8>, String> {
    for tensor in tensors {
        if tensor.cols != matrix.columns {
            return Err(format!("has {} columns, not {}", tensor.cols, matrix.columns));
        }
        check_scales(tensor)?;
    }
    if rows.len() != matrix.rows {
        return Err(format!("makes {} rows, not {}", rows.len(), matrix.rows));
    }
    let packed = match matrix.format {
        WeightFormat::Float => pack_as::<FloatChunk>(matrix, tensors, rows),
        WeightFormat::Fp8 => pack_as::<Fp8Chunk>(matrix, tensors, rows),
        WeightFormat::Mxfp4 => pack_as::<Mxfp4Chunk>(matrix, tensors, rows),
    };
    packed.ok_or_else(|| format!("is not stored as {}", matrix.format))
}

/// `None` if a tensor has another format.
fn pack_as<C: Chunk>(matrix: Matrix, tensors: &[Tensor], rows: &[Source]) -> Option<Vec<u8>> {
    let mut bytes = vec![0; matrix.bytes()];
    let (column_warps, chunk_bytes) = (matrix.column_warps(), matrix.chunk_bytes());
    let unit_bytes = matrix.steps() * matrix.step_bytes();
    for (unit, out) in bytes.chunks_exact_mut(unit_bytes).enumerate() {
        for tile in 0..matrix.row_tiles {
            let first = ((unit * matrix.row_tiles + tile) * CHUNK_ROWS).min(rows.len());
            let rows = &rows[first..rows.len().min(first + CHUNK_ROWS)];
            let mut chunk = C::new();
            for (step, out) in out.chunks_exact_mut(matrix.step_bytes()).enumerate() {
                let own =
                    &mut out[tile * column_warps * chunk_bytes..][..column_warps * chunk_bytes];
                for (part, out) in own.chunks_exact_mut(chunk_bytes).enumerate() {
                    let column = (step * column_warps + part) * CHUNK_COLUMNS;
                    for (place, source) in rows.iter().enumerate() {
                        let Some((tensor, row)) = *source else { continue };
                        if !chunk.set(place, &tensors[tensor], row, column) {
                            return None;
                        }
                    }
                    chunk.write(out);
                }
            }
        }
    }
    Some(bytes)
}

fn check_scales(tensor: &Tensor) -> Result<(), String> {
    match &tensor.data {
        TensorData::Fp8 { scales, first_col, .. } => {
            if let Some(scale) = scales.iter().find(|scale| scale.abs() > TILE_SCALE_MAX) {
                return Err(format!("has a scale of {scale:e}, at most {TILE_SCALE_MAX:e}"));
            }
            let tile = |column: usize| (first_col + column) / FP8_TILE;
            let spans = |first: usize| {
                tile(first) != tile(tensor.cols.min(first + CHUNK_COLUMNS).saturating_sub(1))
            };
            if (0..tensor.cols).step_by(CHUNK_COLUMNS).any(spans) {
                return Err(format!("begins at column {first_col}, amid a chunk of its scales"));
            }
        }
        TensorData::Mxfp4 { scales, .. } => {
            if let Some(code) = scales.iter().find(|code| **code > GROUP_SCALE_MAX) {
                let exponent = i32::from(*code) - 127;
                return Err(format!("has a scale of 2^{exponent}, at most 2^101"));
            }
        }
        TensorData::F32(_) | TensorData::Bf16(_) => {}
    }
    Ok(())
}
