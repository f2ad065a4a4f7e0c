//! Attention over the pages. Each query head sums over its keys in order of position, so where
//! pages begin and how a prompt was cut does not show.

use kilotok_model::AttentionSpec;
use kilotok_rows::Batch;
use pulp::Simd;
use rayon::prelude::*;

use crate::math::{Vectorised, exp};
use crate::pages::LayerPages;
use crate::products::{Products, WeightedSums};
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
    Heads::new(spec, weights, rank).attend(batch.token_count(), q, |token, head| {
        let position = batch.positions[token];
        let run = &batch.row(token).pages[pages.group];
        let first = spec.window().map_or(0, |keys| (position + 1).saturating_sub(keys as u32));
        pages.runs(run, head, first, position + 1).collect()
    })
}

/// The query heads of a rank.
pub(crate) struct Heads<'a> {
    spec: &'a AttentionSpec,
    sinks: &'a [f32],
    /// How many of them, one after the other, read the same K/V head.
    group: usize,
}

impl<'a> Heads<'a> {
    pub(crate) fn new(spec: &'a AttentionSpec, weights: &'a LayerWeights, rank: usize) -> Self {
        let rank_count = weights.ranks.len();
        // With more ranks than K/V heads all query heads of a rank read its only one.
        let group = (spec.q_heads / spec.kv_heads).min(spec.q_heads / rank_count);
        Self { spec, sinks: &weights.ranks[rank].sinks, group }
    }

    /// Attended values `[tokens, q_heads * v_dim]` of queries `[tokens, q_heads * qk_dim]`. `kv`
    /// gives the keys and values that a token sees of a K/V head.
    pub(crate) fn attend<'b>(
        &self,
        token_count: usize,
        q: &[f32],
        kv: impl Fn(usize, usize) -> Vec<Run<'b>> + Sync,
    ) -> Vec<f32> {
        let Self { spec, sinks, group } = *self;
        let (q_width, v_width) = (group * spec.qk_dim, group * spec.v_dim);
        let kv_heads = q.len() / q_width / token_count;
        let mut out = vec![0.0; token_count * kv_heads * v_width];
        let places = out.chunks_exact_mut(v_width).zip(q.chunks_exact(q_width)).enumerate();
        let mut places: Vec<_> = places.collect();
        // All tokens of a head one after the other, while its keys are in a near cache.
        places.sort_by_key(|(place, _)| place % kv_heads);
        places.into_par_iter().for_each_init(Vec::new, |scores, (place, (out, q))| {
            let (token, head) = (place / kv_heads, place % kv_heads);
            let sinks = sinks.get(head * group..(head + 1) * group).unwrap_or_default();
            let kv = &kv(token, head)[..];
            Attend { qk_dim: spec.qk_dim, q, kv, sinks, scores, out }.dispatch();
        });
        out
    }
}

/// Keys `[count, qk_dim]` and values `[count, v_dim]` that lie together.
pub(crate) type Run<'a> = (&'a [f32], &'a [f32]);

/// out = softmax(q k / sqrt(dim)) v for query heads that share keys and values; a sink takes its
/// share of its head's softmax and adds nothing.
struct Attend<'a> {
    qk_dim: usize,
    /// `[heads, qk_dim]`
    q: &'a [f32],
    kv: &'a [Run<'a>],
    /// One per head, or none.
    sinks: &'a [f32],
    /// Memory for one score per head and key.
    scores: &'a mut Vec<f32>,
    /// Zeros, `[heads, v_dim]`.
    out: &'a mut [f32],
}

