//! The largest model at its full width, a few layers deep: MiMo-V2.5-Pro's shape with made-up
//! weights beside the reference, whole on eight GPUs, and as halves, quarters and eighths of it on
//! fewer.

#![expect(clippy::print_stdout, reason = "why it was skipped")]

use kilotok_model::{Knobs, ModelSpec, read_config};
use kilotok_weights::Dummy;
use serde_json::{Value, json};

use crate::numbers::{Bounds, compare_with};
use crate::{absent, cuda_from, sizes};

/// Of the layers: one is dense, one looks through a window, one has experts and sees everything.
const WINDOWS: [u8; 3] = [0, 1, 0];
const EXPERTS: [u8; 3] = [0, 1, 1];
/// One prompt, longer than the window and than a step's tokens.
const PROMPT: (u64, usize) = (1, 150);

/// About half more than rounding took one eighth on one rank, and two on two: half of the positions
/// 0.0134, most 0.0249, clear ones 0.0275, all 0.56. Of 384 experts the last is often not clear.
const BOUNDS: Bounds = Bounds { half: 0.02, most: 0.035, clear: 0.045, all: 1.0 };

fn spec(slice: &str) -> ModelSpec {
    let mut config: Value = serde_json::from_str(slice).unwrap();
    config["num_hidden_layers"] = json!(WINDOWS.len());
    config["hybrid_layer_pattern"] = json!(WINDOWS);
    config["moe_layer_freq"] = json!(EXPERTS);
    let outputs = 0..WINDOWS.len();
    config["quantization_config"]["ignored_layers"] =
        outputs.map(|layer| format!("model.layers.{layer}.self_attn.o_proj")).collect();
    read_config("config.json", &config.to_string(), &Knobs::default()).unwrap()
}

/// As many eighths as ranks, each of which has one of the whole model.
fn compare(rank_count: usize, slice: &str) {
    if let Some(reason) = absent(rank_count) {
        return println!("skipped: {reason}");
    }
    let (spec, weights) = (spec(slice), Dummy::new(0));
    let engine = || cuda_from(&spec, &weights, &sizes(rank_count));
    let what = format!("{rank_count} eighths of the largest model");
    compare_with(&what, &spec, &weights, PROMPT, engine, &BOUNDS);
}

#[test]
#[ignore = "the reference takes gigabytes and a minute"]
fn an_eighth_of_full_width_is_the_references() {
    compare(1, include_str!("../../benches/models/slice/config.json"));
}

#[test]
#[ignore = "the reference takes gigabytes and two minutes"]
fn two_eighths_of_full_width_are_the_references() {
    compare(2, include_str!("../../benches/models/slice_2/config.json"));
}

#[test]
#[ignore = "the reference takes gigabytes and four minutes"]
fn four_eighths_of_full_width_are_the_references() {
    compare(4, include_str!("../../benches/models/slice_4/config.json"));
}

#[test]
#[ignore = "the reference takes gigabytes and eight minutes"]
fn all_of_full_width_is_the_references() {
    compare(8, include_str!("../../benches/models/slice_8/config.json"));
}
