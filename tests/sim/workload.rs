//! The workload of a seed: the limits of an engine and of the scheduler, and requests with their
//! events. All numbers are small, so that every limit is met often.

use std::ops::Range;

use kilotok_abi::{Sampling, TokenId};
use kilotok_engine::{Caps, PageGroup, PageKind, SlotSetup, Verification};
use kilotok_sched::{Cost, Limits, Submission};
use kilotok_testkit::host::{Mask, some};
use kilotok_testkit::{DraftAccuracy, Random};

pub(super) struct Workload {
    pub(super) caps: Caps,
    /// Whether pages never run out.
    pub(super) ample: bool,
    pub(super) skill: DraftAccuracy,
    pub(super) limits: Limits,
    pub(super) jobs: Vec<Job>,
    /// Ranges of jobs that are submitted together. Every job is in one of them.
    pub(super) families: Vec<Range<usize>>,
    /// Steps whose output is lost, counted from 1.
    pub(super) failures: Vec<u64>,
    /// Steps in which the numbers of a row are not finite, counted from 1.
    pub(super) poisons: Vec<u64>,
}

/// A request and its events.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) asked: Submission,
    pub(super) joins: u32,
    pub(super) mask: Option<Mask>,
    /// Number of steps until the host has masks.
    pub(super) mask_delay: u32,
    /// The step in which it is cancelled, and whether that happens while the step is in flight.
    pub(super) cancel: Option<(u32, bool)>,
    /// The host stops it when it has more tokens than this.
    pub(super) stop: Option<u32>,
}

const VOCAB: u32 = 24;
const POSITION_MAX: u32 = 80;

impl Workload {
    pub(super) fn new(seed: u64) -> Self {
        let draw = &mut Random::new(seed);
        let ample = draw.once_in(4);
        let caps = caps(draw, ample);
        let skill = match draw.between(0, 3) {
            0 => DraftAccuracy::Percent(0),
            1 => DraftAccuracy::Percent(60),
            2 => DraftAccuracy::Percent(95),
            _ => DraftAccuracy::Always(5),
        };
        let limits = limits(draw);
        let stems: Vec<Vec<TokenId>> = (0..2).map(|_| text(draw, 40)).collect();
        let (mut jobs, mut families) = (Vec::new(), Vec::new());
        for _ in 0..draw.between(1, 12) {
            let first = jobs.len();
            jobs.push(job(draw, &stems));
            if draw.once_in(5) {
                let count = draw.between(1, 5).min(limits.queue_max) - 1;
                (0..count).for_each(|_| jobs.push(copy(draw, &jobs[first], &stems)));
            }
            families.push(first..jobs.len());
        }
        let mut once = |seldom| {
            if draw.once_in(seldom) { vec![draw.between(1, 30).into()] } else { Vec::new() }
        };
        let (failures, poisons) = (once(10), once(6));
        Self { caps, ample, skill, limits, jobs, families, failures, poisons }
    }
}

fn caps(draw: &mut Random, ample: bool) -> Caps {
    let drafter = !draw.once_in(4);
    // Sometimes only window groups run out of pages, because requests that start with little text
    // grow.
    let ample_but_windows = !ample && draw.once_in(4);
    let mut groups = Vec::new();
    for kind in [PageKind::Full, PageKind::Window, PageKind::Draft] {
        let window = match kind {
            PageKind::Full => None,
            PageKind::Draft if draw.once_in(4) => None,
            _ if ample_but_windows => Some(12),
            _ => Some(draw.pick(&[1_u32, 2, 5, 12])),
        };
        let page_tokens = draw.pick(if ample_but_windows { &[1, 2] } else { &[1, 2, 3, 4, 8] });
        let scarce = match window {
            None => draw.between(20, 120) / page_tokens + 2,
            Some(keys) if ample_but_windows => draw.between(keys, 3 * keys) / page_tokens + 1,
            // As few pages as a row of one token needs.
            Some(keys) if draw.once_in(4) => (keys - 1).div_ceil(page_tokens) + 1,
            Some(keys) => draw.between(keys, 60) / page_tokens + 2,
        };
        let ample = ample || (ample_but_windows && window.is_none());
        let page_count = if ample { 8 * POSITION_MAX.div_ceil(page_tokens) } else { scarce };
        let page_bytes = u64::from(page_tokens);
        let there = match kind {
            PageKind::Full => true,
            PageKind::Window => !draw.once_in(3),
            PageKind::Draft => drafter,
        };
        if there {
            groups.push(PageGroup { kind, page_tokens, page_count, window, page_bytes });
        }
    }
    Caps {
        vocab_size: VOCAB,
        position_max: draw.between(24, POSITION_MAX),
        slot_count: draw.pick(&[1, 2, 4, 8, 8, 8]),
        row_max: if draw.once_in(4) { draw.between(1, 8) } else { 8 },
        token_max: draw.pick(&[1, 8, 20, 64, 64]),
        wanted_max: draw.pick(&[1, 8, 20, 64, 64]),
        wide_from: draw.pick(&[None, None, Some(1), Some(9), Some(33)]),
        draft_max: draw.pick(&[0, 1, 3, 7, 7]),
        drafter,
        logprobs_max: 3,
        steps_in_flight_max: 2,
        groups,
    }
}

