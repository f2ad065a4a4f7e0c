//! Two engines in lockstep, as one `Engine`. The caller sees the reference's replies, and both
//! engines always continue from the same tokens, so that every single choice can be compared. If a
//! choice differs, small errors of the logits must explain it. It is counted, the reference's token
//! is kept, and the slot is set up again in both engines.

use std::sync::{Arc, Mutex};

use kilotok_abi::TokenId;
use kilotok_cpu::{CpuEngine, Seen};
use kilotok_engine::{
    Caps, Engine, EngineError, Row, RowOutput, RowTokens, SlotSetup, StepId, StepOutput, StepPlan,
    TokenLogprobs,
};
use kilotok_sampling::{Sampler, Setup};

use crate::distances::{Distances, distance};

/// The counts of a pair.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) steps: usize,
    /// Choices that agree: greedy ones, and below, sampled ones.
    pub(crate) greedy: usize,
    pub(crate) sampled: usize,
    /// Choices that differ within the tolerance of the logits.
    pub(crate) within: [usize; 2],
    /// Choices that differ because experts nearly tie.
    pub(crate) other_experts: [usize; 2],
    /// Choices that differ without such an explanation.
    pub(crate) wrong: Vec<String>,
    /// Drafts, and below, those that differ, and rows whose drafts were verified from the slot.
    pub(crate) drafts: usize,
    pub(crate) other_drafts: usize,
    pub(crate) held_rows: usize,
    pub(crate) faults: usize,
    pub(crate) distances: Distances,
}

impl Tally {
    /// Number of greedy and of sampled choices that were compared, without the wrong ones.
    pub(crate) fn compared(&self) -> [usize; 2] {
        let same = [self.greedy, self.sampled];
        [0, 1].map(|kind| same[kind] + self.within[kind] + self.other_experts[kind])
    }

    /// The shares of these that differ within the tolerance, and because of other experts.
    pub(crate) fn excused(&self) -> [[f64; 2]; 2] {
        let compared = self.compared();
        let share = |count: usize, kind: usize| count as f64 / compared[kind].max(1) as f64;
        [self.within, self.other_experts].map(|counts| [0, 1].map(|kind| share(counts[kind], kind)))
    }
}

/// The largest errors that explain a different choice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tolerance {
    /// Error of a logit.
    pub(crate) logit: f32,
    /// Error of an expert's score.
    pub(crate) lead: f32,
}

/// The values that the reference's step computed.
#[derive(Default)]
struct Notes {
    /// The logits after every wanted token, in order.
    logits: Vec<Vec<f32>>,
    /// By layer and token of the batch: the lead of the last chosen expert over the next.
    leads: Vec<f32>,
}

/// The state of a slot, which both engines should share.
struct Slot {
    setup: SlotSetup,
    /// The known tokens, if the setup reads them.
    history: Vec<TokenId>,
    anchor: TokenId,
    /// The reference's drafts.
    drafts: Vec<TokenId>,
    same_drafts: bool,
    /// Whether the other engine chose another token.
    apart: bool,
}

pub(crate) struct Pair {
    reference: CpuEngine,
    other: Box<dyn Engine>,
    tolerance: Tolerance,
    notes: Arc<Mutex<Notes>>,
    slots: Vec<Option<Slot>>,
    finished: Option<(StepId, StepOutput)>,
    pub(crate) tally: Tally,
}

impl Pair {
    pub(crate) fn new(
        mut reference: CpuEngine,
        other: Box<dyn Engine>,
        tolerance: Tolerance,
    ) -> Self {
        let notes = Arc::new(Mutex::new(Notes::default()));
        let written = Arc::clone(&notes);
        reference.watch(Box::new(move |seen| {
            let mut notes = written.lock().unwrap();
            match seen {
                Seen::Logits { values, .. } => notes.logits.push(values.to_vec()),
                Seen::Experts { lead, .. } => notes.leads.push(lead),
                Seen::Hidden { .. } | Seen::DraftContext { .. } | Seen::DraftLogits { .. } => {}
            }
        }));
        let slots = (0..reference.caps().slot_count).map(|_| None).collect();
        let tally = Tally::default();
        Self { reference, other, tolerance, notes, slots, finished: None, tally }
    }

