//! Output projection, the all-reduce over ranks, and the residual.

use std::slice;

use crate::math::{add, add_bias};
use crate::matmul::{matmul, vectors};
use crate::weights::{LayerWeights, RankWeights};

/// x += sum over ranks of output * attended, `attended` by rank `[tokens, q_heads * v_dim]`. The
/// first rank's part has the bias.
pub(crate) fn run(weights: &LayerWeights, attended: &[Vec<f32>], x: &mut [f32]) {
    let parts = weights.ranks.iter().zip(attended).enumerate();
    let part = |(index, (rank, attended)): (usize, (&RankWeights, &Vec<f32>))| {
        let mut part = matmul(slice::from_ref(&rank.output), &vectors(attended, rank.output.cols));
        if index == 0 {
            let tokens = part.chunks_exact_mut(rank.output.rows);
            tokens.for_each(|token| add_bias(token, &weights.output_bias));
        }
        part
    };
    add_ranks(x, parts.map(part));
}

/// Adds the ranks' parts to each other in rank order, then to the residual stream.
pub(crate) fn add_ranks(x: &mut [f32], mut parts: impl Iterator<Item = Vec<f32>>) {
    if let Some(mut sum) = parts.next() {
        parts.for_each(|part| add(&mut sum, &part));
        add(x, &sum);
    }
}
