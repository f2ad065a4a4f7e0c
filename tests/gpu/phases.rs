//! Engines that are started with stamps give the same results, and times by phase that add up to
//! the step.

use std::time::Duration;

use kilotok_abi::{PageId, Sampling, SlotId, Stamp};
use kilotok_cuda::{CudaEngine, CudaOptions};
use kilotok_engine::{
    Caps, Engine, PageGroup, PageRun, PhaseTime, Row, RowTokens, SlotSetup, StepOutput, StepPart,
    StepPlan,
};
use kilotok_weights::Quiet;

use crate::{PRO, TILE, sizes, toolchain, wide};

/// Tokens of the prompt: more than one tile.
const TOKENS: u32 = 20;
/// The device's clock has a resolution of a microsecond or better, and times each of four launches.
const CLOCK_ERROR: Duration = Duration::from_micros(8);

fn engine(rank_count: usize, stamps: bool, wide_above: Option<u32>) -> CudaEngine {
    let sizes = if wide_above.is_some() { wide(rank_count) } else { sizes(rank_count) };
    let options = CudaOptions { sizes, toolchain: toolchain(), stamps, wide_above };
    let tell = |line: &str| eprintln!("{line}");
    CudaEngine::start(PRO.spec(), &*PRO, &options, &Quiet, &tell).unwrap()
}

/// The plan of a prompt, after which the model drafts.
fn plan(caps: &Caps) -> StepPlan {
    let pages = |group: &PageGroup| PageRun {
        first: 0,
        pages: (0..TOKENS.div_ceil(group.page_tokens)).map(PageId).collect(),
    };
    let tokens = RowTokens::Given { tokens: (0..TOKENS).collect(), draft_count: 0 };
    let row = Row {
        setup: Some(Box::new(SlotSetup::new(Sampling::GREEDY, TOKENS))),
        pages: caps.groups.iter().map(pages).collect(),
        draft_next: caps.draft_max,
        report_drafts: true,
        ..Row::new(SlotId(0), 0, tokens)
    };
    StepPlan { rows: vec![row] }
}

fn step(engine: &mut CudaEngine) -> (StepOutput, Vec<PhaseTime>) {
    let plan = plan(engine.caps());
    (engine.run(&plan).unwrap(), engine.phase_times().unwrap())
}

fn check(rank_count: usize, wide_above: Option<u32>) {
    let (expected, none) = step(&mut engine(rank_count, false, wide_above));
    assert_eq!(none, []);
    let mut engine = engine(rank_count, true, wide_above);
    for round in 0..3 {
        // The read rate is measured before the first step, and while the next step's launches wait
        // for their doorbell.
        if round < 2 {
            assert!(engine.read_rate().unwrap().unwrap() > 0.0);
        }
        let (found, phases) = step(&mut engine);
        assert_eq!(found, expected, "stamps change nothing");
        for (part, stamp) in [
            (StepPart::Verify, Stamp::Embed),
            (StepPart::Verify, Stamp::Project),
            (StepPart::Verify, Stamp::Attention),
            (StepPart::Verify, Stamp::GateUp),
            (StepPart::Verify, Stamp::Down),
            (StepPart::Verify, Stamp::Head),
            (StepPart::Verify, Stamp::Accept),
            (StepPart::Draft, Stamp::Fuse),
            (StepPart::Draft, Stamp::ContextKeys),
            (StepPart::Draft, Stamp::Project),
            (StepPart::Draft, Stamp::ArgmaxDrafts),
        ] {
            let time = phases.iter().find(|time| (time.part, time.phase) == (part, stamp));
            assert!(time.is_some_and(|time| !time.own.is_zero()), "{part:?} {stamp:?}: {phases:?}");
        }
        let collectives = phases.iter().any(|time| time.phase == Stamp::AllReduce);
        assert_eq!(collectives, rank_count > 1);
        let times = engine.times().unwrap();
        for (part, whole) in [(StepPart::Verify, times.verify), (StepPart::Draft, times.draft)] {
            let phases = phases.iter().filter(|time| time.part == part);
            let sum: Duration = phases.map(|time| time.own + time.wait).sum();
            assert!(sum < whole + CLOCK_ERROR, "{part:?}: {sum:?} of {whole:?}");
        }
        assert_eq!(engine.phase_times().unwrap(), [], "they are of one step");
    }
}

#[test]
fn phases_make_up_the_step() {
    needs_gpus!(1);
    check(1, None);
}

#[test]
fn phases_of_the_wide_pass_make_up_the_step() {
    needs_gpus!(1);
    check(1, Some(TILE));
}

#[test]
fn phases_of_2_ranks_make_up_the_step() {
    needs_gpus!(2);
    check(2, None);
    check(2, Some(TILE));
}
