//! An engine without a model, for tests of everything above the interface. It keeps every promise
//! of the conformance kit. Its tokens depend on the contents of the pages that a plan names, so a
//! mistake in a page table results in a wrong token. It takes about a microsecond per token.

mod script;
mod slots;
mod state;

use std::collections::{BTreeMap, VecDeque};

use kilotok_abi::TokenId;
use kilotok_engine::{
    Caps, Engine, EngineError, PageGroup, PageKind, Row, RowOutput, StepId, StepOutput, StepPlan,
    check_plan,
};

use crate::mix::mix;
use slots::Slots;
use state::{Memory, SequenceState, logits};

pub use script::{Script, repeat_prompt};

/// How well an engine's drafter guesses the likeliest tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DraftAccuracy {
    /// Each draft is right with a probability of this many percent, and otherwise certainly wrong.
    Percent(u32),
    /// Always this token, which a request may have forbidden.
    Always(TokenId),
}

/// What the pages hold of the drafter's context where no later row should read it.
const LEFT_OUT: u64 = 0x1EF7_0117_1EF7_0117;

/// See the module's documentation.
pub struct ScriptedEngine {
    caps: Caps,
    skill: DraftAccuracy,
    script: Option<Script>,
    memory: Memory,
    slots: Slots,
    next_step: u64,
    in_flight: VecDeque<(StepId, Result<StepOutput, EngineError>)>,
    failures: BTreeMap<u64, EngineError>,
}

impl ScriptedEngine {
    /// Small limits, three page groups of different page sizes, and windows of a few pages.
    pub fn caps() -> Caps {
        let group = |kind, page_tokens, page_count, window| {
            let page_bytes = u64::from(page_tokens) * 8;
            PageGroup { kind, page_tokens, page_count, window, page_bytes }
        };
        Caps {
            vocab_size: 256,
            position_max: 4096,
            slot_count: 16,
            row_max: 14,
            token_max: 192,
            wanted_max: 192,
            wide_from: None,
            draft_max: 7,
            drafter: true,
            logprobs_max: 8,
            steps_in_flight_max: 2,
            groups: vec![
                group(PageKind::Full, 8, 1024, None),
                group(PageKind::Window, 4, 512, Some(16)),
                group(PageKind::Draft, 8, 512, Some(24)),
            ],
        }
    }

    /// # Panics
    /// If no page group holds all positions, or if a group is of no use.
    pub fn new(caps: Caps, skill: DraftAccuracy) -> Self {
        let full = caps.groups.iter().filter(|group| group.kind != PageKind::Draft);
        assert!(full.clone().any(|group| group.window.is_none()), "no group sees the whole text");
        let drafter = caps.groups.iter().any(|group| group.kind == PageKind::Draft);
        assert_eq!(drafter, caps.drafter, "a drafter, and only a drafter, has a page group");
        Self {
            memory: Memory::new(&caps),
            slots: Slots::new(caps.slot_count, caps.vocab_size),
            caps,
            skill,
            script: None,
            next_step: 0,
            in_flight: VecDeque::new(),
            failures: BTreeMap::new(),
        }
    }

    /// Gives the engine a script: the token that the script names is by far the likeliest.
    #[must_use]
    pub fn with_script(self, script: Script) -> Self {
        Self { script: Some(script), ..self }
    }

    /// Makes the wait for a step fail; the number counts accepted plans from 0. The step is not
    /// run.
    pub fn fail_at(&mut self, step: u64, error: EngineError) {
        self.failures.insert(step, error);
    }

    fn run(&mut self, plan: &StepPlan) -> StepOutput {
        StepOutput { rows: plan.rows.iter().map(|row| self.run_row(row)).collect() }
    }

    fn run_row(&mut self, row: &Row) -> RowOutput {
        let tokens = self.slots.enter(row);
        let mut text = self.text(row, &tokens);
        self.check_context(row);
        let caps = &self.caps;
        let mut sequence = SequenceState::read(&self.memory, caps, &row.pages, row.start);
        let states: Vec<u64> = tokens.iter().map(|token| sequence.push(*token)).collect();
        sequence.write(&mut self.memory, caps, &row.pages, row.start);
        let script = self.script.as_ref();
        let logits_at = |index: usize| {
            let said = &text[..(row.start as usize + index + 1).min(text.len())];
            logits(states[index], caps.vocab_size, script.and_then(|script| script(said)))
        };
        let mut out = self.slots.choose(row, &tokens, &logits_at);
        let end = advanced(row, &out);
        sequence.truncate(end);
        text.truncate(end as usize);
        self.commit(row, &sequence, end);
        if row.draft_next > 0 && out.fault.is_none() {
            let drafts = self.draft(row, sequence, text, &out);
            out.held_count = drafts.len() as u32;
            if row.report_drafts {
                out.drafts.clone_from(&drafts);
            }
            self.slots.hold(row.slot, drafts);
        }
        out
    }

