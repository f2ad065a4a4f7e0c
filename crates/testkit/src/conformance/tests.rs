//! Engines that each break one promise on purpose: the kit must detect it.

use std::cell::Cell;
use std::collections::BTreeMap;

use kilotok_engine::{
    Caps, Engine, EngineError, RowTokens, StepId, StepOutput, StepPlan, Verification,
};

use super::PROMISES;
use crate::scripted::{DraftAccuracy, ScriptedEngine};

/// What a bad engine changes in plans and in outputs, and what it does when a plan is refused.
#[derive(Clone, Copy)]
struct Defect {
    plan: fn(&mut StepPlan, &mut Notes),
    output: fn(&StepPlan, &mut StepOutput, &Notes),
    refused: fn(&mut ScriptedEngine, &StepPlan, EngineError) -> Result<StepId, EngineError>,
    /// Whether it appends to the old contents of the output instead of replacing them.
    appends: bool,
}

/// State of a bad engine.
#[derive(Default)]
struct Notes {
    engine: u32,
    in_flight: usize,
    step: u32,
    /// The last step in which each slot was mentioned, and the one before it.
    seen: BTreeMap<u32, (u32, u32)>,
    /// The number of drafts that each slot held when it was last mentioned.
    held: BTreeMap<u32, u32>,
}

const GOOD: Defect = Defect {
    plan: |_, _| (),
    output: |_, _, _| (),
    refused: |_, _, error| Err(error),
    appends: false,
};

struct BadEngine {
    engine: ScriptedEngine,
    defect: Defect,
    notes: Notes,
    plans: BTreeMap<StepId, StepPlan>,
}

thread_local! {
    /// The number of engines that this test made.
    static ENGINES: Cell<u32> = const { Cell::new(0) };
}

fn bad(defect: Defect) -> Box<dyn Engine> {
    let engine = ENGINES.replace(ENGINES.get() + 1);
    Box::new(BadEngine {
        engine: ScriptedEngine::new(ScriptedEngine::caps(), DraftAccuracy::Percent(60)),
        defect,
        notes: Notes { engine, ..Notes::default() },
        plans: BTreeMap::new(),
    })
}

impl Engine for BadEngine {
    fn caps(&self) -> &Caps {
        self.engine.caps()
    }

    fn submit(&mut self, plan: &StepPlan) -> Result<StepId, EngineError> {
        let mut worse = plan.clone();
        for row in &plan.rows {
            let seen = self.notes.seen.entry(row.slot.0).or_default();
            *seen = (self.notes.step, seen.0);
        }
        (self.defect.plan)(&mut worse, &mut self.notes);
        let result = self.engine.submit(&worse);
        let result = result.or_else(|error| (self.defect.refused)(&mut self.engine, plan, error));
        if let Ok(id) = result {
            self.notes.step += 1;
            self.notes.in_flight += 1;
            self.plans.insert(id, plan.clone());
        }
        result
    }

    fn wait(&mut self, step: StepId, out: &mut StepOutput) -> Result<(), EngineError> {
        let mut made = StepOutput::default();
        self.engine.wait(step, &mut made)?;
        let plan = self.plans.remove(&step).unwrap_or_default();
        (self.defect.output)(&plan, &mut made, &self.notes);
        self.notes.in_flight -= 1;
        self.notes.held.extend(plan.rows.iter().map(|row| (row.slot.0, row.draft_next)));
        if !self.defect.appends {
            out.rows.clear();
        }
        out.rows.append(&mut made.rows);
        Ok(())
    }
}

/// Moves every reported log-probability by a bit.
fn nudge(out: &mut StepOutput, which: impl Fn(usize) -> bool) {
    for (_, row) in out.rows.iter_mut().enumerate().filter(|(index, _)| which(*index)) {
        for logprobs in row.logprobs.iter_mut().chain(&mut row.scored) {
            let chosen = &mut logprobs.chosen;
            let moved = chosen.logprob.next_down();
            for top in logprobs.top.iter_mut().filter(|top| top.token == chosen.token) {
                top.logprob = moved;
            }
            chosen.logprob = moved;
        }
    }
}

fn breaks(promise: &str, defect: Defect) {
    let (_, check) = PROMISES.iter().find(|(name, _)| *name == promise).unwrap();
    assert_eq!(check(&|| bad(GOOD)), Ok(()), "a good engine keeps {promise}");
    let broken = check(&|| bad(defect)).expect_err(promise).to_string();
    assert!(broken.starts_with(&format!("promise {promise} ")), "{broken}");
}

/// A test per promise: the name of the promise, and the defect of the engine.
macro_rules! defects {
    ($( $promise:ident { $( $field:ident: $what:expr ),* } )*) => {
        $( #[test]
        fn $promise() {
            breaks(stringify!($promise), Defect { $( $field: $what, )* ..GOOD });
        } )*

        #[test]
        fn every_promise_can_be_broken() {
            let names = PROMISES.iter().map(|(name, _)| *name);
            // Only a crash would show that dropping an engine is unsafe.
            let names: Vec<_> = names.filter(|name| *name != "drops").collect();
            assert_eq!(names, [$( stringify!($promise) ),*]);
        }
    };
}

