//! Mistakes with which an engine runs but generates wrong text. Each is made on purpose, and the
//! fixtures must detect every one.
//!
//! A mistake changes the computation or the reading of weights. Mistakes that cannot be expressed
//! in either way are detected elsewhere:
//! - the routing bias weighs the experts too: the router's tests in `crates/cpu`;
//! - other activations, norms or scores, sinks that carry a value: every test of the target;
//! - causal drafts, context under a layer's input norm, context of refused drafts, drafts for the
//!   position after: every test of the drafter;
//! - a head or an embedding of the drafter's own: its fixtures have neither;
//! - drafter tensors named with `model.` or without, a vocabulary of its own: one fixture each;
//! - tensors left unread: tests in `crates/model`.

use kilotok_model::LayerWeight::{Gate, RouterCorrection, Up};
use kilotok_model::{AttentionSpec, DrafterSpec, ExpertsSpec, FeedForwardSpec, ModelSpec, Reach};

use crate::fixture::{Fixture, Sequence, TOLERANCE, given};
use crate::misread::{self, Misread, Read};
use crate::{draft, target};

/// An error so large that it would be visible even in an engine that rounds activations to BF16,
/// which by itself causes 1e-2.
const NOTICED: f32 = 100.0 * TOLERANCE;

const TARGETS: &[&str] =
    &["plain_f32", "plain_gqa4", "plain_gqa16", "plain_sharded", "fp4_pro", "fp8_v25"];
const QUANTISED: &[&str] = &["fp4_pro", "fp8_v25"];
const FP4: &[&str] = &["fp4_pro"];
const DRAFTERS: &[&str] = &["draft_a", "draft_b", "draft_fp4"];
/// Fused projections, with more K/V heads in window layers than in the others.
const MORE_KV_HEADS: &[&str] = &["fp8_v25"];
/// Split projections, with keys wider than values.
const SPLIT: &[&str] = &["plain_f32", "plain_gqa4", "plain_sharded"];
/// Several K/V heads, each with several query heads.
const GROUPED: &[&str] = &["plain_gqa4", "plain_sharded", "fp4_pro", "fp8_v25"];
/// Sorted as strings, expert 10 comes before expert 2.
const STRING_ORDER: &[&str] = &["plain_sharded"];
/// The drafter's window is shorter than the prompt.
const NARROW: &[&str] = &["draft_a", "draft_fp4"];
/// The first layer is not tapped.
const LATE_TAPS: &[&str] = &["draft_a"];

/// A mistake, and the fixtures that must detect it.
pub(crate) struct Trap {
    name: &'static str,
    fixtures: &'static [&'static str],
    compute: Compute,
    read: Read,
}

/// Changes the model's specification.
type Compute = fn(&mut ModelSpec);

pub(crate) const fn compute(
    name: &'static str,
    fixtures: &'static [&'static str],
    compute: Compute,
) -> Trap {
    Trap { name, fixtures, compute, read: misread::stored }
}

pub(crate) const fn read(
    name: &'static str,
    fixtures: &'static [&'static str],
    read: Read,
) -> Trap {
    Trap { name, fixtures, compute: |_| {}, read }
}

const ATTENTION: &[Trap] = &[
    compute("a key more in the window", TARGETS, |spec| each(spec, |a| widen(a, 1))),
    compute("a key less in the window", TARGETS, |spec| each(spec, |a| widen(a, -1))),
    compute("no sinks", TARGETS, |spec| each(spec, |a| a.sinks = false)),
    Trap {
        compute: |spec| each(spec, |a| a.sinks = true),
        ..read("sinks of 0 on full layers too", TARGETS, misread::sinks_or_zeros)
    },
    compute("values not scaled", TARGETS, |spec| each(spec, |a| a.value_scale = 1.0)),
    compute("all dims rotated", TARGETS, |spec| each(spec, |a| a.rope.dims = a.qk_dim)),
    compute("rope bases swapped", TARGETS, swap_bases),
    compute("one rope base", TARGETS, |spec| each(spec, |a| a.rope.base = 1e4)),
    read("neighbours rotated, not halves", TARGETS, misread::neighbours_paired),
    read("scores over sqrt(v_dim)", SPLIT, misread::scored_by_v_dim),
    read("K/V heads dealt out in turn", GROUPED, misread::heads_in_turn),
    read("one added to norm weights", TARGETS, misread::norms_plus_one),
];

const EXPERTS: &[Trap] = &[
    read("routing bias unused", TARGETS, |r| misread::scaled(r, &[(RouterCorrection, 0.0)])),
    compute("weights not normalised", TARGETS, |spec| {
        routing(spec, |e| e.router.normalise = false);
    }),
    compute("weights scaled by 2.5", TARGETS, |spec| routing(spec, |e| e.router.scale = 2.5)),
    read("x sigmoid(1.702 x)", TARGETS, |r| {
        misread::scaled(r, &[(Gate, 1.702), (Up, 1.0 / 1.702)])
    }),
    read("experts in the file's order", STRING_ORDER, misread::experts_by_name),
];

