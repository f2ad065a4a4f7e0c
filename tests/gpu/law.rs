//! The distribution of an engine's tokens, checked as in `crates/batch/tests/law`: two tokens
//! after a history, preceded by a draft that is sometimes right, with combinations of processors.
//! The logits are a model's; the engine reports them as scores, token by token.
//!
//! The repetition penalty is left out, because it depends on the sign of logits, which scores do
//! not show.

use std::cell::RefCell;

use kilotok_abi::{PageId, Sampling, SlotId, TokenId};
use kilotok_batch::Sizes;
use kilotok_engine::{Engine, PageRun, Row as PlanRow, RowTokens, SlotSetup, StepOutput, StepPlan};

use crate::{
    FLASH, GPT_OSS, PRO, QWEN3_DENSE, QWEN3_MOE, V2_6_FLASH, WIDE_TOKENS, cuda_of, cuda_wide, sizes,
};
use exact::Finding;
use setup::{BIAS, COMBINATIONS, HISTORY, PROMPT_COUNT, REPETITION, Row, VOCAB, mask_of, setup_of};

#[path = "../../crates/batch/tests/law/exact.rs"]
mod exact;
#[path = "judged.rs"]
mod judged;
#[path = "../../crates/batch/tests/law/setup.rs"]
mod setup;

const DRAWS: u64 = 1 << 14;
const FALSE_ALARM: f64 = 1e-6;
/// How many combinations of processors are checked on a GPU, and below, without one.
const SETTINGS: u32 = 24;
const FEW_SETTINGS: u32 = 2;
/// Number of requests in a step. Each has the history's last token and a draft.
const ROWS: u32 = kilotok_cuda::TOKENS_MAX / 2;

#[derive(Clone, Copy, Debug)]
struct Setting {
    combination: u32,
    length: usize,
}

thread_local! {
    /// By offset and last token.
    static LOGITS: RefCell<[[Row<f32>; VOCAB]; 2]> = RefCell::default();
}

fn target_logits(offset: usize, last: TokenId) -> Row<f32> {
    LOGITS.with_borrow(|logits| logits[offset][last as usize])
}

/// The request of a combination. Tokens that its bias forbids are bad words here, because the text
/// form of a plan has no infinities.
fn slot_setup(combination: u32, seed: u64) -> SlotSetup {
    let setup = setup_of(combination);
    let mut bad_words = setup.bad_words;
    if combination & BIAS != 0 {
        let forbidden = setup.logit_bias.iter().filter(|(_, bias)| bias.is_infinite());
        bad_words.extend(forbidden.map(|(token, _)| vec![*token]));
    }
    SlotSetup {
        history: HISTORY.to_vec(),
        logit_bias: setup.logit_bias.into_iter().filter(|(_, bias)| bias.is_finite()).collect(),
        bad_words,
        end_tokens: setup.end_tokens,
        ..SlotSetup::new(Sampling { seed, ..setup.sampling }, PROMPT_COUNT)
    }
}

/// Allows the first 8 tokens of the vocabulary, except those that the combination's grammar
/// forbids.
fn mask(combination: u32, last: TokenId, vocab_size: u32) -> Vec<u32> {
    let mut mask = vec![0; vocab_size.div_ceil(32) as usize];
    mask[0] = mask_of(combination, last) & 0xff;
    mask
}

fn run(engine: &mut dyn Engine, rows: Vec<PlanRow>) -> StepOutput {
    engine.run(&StepPlan { rows }).unwrap()
}

/// Every slot has one page of each group, in which the whole sequence fits.
fn row(engine: &dyn Engine, slot: u32, start: usize, tokens: RowTokens) -> PlanRow {
    let run = PageRun { first: 0, pages: vec![PageId(slot)] };
    let pages = vec![run; engine.caps().groups.len()];
    PlanRow { pages, ..PlanRow::new(SlotId(slot), start as u32, tokens) }
}

const LAST: usize = HISTORY.len() - 1;

/// Fills the pages of this many slots up to the last token of the history. `row` makes a row of a
/// slot.
fn prepare(
    engine: &mut dyn Engine,
    slot_count: u32,
    row: fn(&dyn Engine, u32, usize, RowTokens) -> PlanRow,
) {
    for slot in 0..slot_count {
        let tokens = RowTokens::Given { tokens: HISTORY[..LAST].to_vec(), draft_count: 0 };
        let setup = Some(Box::new(SlotSetup::new(Sampling::GREEDY, PROMPT_COUNT)));
        let row = row(engine, slot, 0, tokens);
        run(engine, vec![PlanRow { setup, sample: false, ..row }]);
    }
}

