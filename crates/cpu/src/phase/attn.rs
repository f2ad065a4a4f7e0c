//! Attention over the pages. Each query head sums over its keys in order of position, so where
//! pages begin and how a prompt was cut does not show.

use std::ops::Range;

use kilotok_batch::Batch;
use kilotok_model::AttentionSpec;
use pulp::Simd;
use rayon::prelude::*;

use super::attn_in::Projected;
use crate::math::{Vectorised, exp};
use crate::pages::{LayerPages, Run};
use crate::prefetch::prefetch;
use crate::products::{Products, WeightedSums, sum_each};
use crate::weights::LayerWeights;

/// Queries that share each read of keys and values.
const QUERIES: usize = 8;
/// How many runs ahead keys and values are prefetched.
const RUNS_AHEAD: usize = 4;

/// Attended values of one rank, `[tokens, q_heads * v_dim]`.
pub(crate) fn run(
    spec: &AttentionSpec,
    weights: &LayerWeights,
    rank: usize,
    batch: &Batch<'_>,
    projected: &Projected,
    pages: &LayerPages,
) -> Vec<f32> {
    let rows = batch.rows.iter().map(|row| row.first..row.first + row.count);
    let kv = Paged { spec, batch, pages };
    Heads::new(spec, weights, rank).attend(rows, projected, &kv)
}

/// The keys and values that tokens see.
pub(crate) trait Kv: Sync {
    /// The positions that a token sees.
    fn span(&self, token: usize) -> Range<u32>;

    /// Appends the keys and values of a K/V head at positions of a token's row.
    fn runs<'a>(
        &'a self,
        token: usize,
        head: usize,
        positions: Range<u32>,
        runs: &mut Vec<Run<'a>>,
    );
}

/// The keys and values of a batch, in the pages of its rows.
struct Paged<'a> {
    spec: &'a AttentionSpec,
    batch: &'a Batch<'a>,
    pages: &'a LayerPages,
}

impl Kv for Paged<'_> {
    fn span(&self, token: usize) -> Range<u32> {
        let end = self.batch.positions[token] + 1;
        self.spec.window().map_or(0, |keys| end.saturating_sub(keys as u32))..end
    }

    fn runs<'a>(
        &'a self,
        token: usize,
        head: usize,
        positions: Range<u32>,
        runs: &mut Vec<Run<'a>>,
    ) {
        let pages = &self.batch.row(token).pages[self.pages.group];
        self.pages.runs(pages, head, positions, |run| runs.push(run));
    }
}

/// The query heads of a rank.
pub(crate) struct Heads<'a> {
    spec: &'a AttentionSpec,
    sinks: &'a [f32],
    /// How many consecutive query heads read the same K/V head.
    group: usize,
}

/// Queries of neighbouring tokens that read the same K/V head, and the places of their results.
struct Task<'a, 'b> {
    tokens: Range<usize>,
    head: usize,
    q: Vec<&'a [f32]>,
    out: Vec<&'b mut [f32]>,
}

impl<'a> Heads<'a> {
    pub(crate) fn new(spec: &'a AttentionSpec, weights: &'a LayerWeights, rank: usize) -> Self {
        let rank_count = weights.ranks.len();
        // With more ranks than K/V heads all query heads of a rank read its only one.
        let group = (spec.q_heads / spec.kv_heads).min(spec.q_heads / rank_count);
        Self { spec, sinks: &weights.ranks[rank].sinks, group }
    }

