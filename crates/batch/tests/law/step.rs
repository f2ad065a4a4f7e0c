//! Draws with the step of an engine, from the rows of a plan to the drafts in its slot:
//! `kilotok_batch::Samplers`, with tables in place of a model and a drafter. Drafts are made as by
//! DFlash, all at once: each from the logits of its position, independently of the drafts before
//! it.

use kilotok_abi::{Sampling, SlotId, TokenId};
use kilotok_batch::{Batch, Samplers, Slots};
use kilotok_engine::{Row as PlanRow, RowTokens, SlotSetup, StepOutput, StepPlan, Verification};

use crate::draw::last_of;
use crate::setup::{HISTORY, MASK, VOCAB, mask_of, setup_of};
use crate::{Setting, drafter_logits, target_logits};

/// As many drafts as in the published models.
const DRAFTS: usize = 7;
const SLOT: SlotId = SlotId(0);

/// How a host chooses the drafts that a row verifies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Host {
    /// As in the scheduler: the number of drafts does not depend on their tokens, and of the drafts
    /// that the grammar forbids only the first is verified.
    Right,
    /// A mistake: verifies no draft that the grammar forbids.
    WithoutForbidden,
    /// A mistake: whether drafts are verified depends on the token of the first.
    ByToken,
    /// Provides drafts of its own.
    Given,
}

struct Engine {
    slots: Slots,
    samplers: Samplers,
    setting: Setting,
    held: Vec<TokenId>,
}

/// How often each sequence is drawn.
pub(super) fn count_with_steps(setting: Setting, host: Host, draws: u64) -> Vec<u32> {
    let (slots, samplers) = (Slots::new(1, VOCAB), Samplers::new(1, VOCAB));
    let mut engine = Engine { slots, samplers, setting, held: Vec::new() };
    let mut counts = vec![0; VOCAB.pow(setting.length as u32)];
    let setup = slot_setup(setting);
    let mut tokens = Vec::new();
    // Determines the number of drafts. It depends on earlier numbers, and on how many drafts were
    // accepted.
    let mut whim = 0_usize;
    for seed in 0..draws {
        tokens.clear();
        let sampling = Sampling { seed, ..setup.sampling };
        let mut fresh = Some(Box::new(SlotSetup { sampling, ..setup.clone() }));
        while tokens.len() < setting.length {
            let wanted = match host {
                Host::ByToken if engine.held.first().is_some_and(|draft| draft % 2 == 1) => 0,
                Host::ByToken => DRAFTS,
                _ => whim % (DRAFTS + 1),
            };
            let row = engine.row(&tokens, fresh.take(), host, wanted);
            let gained = engine.step(row, &mut tokens);
            whim = whim.wrapping_mul(5) + gained + 1;
        }
        let index = tokens[..setting.length].iter().fold(0, |k, &t| VOCAB * k + t as usize);
        counts[index] += 1;
    }
    counts
}

fn slot_setup(setting: Setting) -> SlotSetup {
    let setup = setup_of(setting.combination);
    let draft_temperature = setting.draft_temperature;
    SlotSetup {
        sampling: setup.sampling,
        verification: Verification::Rejection { draft_temperature },
        prompt_count: setup.prompt_count,
        history: HISTORY.to_vec(),
        logit_bias: setup.logit_bias,
        bad_words: setup.bad_words,
        end_tokens: setup.end_tokens,
    }
}

impl Engine {
    /// The row after `tokens`, with at most `wanted` drafts.
    fn row(
        &mut self,
        tokens: &[TokenId],
        setup: Option<Box<SlotSetup>>,
        host: Host,
        wanted: usize,
    ) -> PlanRow {
        let newest = last_of(tokens);
        let drafts: Vec<TokenId> = match (host, &setup) {
            (Host::Given, _) => (0..wanted as TokenId % 3).map(|i| (newest + i) % 8).collect(),
            (_, Some(_)) => Vec::new(),
            (_, None) => self.held.iter().copied().take(wanted).collect(),
        };
        let (mut draft_count, mut masks) = (drafts.len(), Vec::new());
        if self.setting.combination & MASK != 0 {
            let mask = |last: TokenId| vec![mask_of(self.setting.combination, last)];
            let after = [&[newest], &drafts[..]].concat();
            let forbidden = |i: &usize| mask(after[*i])[0] >> drafts[*i] & 1 == 0;
            masks.extend(after.iter().copied().map(mask));
            if let Some(i) = (0..draft_count).find(forbidden).filter(|_| host != Host::Given) {
                draft_count = if host == Host::WithoutForbidden { i } else { i + 1 };
                masks.truncate(i + 1);
            }
        }
        let count = draft_count as u32;
        let tokens_of_row = if setup.is_none() && host != Host::Given {
            RowTokens::Held { draft_count: count }
        } else {
            let tokens = [&[newest], &drafts[..]].concat();
            RowTokens::Given { tokens, draft_count: count }
        };
        PlanRow {
            slot: SLOT,
            setup,
            start: (HISTORY.len() + tokens.len()) as u32 - 1,
            tokens: tokens_of_row,
            sample: true,
            pages: Vec::new(),
            later_starts: Vec::new(),
            masks,
            logprobs: None,
            scored: Vec::new(),
            draft_next: DRAFTS as u32,
            report_drafts: true,
        }
    }

    /// Runs the row and makes the next drafts. Appends the row's tokens and returns their number.
    fn step(&mut self, row: PlanRow, tokens: &mut Vec<TokenId>) -> usize {
        let plan = StepPlan { rows: vec![row] };
        let batch = Batch::new(&plan, &self.slots).expect("held drafts");
        let done = tokens.len();
        let logits: Vec<f32> =
            (done..).zip(&batch.tokens).flat_map(|(at, &last)| target_logits(at, last)).collect();
        let mut out = StepOutput::default();
        self.slots.enter(&batch);
        self.samplers.verify(&batch, &logits, &mut self.slots, &mut out);
        let out = out.rows.remove(0);
        assert_eq!(out.fault, None);
        tokens.extend_from_slice(&out.tokens);
        let newest = last_of(tokens);
        let offsets = tokens.len()..tokens.len() + DRAFTS;
        let logits: Vec<f32> = offsets
            .flat_map(|offset| drafter_logits(self.setting.drafter, offset, newest))
            .collect();
        let held = self.slots.held_mut(SLOT).expect("a token was chosen");
        held.drafts = self.samplers.draft(SLOT, held.start + 1, &logits);
        self.held.clone_from(&held.drafts);
        out.tokens.len()
    }
}
