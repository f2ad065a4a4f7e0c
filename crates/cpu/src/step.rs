//! One step: the phases in the order in which the GPU runs them.

use kilotok_batch::{Batch, wanted_tokens};
use kilotok_engine::StepOutput;
use kilotok_model::{FeedForwardSpec, LayerSpec, ModelSpec};

use crate::engine::CpuEngine;
use crate::math::rms_norm;
use crate::pages::LayerPages;
use crate::phase::router::Routes;
use crate::phase::{attn, attn_in, attn_out, dense, draft, embed, experts, head, router};
use crate::watch::{Seen, Watch};
use crate::weights::{LayerWeights, ModelWeights};

/// What never changes while the engine lives.
pub(crate) struct Model {
    pub(crate) spec: ModelSpec,
    pub(crate) weights: ModelWeights,
}

/// Runs a checked plan.
pub(crate) fn run(engine: &mut CpuEngine, batch: &Batch<'_>, out: &mut StepOutput) {
    // A thread of the pool hands out work without going to sleep at every phase.
    rayon::scope(|_| phases(engine, batch, out));
}

fn phases(engine: &mut CpuEngine, batch: &Batch<'_>, out: &mut StepOutput) {
    let CpuEngine { caps, model, pages, slots, samplers, watch, .. } = engine;
    let model = &*model;
    let Model { spec, weights } = model;
    let mut x = embed::run(weights, &batch.tokens);
    watch_hidden(watch, batch, 0, &x);
    let mut taps = draft::Taps::new(spec, batch.token_count());
    let layers = spec.layers.iter().zip(&weights.layers).zip(&mut pages.target);
    for (index, ((layer, weights), pages)) in layers.enumerate() {
        let routes = run_layer(layer, weights, spec.norm_eps, batch, pages, &mut x);
        taps.keep(index, &x);
        watch_experts(watch, batch, index, &routes);
        watch_hidden(watch, batch, index + 1, &x);
    }
    let wanted = wanted_tokens(batch);
    let logits = head::run(&weights.head, &weights.final_norm, spec.norm_eps, &x, &wanted);
    if let Some(watch) = watch {
        for (&token, values) in wanted.iter().zip(logits.chunks_exact(spec.vocab_size)) {
            watch(Seen::Logits { position: batch.positions[token], values });
        }
    }
    let committed = samplers.verify(batch, &logits, slots, out);
    if let Some(drafter) = draft::Drafter::new(model) {
        let read = batch.in_context(&caps.groups);
        let committed: Vec<usize> = committed.into_iter().filter(|token| read[*token]).collect();
        drafter.commit(batch, &committed, &taps, &mut pages.drafter, watch);
        drafter.draft(batch, &pages.drafter, slots, samplers, out, watch);
    }
}

/// Attention, then the feed-forward network, each added to the residual stream. Returns the
/// routes of every token where there are experts.
fn run_layer(
    spec: &LayerSpec,
    weights: &LayerWeights,
    norm_eps: f32,
    batch: &Batch<'_>,
    pages: &mut [LayerPages],
    x: &mut [f32],
) -> Vec<Routes> {
    let projection = attn_in::Projection { spec: &spec.attention, weights };
    let h = rms_norm(x, &weights.input_norm, norm_eps);
    let projected = attn_in::run(&projection, batch, &h, pages);
    let ranks = projected.iter().zip(&*pages).enumerate();
    let attended: Vec<_> = ranks
        .map(|(rank, (own, pages))| attn::run(&spec.attention, weights, rank, batch, own, pages))
        .collect();
    attn_out::run(weights, &attended, x);
    feed_forward(spec, weights, norm_eps, x)
}

/// Norm, router where there is one, and the network or its experts.
pub(crate) fn feed_forward(
    spec: &LayerSpec,
    weights: &LayerWeights,
    norm_eps: f32,
    x: &mut [f32],
) -> Vec<Routes> {
    let h = rms_norm(x, &weights.post_norm, norm_eps);
    let activation = spec.feed_forward.activation();
    if let (FeedForwardSpec::Experts(spec), Some(router)) = (&spec.feed_forward, &weights.router) {
        let routes = router::run(spec, router, &h);
        experts::run(activation, weights, &routes, &h, x);
        routes
    } else {
        dense::run(activation, weights, &h, x);
        Vec::new()
    }
}

fn watch_experts(watch: &mut Option<Watch>, batch: &Batch<'_>, layer: usize, routes: &[Routes]) {
    if let Some(watch) = watch {
        for (&position, routes) in batch.positions.iter().zip(routes) {
            let experts: Vec<usize> = routes.routes.iter().map(|route| route.expert).collect();
            let lead = routes.lead;
            watch(Seen::Experts { layer, position, experts: &experts, lead });
        }
    }
}

fn watch_hidden(watch: &mut Option<Watch>, batch: &Batch<'_>, index: usize, x: &[f32]) {
    if let Some(watch) = watch {
        let width = x.len() / batch.token_count();
        for (&position, values) in batch.positions.iter().zip(x.chunks_exact(width)) {
            watch(Seen::Hidden { index, position, values });
        }
    }
}
