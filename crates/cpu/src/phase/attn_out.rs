//! Output projection, the exchange between ranks, and the residual.

use crate::math::add;
use crate::matmul::matmul_rows;
use crate::weights::LayerWeights;

/// x += sum over ranks of output * attended, `attended` by rank `[tokens, q_heads * v_dim]`.
pub(crate) fn run(weights: &LayerWeights, attended: &[Vec<f32>], x: &mut [f32]) {
    let parts = weights.ranks.iter().zip(attended);
    add_ranks(x, parts.map(|(rank, attended)| matmul_rows(&rank.output, attended)));
}

/// Adds the ranks' parts to each other in rank order, then to the residual stream.
pub(crate) fn add_ranks(x: &mut [f32], mut parts: impl Iterator<Item = Vec<f32>>) {
    if let Some(mut sum) = parts.next() {
        parts.for_each(|part| add(&mut sum, &part));
        add(x, &sum);
    }
}
