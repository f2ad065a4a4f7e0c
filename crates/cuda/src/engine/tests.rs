//! Chains that are enqueued ahead: that they run the steps they fit, and that nothing waits for a
//! chain that is never rung for. Without a GPU, the tests say so and pass.

use kilotok_testkit::host::{Host, How, Request};

use super::*;
use crate::rank::tests::{absent, engine};

/// Tokens of a reply.
const TOKENS: u32 = 8;

fn reply(engine: &mut CudaEngine) -> Vec<u32> {
    let request = Request::greedy((0..30).collect(), TOKENS);
    Host::new(engine, 0).run(&request, &How::default()).unwrap().tokens
}

#[test]
fn steps_alike_are_begun_by_the_bell_alone() {
    if absent(1) {
        return;
    }
    let mut engine = engine(1);
    let mut chains = || {
        let before = engine.number;
        reply(&mut engine);
        engine.number - before
    };
    // A step yields a token. The prompt's step has no chain ahead, and the next step has other
    // tiles, which makes one chain void. All other chains run the steps they were enqueued for; one
    // is left.
    assert_eq!(chains(), TOKENS + 1 + 1);
    // Now the prompt's step makes one void too.
    assert_eq!(chains(), TOKENS + 1 + 1);
}

#[test]
fn times_are_of_a_step_that_somebody_asked_for() {
    if absent(1) {
        return;
    }
    let mut engine = engine(1);
    assert_eq!(engine.times(), None);
    reply(&mut engine);
    let times = engine.times().unwrap();
    assert!(!times.verify.is_zero() && !times.draft.is_zero(), "{times:?}");
    // The waiting chain is rung for and does nothing.
    drop(dismiss_pending());
    engine.ranks[0].finish().unwrap();
    assert_eq!(engine.ranks[0].times(), times);
}

#[test]
fn two_engines_share_a_gpu() {
    if absent(1) {
        return;
    }
    let (mut first, mut second) = (engine(1), engine(1));
    let expected = reply(&mut first);
    // Each leaves a waiting chain, and yet the other engine starts, runs steps and is dropped.
    assert_eq!(reply(&mut second), expected);
    assert_eq!(reply(&mut first), expected);
    drop(second);
    assert_eq!(reply(&mut first), expected);
    let mut third = engine(1);
    drop(first);
    assert_eq!(reply(&mut third), expected);
}

#[test]
fn a_chain_that_was_dismissed_is_replaced() {
    if absent(1) {
        return;
    }
    let mut engine = engine(1);
    let expected = reply(&mut engine);
    drop(dismiss_pending());
    assert_eq!(reply(&mut engine), expected);
    engine.ranks[0].finish().unwrap();
    assert_eq!(reply(&mut engine), expected);
}
