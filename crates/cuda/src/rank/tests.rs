//! A GPU that stalls, does not start or does not react: how the failure is reported and how soon,
//! and that nothing keeps running. A failure of a GPU ends everything that the process runs on it,
//! so each test has a process of its own. Without a GPU, the tests say so and pass.

mod agree;

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use kilotok_engine::{Engine, EngineError, StepPlan};
use kilotok_model::Knobs;
use kilotok_testkit::host::{Host, HostError, How, Request};
use kilotok_testkit::process::alone;
use kilotok_testkit::toy::Files;
use kilotok_testkit::{Toy, take_turn};
use kilotok_weights::{Checkpoint, Quiet};

use super::*;
use crate::driver::Driver;
use crate::{CudaEngine, CudaOptions, Found, Sizes, TOKENS_MAX, Toolchain};

/// From the step's start to its error, at the fastest clock.
const SECONDS_MAX: Duration = Duration::from_secs(2);

static PRO: LazyLock<Checkpoint> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    Toy::pro_fp4().write(folder.path(), Files::One).unwrap();
    Checkpoint::open(folder.path(), &Knobs::default()).unwrap()
});

fn options(rank_count: usize) -> CudaOptions {
    let cache = Some(std::env::temp_dir().join("kilotok-test-kernels"));
    let toolchain = Toolchain { cache, prefixes: Vec::new() };
    CudaOptions {
        sizes: Sizes { rank_count, token_max: TOKENS_MAX, ..Sizes::default() },
        toolchain,
        ..CudaOptions::default()
    }
}

/// Whether `rank_count` ranks cannot run here; prints why. Otherwise the GPUs are the calling
/// thread's until it ends.
pub(crate) fn absent(rank_count: usize) -> bool {
    match Found::look(rank_count, &options(rank_count).toolchain) {
        Ok(_) => take_turn(),
        Err(reason) => {
            println!("skipped from {rank_count} ranks on: {reason}");
            return true;
        }
    }
    false
}

pub(crate) fn engine(rank_count: usize) -> CudaEngine {
    start(&options(rank_count))
}

fn start(options: &CudaOptions) -> CudaEngine {
    let engine = CudaEngine::start(PRO.spec(), &*PRO, options, &Quiet, &|_| {});
    engine.unwrap_or_else(|error| panic!("{error}"))
}

/// Tokens of a prompt: several tiles.
const TOKENS: u32 = 30;
/// Less than one tile, for which there is another kernel, whose producers run further ahead.
const FEW_TOKENS: u32 = 4;

fn reply(engine: &mut CudaEngine, token_count: u32) -> Result<Vec<u32>, EngineError> {
    let request = Request::greedy((0..token_count).collect(), 4);
    match Host::new(engine, 0).run(&request, &How::default()) {
        Ok(reply) => Ok(reply.tokens),
        Err(HostError::Engine { source, .. }) => Err(source),
        Err(other) => panic!("{other}"),
    }
}

/// Breaks the last of `rank_count` ranks before a prompt, and returns the error.
fn broken(rank_count: usize, token_count: u32, change: fn(&mut CudaEngine)) -> EngineError {
    break_engine(engine(rank_count), token_count, change)
}

#[expect(clippy::disallowed_methods, reason = "the error is promised within seconds")]
fn break_engine(
    mut engine: CudaEngine,
    token_count: u32,
    change: fn(&mut CudaEngine),
) -> EngineError {
    let rank_count = engine.ranks.len();
    reply(&mut engine, token_count).unwrap();
    change(&mut engine);
    let start = Instant::now();
    let error = reply(&mut engine, token_count).unwrap_err();
    let took = start.elapsed();
    println!("{rank_count} ranks, after {took:?}: {error}");
    let gpus = Driver::open().and_then(Driver::gpus).unwrap();
    assert!(took < gpus[0].at_its_clock(SECONDS_MAX), "{took:?}");
    // Nothing runs on it any more.
    assert_eq!(engine.submit(&StepPlan::default()), Err(error.clone()));
    error
}

/// One CTA too few: the others wait for it, and the other ranks for them.
fn stalls(rank_count: usize, token_count: u32) {
    match broken(rank_count, token_count, CudaEngine::stall) {
        EngineError::Timeout { rank, launch, phase, waited_for, .. } => {
            assert_eq!((rank, phase), (rank_count - 1, 1));
            assert_eq!(launch, "the target's pass");
            assert!(waited_for.starts_with("all CTAs at a grid barrier ("), "{waited_for}");
        }
        other => panic!("{other}"),
    }
}

/// Its GPU fails in the middle of a step: others wait for it, and the driver reports a failure on
/// all.
fn dies(rank_count: usize) {
    match broken(rank_count, TOKENS, CudaEngine::kill) {
        EngineError::Device { rank, reason } => {
            assert_eq!(rank, rank_count - 1);
            // The phase is not exact, because weights are read ahead.
            let waited = reason.contains("; rank 0 waited for it in phase ");
            assert_eq!(waited, rank_count > 1, "{reason}");
            assert!(reason.starts_with(&format!("GPU {rank}: ")), "{reason}");
        }
        other => panic!("{other}"),
    }
}

