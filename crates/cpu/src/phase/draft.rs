//! The DFlash drafter. Committed tokens leave keys and values that come from the target's tapped
//! residual streams; a draft pass reads them, guesses all its tokens at once and leaves nothing.

use kilotok_abi::TokenId;
use kilotok_engine::{Row, StepOutput};
use kilotok_model::{AttentionSpec, DrafterSpec, ModelSpec};
use kilotok_rows::{Batch, Slots, likeliest};

use super::attn::Heads;
use super::attn_in::{Projected, Projection};
use super::{attn_out, embed, head};
use crate::math::rms_norm;
use crate::matmul::matmul;
use crate::pages::LayerPages;
use crate::step::{Model, feed_forward};
use crate::watch::{Seen, Watch};
use crate::weights::{DrafterWeights, ModelWeights};

/// Residual streams of the tapped layers, `[tokens, taps * hidden]`.
pub(crate) struct Taps<'a> {
    layers: &'a [usize],
    hidden: usize,
    values: Vec<f32>,
}

impl<'a> Taps<'a> {
    pub(crate) fn new(spec: &'a ModelSpec, token_count: usize) -> Self {
        let layers = spec.drafter.as_ref().map_or(&[][..], |drafter| &drafter.taps);
        let hidden = spec.hidden_size;
        Self { layers, hidden, values: vec![0.0; token_count * layers.len() * hidden] }
    }

    /// Keeps the stream after a layer, if that layer is tapped.
    pub(crate) fn keep(&mut self, layer: usize, x: &[f32]) {
        let (hidden, width) = (self.hidden, self.layers.len() * self.hidden);
        for (tap, _) in self.layers.iter().enumerate().filter(|(_, tapped)| **tapped == layer) {
            for (values, x) in self.values.chunks_exact_mut(width).zip(x.chunks_exact(hidden)) {
                values[tap * hidden..][..hidden].copy_from_slice(x);
            }
        }
    }

    fn of(&self, token: usize) -> &[f32] {
        let width = self.layers.len() * self.hidden;
        &self.values[token * width..][..width]
    }
}

pub(crate) struct Drafter<'a> {
    spec: &'a DrafterSpec,
    weights: &'a DrafterWeights,
    target: &'a ModelWeights,
    vocab_size: usize,
}

impl<'a> Drafter<'a> {
    /// The model's drafter, if it has one.
    pub(crate) fn new(model: &'a Model) -> Option<Self> {
        Some(Self {
            spec: model.spec.drafter.as_ref()?,
            weights: model.weights.drafter.as_ref()?,
            target: &model.weights,
            vocab_size: model.spec.vocab_size,
        })
    }

    /// Writes the context of committed tokens: norm(fc * taps), then each layer's keys and
    /// values of it. The layers' input norms are not applied.
    pub(crate) fn commit(
        &self,
        batch: &Batch<'_>,
        committed: &[usize],
        taps: &Taps<'_>,
        pages: &mut [Vec<LayerPages>],
        watch: &mut Option<Watch>,
    ) {
        let features: Vec<f32> =
            committed.iter().flat_map(|&token| taps.of(token)).copied().collect();
        let positions: Vec<u32> = committed.iter().map(|&token| batch.positions[token]).collect();
        let fused = self.fuse(&features, committed.len());
        let context = rms_norm(&fused, &self.weights.context_norm, self.spec.norm_eps);
        for (index, pages) in pages.iter_mut().enumerate() {
            let projection = self.projection(index);
            for (rank, pages) in pages.iter_mut().enumerate() {
                let (k, v) = projection.kv(rank, &context, &positions);
                for (i, &token) in committed.iter().enumerate() {
                    let run = &batch.row(token).pages[pages.group];
                    let (keys, values) = (part_of(&k, i, committed), part_of(&v, i, committed));
                    pages.write(run, positions[i], keys, values);
                    if let Some(watch) = watch {
                        let position = positions[i];
                        watch(Seen::DraftContext { layer: index, position, keys, values });
                    }
                }
            }
        }
    }

    /// fc * features, `[n, hidden]`; each rank computes its share of the rows.
    fn fuse(&self, features: &[f32], n: usize) -> Vec<f32> {
        let rows: Vec<f32> = self.weights.fc.iter().flat_map(|fc| matmul(fc, features)).collect();
        crate::matmul::transpose(&rows, n)
    }