    /// Attended values `[tokens, q_heads * v_dim]` of rows of consecutive tokens.
    pub(crate) fn attend(
        &self,
        rows: impl Iterator<Item = Range<usize>>,
        projected: &Projected,
        kv: &impl Kv,
    ) -> Vec<f32> {
        let Self { spec, sinks, group } = *self;
        let together = (QUERIES / group).max(1);
        let cut = |row: Range<usize>| {
            let end = row.end;
            row.step_by(together).map(move |first| first..end.min(first + together))
        };
        let parts: Vec<_> = rows.flat_map(cut).collect();
        let (q_heads, token_count) =
            (projected.q(0).len() / spec.qk_dim, parts.last().map_or(0, |tokens| tokens.end));
        let mut out = vec![0.0; token_count * q_heads * spec.v_dim];
        let mut places = out.chunks_exact_mut(q_heads * spec.v_dim);
        let mut tasks = Vec::new();
        for tokens in parts {
            let first = tasks.len();
            let task = |head| Task { tokens: tokens.clone(), head, q: vec![], out: vec![] };
            tasks.extend((0..q_heads / group).map(task));
            for (token, out) in tokens.zip(&mut places) {
                let heads = projected.q(token).chunks_exact(spec.qk_dim);
                for (i, (q, out)) in heads.zip(out.chunks_exact_mut(spec.v_dim)).enumerate() {
                    tasks[first + i / group].q.push(q);
                    tasks[first + i / group].out.push(out);
                }
            }
        }
        // All tokens of a head one after the other, while its keys are in a near cache.
        tasks.sort_by_key(|task| task.head);
        tasks.into_par_iter().for_each_init(Vec::new, |scores, task| {
            let Task { tokens, head, q, mut out } = task;
            let sinks = sinks.get(head * group..(head + 1) * group).unwrap_or_default();
            let runs = runs(kv, &tokens, head);
            let of_token = |token| std::iter::repeat_n(kv.span(token), group);
            let spans: Vec<_> = tokens.flat_map(of_token).collect();
            Attend { q: &q, spans: &spans, runs: &runs, sinks, scores, out: &mut out }.dispatch();
        });
        out
    }
}

/// The keys and values that any of these neighbouring tokens sees. Those that all of them see are
/// runs of their own.
fn runs<'a>(kv: &'a impl Kv, tokens: &Range<usize>, head: usize) -> Vec<Run<'a>> {
    let (first, last) = (kv.span(tokens.start), kv.span(tokens.end - 1));
    let mut cuts = [first.start, first.end, last.start.min(last.end), last.end];
    cuts.sort_unstable();
    let mut runs = Vec::new();
    for cut in cuts.windows(2) {
        kv.runs(tokens.start, head, cut[0]..cut[1], &mut runs);
    }
    runs
}

/// out = softmax(q k / sqrt(dim)) v for queries that share keys and values; a sink takes its share
/// of its head's softmax and adds nothing.
struct Attend<'a, 'b> {
    /// By token, then head.
    q: &'a [&'a [f32]],
    /// The positions that each query sees.
    spans: &'a [Range<u32>],
    /// Keys and values of all these positions, one after the other.
    runs: &'a [Run<'a>],
    /// One per head, or none.
    sinks: &'a [f32],
    /// Memory for one score per query and key.
    scores: &'a mut Vec<f32>,
    /// Zeros.
    out: &'a mut [&'b mut [f32]],
}

impl<'a> Vectorised for Attend<'a, '_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { q, spans, runs, sinks, scores, out } = self;
        let (qk_dim, v_dim, n) = (q[0].len(), out[0].len(), q.len());
        let begin = runs[0].first;
        let count = runs.iter().map(|run| run.keys.len() / qk_dim).sum::<usize>();
        let ahead = |i: usize, part: fn(&Run<'a>) -> &'a [f32]| {
            runs.get(i + RUNS_AHEAD).map_or(&[][..], |run| bytemuck::cast_slice(part(run)))
        };
        scores.clear();
        scores.resize(n * (count + 1), 0.0);
        let (scores, sums) = scores.split_at_mut(n * count);
        let mut places: Vec<_> = scores.chunks_exact_mut(count).collect();
        for (i, run) in runs.iter().enumerate() {
            let ahead = ahead(i, |run| run.keys);
            let (out, first) = (&mut places[..], (run.first - begin) as usize);
            Products { cols: qk_dim, w: run.keys, x: q, out, first, ahead }.compute(simd);
        }
        let scale = 1.0 / (qk_dim as f32).sqrt();
        let mut shares = Vec::with_capacity(n);
        for (i, (scores, span)) in places.iter_mut().zip(spans).enumerate() {
            let sink = (!sinks.is_empty()).then(|| sinks[i % sinks.len()]);
            let seen = (span.start - begin) as usize..(span.end - begin) as usize;
            *scores = &mut std::mem::take(scores)[seen];
            shares.push(exponentials(scores, scale, sink));
        }
        sum_each(&places, sums);
        for (sum, share) in sums.iter_mut().zip(shares) {
            *sum += share;
        }
        for (i, run) in runs.iter().enumerate() {
            prefetch(ahead(i, |run| run.values));
            let seen = run.first..run.first + (run.keys.len() / qk_dim) as u32;
            let by_all = spans.iter().all(|span| span.start <= seen.start && seen.end <= span.end);
            let together = if by_all { n } else { 1 };
            for i in (0..n).step_by(together) {
                let (from, to) = (spans[i].start.max(seen.start), spans[i].end.min(seen.end));
                if from < to {
                    let within = |position: u32| (position - seen.start) as usize * v_dim;
                    let values = &run.values[within(from)..within(to)];
                    let weights = &scores[i * count + (from - begin) as usize..];
                    let out = &mut out[i..i + together];
                    WeightedSums { cols: v_dim, values, weights, stride: count, out }.add(simd);
                }
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            for value in &mut **out {
                *value /= *sum;
            }
        }
    }
}

