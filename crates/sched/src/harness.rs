//! A scheduler with an engine behind it, for tests.

use kilotok_abi::{Sampling, TokenId};
use kilotok_engine::{Caps, Engine, SlotSetup, StepOutput};
use kilotok_testkit::{DraftAccuracy, ScriptedEngine};

use crate::{Advance, Limits, Plan, RequestId, Scheduler, Submission};

pub(crate) fn asked(prompt: Vec<TokenId>, token_max: u32) -> Submission {
    let setup = SlotSetup::new(Sampling::GREEDY, 0);
    Submission::new(prompt, setup, token_max)
}

pub(crate) fn text(count: u32, first: TokenId) -> Vec<TokenId> {
    (0..count).map(|index| (first + index * 7) % 256).collect()
}

/// A scheduler and an engine that runs its plans.
pub(crate) struct Harness {
    pub(crate) engine: ScriptedEngine,
    pub(crate) sched: Scheduler,
}

impl Harness {
    pub(crate) fn new(caps: Caps, limits: Limits) -> Self {
        let sched = Scheduler::new(&caps, limits);
        Self { engine: ScriptedEngine::new(caps, DraftAccuracy::Percent(100)), sched }
    }

    /// Runs one step. Returns how many tokens each request had in it, and what it brought them.
    pub(crate) fn step(&mut self) -> (Vec<(u64, u32)>, Vec<Advance>) {
        self.step_with(|_, _| ())
    }

    /// The same; `change` edits the plan's output before the scheduler sees it.
    pub(crate) fn step_with(
        &mut self,
        alter: impl FnOnce(&Plan, &mut StepOutput),
    ) -> (Vec<(u64, u32)>, Vec<Advance>) {
        let plan = self.sched.plan().unwrap();
        let counts = plan.step.rows.iter().map(|row| row.tokens.count());
        let counts = plan.ids.iter().map(|id| id.0).zip(counts).collect();
        if plan.step.rows.is_empty() {
            return (counts, Vec::new());
        }
        let mut output = self.engine.run(&plan.step).unwrap();
        alter(&plan, &mut output);
        let advances = self.sched.absorb(output, 1000).unwrap();
        self.sched.check().unwrap();
        (counts, advances)
    }

    /// Runs steps until a request ends. Returns their number and the request's tokens since.
    pub(crate) fn finish(&mut self, id: RequestId) -> (u32, Vec<TokenId>) {
        let mut tokens = Vec::new();
        for step in 1..1000 {
            for advance in self.step().1.into_iter().filter(|advance| advance.id == id) {
                tokens.extend(advance.tokens);
                if advance.finish.is_some() {
                    return (step, tokens);
                }
            }
        }
        panic!("request {id} does not end");
    }
}
