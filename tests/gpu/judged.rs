//! The distribution of tokens under rejection sampling, through an engine's own step: its drafter
//! draws the drafts, and its target verifies a number of them that is chosen independently of the
//! drafts. The first token of a request is the only one that the mask allows. The second token,
//! which may be a draft, must follow the target's distribution, which is known from the scores that
//! the engine reports for all tokens.

#![expect(clippy::print_stdout, reason = "figures, with --nocapture")]

use kilotok_abi::{PageId, Sampling, TokenId};
use kilotok_batch::Sizes;
use kilotok_engine::{
    Engine, PageRun, Row as PlanRow, RowTokens, SlotSetup, StepOutput, Verification,
};

use super::exact::Finding;
use super::setup::{HISTORY, PROMPT_COUNT};
use super::{LAST, prepare, run};
use crate::{GPT_OSS, PRO, QWEN3_DENSE, V2_6_FLASH, WIDE_TOKENS, cuda_of, cuda_wide, sizes};

const DRAWS: u64 = 1 << 14;
const MANY_DRAWS: u64 = 1 << 20;
/// Used on emulated GPUs.
const FEW_DRAWS: u64 = 1 << 10;
/// The number of drafts is drawn as three bits.
const DRAFTS: u32 = 7;
/// Number of requests in a step, each with all drafts.
const ROWS: u32 = kilotok_cuda::TOKENS_MAX / (DRAFTS + 1);
/// Pages of a slot.
const PAGES: u32 = 2;
/// The first token of every request.
const FIRST: TokenId = 6;

/// A request, and the temperature of its drafts, relative to its own.
#[derive(Clone, Debug)]
struct Setting {
    sampling: Sampling,
    logit_bias: Vec<(TokenId, f32)>,
    draft_temperature: f32,
}

fn settings() -> [Setting; 5] {
    let plain = Sampling { temperature: 1.0, ..Sampling::GREEDY };
    let setting = |sampling, draft_temperature| Setting {
        sampling,
        logit_bias: Vec::new(),
        draft_temperature,
    };
    let all = Sampling {
        temperature: 0.8,
        top_k: 120,
        top_p: 0.97,
        min_p: 0.005,
        presence_penalty: 0.8,
        frequency_penalty: 0.7,
        ..plain
    };
    let penalties = Sampling { presence_penalty: 1.5, frequency_penalty: 1.0, ..plain };
    let biased: Vec<_> = (0..256).step_by(3).map(|token| (token, 1.5)).collect();
    [
        setting(plain, 1.0),
        Setting { logit_bias: biased.clone(), ..setting(all, 1.0) },
        Setting { logit_bias: biased, ..setting(penalties, 0.5) },
        setting(Sampling { top_k: 20, ..plain }, 1.0),
        setting(Sampling { temperature: 0.6, ..plain }, 0.0),
    ]
}

impl Setting {
    fn setup(&self, seed: u64) -> SlotSetup {
        let draft_temperature = self.draft_temperature;
        SlotSetup {
            verification: Verification::Rejection { draft_temperature },
            history: HISTORY.to_vec(),
            logit_bias: self.logit_bias.clone(),
            ..SlotSetup::new(Sampling { seed, ..self.sampling }, PROMPT_COUNT)
        }
    }

    /// The exact distribution of the token after the first one, from the model's scores, calculated
    /// in f64 from the definitions.
    fn law(&self, scores: &[f32]) -> Vec<f64> {
        let s = &self.sampling;
        let mut x: Vec<f64> = scores.iter().map(|&score| f64::from(score)).collect();
        for &(token, bias) in &self.logit_bias {
            x[token as usize] += f64::from(bias);
        }
        let output = [&HISTORY[PROMPT_COUNT as usize..], &[FIRST]].concat();
        for (token, x) in (0..).zip(&mut x) {
            let count = output.iter().filter(|&&other| other == token).count() as f64;
            *x -= f64::from(s.frequency_penalty) * count;
            *x -= f64::from(s.presence_penalty) * count.min(1.0);
        }
        let mut order: Vec<usize> = (0..x.len()).collect();
        order.sort_by(|&a, &b| x[b].total_cmp(&x[a]));
        let weight = |token: usize| ((x[token] - x[order[0]]) / f64::from(s.temperature)).exp();
        let mut kept: Vec<usize> =
            order.iter().copied().filter(|&t| weight(t) >= f64::from(s.min_p)).collect();
        if s.top_k > 0 {
            kept.truncate(s.top_k as usize);
        }
        let total: f64 = kept.iter().map(|&token| weight(token)).sum();
        let (mut sum, enough) = (0.0, f64::from(s.top_p) * total);
        if s.top_p < 1.0 {
            kept.retain(|&token| {
                let short = sum < enough;
                sum += weight(token);
                short
            });
        }
        let total: f64 = kept.iter().map(|&token| weight(token)).sum();
        let mut law = vec![0.0; x.len()];
        for &token in &kept {
            law[token] = weight(token) / total;
        }
        law
    }
}

fn row(engine: &dyn Engine, slot: u32, start: usize, tokens: RowTokens) -> PlanRow {
    let pages: Vec<_> = (0..PAGES).map(|page| PageId(slot * PAGES + page)).collect();
    PlanRow {
        pages: vec![PageRun { first: 0, pages }; engine.caps().groups.len()],
        ..super::row(engine, slot, start, tokens)
    }
}

