//! Compares the CPU engine's logits on real text, of target and drafter, with a float64 oracle:
//! Hugging Face transformers' model on the checkpoint's float twin, and the drafter of
//! `tests/parity`.

use kilotok_abi::TokenId;
use kilotok_model::Knobs;

use crate::checkpoint;
use crate::expected::{Expected, PROMPT_COUNT, STRIDE};
use crate::fixture::{Sequence, Worst, given};

/// The engine adds up to 1024 values at a time in float32, with an error of 6e-8 each, through six
/// layers; here that amounts to 1.4e-6. Ten times as much leaves room for vector units that add in
/// another order.
const TOLERANCE: f32 = 1e-5;

fn check(rank_count: usize) {
    let checkpoint = checkpoint(&Knobs::default());
    let (mut target, mut drafter) = (Worst::default(), Worst::default());
    for prompt in 0..PROMPT_COUNT {
        let expected = Expected::read(prompt);
        let mut sequence = Sequence::new(checkpoint.spec(), &checkpoint, rank_count);
        follow(&expected, &mut sequence, &mut drafter);
        let tokens = expected.tokens("tokens");
        let logits = expected.floats("logits");
        let best = expected.tokens("best");
        let columns = logits.len() / tokens.len();
        for (position, (logits, best)) in (0..).zip(logits.chunks_exact(columns).zip(best)) {
            let found = sequence.notes.get("logits", position);
            assert_eq!(likeliest(&found), best, "prompt {prompt}, position {position}");
            target.see(format!("prompt {prompt}, position {position}"), &thin(&found), logits);
        }
    }
    for worst in [target, drafter] {
        assert!(worst.error < TOLERANCE, "{worst:?}");
    }
}

/// Runs the rounds of a reply. Each verifies the drafts that the drafter made in the round before.
fn follow(expected: &Expected, sequence: &mut Sequence, worst: &mut Worst) {
    let mut out = sequence.step(given(&expected.tokens("prompt"), 0));
    for round in 0..expected.round_count() {
        let named = |field: &str| format!("round.{round}.{field}");
        assert_eq!(out.tokens, expected.tokens(&named("emitted")), "round {round}");
        assert_eq!(out.drafts, expected.tokens(&named("draft_tokens")), "round {round}");
        let logits = expected.floats(&named("draft_logits"));
        let columns = logits.len() / out.drafts.len();
        for (position, logits) in (sequence.start + 1..).zip(logits.chunks_exact(columns)) {
            let found = sequence.notes.get("draft_logits", position);
            worst.see(format!("round {round}, position {position}"), &thin(&found), logits);
        }
        let row = [&out.tokens[out.tokens.len() - 1..], &out.drafts].concat();
        out = sequence.step(given(&row, out.drafts.len() as u32));
    }
}

fn thin(logits: &[f32]) -> Vec<f32> {
    logits.iter().copied().step_by(STRIDE).collect()
}

fn likeliest(logits: &[f32]) -> TokenId {
    let best = (0..).zip(logits).max_by(|(_, a), (_, b)| a.total_cmp(b));
    best.unwrap().0
}

#[test]
fn logits_of_target_and_drafter_are_the_oracles() {
    check(1);
}

#[test]
fn on_8_ranks_they_are_too() {
    check(8);
}
