//! Every rank chooses experts and tokens by itself, and all must choose the same, bit for bit. Only
//! the first rank's results are read, and sums over ranks are the same on all of them, whether
//! right or wrong: so replies do not show whether another rank's choices differ.

use std::collections::BTreeSet;

use kilotok_abi::Sampling;
use kilotok_engine::{Caps, StepId, StepOutput};
use kilotok_testkit::host::{Drafts, some};

use super::*;

const RESULTS: &str = "results";
/// What each rank computes by itself from the common sums: scores of the experts in the last layer,
/// and the stream after some of the layers.
const SCORES: &str = "router_scores";
const STREAM: &str = "taps";
/// The bias that is added to scores before the top-k, in every layer.
const BIAS: &str = "RouterBias";
/// The least number of steps of the requests below: the longest reply has one token a step.
const STEPS_MIN: usize = 8;

/// An engine whose ranks are compared after each step.
struct Watched {
    inner: CudaEngine,
    steps: usize,
    /// The names of what differed between ranks.
    differing: BTreeSet<String>,
}

impl Watched {
    fn new(rank_count: usize) -> Self {
        Self { inner: engine(rank_count), steps: 0, differing: BTreeSet::new() }
    }

    fn compare(&mut self) {
        let (first, others) = self.inner.ranks.split_first().unwrap();
        let expected = copies(first);
        for name in [RESULTS, SCORES, STREAM] {
            let (_, bytes) = expected.iter().find(|(other, _)| other == name).unwrap();
            assert!(bytes.iter().any(|byte| *byte != 0), "{name} of no step");
        }
        for rank in others {
            let pairs = expected.iter().zip(copies(rank));
            let differing = pairs.filter(|(one, other)| *one != other);
            self.differing.extend(differing.map(|((name, _), _)| name.clone()));
        }
        self.steps += 1;
    }
}

/// Bytes that must be the same on every rank, by name.
fn copies(rank: &Rank) -> Vec<(String, Vec<u8>)> {
    let mut results = vec![0; rank.layout.results.bytes];
    rank.results(&mut results);
    let mut copies = vec![(RESULTS.to_owned(), results)];
    for region in rank.layout.map.regions() {
        if [SCORES, STREAM].contains(&&*region.name) || region.name.contains(BIAS) {
            let bytes = region.bytes as usize;
            let host = Pinned::new(std::slice::from_ref(&rank.device), bytes).unwrap();
            let first = region.offset as usize;
            rank.memory.fetch(first..first + bytes, &host).unwrap();
            rank.device.finish().unwrap();
            let mut copy = vec![0; bytes];
            host.peek(&mut copy);
            copies.push((region.name.clone(), copy));
        }
    }
    copies
}

impl Engine for Watched {
    fn caps(&self) -> &Caps {
        self.inner.caps()
    }

    fn submit(&mut self, plan: &StepPlan) -> Result<StepId, EngineError> {
        self.inner.submit(plan)
    }

    fn wait(&mut self, step: StepId, out: &mut StepOutput) -> Result<(), EngineError> {
        self.inner.wait(step, out)?;
        self.compare();
        Ok(())
    }
}

/// Greedy and sampled replies, with the engine's drafts and without, at the same time: prompts of
/// several tiles of tokens, then steps of few tokens.
fn run(engine: &mut Watched) {
    let warm = |seed| Sampling { seed, temperature: 1.0, top_p: 0.95, ..Sampling::GREEDY };
    let request = |first: u32, count: u32, sampling: Sampling| {
        let mut request = Request::greedy((first..first + count).collect(), STEPS_MIN as u32);
        request.setup.sampling = sampling;
        request
    };
    let masked = Request { mask: Some(some), ..request(3, 5, warm(2)) };
    let drafted = || How { drafts: Drafts::Held { made: 7, used: 7 }, ..How::default() };
    let jobs = [
        (request(0, 40, Sampling::GREEDY), drafted()),
        (request(9, 30, warm(1)), drafted()),
        (request(5, 1, Sampling::GREEDY), How { joins: 2, ..How::default() }),
        (masked, How { joins: 3, ..drafted() }),
    ];
    let jobs: Vec<_> = jobs.iter().map(|(request, how)| (request, how)).collect();
    Host::new(engine, 0).run_all(&jobs).unwrap();
    assert!(engine.steps >= STEPS_MIN, "{} steps", engine.steps);
}

fn agree(rank_count: usize) {
    if absent(rank_count) {
        return;
    }
    let mut engine = Watched::new(rank_count);
    run(&mut engine);
    assert_eq!(engine.differing, BTreeSet::new(), "{rank_count} ranks, {} steps", engine.steps);
}

#[test]
fn two_ranks_choose_the_same() {
    agree(2);
}

#[test]
fn four_ranks_choose_the_same() {
    agree(4);
}

#[test]
fn eight_ranks_choose_the_same() {
    agree(8);
}

/// Shows that the comparison detects a difference which replies alone would not show.
#[test]
fn a_rank_that_chooses_other_experts_is_found() {
    if absent(2) {
        return;
    }
    let mut engine = Watched::new(2);
    let rank = &engine.inner.ranks[1];
    let is_router = |name: &str| name.contains("Router") && !name.contains(BIAS);
    let mut routers = rank.layout.map.regions().iter().filter(|region| is_router(&region.name));
    let last = routers.next_back().unwrap();
    rank.memory.clear(last.offset as usize..(last.offset + last.bytes) as usize).unwrap();
    rank.device.finish().unwrap();
    run(&mut engine);
    assert_eq!(engine.differing, BTreeSet::from([SCORES.to_owned()]));
}
