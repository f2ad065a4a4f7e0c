//! The same for Qwen3-MoE and gpt-oss: mistakes that implementations of these models made, or could
//! make.
//!
//! Detected elsewhere:
//! - gpt-oss's gate clipped from below too, or without adding one to up: tests of the activation in
//!   `crates/cpu`, and the self-check of `make_families.py`;
//! - YaRN read from only one of the two fields that may hold it: tests of `crates/model`.
//!
//! Not detected: normed values rounded to BF16 before their weights multiply them, or after. These
//! fixtures are in F32, where both orders are the same; an engine that rounds may do either.

use kilotok_model::LayerWeight::{
    DownBias, GateBias, KeyBias, OutputBias, QueryBias, RouterBias, UpBias, ValueBias,
};
use kilotok_model::{Activation, ExpertLayout, ExpertsSpec, ModelSpec, Reach, Yarn};

use crate::fixture::TOLERANCE;
use crate::misread::{self, scaled};
use crate::traps::{Trap, compute, each, each_draft, read, routing, spring, widen};

const GPT_OSS: &[&str] = &["gpt_oss"];
const QWEN3: &[&str] = &["qwen3_moe", "qwen3_stacked"];
/// Expert 10 comes before expert 2.
const STRING_ORDER: &[&str] = &["qwen3_moe"];
const NORMALISED: &[&str] = &["qwen3_moe", "gpt_oss"];
const STACKED: &[&str] = &["qwen3_stacked"];
const STRETCHED: &[&str] = &["qwen3_stacked", "gpt_oss"];
const DRAFT: &[&str] = &["gpt_oss_draft"];
const ALL: &[&str] = &["qwen3_moe", "qwen3_stacked", "gpt_oss"];

const ATTENTION: &[Trap] = &[
    compute("no YaRN", STRETCHED, |spec| each(spec, |a| a.rope.yarn = None)),
    compute("YaRN without its magnitude", STRETCHED, |spec| yarn(spec, |y| y.magnitude = 1.0)),
    compute("YaRN on a base of 10,000", GPT_OSS, |spec| each(spec, |a| a.rope.base = 1e4)),
    compute("the mixture's ends rounded", GPT_OSS, |spec| yarn(spec, |y| y.truncate = true)),
    compute("its ends as they are", STACKED, |spec| yarn(spec, |y| y.truncate = false)),
    compute("no windows", GPT_OSS, |spec| each(spec, |a| a.reach = Reach::Full)),
    compute("a key more in the window", GPT_OSS, |spec| each(spec, |a| widen(a, 1))),
    compute("a key less in the window", GPT_OSS, |spec| each(spec, |a| widen(a, -1))),
    compute("windows on the other layers", GPT_OSS, swap_reaches),
    compute("no sinks", GPT_OSS, |spec| each(spec, |a| a.sinks = false)),
    read("sinks counted twice", GPT_OSS, misread::sinks_twice),
    read("no bias of queries", GPT_OSS, |r| scaled(r, &[(QueryBias, 0.0)])),
    read("no bias of keys", GPT_OSS, |r| scaled(r, &[(KeyBias, 0.0)])),
    read("no bias of values", GPT_OSS, |r| scaled(r, &[(ValueBias, 0.0)])),
    read("no bias of the output", GPT_OSS, |r| scaled(r, &[(OutputBias, 0.0)])),
    read("the output's bias of two ranks", GPT_OSS, |r| scaled(r, &[(OutputBias, 2.0)])),
    compute("heads not normed", QWEN3, |spec| each(spec, |a| a.qk_norm_eps = None)),
    read("neighbours rotated, not halves", ALL, misread::neighbours_paired),
    read("K/V heads dealt out in turn", ALL, misread::heads_in_turn),
    read("one added to norm weights", ALL, misread::norms_plus_one),
];

const EXPERTS: &[Trap] = &[
    compute("a softmax over all experts", NORMALISED, |spec| {
        routing(spec, |e| e.router.normalise = false);
    }),
    compute("a softmax over the chosen", STACKED, |spec| {
        routing(spec, |e| e.router.normalise = true);
    }),
    read("no bias of the router", GPT_OSS, |r| scaled(r, &[(RouterBias, 0.0)])),
    read("no bias of gates", GPT_OSS, |r| scaled(r, &[(GateBias, 0.0)])),
    read("no bias of ups", GPT_OSS, |r| scaled(r, &[(UpBias, 0.0)])),
    read("no bias of downs", GPT_OSS, |r| scaled(r, &[(DownBias, 0.0)])),
    read("down's bias of two ranks", GPT_OSS, |r| scaled(r, &[(DownBias, 2.0)])),
    compute("silu(gate) * up", GPT_OSS, |spec| {
        routing(spec, |e| e.activation = Activation::SiluMul);
    }),
    compute("gate and up not cut", GPT_OSS, |spec| routing(spec, |e| activate(e, 1.702, 1e6))),
    compute("gate * sigmoid(gate)", GPT_OSS, |spec| routing(spec, |e| activate(e, 1.0, 1.5))),
    compute("rows of gate, then of up", GPT_OSS, |spec| {
        routing(spec, |e| e.layout = ExpertLayout::StackedHalves);
    }),
    compute("rows of gate and up in turn", STACKED, |spec| {
        routing(spec, |e| e.layout = ExpertLayout::StackedInterleaved);
    }),
    read("experts in the file's order", STRING_ORDER, misread::experts_by_name),
    read("FP4 nibbles swapped", GPT_OSS, misread::nibbles_swapped),
    read("FP4 scale of the next group", GPT_OSS, misread::scale_of_next_group),
];

const DRAFTING: &[Trap] = &[
    read("no biases", DRAFT, misread::drafter_unbiased),
    compute("no YaRN", DRAFT, |spec| each_draft(spec, |a| a.rope.yarn = None)),
    compute("YaRN on a base of 10,000", DRAFT, |spec| each_draft(spec, |a| a.rope.base = 1e4)),
    compute("heads not normed", DRAFT, |spec| each_draft(spec, |a| a.qk_norm_eps = None)),
    compute("a window", DRAFT, |spec| {
        each_draft(spec, |a| a.reach = Reach::Window { keys: 24 });
    }),
    compute("another mask", DRAFT, |spec| spec.drafter.as_mut().unwrap().mask_token -= 1),
];

#[test]
fn no_mistake_of_families_passes() {
    for fixtures in [ALL, DRAFT] {
        let none = compute("none", fixtures, |_| {});
        assert!(none.errors().iter().all(|error| *error < TOLERANCE));
    }
}

#[test]
fn mistakes_in_attention_of_families() {
    spring(ATTENTION);
}

#[test]
fn mistakes_in_experts_of_families() {
    spring(EXPERTS);
}

#[test]
fn mistakes_in_drafting_of_families() {
    spring(DRAFTING);
}

fn yarn(spec: &mut ModelSpec, change: fn(&mut Yarn)) {
    for layer in &mut spec.layers {
        change(layer.attention.rope.yarn.as_mut().unwrap());
    }
}

fn swap_reaches(spec: &mut ModelSpec) {
    // The first layer has a window, the second full attention.
    let [window, full] = [0, 1].map(|layer: usize| spec.layers[layer].attention.reach);
    for layer in &mut spec.layers {
        let reach = &mut layer.attention.reach;
        *reach = if *reach == full { window } else { full };
    }
}

fn activate(experts: &mut ExpertsSpec, alpha: f32, limit: f32) {
    experts.activation = Activation::ClampedSwiglu { alpha, limit };
}