    /// The row for both engines. It has explicit tokens if the engines' slots differ.
    fn rewrite(&mut self, mut row: Row) -> Row {
        let place = &mut self.slots[row.slot.0 as usize];
        if let Some(setup) = &row.setup {
            *place = Some(Slot::new(setup));
        }
        let slot = place.as_mut().unwrap();
        row.report_drafts = row.draft_next > 0;
        match &mut row.tokens {
            RowTokens::Given { tokens, draft_count } => {
                let known = tokens.len() - *draft_count as usize;
                slot.learn(row.start, &tokens[..known]);
            }
            RowTokens::Held { draft_count } => {
                let count = if slot.apart { 0 } else { *draft_count as usize };
                row.masks.truncate(count + 1);
                if slot.apart || !slot.same_drafts {
                    let tokens = [&[slot.anchor], &slot.drafts[..count]].concat();
                    row.tokens = RowTokens::Given { tokens, draft_count: count as u32 };
                } else {
                    self.tally.held_rows += 1;
                }
            }
        }
        if std::mem::take(&mut slot.apart) {
            let history = slot.history.clone();
            row.setup = Some(Box::new(SlotSetup { history, ..slot.setup.clone() }));
        }
        row
    }

    fn step(&mut self, plan: &StepPlan) -> Result<StepOutput, EngineError> {
        let asked = plan;
        let rows = plan.rows.iter().cloned().map(|row| self.rewrite(row)).collect();
        let plan = StepPlan { rows };
        *self.notes.lock().unwrap() = Notes::default();
        let (mut output, other) = (self.reference.run(&plan)?, self.other.run(&plan)?);
        self.tally.steps += 1;
        let notes = std::mem::take(&mut *self.notes.lock().unwrap());
        let token_count: usize = plan.rows.iter().map(|row| row.tokens.count() as usize).sum();
        let mut leads = vec![f32::INFINITY; token_count];
        for (index, lead) in notes.leads.iter().enumerate() {
            leads[index % token_count] = leads[index % token_count].min(*lead);
        }
        let (mut logits, mut leads) = (&notes.logits[..], &leads[..]);
        for ((row, out), other) in plan.rows.iter().zip(&mut output.rows).zip(&other.rows) {
            let (own_logits, own_leads);
            (own_logits, logits) = logits.split_at(wanted(row));
            (own_leads, leads) = leads.split_at(row.tokens.count() as usize);
            self.compare(row, own_logits, own_leads, out, other);
        }
        for (row, out) in asked.rows.iter().zip(&mut output.rows) {
            if !row.report_drafts {
                out.drafts.clear();
            }
        }
        Ok(output)
    }

    /// Compares the outputs of a row, and cuts the reference's output after a choice that differs.
    fn compare(
        &mut self,
        row: &Row,
        logits: &[Vec<f32>],
        leads: &[f32],
        out: &mut RowOutput,
        other: &RowOutput,
    ) {
        self.note(&out.scored, &other.scored, leads);
        if !row.sample {
            return;
        }
        let draft_count = row.tokens.draft_count() as usize;
        let first = row.tokens.count() as usize - draft_count - 1;
        let logits = &logits[logits.len() - draft_count - 1..];
        let differs = |i: usize| out.tokens.get(i) != other.tokens.get(i);
        let end = out.tokens.len().max(other.tokens.len());
        let same = (0..end).find(|&i| differs(i)).unwrap_or(end);
        let slot = self.slots[row.slot.0 as usize].as_mut().unwrap();
        let greedy = slot.setup.sampling.temperature == 0.0;
        *(if greedy { &mut self.tally.greedy } else { &mut self.tally.sampled }) += same;
        if same < end {
            let position = row.start + (first + same) as u32 + 1;
            let choice = Choice {
                logits: &logits[same],
                position,
                mask: row.masks.get(same).map(Vec::as_slice),
                tokens: [out.tokens.get(same).copied(), other.tokens.get(same).copied()],
            };
            let history = [&slot.history, &out.tokens[..same]].concat();
            let kind = usize::from(!greedy);
            if choice.explained(slot, &history, self.tolerance.logit) {
                self.tally.within[kind] += 1;
            } else if leads[first + same] < self.tolerance.lead {
                self.tally.other_experts[kind] += 1;
            } else {
                self.tally.wrong.push(format!("{choice} {:?}", slot.setup.sampling));
            }
            slot.apart = true;
            out.tokens.truncate(same + 1);
            out.logprobs.truncate(same + 1);
        } else if out.fault != other.fault {
            self.tally.wrong.push(format!("{:?} and {:?}", out.fault, other.fault));
        }
        self.tally.faults += usize::from(out.fault.is_some());
        if slot.setup.needs_history() {
            slot.history.extend_from_slice(&out.tokens);
        }
        slot.anchor = out.tokens.last().copied().unwrap_or_default();
        if !slot.apart {
            let pairs = out.drafts.iter().zip(&other.drafts);
            self.tally.drafts += out.drafts.len();
            self.tally.other_drafts += pairs.filter(|(a, b)| a != b).count();
        }
        slot.same_drafts = out.drafts == other.drafts;
        slot.drafts.clone_from(&out.drafts);
        let count = same.min(out.logprobs.len()).min(other.logprobs.len());
        self.note(&out.logprobs[..count], &other.logprobs[..count], &leads[first..]);
    }

