//! The DFlash drafter. Committed tokens leave keys and values that come from the target's tapped
//! residual streams; a draft pass reads them, guesses all its tokens at once and leaves nothing.

use std::ops::Range;

use kilotok_abi::TokenId;
use kilotok_batch::{Batch, Samplers, Slots};
use kilotok_engine::{Row, StepOutput};
use kilotok_model::{AttentionSpec, DrafterSpec, ModelSpec};

use super::attn::{Heads, Kv};
use super::attn_in::Projection;
use super::{attn_out, embed, head};
use crate::math::{rms_norm, rms_norm_in_place};
use crate::matmul::matmul;
use crate::pages::{LayerPages, Run};
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

    /// Writes the context of committed tokens that later rows may read: norm(fc * taps), then each
    /// layer's keys and values of it. The layers' input norms are not applied.
    pub(crate) fn commit(
        &self,
        batch: &Batch<'_>,
        committed: &[usize],
        taps: &Taps<'_>,
        pages: &mut [Vec<LayerPages>],
        watch: &mut Option<Watch>,
    ) {
        let features: Vec<&[f32]> = committed.iter().map(|&token| taps.of(token)).collect();
        let positions: Vec<u32> = committed.iter().map(|&token| batch.positions[token]).collect();
        // Each rank computes its share of the rows.
        let mut context = matmul(&self.weights.fc, &features);
        rms_norm_in_place(&mut context, &self.weights.context_norm, self.spec.norm_eps);
        for (index, pages) in pages.iter_mut().enumerate() {
            let projection = self.projection(index);
            for (rank, pages) in pages.iter_mut().enumerate() {
                let projected = projection.kv(rank, &context, &positions);
                for (i, &token) in committed.iter().enumerate() {
                    let run = &batch.row(token).pages[pages.group];
                    let (keys, values) = (projected.k(i), projected.v(i));
                    pages.write(run, positions[i], keys, values);
                    if let Some(watch) = watch {
                        let position = positions[i];
                        watch(Seen::DraftContext { layer: index, position, keys, values });
                    }
                }
            }
        }
    }

    fn projection(&self, layer: usize) -> Projection<'a> {
        Projection {
            spec: &self.spec.layers[layer].attention,
            weights: &self.weights.layers[layer],
        }
    }

    /// Drafts for every row that asks, one pass each, and holds them in the slots.
    pub(crate) fn draft(
        &self,
        batch: &Batch<'_>,
        pages: &[Vec<LayerPages>],
        slots: &mut Slots,
        samplers: &mut Samplers,
        out: &mut StepOutput,
        watch: &mut Option<Watch>,
    ) {
        for (row, out) in batch.rows.iter().zip(&mut out.rows) {
            let row = row.plan;
            let Some(held) = slots.held_mut(row.slot).filter(|_| row.draft_next > 0) else {
                continue;
            };
            let logits = self.pass(row, held.anchor, held.start, pages, watch);
            held.drafts = samplers.draft(row.slot, held.start + 1, &logits);
            out.held_count = held.drafts.len() as u32;
            if row.report_drafts {
                out.drafts.clone_from(&held.drafts);
            }
        }
    }

    /// One draft pass: the newest token at `start`, then masks; every draft row sees the context
    /// and all draft rows. Row i predicts the token at its own position: logits `[drafts, vocab]`.
    fn pass(
        &self,
        row: &Row,
        anchor: TokenId,
        start: u32,
        pages: &[Vec<LayerPages>],
        watch: &mut Option<Watch>,
    ) -> Vec<f32> {
        let positions: Vec<u32> = (start..).take(self.spec.rows).collect();
        let mut x = embed::run(self.target, &[anchor]);
        for _ in 1..self.spec.rows {
            x.extend_from_slice(&self.weights.mask);
        }
        for (index, pages) in pages.iter().enumerate() {
            let (spec, weights) = (&self.spec.layers[index], &self.weights.layers[index]);
            let projection = self.projection(index);
            attention(&projection, self.spec.norm_eps, row, &positions, pages, &mut x);
            feed_forward(spec, weights, self.spec.norm_eps, &mut x);
        }
        let drafted: Vec<usize> = (1..self.spec.rows).take(row.draft_next as usize).collect();
        let DrafterWeights { norm, .. } = self.weights;
        let logits = head::run(&self.target.head, norm, self.spec.norm_eps, &x, &drafted);
        if let Some(watch) = watch {
            for (values, &position) in logits.chunks_exact(self.vocab_size).zip(&positions[1..]) {
                watch(Seen::DraftLogits { position, values });
            }
        }
        logits
    }
}

/// Attention of the draft rows in one layer, added to their streams.
fn attention(
    projection: &Projection<'_>,
    norm_eps: f32,
    row: &Row,
    positions: &[u32],
    pages: &[LayerPages],
    x: &mut [f32],
) {
    let Projection { spec, weights } = *projection;
    let h = rms_norm(x, &weights.input_norm, norm_eps);
    let (n, start) = (positions.len(), positions[0]);
    let ranks = pages.iter().enumerate();
    let attended: Vec<_> = ranks
        .map(|(rank, pages)| {
            let own = projection.all(rank, &h, positions);
            let keys = by_head(&(0..n).map(|token| own.k(token)).collect::<Vec<_>>(), spec.qk_dim);
            let values = by_head(&(0..n).map(|token| own.v(token)).collect::<Vec<_>>(), spec.v_dim);
            let positions = start..start + n as u32;
            let kv = Drafted { spec, row, pages, positions, keys, values };
            Heads::new(spec, weights, rank).attend(std::iter::once(0..n), &own, &kv)
        })
        .collect();
    attn_out::run(weights, &attended, x);
}

/// The keys and values that draft rows see: the context's, then their own.
struct Drafted<'a> {
    spec: &'a AttentionSpec,
    row: &'a Row,
    pages: &'a LayerPages,
    positions: Range<u32>,
    /// `[kv_heads, draft rows, dim]`
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Kv for Drafted<'_> {
    /// The window limits how far back a row sees, over context and draft rows alike. A row sees all
    /// draft rows after it.
    fn span(&self, token: usize) -> Range<u32> {
        let end = self.positions.start + token as u32 + 1;
        let first = self.spec.window().map_or(0, |keys| end.saturating_sub(keys as u32));
        first..self.positions.end
    }

    fn runs<'a>(&'a self, _: usize, head: usize, positions: Range<u32>, runs: &mut Vec<Run<'a>>) {
        let start = self.positions.start;
        let context = positions.start..positions.end.min(start);
        let pages = &self.row.pages[self.pages.group];
        self.pages.runs(pages, head, context, |run| runs.push(run));
        let first = positions.start.max(start);
        if first < positions.end {
            let rows = head * self.positions.len();
            let own = (first - start) as usize + rows..(positions.end - start) as usize + rows;
            let part = |x: &'a [f32], dim: usize| &x[own.start * dim..own.end * dim];
            let keys = part(&self.keys, self.spec.qk_dim);
            runs.push(Run { first, keys, values: part(&self.values, self.spec.v_dim) });
        }
    }
}

/// `[n, heads, dim]` to `[heads, n, dim]`.
fn by_head(rows: &[&[f32]], dim: usize) -> Vec<f32> {
    let (mut out, width) = (Vec::new(), rows[0].len());
    for first in (0..width).step_by(dim) {
        for row in rows {
            out.extend_from_slice(&row[first..][..dim]);
        }
    }
    out
}