    /// The sequence up to the row's end, which the script continues.
    fn text(&mut self, row: &Row, tokens: &[TokenId]) -> Vec<TokenId> {
        if self.script.is_none() {
            return Vec::new();
        }
        self.memory.note(&self.caps, &row.pages, row.start, tokens);
        self.memory.text(&self.caps, &row.pages, row.end())
    }

    fn draft_group(&self) -> Option<usize> {
        self.caps.groups.iter().position(|group| group.kind == PageKind::Draft)
    }

    /// Stores the drafter's context of the committed positions in the pages, if later rows may read
    /// it.
    fn commit(&mut self, row: &Row, sequence: &SequenceState, end: u32) {
        if let Some(group) = self.draft_group() {
            let kept = self.caps.groups[group].read_later(row);
            for position in row.start..end {
                let run = &row.pages[group];
                let is_kept = kept.iter().any(|range| range.contains(&position));
                let context = if is_kept { sequence.context(position) } else { LEFT_OUT };
                self.memory.write(&self.caps, group, run, position, context);
            }
        }
    }

    /// Checks that the row names no page of the drafter from which [`Self::commit`] has left out a
    /// position before the row.
    fn check_context(&self, row: &Row) {
        let Some(group) = self.draft_group() else { return };
        let (spec, run) = (&self.caps.groups[group], &row.pages[group]);
        let first_page = spec.first_needed(row.start) / spec.page_tokens;
        for position in first_page * spec.page_tokens..row.start {
            let context = self.memory.read(&self.caps, group, run, position);
            assert_ne!(context, LEFT_OUT, "a row from {} on reads {position}", row.start);
        }
    }

    /// Drafts the tokens after the newest one. If the context in the pages is wrong, every draft is
    /// wrong.
    fn draft(
        &mut self,
        row: &Row,
        mut sequence: SequenceState,
        mut text: Vec<TokenId>,
        out: &RowOutput,
    ) -> Vec<TokenId> {
        let caps = &self.caps;
        let (Some(group), Some(newest)) = (self.draft_group(), out.tokens.last()) else {
            return Vec::new();
        };
        let end = advanced(row, out);
        let informed = (caps.groups[group].first_needed(end)..end).all(|position| {
            self.memory.read(caps, group, &row.pages[group], position) == sequence.context(position)
        });
        let mut state = sequence.push(*newest);
        text.push(*newest);
        let mut drafts = Vec::new();
        for _ in 0..row.draft_next {
            let wanted = match self.skill {
                DraftAccuracy::Always(token) => Some(token),
                DraftAccuracy::Percent(_) => self.script.as_ref().and_then(|script| script(&text)),
            };
            let mut guess = logits(state, caps.vocab_size, wanted);
            if let DraftAccuracy::Percent(percent) = self.skill
                && !(informed && mix(!state) % 100 < u64::from(percent))
            {
                guess.rotate_right(1);
            }
            let draft = self.slots.draft(row.slot, end + 1, &guess);
            drafts.push(draft);
            text.push(draft);
            state = sequence.push(draft);
        }
        drafts
    }
}

impl Engine for ScriptedEngine {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn submit(&mut self, plan: &StepPlan) -> Result<StepId, EngineError> {
        let in_flight = self.in_flight.len();
        if in_flight == self.caps.steps_in_flight_max as usize {
            return Err(EngineError::Busy { in_flight });
        }
        check_plan(&self.caps, plan)?;
        for (index, row) in plan.rows.iter().enumerate() {
            let refused = |reason| EngineError::Plan { row: index, reason };
            self.slots.check(row).map_err(refused)?;
        }
        let result = match self.failures.remove(&self.next_step) {
            Some(error) => Err(error),
            None => Ok(self.run(plan)),
        };
        let step = StepId(self.next_step);
        self.next_step += 1;
        self.in_flight.push_back((step, result));
        Ok(step)
    }

    fn wait(&mut self, step: StepId, out: &mut StepOutput) -> Result<(), EngineError> {
        match self.in_flight.pop_front_if(|(oldest, _)| *oldest == step) {
            Some((_, result)) => {
                *out = result?;
                Ok(())
            }
            None => Err(EngineError::WrongStep { step }),
        }
    }
}

