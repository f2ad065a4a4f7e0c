//! A feed-forward network that every token goes through.

use kilotok_model::Activation;

use super::attn_out::add_ranks;
use super::experts::{Unit, apply};
use crate::matmul::vectors;
use crate::weights::LayerWeights;

/// x += down(activation(gate h, up h)), the ranks' parts added.
pub(crate) fn run(activation: Activation, weights: &LayerWeights, h: &[f32], x: &mut [f32]) {
    let parts = weights.ranks.iter().map(|rank| {
        let mlp = &rank.feed_forward[0];
        let unit = Unit { mlp, x: vectors(h, mlp.gate.cols) };
        apply(activation, &[unit]).remove(0)
    });
    add_ranks(x, parts);
}