defects! {
    counts { output: |_, out, _| {
        // It accepts one draft at most.
        for row in &mut out.rows {
            row.tokens.truncate(2);
            row.logprobs.truncate(2);
        }
    } }
    assumed { plan: |plan, _| {
        // It matches all drafts.
        for setup in plan.rows.iter_mut().filter_map(|row| row.setup.as_mut()) {
            setup.verification = Verification::Match;
        }
    } }
    limits { plan: |plan, _| {
        // It has one row fewer than it promises.
        if plan.rows.len() == ScriptedEngine::caps().row_max as usize {
            plan.rows[0].slot.0 = u32::MAX;
        }
    } }
    refusals { refused: |engine, plan, error| {
        // It has already run the rows before the bad one.
        if let EngineError::Plan { row, .. } = error && row > 0 {
            let rows = plan.rows[..row].to_vec();
            if let Ok(id) = engine.submit(&StepPlan { rows }) {
                engine.wait(id, &mut StepOutput::default())?;
            }
        }
        Err(error)
    } }
    held { refused: |engine, plan, error| {
        // It uses fewer drafts.
        let mut plan = plan.clone();
        for row in &mut plan.rows {
            if let RowTokens::Held { draft_count } = &mut row.tokens {
                *draft_count = draft_count.saturating_sub(1);
            }
        }
        engine.submit(&plan).map_err(|_| error)
    } }
    order { appends: true }
    ahead { output: |_, out, notes| nudge(out, |_| notes.in_flight > 1) }
    empty { output: |plan, out, _| {
        if plan.rows.is_empty() {
            out.rows.push(kilotok_engine::RowOutput::default());
        }
    } }
    replays { output: |_, out, notes| nudge(out, |_| notes.engine % 2 == 1) }
    cancelled { output: |plan, out, notes| {
        // It keeps state of the previous request if that held drafts.
        let reused = |index: usize| {
            let row = &plan.rows[index];
            row.setup.is_some() && notes.held.get(&row.slot.0).is_some_and(|held| *held > 0)
        };
        nudge(out, reused);
    } }
    paused { plan: |plan, notes| {
        // It forgets drafts after two steps.
        for row in &mut plan.rows {
            let (now, before) = notes.seen[&row.slot.0];
            if now - before > 2 && let RowTokens::Held { draft_count } = &mut row.tokens {
                *draft_count += 7;
            }
        }
    } }
    freed { output: |plan, out, _| {
        // It reads one page too far back, which may now belong to another request.
        let first = |index: usize| plan.rows[index].pages[1].first;
        nudge(out, |index| first(index) > 8 && plan.rows.len() > 1);
    } }
    faults { output: |_, out, _| {
        if out.rows.iter().any(|row| row.fault.is_some()) {
            nudge(out, |_| true);
        }
    } }
    remains { plan: |plan, _| {
        // It cannot read the drafter's page of another request.
        for row in plan.rows.iter_mut().filter(|row| row.setup.is_some() && row.start > 0) {
            row.pages[2].pages[0].0 ^= 1;
        }
    } }
    processors { plan: |plan, _| {
        // It ignores bad words of several tokens.
        for setup in plan.rows.iter_mut().filter_map(|row| row.setup.as_mut()) {
            setup.bad_words.retain(|word| word.len() == 1);
        }
    } }
    neighbours { output: |plan, out, _| nudge(out, |index| index == 2 && plan.rows.len() > 5) }
    chunks { output: |plan, out, _| nudge(out, |index| plan.rows[index].tokens.count() == 2) }
    prefixes { plan: |plan, _| {
        // It cannot read a page of another request.
        for row in plan.rows.iter_mut().filter(|row| row.setup.is_some() && row.start > 0) {
            row.pages[1].pages[0].0 ^= 1;
        }
    } }
    places { output: |plan, out, _| nudge(out, |index| plan.rows[index].slot.0 % 3 == 1) }
    preempted { plan: |plan, _| {
        // It counts earlier generated tokens as part of the prompt.
        for setup in plan.rows.iter_mut().filter_map(|row| row.setup.as_mut()) {
            setup.prompt_count = setup.prompt_count.max(setup.history.len() as u32);
        }
    } }
    drafted { output: |plan, out, _| {
        let drafted = |index: usize| {
            matches!(plan.rows[index].tokens, RowTokens::Held { draft_count } if draft_count > 4)
        };
        nudge(out, drafted);
    } }
    guessed { plan: |plan, _| {
        // Its mask after the first draft is the one before it.
        for row in &mut plan.rows {
            if row.masks.len() > 1 {
                row.masks[1] = row.masks[0].clone();
            }
        }
    } }
    rejection { plan: |plan, _| {
        // It verifies one draft less if there are other rows.
        let company = plan.rows.len() > 1;
        for row in plan.rows.iter_mut().filter(|_| company) {
            if let RowTokens::Held { draft_count } = &mut row.tokens
                && *draft_count > 0
            {
                *draft_count -= 1;
                row.masks.pop();
            }
        }
    } }
    scores { output: |plan, out, _| {
        // It scores the last token of a row with a different kernel.
        for (row, out) in plan.rows.iter().zip(&mut out.rows) {
            if row.scored.len() > 12 && let Some(last) = out.scored.last_mut() {
                last.rank += 1;
            }
        }
    } }
}