/// The end of the positions whose tokens stay: the row's own tokens and the accepted drafts.
fn advanced(row: &Row, out: &RowOutput) -> u32 {
    row.end() - row.tokens.draft_count() + (out.tokens.len() as u32).saturating_sub(1)
}

/// The likeliest token; if several are equal, the first.
fn likeliest(logits: &[f32]) -> TokenId {
    let best = (0..logits.len()).rev().max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
    best.unwrap_or_default() as TokenId
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::PROMISES;
    use crate::host::{Drafts, Host, How, Request};

    fn keeps_every_promise(caps: &Caps, skill: DraftAccuracy) {
        let make = || Box::new(ScriptedEngine::new(caps.clone(), skill)) as Box<dyn Engine>;
        let kept = PROMISES.iter().map(|(_, promise)| promise(&make));
        let broken: Vec<_> = kept.filter_map(Result::err).collect();
        assert!(broken.is_empty(), "{skill:?}: {broken:#?}");
    }

    #[test]
    fn any_skill() {
        for skill in [
            DraftAccuracy::Percent(70),
            DraftAccuracy::Percent(0),
            DraftAccuracy::Percent(100),
            DraftAccuracy::Always(3),
        ] {
            keeps_every_promise(&ScriptedEngine::caps(), skill);
        }
    }

    #[test]
    fn other_limits() {
        let mut caps = ScriptedEngine::caps();
        caps.groups.reverse();
        caps.groups[0].page_tokens = 1;
        caps.groups[1].window = Some(9);
        caps.steps_in_flight_max = 1;
        caps.draft_max = 4;
        caps.vocab_size = 200;
        (caps.slot_count, caps.row_max, caps.token_max) = (6, 4, 40);
        caps.wanted_max = 12;
        caps.position_max = 160;
        keeps_every_promise(&caps, DraftAccuracy::Percent(80));
    }

    #[test]
    fn no_drafter() {
        let mut caps = ScriptedEngine::caps();
        caps.groups.pop();
        caps.drafter = false;
        caps.steps_in_flight_max = 4;
        keeps_every_promise(&caps, DraftAccuracy::Percent(80));
    }

    /// The tokens of a reply, and the number of rows that they took.
    fn rows(skill: DraftAccuracy, spoil: fn(&mut StepPlan)) -> (Vec<TokenId>, u32) {
        struct Spoiled(ScriptedEngine, fn(&mut StepPlan));
        impl Engine for Spoiled {
            fn caps(&self) -> &Caps {
                &self.0.caps
            }
            fn submit(&mut self, plan: &StepPlan) -> Result<StepId, EngineError> {
                let mut plan = plan.clone();
                (self.1)(&mut plan);
                self.0.submit(&plan)
            }
            fn wait(&mut self, step: StepId, out: &mut StepOutput) -> Result<(), EngineError> {
                self.0.wait(step, out)
            }
        }
        let mut engine = Spoiled(ScriptedEngine::new(ScriptedEngine::caps(), skill), spoil);
        let request = Request::greedy((0..60).collect(), 64);
        let how = How { drafts: Drafts::Held { made: 7, used: 7 }, ..How::default() };
        let reply = Host::new(&mut engine, 3).run(&request, &how).unwrap();
        (reply.tokens, reply.sampled_rows)
    }

    #[test]
    fn skill_decides_how_many_drafts_are_right() {
        let (tokens, perfect) = rows(DraftAccuracy::Percent(100), |_| ());
        assert_eq!(perfect, 1 + 63_u32.div_ceil(8));
        assert_eq!(rows(DraftAccuracy::Percent(0), |_| ()), (tokens.clone(), 64));
        let (same, some) = rows(DraftAccuracy::Percent(60), |_| ());
        assert_eq!(same, tokens);
        assert!((20..40).contains(&some), "{some} rows");
    }

    /// A wrong page results in a wrong token; a wrong page of the drafter results in wrong drafts.
    #[test]
    fn every_page_counts() {
        fn spoil(plan: &mut StepPlan, group: usize, page: usize) {
            for row in plan.rows.iter_mut().filter(|row| row.start == 60) {
                row.pages[group].pages[page].0 ^= 1;
            }
        }
        let (tokens, perfect) = rows(DraftAccuracy::Percent(100), |_| ());
        for spoil in [|plan: &mut _| spoil(plan, 0, 0), |plan: &mut _| spoil(plan, 1, 0)] {
            assert_ne!(rows(DraftAccuracy::Percent(100), spoil).0, tokens);
        }
        let (same, imperfect) = rows(DraftAccuracy::Percent(100), |plan| spoil(plan, 2, 2));
        assert_eq!(same, tokens);
        assert!(imperfect > perfect, "{imperfect} rows");
    }
}
