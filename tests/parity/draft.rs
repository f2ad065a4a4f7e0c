//! Compares the drafter with a float64 program: after the prompt, and after rounds in which all,
//! some or no drafts are accepted.

use kilotok_engine::RowOutput;
use kilotok_model::{AttentionSpec, ModelSpec};

use crate::fixture::{Fixture, Sequence, Worst, given};

fn check(name: &str, rank_count: usize) {
    let fixture = Fixture::open(name);
    let mut round_count = 0;
    follow(&fixture, &mut fixture.start(rank_count), |round, out, worst| {
        let tokens = |field: &str| fixture.tokens(&format!("round.{round}.{field}"));
        assert_eq!(out.tokens, tokens("emitted"), "round {round}");
        worst.check();
        assert_eq!(out.drafts, tokens("draft_tokens"), "round {round}");
        round_count += 1;
    });
    assert!(round_count > 4, "too few rounds");
}

/// Runs all rounds, and calls `show` after each with its number, its output and the largest error.
pub(crate) fn follow(
    fixture: &Fixture,
    sequence: &mut Sequence,
    mut show: impl FnMut(usize, &RowOutput, &Worst),
) {
    let mut out = sequence.step(given(&fixture.tokens("prompt"), 0));
    for round in 0.. {
        show(round, &out, &worst(fixture, sequence, round));
        let next_drafts = format!("round.{}.drafts_in", round + 1);
        if !fixture.has(&next_drafts) {
            return;
        }
        let drafts = fixture.tokens(&next_drafts);
        let anchor = out.tokens[out.tokens.len() - 1];
        out = sequence.step(given(&[&[anchor], &drafts[..]].concat(), drafts.len() as u32));
    }
}

/// The largest error of a sequence that has just run a round.
fn worst(fixture: &Fixture, sequence: &Sequence, round: usize) -> Worst {
    let ModelSpec { vocab_size, drafter, .. } = fixture.checkpoint.spec();
    let AttentionSpec { kv_heads, qk_dim, v_dim, .. } =
        drafter.as_ref().unwrap().layers[0].attention;
    let expected = |field: &str| fixture.floats(&format!("round.{round}.{field}"));
    let Sequence { notes, start, rank_count, .. } = sequence;
    let mut worst = Worst::default();
    // The first draft row is the anchor at `start`; the drafts are for the positions after it.
    for (position, expected) in
        (start + 1..).zip(expected("draft_logits").chunks_exact(*vocab_size))
    {
        let found = notes.get("draft_logits", position);
        worst.see(format!("round {round}, draft of position {position}"), &found, expected);
    }
    if *rank_count > 1 {
        return worst; // a rank shows its own heads only
    }
    let width = kv_heads * (qk_dim + v_dim);
    for (layer, expected) in expected("context_kv_last").chunks_exact(width).enumerate() {
        let found = notes.get(&format!("context.{layer}"), start - 1);
        worst.see(format!("round {round}, context of layer {layer}"), &found, expected);
    }
    worst
}

#[test]
fn draft_in_a_narrow_window() {
    check("draft_a", 1);
}

#[test]
fn draft_that_sees_everything() {
    check("draft_b", 1);
}

#[test]
fn drafts_on_2_and_4_ranks() {
    for rank_count in [2, 4] {
        check("draft_a", rank_count);
        check("draft_b", rank_count);
    }
}

#[test]
fn drafts_for_an_fp4_target_on_every_rank_count() {
    for rank_count in [1, 2, 4, 8] {
        check("draft_fp4", rank_count);
    }
}

/// Biases, YaRN, full attention, and the mask token's row of the target's embedding.
#[test]
fn drafts_for_gpt_oss_on_1_and_2_ranks() {
    for rank_count in [1, 2] {
        check("gpt_oss_draft", rank_count);
    }
}