/// More CTAs than can be resident: the kernel does not start.
fn does_not_start(rank_count: usize) {
    match broken(rank_count, TOKENS, |engine| engine.ranks.last_mut().unwrap().grid = 1 << 20) {
        EngineError::Device { rank, .. } => assert_eq!(rank, rank_count - 1),
        other => panic!("{other}"),
    }
}

/// It waits for a doorbell that is never rung: others wait for it until they time out.
fn does_not_respond(rank_count: usize) {
    match broken(rank_count, TOKENS, |engine| engine.disconnect_doorbell().unwrap()) {
        EngineError::Device { rank, reason } => {
            assert_eq!(rank, rank_count - 1);
            assert!(reason.contains("does not respond to its doorbell"), "{reason}");
        }
        other => panic!("{other}"),
    }
}

/// Other ranks wait in the wide pass for one that does not respond to its doorbell.
fn is_lost_in_a_wide_step(rank_count: usize) {
    let wide = CudaOptions { wide_above: Some(FEW_TOKENS), ..options(rank_count) };
    match break_engine(start(&wide), TOKENS, |engine| engine.disconnect_doorbell().unwrap()) {
        EngineError::Device { rank, reason } => {
            assert_eq!(rank, rank_count - 1);
            assert!(reason.contains("does not respond to its doorbell"), "{reason}");
        }
        other => panic!("{other}"),
    }
}

/// It still computes when the host stops waiting.
fn does_not_end(rank_count: usize) {
    let mut engine = engine(rank_count);
    reply(&mut engine, TOKENS).unwrap();
    engine.step_max = Duration::ZERO;
    match reply(&mut engine, TOKENS).unwrap_err() {
        EngineError::Device { reason, .. } => {
            assert!(reason.contains("did not end a step within 0"), "{reason}");
        }
        other => panic!("{other}"),
    }
}

#[test]
fn numbers_count_up_in_any_order() {
    assert!(count_up(vec![2, 0, 1]) && count_up(Vec::new()));
    assert!(!count_up(vec![1, 2, 3]) && !count_up(vec![0, 1, 1]) && !count_up(vec![0, 2, 3]));
}

#[test]
#[ignore = "breaks the GPU for its process, see below"]
fn one_stalls() {
    stalls(1, TOKENS);
}

#[test]
#[ignore = "breaks the GPU for its process, see below"]
fn one_stalls_with_few_tokens() {
    stalls(1, FEW_TOKENS);
}

#[test]
#[ignore = "breaks the GPU for its process, see below"]
fn one_dies() {
    dies(1);
}

#[test]
#[ignore = "breaks the GPU for its process, see below"]
fn one_does_not_start() {
    does_not_start(1);
}

#[test]
#[ignore = "breaks the GPU for its process, see below"]
fn one_of_two_stalls() {
    stalls(2, TOKENS);
}

#[test]
#[ignore = "breaks the GPU for its process, see below"]
fn one_of_two_stalls_with_few_tokens() {
    stalls(2, FEW_TOKENS);
}

#[test]
#[ignore = "breaks the GPU for its process, see below"]
fn one_of_two_dies() {
    dies(2);
}

#[test]
#[ignore = "breaks the GPU for its process, see below"]
fn one_of_two_does_not_start() {
    does_not_start(2);
}

#[test]
#[ignore = "breaks the GPU for its process, see below"]
fn one_does_not_respond() {
    does_not_respond(1);
}

#[test]
#[ignore = "breaks the GPU for its process, see below"]
fn one_of_two_does_not_respond() {
    does_not_respond(2);
}

#[test]
#[ignore = "breaks the GPU for its process, see below"]
fn one_of_two_is_lost_in_a_wide_step() {
    is_lost_in_a_wide_step(2);
}

#[test]
#[ignore = "breaks the GPU for its process, see below"]
fn one_does_not_end() {
    does_not_end(1);
}

#[test]
#[ignore = "breaks the GPU for its process, see below"]
fn one_of_two_does_not_end() {
    does_not_end(2);
}

#[test]
fn a_rank_that_does_not_start_hear_or_end_is_told_in_time_and_over_with_its_process() {
    break_one_of(&["does_not_start", "does_not_respond", "does_not_end"]);
}

#[test]
fn a_rank_that_is_lost_in_a_wide_step_is_named() {
    if !absent(2) {
        let ended = alone("rank::tests::one_of_two_is_lost_in_a_wide_step").status();
        assert!(ended.unwrap().success());
    }
}

#[test]
fn a_gpu_that_stalls_is_told_in_time_and_over_with_its_process() {
    break_one_of(&["stalls", "stalls_with_few_tokens"]);
}

#[test]
fn a_gpu_that_dies_without_a_word_is_named_in_time() {
    break_one_of(&["dies"]);
}

/// Runs the tests of several ways to break, with one rank and with two.
fn break_one_of(ways: &[&str]) {
    for (rank_count, who) in [(1, "one"), (2, "one_of_two")] {
        if absent(rank_count) {
            return;
        }
        for way in ways {
            let ended = alone(&format!("rank::tests::{who}_{way}")).status();
            assert!(ended.unwrap().success(), "{who} {way}");
        }
        reply(&mut engine(rank_count), TOKENS).expect("the GPUs are well again");
    }
}