    fn projection(&self, layer: usize) -> Projection<'a> {
        Projection {
            spec: &self.spec.layers[layer].attention,
            weights: &self.weights.layers[layer],
            norm_eps: self.spec.norm_eps,
        }
    }

    /// Drafts for every row that asks, one pass each, and holds them in the slots.
    pub(crate) fn draft(
        &self,
        batch: &Batch<'_>,
        pages: &[Vec<LayerPages>],
        slots: &mut Slots,
        out: &mut StepOutput,
        watch: &mut Option<Watch>,
    ) {
        for (row, out) in batch.rows.iter().zip(&mut out.rows) {
            let row = row.plan;
            let Some(held) = slots.held_mut(row.slot).filter(|_| row.draft_next > 0) else {
                continue;
            };
            held.drafts = self.pass(row, held.anchor, held.start, pages, watch);
            if row.report_drafts {
                out.drafts.clone_from(&held.drafts);
            }
        }
    }

    /// One draft pass: the newest token at `start`, then masks; every draft row sees the context
    /// and all draft rows. Row i predicts the token at its own position.
    fn pass(
        &self,
        row: &Row,
        anchor: TokenId,
        start: u32,
        pages: &[Vec<LayerPages>],
        watch: &mut Option<Watch>,
    ) -> Vec<TokenId> {
        let positions: Vec<u32> = (start..).take(self.spec.rows).collect();
        let mut x = embed::run(self.target, &[anchor]);
        for _ in 1..self.spec.rows {
            x.extend_from_slice(&self.weights.mask);
        }
        for (index, pages) in pages.iter().enumerate() {
            let (spec, weights) = (&self.spec.layers[index], &self.weights.layers[index]);
            attention(&self.projection(index), row, &positions, pages, &mut x);
            feed_forward(spec, weights, self.spec.norm_eps, &mut x);
        }
        let drafted: Vec<usize> = (1..self.spec.rows).take(row.draft_next as usize).collect();
        let DrafterWeights { norm, .. } = self.weights;
        let logits = head::run(&self.target.head, norm, self.spec.norm_eps, &x, &drafted);
        let rows = logits.chunks_exact(self.vocab_size).zip(&positions[1..]);
        rows.map(|(logits, &position)| {
            if let Some(watch) = watch {
                watch(Seen::DraftLogits { position, values: logits });
            }
            likeliest(logits)
        })
        .collect()
    }
}

/// Attention of the draft rows in one layer, added to their streams.
fn attention(
    projection: &Projection<'_>,
    row: &Row,
    positions: &[u32],
    pages: &[LayerPages],
    x: &mut [f32],
) {
    let Projection { spec, weights, norm_eps } = *projection;
    let h = rms_norm(x, &weights.input_norm, norm_eps);
    let ranks = pages.iter().enumerate();
    let attended: Vec<_> = ranks
        .map(|(rank, pages)| {
            let own = projection.all(rank, &h, positions);
            let heads = Heads::new(spec, weights, rank);
            attend(spec, &heads, &own, row, positions, pages)
        })
        .collect();
    attn_out::run(weights, &attended, x);
}

/// The `i`-th of as many equal parts as there are tokens.
fn part_of<'a>(values: &'a [f32], i: usize, tokens: &[usize]) -> &'a [f32] {
    let width = values.len() / tokens.len();
    &values[i * width..][..width]
}

/// Attention of the draft rows over the context before `positions[0]`, then the draft rows.
fn attend(
    spec: &AttentionSpec,
    heads: &Heads<'_>,
    own: &Projected,
    row: &Row,
    positions: &[u32],
    pages: &LayerPages,
) -> Vec<f32> {
    let (n, start) = (positions.len(), positions[0]);
    let kv_heads = own.k.len() / spec.qk_dim / n;
    let own_keys = by_head(&own.k, kv_heads, spec.qk_dim);
    let own_values = by_head(&own.v, kv_heads, spec.v_dim);
    let run = &row.pages[pages.group];
    heads.attend(n, &own.q, |token, head| {
        // The window reaches back over context and draft rows alike, and forward without end.
        let first =
            spec.window().map_or(0, |keys| (positions[token] + 1).saturating_sub(keys as u32));
        let skipped = first.saturating_sub(start) as usize;
        let draft_rows = (
            &own_keys[head * n * spec.qk_dim..][skipped * spec.qk_dim..(n * spec.qk_dim)],
            &own_values[head * n * spec.v_dim..][skipped * spec.v_dim..(n * spec.v_dim)],
        );
        pages.runs(run, head, first, start).chain([draft_rows]).collect()
    })
}

/// `[n, heads, dim]` to `[heads, n, dim]`.
fn by_head(x: &[f32], heads: usize, dim: usize) -> Vec<f32> {
    let rows = x.chunks_exact(heads * dim);
    (0..heads)
        .flat_map(|head| rows.clone().flat_map(move |row| &row[head * dim..][..dim]))
        .copied()
        .collect()
}