/// Turns each score into its term of the softmax, e^(scaled score - largest). Returns the sink's
/// term.
#[inline(always)]
fn exponentials(scores: &mut [f32], scale: f32, sink: Option<f32>) -> f32 {
    for score in &mut *scores {
        *score *= scale;
    }
    // A score that overflowed must not get weight 0, nor be ignored, as `largest` ignores NaN.
    let sound = scores.iter().fold(true, |sound, score| sound & score.is_finite());
    let max = if sound { largest(scores, sink.unwrap_or(f32::NEG_INFINITY)) } else { f32::NAN };
    for score in &mut *scores {
        *score = exp(*score - max);
    }
    sink.map_or(0.0, |sink| exp(sink - max))
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
    use std::slice;

    use super::*;

    /// For queries and keys of one value, of which each query sees a span.
    fn attend(
        q: &[f32],
        spans: &[Range<u32>],
        keys: &[f32],
        values: &[f32],
        sinks: &[f32],
    ) -> Vec<f32> {
        let v_dim = values.len() / keys.len();
        let mut out = vec![0.0; v_dim * q.len()];
        let q: Vec<_> = q.chunks_exact(1).collect();
        let (middle, scores) = (keys.len() / 2, &mut Vec::new());
        let runs = [
            Run { first: 0, keys: &keys[..middle], values: &values[..middle * v_dim] },
            Run { first: middle as u32, keys: &keys[middle..], values: &values[middle * v_dim..] },
        ];
        let places = &mut out.chunks_exact_mut(v_dim).collect::<Vec<_>>();
        Attend { q: &q, spans, runs: &runs, sinks, scores, out: places }.dispatch();
        out
    }

    #[test]
    fn equal_scores_give_the_mean_and_a_sink_takes_its_share() {
        let attend = |values: &[f32], sinks| {
            attend(&[1.0], slice::from_ref(&(0..2)), &[2.0, 2.0], values, sinks)
        };
        assert_eq!(attend(&[3.0, 5.0], &[]), [4.0]);
        assert_eq!(attend(&[3.0, 6.0], &[2.0]), [3.0]);
    }

    #[test]
    fn queries_together_are_as_each_alone_on_what_it_sees() {
        let keys: Vec<f32> = (0..45).map(|key| (key as f32 * 0.7).sin()).collect();
        let values: Vec<f32> = (0..45 * 3).map(|value| (value as f32 * 1.3).cos()).collect();
        let (q, sinks) = ([1.0, -2.0, 0.5, 3.0, 0.0], [0.1, 0.2, 0.3, -0.4, 5.0]);
        for step in [0, 1, 9] {
            let span = |i: u32| i * step..45 - (4 - i) * step;
            let spans: Vec<_> = (0..5).map(span).collect();
            let together = attend(&q, &spans, &keys, &values, &sinks);
            for (i, together) in together.chunks_exact(3).enumerate() {
                let (first, end) = (spans[i].start as usize, spans[i].end as usize);
                let (keys, values) = (&keys[first..end], &values[first * 3..end * 3]);
                let (q, sink) = (&q[i..=i], &sinks[i..=i]);
                let all = 0..keys.len() as u32;
                let alone = attend(q, slice::from_ref(&all), keys, values, sink);
                assert_eq!(alone, together);
            }
        }
    }

    #[test]
    fn a_score_that_overflows_is_told_to_who_sees_it() {
        for key in [-1e30, 1e30, f32::NAN] {
            for sinks in [&[][..], &[0.0]] {
                let (keys, values) = ([1e-30, key, 1e-30], [1.0, f32::NAN, 3.0]);
                let out = attend(&[1e30, 1e30], &[0..1, 0..3], &keys, &values, sinks);
                assert!(out[0].is_finite() && out[1].is_nan(), "{key} {sinks:?}: {out:?}");
            }
        }
    }
}
