//! A GPU that stalls or does not start: what is said of it and how soon, and that nothing stays
//! behind. Where there is no GPU, the tests say so and pass. They are one test: what breaks a GPU
//! breaks all that the process runs on it.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use kilotok_engine::{Engine, EngineError, StepPlan};
use kilotok_model::Knobs;
use kilotok_testkit::Toy;
use kilotok_testkit::host::{Host, HostError, How, Request};
use kilotok_testkit::toy::Files;
use kilotok_weights::{Checkpoint, Quiet};

use super::*;
use crate::{CudaEngine, CudaOptions, Found, Sizes, TOKENS_MAX, Toolchain};

/// From the step's start to its error.
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
    }
}

fn engine(rank_count: usize) -> CudaEngine {
    let engine = CudaEngine::start(PRO.spec(), &*PRO, &options(rank_count), &Quiet, &|_| {});
    engine.unwrap_or_else(|error| panic!("{error}"))
}

fn reply(engine: &mut CudaEngine) -> Result<Vec<u32>, EngineError> {
    let request = Request::greedy((0..30).collect(), 4);
    match Host::new(engine, 0).run(&request, &How::default()) {
        Ok(reply) => Ok(reply.tokens),
        Err(HostError::Engine { source, .. }) => Err(source),
        Err(other) => panic!("{other}"),
    }
}

/// Breaks the last of so many ranks, and returns what is said of it.
#[expect(clippy::disallowed_methods, reason = "the error is promised within seconds")]
fn broken(rank_count: usize, change: fn(&mut Rank)) -> EngineError {
    let mut engine = engine(rank_count);
    let well = reply(&mut engine).unwrap();
    change(engine.ranks.last_mut().unwrap());
    let start = Instant::now();
    let error = reply(&mut engine).unwrap_err();
    let took = start.elapsed();
    println!("{rank_count} ranks, after {took:?}: {error}");
    assert!(took < SECONDS_MAX, "{took:?}");
    // Nothing runs on it any more.
    assert_eq!(engine.submit(&StepPlan::default()), Err(error.clone()));
    drop(engine);
    assert_eq!(reply(&mut self::engine(rank_count)).unwrap(), well, "the GPUs are well again");
    error
}

#[test]
fn what_breaks_a_gpu_is_told_in_time_and_over_with_its_engine() {
    for rank_count in [1, 2] {
        if let Err(reason) = Found::look(rank_count, &options(rank_count).toolchain) {
            println!("skipped from {rank_count} ranks on: {reason}");
            return;
        }
        let last = rank_count - 1;
        // One CTA too few: the others wait for it, and the other ranks for them.
        let EngineError::Timeout { rank, waited_for, .. } =
            broken(rank_count, |rank| rank.grid -= 1)
        else {
            panic!("it was to say who waited");
        };
        assert_eq!((rank, &waited_for[..]), (last, "all CTAs at a grid barrier"));
        // More than there can be at once: its kernel does not start.
        let EngineError::Device { rank, .. } = broken(rank_count, |rank| rank.grid = 1 << 20)
        else {
            panic!("it was to say which GPU failed");
        };
        assert_eq!(rank, last);
    }
}
