//! Attention over the pages. Each query head sums over its keys in order of position, so where
//! pages begin and how a prompt was cut does not show.

use kilotok_model::AttentionSpec;
use pulp::Simd;
use rayon::prelude::*;

use crate::math::{Vectorised, add_scaled, dots, exp};
use crate::matmul::four;
use crate::pages::LayerPages;
use crate::step::Batch;
use crate::weights::LayerWeights;

/// Attended values of one rank, `[tokens, q_heads * v_dim]`.
pub(crate) fn run(
    spec: &AttentionSpec,
    weights: &LayerWeights,
    rank: usize,
    batch: &Batch<'_>,
    q: &[f32],
    pages: &LayerPages,
) -> Vec<f32> {
    let heads = Heads::new(spec, weights, rank);
    let q_heads = q.len() / spec.qk_dim / batch.len();
    let mut out = vec![0.0; batch.len() * q_heads * spec.v_dim];
    let items = out.par_chunks_exact_mut(spec.v_dim).zip(q.par_chunks_exact(spec.qk_dim));
    items.enumerate().for_each_init(Vec::new, |scores, (item, (out, q))| {
        let (token, head) = (item / q_heads, item % q_heads);
        let position = batch.positions[token];
        let run = &batch.row(token).pages[pages.group];
        let first = spec.window().map_or(0, |keys| (position + 1).saturating_sub(keys as u32));
        let kv = || pages.runs(run, heads.kv(head), first, position + 1);
        Attend { q, kv, sink: heads.sink(head), scores, out }.dispatch();
    });
    out
}

/// What query heads of a rank share.
pub(crate) struct Heads<'a> {
    sinks: &'a [f32],
    q_per_kv: usize,
}

impl<'a> Heads<'a> {
    pub(crate) fn new(spec: &AttentionSpec, weights: &'a LayerWeights, rank: usize) -> Self {
        let rank_count = weights.ranks.len();
        // With more ranks than K/V heads all query heads of a rank read its only one.
        let q_per_kv = (spec.q_heads / spec.kv_heads).min(spec.q_heads / rank_count);
        Self { sinks: &weights.ranks[rank].sinks, q_per_kv }
    }

    /// The rank's K/V head that a query head reads.
    pub(crate) fn kv(&self, q_head: usize) -> usize {
        q_head / self.q_per_kv
    }

    pub(crate) fn sink(&self, q_head: usize) -> Option<f32> {
        self.sinks.get(q_head).copied()
    }
}

/// out = softmax(q k / sqrt(dim)) v over keys and values given run by run; the sink takes its
/// share of the softmax and adds nothing.
pub(crate) struct Attend<'a, F> {
    pub(crate) q: &'a [f32],
    /// Goes over keys `[count, qk_dim]` and values `[count, v_dim]`.
    pub(crate) kv: F,
    pub(crate) sink: Option<f32>,
    /// Memory for one score per key.
    pub(crate) scores: &'a mut Vec<f32>,
    /// Zeros, `[v_dim]`.
    pub(crate) out: &'a mut [f32],
}

impl<'a, F: Fn() -> I, I: Iterator<Item = (&'a [f32], &'a [f32])>> Vectorised for Attend<'_, F> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { q, kv, sink, scores, out } = self;
        let scale = 1.0 / (q.len() as f32).sqrt();
        scores.clear();
        for (keys, _) in kv() {
            let fours = keys.chunks_exact(4 * q.len());
            for key in fours.clone() {
                scores.extend_from_slice(&dots(simd, q, four(key)));
            }
            for key in fours.remainder().chunks_exact(q.len()) {
                scores.extend_from_slice(&dots(simd, q, [key]));
            }
        }
        for score in &mut *scores {
            *score *= scale;
        }
        // What overflowed must not weigh nothing, nor be passed over as NaN is by `max`.
        let sound = scores.iter().fold(true, |sound, score| sound & score.is_finite());
        let max = scores.iter().copied().fold(sink.unwrap_or(f32::NEG_INFINITY), f32::max);
        let max = if sound { max } else { f32::NAN };
        for score in &mut *scores {
            *score = exp(*score - max);
        }
        let sum = scores.iter().sum::<f32>() + sink.map_or(0.0, |sink| exp(sink - max));
        let mut weights = scores.iter();
        for (_, values) in kv() {
            for (value, weight) in values.chunks_exact(out.len()).zip(&mut weights) {
                add_scaled(out, *weight, value);
            }
        }
        for value in out {
            *value /= sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attend(q: &[f32], keys: &[f32], values: &[f32], sink: Option<f32>) -> Vec<f32> {
        let mut out = vec![0.0; values.len() * q.len() / keys.len()];
        let (kv, scores) = (|| std::iter::once((keys, values)), &mut Vec::new());
        Attend { q, kv, sink, scores, out: &mut out }.dispatch();
        out
    }

    #[test]
    fn equal_scores_give_the_mean_and_a_sink_takes_its_share() {
        assert_eq!(attend(&[1.0], &[2.0, 2.0], &[3.0, 5.0], None), [4.0]);
        assert_eq!(attend(&[1.0], &[2.0, 2.0], &[3.0, 6.0], Some(2.0)), [3.0]);
    }

    #[test]
    fn a_score_that_overflows_is_told() {
        for key in [-1e30, 1e30, f32::NAN] {
            for sink in [None, Some(0.0)] {
                let out = attend(&[1e30], &[1e-30, key, 1e-30], &[1.0, 2.0, 3.0], sink);
                assert!(out[0].is_nan(), "{key} {sink:?}: {out:?}");
            }
        }
    }
}
