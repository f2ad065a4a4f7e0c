//! The vocabulary projection. Each rank has its share of the tokens.

use kilotok_weights::Tensor;

use crate::math::rms_norm;
use crate::matmul::matmul_rows;

/// Logits of chosen rows of the residual stream, `[rows, vocab]`.
pub(crate) fn run(
    head: &[Tensor],
    norm: &[f32],
    norm_eps: f32,
    x: &[f32],
    rows: &[usize],
) -> Vec<f32> {
    let hidden = norm.len();
    let chosen: Vec<f32> =
        rows.iter().flat_map(|row| &x[row * hidden..][..hidden]).copied().collect();
    let h = rms_norm(&chosen, norm, norm_eps);
    let parts: Vec<_> = head.iter().map(|rank| matmul_rows(rank, &h)).collect();
    let mut logits =
        Vec::with_capacity(rows.len() * head.iter().map(|rank| rank.rows).sum::<usize>());
    for row in 0..rows.len() {
        for (part, rank) in parts.iter().zip(head) {
            logits.extend_from_slice(&part[row * rank.rows..][..rank.rows]);
        }
    }
    logits
}