impl Vectorised for Attend<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { qk_dim, q, kv, sinks, scores, out } = self;
        let heads = q.len() / qk_dim;
        let v_dim = out.len() / heads;
        let count: usize = kv.iter().map(|(keys, _)| keys.len() / qk_dim).sum();
        scores.clear();
        scores.resize(heads * (count + 1), 0.0);
        let (scores, sums) = scores.split_at_mut(heads * count);
        let mut first = 0;
        for (keys, _) in kv {
            let out = &mut scores[first..];
            Products { cols: qk_dim, w: keys, x: q, strides: [1, count], out }.compute(simd);
            first += keys.len() / qk_dim;
        }
        let scale = 1.0 / (qk_dim as f32).sqrt();
        for (head, (scores, sum)) in scores.chunks_exact_mut(count).zip(&mut *sums).enumerate() {
            *sum = exponentials(scores, scale, sinks.get(head).copied());
        }
        let mut first = 0;
        for (_, values) in kv {
            let weights = &scores[first..];
            WeightedSums { cols: v_dim, values, weights, stride: count, out: &mut *out }.add(simd);
            first += values.len() / v_dim;
        }
        for (out, sum) in out.chunks_exact_mut(v_dim).zip(sums) {
            for value in out {
                *value /= *sum;
            }
        }
    }
}

/// Makes each score the exponential of how far it is, scaled, below the largest. Returns their sum
/// and the sink's share.
#[inline(always)]
fn exponentials(scores: &mut [f32], scale: f32, sink: Option<f32>) -> f32 {
    for score in &mut *scores {
        *score *= scale;
    }
    // What overflowed must not weigh nothing, nor be passed over as the largest passes over NaN.
    let sound = scores.iter().fold(true, |sound, score| sound & score.is_finite());
    let max = if sound { largest(scores, sink.unwrap_or(f32::NEG_INFINITY)) } else { f32::NAN };
    for score in &mut *scores {
        *score = exp(*score - max);
    }
    scores.iter().sum::<f32>() + sink.map_or(0.0, |sink| exp(sink - max))
}

/// The largest of scores and one more number.
#[inline(always)]
fn largest(scores: &[f32], other: f32) -> f32 {
    // Several at once; the largest is the same in any order.
    let mut lanes = [other; 32];
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (runs, rest) = scores.as_chunks::<32>();
    for run in runs {
        for (lane, score) in lanes.iter_mut().zip(run) {
            *lane = larger(*lane, *score);
        }
    }
    lanes.into_iter().chain(rest.iter().copied()).fold(other, larger)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For heads with queries and keys of one value.
    fn attend(q: &[f32], keys: &[f32], values: &[f32], sinks: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; values.len() * q.len() / keys.len()];
        let (kv, scores) = (&[(keys, values)], &mut Vec::new());
        Attend { qk_dim: 1, q, kv, sinks, scores, out: &mut out }.dispatch();
        out
    }

    #[test]
    fn equal_scores_give_the_mean_and_a_sink_takes_its_share() {
        assert_eq!(attend(&[1.0], &[2.0, 2.0], &[3.0, 5.0], &[]), [4.0]);
        assert_eq!(attend(&[1.0], &[2.0, 2.0], &[3.0, 6.0], &[2.0]), [3.0]);
    }

    #[test]
    fn heads_of_a_group_are_as_each_alone() {
        let keys: Vec<f32> = (0..45).map(|key| (key as f32 * 0.7).sin()).collect();
        let values: Vec<f32> = (0..45 * 3).map(|value| (value as f32 * 1.3).cos()).collect();
        let (q, sinks) = ([1.0, -2.0, 0.5, 3.0, 0.0], [0.1, 0.2, 0.3, -0.4, 5.0]);
        let together = attend(&q, &keys, &values, &sinks);
        for (head, together) in together.chunks_exact(3).enumerate() {
            assert_eq!(attend(&q[head..=head], &keys, &values, &sinks[head..=head]), together);
        }
    }

    #[test]
    fn a_score_that_overflows_is_told() {
        for key in [-1e30, 1e30, f32::NAN] {
            for sinks in [&[][..], &[0.0]] {
                let out = attend(&[1e30], &[1e-30, key, 1e-30], &[1.0, 2.0, 3.0], sinks);
                assert!(out[0].is_nan(), "{key} {sinks:?}: {out:?}");
            }
        }
    }
}