/// The log-probability of each of the 8 tokens after the history and `after`.
fn scores(engine: &mut dyn Engine, after: &[TokenId]) -> Row<f32> {
    std::array::from_fn(|token| {
        let tokens = [&HISTORY[LAST..], after].concat();
        let scored = [after, &[token as TokenId]].concat();
        let setup = Some(Box::new(SlotSetup::new(Sampling::GREEDY, PROMPT_COUNT)));
        let row = row(engine, 0, LAST, RowTokens::Given { tokens, draft_count: 0 });
        let output = run(engine, vec![PlanRow { setup, scored, sample: false, ..row }]);
        output.rows[0].scored.last().unwrap().chosen.logprob
    })
}

/// How often each pair of tokens was generated.
fn count(engine: &mut dyn Engine, combination: u32) -> Vec<u32> {
    let vocab_size = engine.caps().vocab_size;
    let allowed = |last| mask(combination, last, vocab_size);
    let mut counts = vec![0; VOCAB * VOCAB];
    for first in (0..DRAWS).step_by(ROWS as usize) {
        let begin = |slot: u32| {
            let seed = first + u64::from(slot);
            let tokens = vec![HISTORY[LAST], (seed % VOCAB as u64) as TokenId];
            let masks = tokens.iter().map(|last| allowed(*last)).collect();
            let setup = Some(Box::new(slot_setup(combination, seed)));
            let row = row(engine, slot, LAST, RowTokens::Given { tokens, draft_count: 1 });
            PlanRow { setup, masks, ..row }
        };
        let rows = (0..ROWS).map(begin).collect();
        let mut tokens: Vec<_> = run(engine, rows).rows.into_iter().map(|row| row.tokens).collect();
        let single: Vec<_> = (0..ROWS).filter(|slot| tokens[*slot as usize].len() == 1).collect();
        let go_on = |slot: &u32| {
            let masks = vec![allowed(tokens[*slot as usize][0])];
            let row = row(engine, *slot, LAST + 1, RowTokens::Held { draft_count: 0 });
            PlanRow { masks, ..row }
        };
        let rows = single.iter().map(go_on).collect();
        for (slot, row) in single.iter().zip(run(engine, rows).rows) {
            tokens[*slot as usize].extend(row.tokens);
        }
        for pair in tokens {
            counts[pair[0] as usize * VOCAB + pair[1] as usize] += 1;
        }
    }
    counts
}

fn check(engine: &mut dyn Engine, settings: u32) {
    prepare(engine, ROWS, row);
    let mut logits = [[[0.0; VOCAB]; VOCAB]; 2];
    logits[0][HISTORY[LAST] as usize] = scores(engine, &[]);
    for (last, row) in logits[1].iter_mut().enumerate() {
        *row = scores(engine, &[last as TokenId]);
    }
    LOGITS.set(logits);
    for k in 0..settings {
        let combination = (COMBINATIONS - 1 - 113 * k % COMBINATIONS) & !REPETITION;
        let setting = Setting { combination, length: 2 };
        let counts = count(engine, combination);
        Finding::new(setting, &counts).assert_right(setting, settings as usize);
    }
}

fn few_tokens() -> Sizes {
    Sizes { slot_count: ROWS, ..sizes(1) }
}

#[test]
fn the_reference_keeps_the_law() {
    let sizes = few_tokens();
    check(&mut crate::plans::cpu(&FLASH, &sizes), FEW_SETTINGS);
}

#[test]
fn the_gpu_keeps_the_law() {
    needs_gpus!(1);
    check(&mut *cuda_of(&FLASH, &few_tokens()), SETTINGS);
}

#[test]
fn families_keep_the_law() {
    needs_gpus!(1);
    for checkpoint in [&QWEN3_MOE, &QWEN3_DENSE, &GPT_OSS, &V2_6_FLASH] {
        check(&mut *cuda_of(checkpoint, &few_tokens()), FEW_SETTINGS);
    }
}

#[test]
fn two_ranks_of_families_keep_the_law() {
    needs_gpus!(2);
    for checkpoint in [&QWEN3_MOE, &GPT_OSS] {
        let sizes = Sizes { rank_count: 2, ..few_tokens() };
        check(&mut *cuda_of(checkpoint, &sizes), FEW_SETTINGS);
    }
}

#[test]
fn the_wide_pass_keeps_the_law() {
    needs_gpus!(1);
    let sizes = Sizes { token_max: WIDE_TOKENS, ..few_tokens() };
    check(&mut *cuda_wide(&PRO, &sizes, 0), SETTINGS);
}

#[test]
fn the_wide_pass_keeps_the_law_of_families() {
    needs_gpus!(1);
    let sizes = Sizes { token_max: WIDE_TOKENS, ..few_tokens() };
    for checkpoint in [&QWEN3_MOE, &QWEN3_DENSE, &GPT_OSS] {
        check(&mut *cuda_wide(checkpoint, &sizes, 0), FEW_SETTINGS);
    }
}