/// The log-probability of each token after the history and the first token.
fn scores(engine: &mut dyn Engine) -> Vec<f32> {
    let vocab_size = engine.caps().vocab_size;
    let score = |token| {
        let tokens = RowTokens::Given { tokens: vec![HISTORY[LAST], FIRST], draft_count: 0 };
        let setup = Some(Box::new(SlotSetup::new(Sampling::GREEDY, PROMPT_COUNT)));
        let row = row(engine, 0, LAST, tokens);
        let scored = vec![FIRST, token];
        let output = run(engine, vec![PlanRow { setup, scored, sample: false, ..row }]);
        output.rows[0].scored[1].chosen.logprob
    };
    (0..vocab_size).map(score).collect()
}

struct Counts {
    /// How often each token was the second one.
    tokens: Vec<u32>,
    /// How many drafts were verified as the first of a row, and below, how many of them were
    /// accepted.
    judged: u32,
    accepted: u32,
}

fn count(engine: &mut dyn Engine, setting: &Setting, draws: u64) -> Counts {
    let vocab_size = engine.caps().vocab_size as usize;
    let mut only_first = vec![0; vocab_size.div_ceil(32)];
    only_first[FIRST as usize / 32] = 1 << (FIRST % 32);
    let mut counts = Counts { tokens: vec![0; vocab_size], judged: 0, accepted: 0 };
    let mut whim = 0_u32;
    for first in (0..draws).step_by(ROWS as usize) {
        let begin = |slot: u32| {
            let setup = Some(Box::new(setting.setup(first + u64::from(slot))));
            let tokens = RowTokens::Given { tokens: vec![HISTORY[LAST]], draft_count: 0 };
            let row = row(engine, slot, LAST, tokens);
            PlanRow { setup, masks: vec![only_first.clone()], draft_next: DRAFTS, ..row }
        };
        let rows = (0..ROWS).map(begin).collect();
        let begun: StepOutput = run(engine, rows);
        assert!(begun.rows.iter().all(|row| row.tokens == [FIRST] && row.held_count == DRAFTS));
        let mut draft_counts = Vec::new();
        for _ in 0..ROWS {
            whim = whim.wrapping_mul(1_664_525).wrapping_add(counts.accepted + 1);
            draft_counts.push(whim >> 29);
        }
        let go_on = |slot: u32| {
            let draft_count = draft_counts[slot as usize];
            row(engine, slot, LAST + 1, RowTokens::Held { draft_count })
        };
        let rows = (0..ROWS).map(go_on).collect();
        for (row, draft_count) in run(engine, rows).rows.iter().zip(draft_counts) {
            counts.tokens[row.tokens[0] as usize] += 1;
            counts.judged += u32::from(draft_count > 0);
            counts.accepted += u32::from(row.tokens.len() > 1);
        }
    }
    counts
}

fn check(engine: &mut dyn Engine, settings: &[Setting], draws: u64) {
    prepare(engine, ROWS, row);
    let scores = scores(engine);
    let (mut judged, mut accepted) = (0, 0);
    for setting in settings {
        let counts = count(engine, setting, draws);
        println!("{} of {} first drafts are accepted", counts.accepted, counts.judged);
        judged += counts.judged;
        accepted += counts.accepted;
        let finding = Finding::of(&counts.tokens, &setting.law(&scores));
        finding.assert_right(setting, settings.len());
    }
    assert!(accepted > 0 && accepted < judged, "{accepted} of {judged}: both happen");
}

fn few_tokens() -> Sizes {
    Sizes { slot_count: ROWS, ..sizes(1) }
}

#[test]
fn the_reference_keeps_the_law_of_judged_drafts() {
    check(&mut crate::plans::cpu(&PRO, &few_tokens()), &settings(), FEW_DRAWS);
}

#[test]
fn the_references_families_keep_the_law_of_judged_drafts() {
    for checkpoint in [&QWEN3_DENSE, &GPT_OSS] {
        check(&mut crate::plans::cpu(checkpoint, &few_tokens()), &settings()[..2], FEW_DRAWS);
    }
}

#[test]
fn the_gpu_keeps_the_law_of_judged_drafts() {
    needs_gpus!(1);
    check(&mut *cuda_of(&PRO, &few_tokens()), &settings(), DRAWS);
}

/// With as many draws as `crates/batch/tests/law`.
#[test]
#[ignore = "minutes"]
fn the_gpu_keeps_the_law_of_a_million_judged_drafts() {
    needs_gpus!(1);
    check(&mut *cuda_of(&PRO, &few_tokens()), &settings()[..2], MANY_DRAWS);
}

#[test]
fn families_keep_the_law_of_judged_drafts() {
    needs_gpus!(1);
    for checkpoint in [&QWEN3_DENSE, &GPT_OSS, &V2_6_FLASH] {
        check(&mut *cuda_of(checkpoint, &few_tokens()), &settings()[..2], DRAWS);
    }
}

#[test]
fn two_ranks_keep_the_law_of_judged_drafts() {
    needs_gpus!(2);
    let sizes = Sizes { rank_count: 2, ..few_tokens() };
    check(&mut *cuda_of(&PRO, &sizes), &settings(), DRAWS);
    check(&mut *cuda_of(&GPT_OSS, &sizes), &settings()[..2], DRAWS);
}

#[test]
fn the_wide_pass_keeps_the_law_of_judged_drafts() {
    needs_gpus!(1);
    let sizes = Sizes { token_max: WIDE_TOKENS, ..few_tokens() };
    check(&mut *cuda_wide(&PRO, &sizes, 0), &settings()[..2], DRAWS);
}

/// Used on emulated GPUs.
#[test]
fn few_judged_drafts_keep_the_law() {
    needs_gpus!(1);
    check(&mut *cuda_of(&PRO, &few_tokens()), &settings()[..1], FEW_DRAWS);
}