fn limits(draw: &mut Random) -> Limits {
    Limits {
        queue_max: if draw.once_in(4) { draw.between(1, 6) } else { 20 },
        running_max: if draw.once_in(4) { draw.between(1, 8) } else { 8 },
        chunk_max: draw.between(1, 64),
        chunk_min: draw.between(1, 8),
        step_us_max: draw.pick(&[1, 300, 100_000, 100_000]),
        stall_free: draw.once_in(4),
        draft_rows_max: draw.pick(&[0, 2, 100, 100]),
        aging: draw.between(0, 4),
        cost: Cost {
            base_us: 200.0,
            token_us: draw.pick(&[0.0, 5.0, 40.0]),
            draft_us: draw.pick(&[0.0, 0.0, 50.0]),
        },
        learning_share: draw.pick(&[0.0, 0.02, 0.5]),
        prefix_cache: !draw.once_in(5),
    }
}

fn text(draw: &mut Random, count: u32) -> Vec<TokenId> {
    (0..count).map(|_| draw.between(0, VOCAB - 1)).collect()
}

fn job(draw: &mut Random, stems: &[Vec<TokenId>]) -> Job {
    let stem = draw.between(0, 1) as usize;
    let shared = if draw.once_in(3) { draw.between(0, 30) } else { draw.between(0, 12) };
    let own = draw.between(0, 4);
    let prompt = [&stems[stem][..shared as usize], &text(draw, own)].concat();
    let token_max = match draw.between(0, 5) {
        0 => draw.between(0, 3),
        _ => draw.between(2, 60),
    };
    let mut setup = setup(draw);
    if draw.once_in(3) && setup.sampling.temperature == 0.0 {
        // The request is greedy, so its reply must be the same.
        setup.verification = Verification::Rejection { draft_temperature: 1.0 };
    }
    let mut asked = Submission::new(prompt, setup, token_max);
    asked.priority = draw.pick(&[0, 0, 0, -2, 1, 3]);
    asked.cache_salt = draw.pick(&["", "", "", "a", "b"]).into();
    asked.drafts = !draw.once_in(6);
    asked.logprobs = draw.pick(&[None, None, Some(0), Some(3)]);
    asked.score_prompt = draw.once_in(6);
    let mask = draw.pick(&[None, None, None, None, Some(some as Mask), Some(fatal as Mask)]);
    asked.needs_masks = mask.is_some();
    Job {
        asked,
        joins: if draw.once_in(3) { draw.between(0, 30) } else { draw.between(0, 2) },
        mask,
        mask_delay: draw.pick(&[0, 0, 0, 1, 3]),
        cancel: draw.once_in(5).then(|| (draw.between(0, 40), draw.once_in(2))),
        stop: draw.once_in(6).then(|| draw.between(0, 10)),
    }
}

/// Another reply to a job's prompt, or sometimes to another prompt.
fn copy(draw: &mut Random, first: &Job, stems: &[Vec<TokenId>]) -> Job {
    let other = job(draw, stems);
    let mut asked = first.asked.clone();
    if draw.once_in(4) {
        asked.prompt.clone_from(&other.asked.prompt);
    }
    asked.setup.sampling.seed += u64::from(draw.between(1, 9));
    Job { asked, joins: first.joins, mask: first.mask, ..other }
}

fn setup(draw: &mut Random) -> SlotSetup {
    let mut sampling = Sampling::GREEDY;
    if draw.once_in(3) {
        sampling.temperature = 1.0;
        sampling.seed = u64::from(draw.between(0, 1000));
    }
    if draw.once_in(4) {
        sampling.frequency_penalty = 0.7;
        sampling.repetition_penalty = 1.3;
    }
    let end_tokens = if draw.once_in(2) { text(draw, 2) } else { Vec::new() };
    if draw.once_in(3) {
        sampling.min_tokens = draw.between(0, 4);
    }
    let bad_words = if draw.once_in(6) { vec![text(draw, 1), text(draw, 2)] } else { Vec::new() };
    let logit_bias = if draw.once_in(6) { vec![(7, 2.0)] } else { Vec::new() };
    SlotSetup { logit_bias, bad_words, end_tokens, ..SlotSetup::new(sampling, 0) }
}

/// Like [`some`], but allows no token at all after some texts.
fn fatal(text: &[TokenId], vocab_size: u32) -> Vec<u32> {
    let sum = text.iter().sum::<TokenId>();
    if sum % 11 == 3 { vec![0; vocab_size.div_ceil(32) as usize] } else { some(text, vocab_size) }
}
