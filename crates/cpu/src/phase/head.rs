//! The vocabulary projection. Each rank has its share of the tokens.

use kilotok_weights::Tensor;

use crate::math::rms_norm_in_place;
use crate::matmul::{matmul, vectors};

/// Logits of chosen rows of the residual stream, `[rows, vocab]`.
pub(crate) fn run(
    head: &[Tensor],
    norm: &[f32],
    norm_eps: f32,
    x: &[f32],
    rows: &[usize],
) -> Vec<f32> {
    let hidden = norm.len();
    let mut h = Vec::with_capacity(rows.len() * hidden);
    for row in rows {
        h.extend_from_slice(&x[row * hidden..][..hidden]);
    }
    rms_norm_in_place(&mut h, norm, norm_eps);
    matmul(head, &vectors(&h, hidden))
}
