//! Weights so large that numbers overflow: wherever that happens, the row must end with a fault,
//! never with a token.

use kilotok_engine::RowFault;
use kilotok_model::LayerWeight::{self, Down, Gate, InputNorm, Key, Output, Query, Up, Value};

use crate::fixture::{Fixture, Sequence, given};
use crate::misread::{Misread, Read, scaled};

/// Multiplied by this, most numbers still fit F32, but no sum of their squares does.
const LARGE: f32 = 1e30;

const CASES: &[(&str, Read)] = &[
    ("the residual stream", |r| scaled(r, &[(Output, LARGE)])),
    ("scores", |r| scaled(r, &[(Query, LARGE), (Key, LARGE)])),
    ("queries", |r| scaled(r, &[(InputNorm, LARGE), (Query, LARGE)])),
    ("values", |r| scaled(r, &[(InputNorm, LARGE), (Value, LARGE)])),
    ("gates", |r| scaled(r, &[(Gate, LARGE)])),
    ("gates times ups", |r| scaled(r, &[(Gate, LARGE), (Up, LARGE)])),
    ("experts", |r| scaled(r, &[(Down, LARGE)])),
    ("the router", |r| scaled(r, &[(LayerWeight::PostNorm, LARGE), (LayerWeight::Router, LARGE)])),
];

#[test]
fn what_overflows_is_a_fault() {
    for name in ["plain_f32", "plain_gqa4", "draft_a", "qwen3_moe"] {
        let fixture = Fixture::open(name);
        let prompt = if fixture.has("tokens") { "tokens" } else { "prompt" };
        let prompt = fixture.tokens(prompt);
        for (what, read) in CASES {
            let source = Misread { checkpoint: &fixture.checkpoint, read: *read };
            let mut sequence = Sequence::new(fixture.checkpoint.spec(), &source, 1);
            let out = sequence.run(given(&prompt, 0));
            let is_told = matches!(out.fault, Some(RowFault::NotFinite { .. }));
            assert!(is_told, "{name}: {what}: {:?}", out.fault);
            assert_eq!((out.tokens, out.drafts), (vec![], vec![]), "{name}: {what}");
            for position in 0..prompt.len() as u32 {
                let logits = sequence.notes.get("logits", position);
                let is_told = !logits.iter().all(|logit| logit.is_finite());
                assert!(is_told, "{name}: {what}: position {position}");
            }
        }
    }
}