const STORAGE: &[Trap] = &[
    read("fused rows taken as [Q; K; V]", QUANTISED, misread::as_one_chunk),
    read("chunks by own K/V heads", MORE_KV_HEADS, misread::chunks_by_own_heads),
    read("scale rows run on across chunks", QUANTISED, misread::scale_rows_run_on),
    read("FP8 scale of the next tile", QUANTISED, misread::scale_of_next_tile),
    read("FP8 scales divide", QUANTISED, misread::scales_divide),
    read("FP4 nibbles swapped", FP4, misread::nibbles_swapped),
    read("FP4 scale of the next group", FP4, misread::scale_of_next_group),
];

const DRAFTING: &[Trap] = &[
    read("mask row of the target's table", DRAFTERS, misread::mask_of_table),
    read("the target's final norm", DRAFTERS, misread::norm_of_target),
    compute("taps a layer early", LATE_TAPS, |spec| {
        drafter(spec).taps.iter_mut().for_each(|tap| *tap -= 1);
    }),
    compute("taps in the other order", DRAFTERS, |spec| drafter(spec).taps.reverse()),
    compute("a key more in the window", NARROW, |spec| each_draft(spec, |a| widen(a, 1))),
    compute("a key less in the window", NARROW, |spec| each_draft(spec, |a| widen(a, -1))),
    compute("no window", NARROW, |spec| each_draft(spec, |a| a.reach = Reach::Full)),
    compute("the backbone's rope base", DRAFTERS, |spec| each_draft(spec, |a| a.rope.base = 5e6)),
    compute("all dims rotated", DRAFTERS, |spec| each_draft(spec, |a| a.rope.dims = a.qk_dim)),
    compute("values not scaled", DRAFTERS, |spec| each_draft(spec, |a| a.value_scale = 1.0)),
    compute("no sinks", DRAFTERS, |spec| each_draft(spec, |a| a.sinks = false)),
    compute("heads not normed", DRAFTERS, |spec| each_draft(spec, |a| a.qk_norm_eps = None)),
];

#[test]
fn no_mistake_passes() {
    for fixtures in [TARGETS, DRAFTERS] {
        let none = compute("none", fixtures, |_| {});
        assert!(none.errors().iter().all(|error| *error < TOLERANCE));
    }
}

#[test]
fn mistakes_in_attention() {
    spring(ATTENTION);
}

#[test]
fn mistakes_in_experts() {
    spring(EXPERTS);
}

#[test]
fn mistakes_in_storage() {
    spring(STORAGE);
}

#[test]
fn mistakes_in_drafting() {
    spring(DRAFTING);
}

#[expect(clippy::print_stdout, reason = "how much each is noticed, with --nocapture")]
pub(crate) fn spring(traps: &[Trap]) {
    for trap in traps {
        let Trap { name, fixtures, .. } = trap;
        for (fixture, error) in fixtures.iter().zip(trap.errors()) {
            println!("{name:32} {fixture:13} {error:.1e}");
            assert!(error > NOTICED, "{fixture} does not notice: {name}");
        }
    }
}

impl Trap {
    /// The largest error of each fixture.
    pub(crate) fn errors(&self) -> Vec<f32> {
        self.fixtures.iter().map(|fixture| self.error(&Fixture::open(fixture))).collect()
    }

    fn error(&self, fixture: &Fixture) -> f32 {
        let mut spec = fixture.checkpoint.spec().clone();
        (self.compute)(&mut spec);
        let source = Misread { checkpoint: &fixture.checkpoint, read: self.read };
        let mut sequence = Sequence::new(&spec, &source, 1);
        if spec.drafter.is_some() {
            let mut errors = Vec::new();
            draft::follow(fixture, &mut sequence, |_, _, worst| errors.push(worst.error));
            errors.into_iter().max_by(f32::total_cmp).unwrap()
        } else {
            sequence.step(given(&fixture.tokens("tokens"), 0));
            target::worst(fixture, &sequence).error
        }
    }
}

// Mistakes in the computation.

pub(crate) fn each(spec: &mut ModelSpec, change: fn(&mut AttentionSpec)) {
    spec.layers.iter_mut().for_each(|layer| change(&mut layer.attention));
}

fn drafter(spec: &mut ModelSpec) -> &mut DrafterSpec {
    spec.drafter.as_mut().unwrap()
}

pub(crate) fn each_draft(spec: &mut ModelSpec, change: fn(&mut AttentionSpec)) {
    drafter(spec).layers.iter_mut().for_each(|layer| change(&mut layer.attention));
}

pub(crate) fn routing(spec: &mut ModelSpec, change: fn(&mut ExpertsSpec)) {
    for layer in &mut spec.layers {
        if let FeedForwardSpec::Experts(experts) = &mut layer.feed_forward {
            change(experts);
        }
    }
}

pub(crate) fn widen(attention: &mut AttentionSpec, by: isize) {
    if let Reach::Window { keys } = &mut attention.reach {
        *keys = keys.checked_add_signed(by).unwrap();
    }
}

fn swap_bases(spec: &mut ModelSpec) {
    // The first layer has full attention, the second a window.
    let [full, window] = [0, 1].map(|layer| spec.layers[layer].attention.rope.base);
    for layer in &mut spec.layers {
        let base = &mut layer.attention.rope.base;
        *base = if *base == full { window } else { full };
    }
}