    fn note(&mut self, a: &[TokenLogprobs], b: &[TokenLogprobs], leads: &[f32]) {
        for ((a, b), lead) in a.iter().zip(b).zip(leads) {
            self.tally.distances.add(distance(a, b), *lead);
        }
    }
}

impl Slot {
    fn new(setup: &SlotSetup) -> Self {
        Self {
            history: setup.history.clone(),
            setup: setup.clone(),
            anchor: 0,
            drafts: Vec::new(),
            same_drafts: true,
            apart: false,
        }
    }

    /// Adds the tokens from `start` on that are not known yet.
    fn learn(&mut self, start: u32, tokens: &[TokenId]) {
        if self.setup.needs_history() {
            let known = self.history.len().saturating_sub(start as usize).min(tokens.len());
            self.history.extend_from_slice(&tokens[known..]);
        }
    }
}

/// Number of the row's tokens after which logits are needed.
fn wanted(row: &Row) -> usize {
    let count = row.tokens.count() as usize;
    let unsampled = if row.sample { count - row.tokens.draft_count() as usize - 1 } else { count };
    (0..count).filter(|&token| token < row.scored.len() || token >= unsampled).count()
}

/// A choice in which the two engines differ.
struct Choice<'a> {
    /// The reference's logits.
    logits: &'a [f32],
    position: u32,
    mask: Option<&'a [u32]>,
    tokens: [Option<TokenId>; 2],
}

impl Choice<'_> {
    /// Whether logits within the tolerance of the reference's lead to the other engine's choice.
    /// Errors in favour of its token are tried, with and without errors that move the bounds of
    /// top-k, top-p or min-p.
    fn explained(&self, slot: &Slot, history: &[TokenId], tolerance: f32) -> bool {
        let [Some(own), Some(other)] = self.tokens.map(|token| token.map(|id| id as usize)) else {
            return false;
        };
        let SlotSetup { sampling, prompt_count, .. } = slot.setup;
        let setup = Setup {
            sampling,
            prompt_count,
            logit_bias: slot.setup.logit_bias.clone(),
            bad_words: slot.setup.bad_words.clone(),
            end_tokens: slot.setup.end_tokens.clone(),
        };
        let mut sampler = Sampler::new(setup, history);
        let shifts = [0.0, -tolerance, tolerance];
        [own, other].into_iter().any(|pivot| {
            shifts.into_iter().any(|shift| {
                let mut logits = self.logits.to_vec();
                for (logit, &was) in logits.iter_mut().zip(self.logits) {
                    *logit += if was > self.logits[pivot] { shift } else { 0.0 };
                }
                logits[own] = self.logits[own] - tolerance;
                logits[other] = self.logits[other] + tolerance;
                let chosen = sampler.choose(self.position, self.mask, &logits);
                chosen.is_ok_and(|token| token as usize == other)
            })
        })
    }
}

impl std::fmt::Display for Choice<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { position, tokens, .. } = self;
        let logits = tokens.map(|token| token.map(|token| self.logits[token as usize]));
        write!(f, "at {position} {tokens:?}, by the reference's logits {logits:?}")
    }
}

impl Engine for Pair {
    fn caps(&self) -> &Caps {
        self.reference.caps()
    }

    fn submit(&mut self, plan: &StepPlan) -> Result<StepId, EngineError> {
        let output = self.step(plan)?;
        let id = StepId(self.tally.steps as u64);
        self.finished = Some((id, output));
        Ok(id)
    }

    fn wait(&mut self, step: StepId, out: &mut StepOutput) -> Result<(), EngineError> {
        let finished = self.finished.take_if(|(finished, _)| *finished == step);
        *out = finished.ok_or(EngineError::WrongStep { step })?.1;
        Ok(())
    }
}
