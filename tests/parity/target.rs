//! Compares hidden states after every layer, logits and greedy tokens with transformers' float32.

use kilotok_model::{FeedForwardSpec, RouterDtype};

use crate::fixture::{Fixture, Sequence, TOLERANCE, Worst, given};

fn check(name: &str, rank_count: usize) {
    let fixture = Fixture::open(name);
    let mut sequence = fixture.start(rank_count);
    let mut chosen = sequence.step(given(&fixture.tokens("tokens"), 0)).tokens;
    worst(&fixture, &sequence).check();
    let greedy = fixture.tokens("greedy");
    while chosen.len() < greedy.len() {
        let token = chosen[chosen.len() - 1];
        chosen.extend(sequence.step(given(&[token], 0)).tokens);
    }
    assert_eq!(chosen, greedy);
}

/// The largest error of a sequence that has run the prompt.
pub(crate) fn worst(fixture: &Fixture, sequence: &Sequence) -> Worst {
    let spec = fixture.checkpoint.spec();
    let widths = (0..=spec.layers.len()).map(|index| (format!("hidden.{index}"), spec.hidden_size));
    let mut worst = Worst::default();
    for (value, width) in widths.chain([("logits".to_owned(), spec.vocab_size)]) {
        let expected = fixture.floats(&value);
        for (position, expected) in (0..).zip(expected.chunks_exact(width)) {
            let found = sequence.notes.get(&value, position);
            worst.see(format!("{value} of position {position}"), &found, expected);
        }
    }
    worst
}

#[test]
fn plain_attention_in_f32() {
    check("plain_f32", 1);
}

#[test]
fn grouped_queries() {
    check("plain_gqa4", 1);
}

#[test]
fn sixteen_queries_a_key() {
    check("plain_gqa16", 1);
}

#[test]
fn shards_and_a_window_of_one_more() {
    check("plain_sharded", 1);
}

#[test]
fn fp4_as_its_float_twin() {
    check("fp4_pro", 1);
}

#[test]
fn fp4_as_its_float_twin_on_2_4_and_8_ranks() {
    for rank_count in [2, 4, 8] {
        check("fp4_pro", rank_count);
    }
}

#[test]
fn four_chunks_of_fp8_as_their_float_twin_on_every_rank_count() {
    for rank_count in [1, 2, 4, 8] {
        check("fp8_v25", rank_count);
    }
}

#[test]
fn fp4_with_a_drafter_on_every_rank_count() {
    for rank_count in [1, 2, 4, 8] {
        check("draft_fp4", rank_count);
    }
}

#[test]
fn qwen3_moe_on_1_2_and_4_ranks() {
    for rank_count in [1, 2, 4] {
        check("qwen3_moe", rank_count);
    }
}

#[test]
fn qwen3_moe_with_stacked_experts_and_yarn() {
    check("qwen3_stacked", 1);
}

/// The prompt is several windows long and goes beyond the positions that YaRN was made for.
#[test]
fn gpt_oss_on_1_and_2_ranks() {
    for rank_count in [1, 2] {
        check("gpt_oss", rank_count);
    }
}

/// Routers are stored in F32 or BF16; rounding an F32 one changes the results of these models
/// visibly.
#[test]
fn a_router_in_bf16_is_another_router() {
    let fixture = Fixture::open("plain_f32");
    let mut spec = fixture.checkpoint.spec().clone();
    for layer in &mut spec.layers {
        if let FeedForwardSpec::Experts(experts) = &mut layer.feed_forward {
            assert_eq!(experts.router.dtype, RouterDtype::F32);
            experts.router.dtype = RouterDtype::Bf16;
        }
    }
    let mut sequence = Sequence::new(&spec, &fixture.checkpoint, 1);
    sequence.step(given(&fixture.tokens("tokens"), 0));
    let error = worst(&fixture, &sequence).error;
    assert!((TOLERANCE..0.1).contains(&error), "off by {error}");
}
