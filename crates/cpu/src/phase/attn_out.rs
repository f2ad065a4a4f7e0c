//! Output projection, the all-reduce over ranks, and the residual.

use std::slice;

use crate::math::{add, add_bias};
use crate::matmul::{matmul, vectors};
use crate::weights::{LayerWeights, RankWeights};

/// x += sum over ranks of output * attended, `attended` by rank `[tokens, q_heads * v_dim]`, and
/// the bias once.
pub(crate) fn run(weights: &LayerWeights, attended: &[Vec<f32>], x: &mut [f32]) {
    let parts = weights.ranks.iter().zip(attended);
    let part = |(rank, attended): (&RankWeights, &Vec<f32>)| {
        matmul(slice::from_ref(&rank.output), &vectors(attended, rank.output.cols))
    };
    add_ranks(x, parts.map(part));
    for x in x.chunks_exact_mut(weights.input_norm.len()) {
        add_bias(x, &weights.output_bias);
    }
}

/// Adds the ranks' parts to each other in rank order, then to the residual stream.
pub(crate) fn add_ranks(x: &mut [f32], mut parts: impl Iterator<Item = Vec<f32>>) {
    if let Some(mut sum) = parts.next() {
        parts.for_each(|part| add(&mut sum, &part));
        add(x, &sum);
    }
}
