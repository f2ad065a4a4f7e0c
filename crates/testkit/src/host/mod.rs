//! A minimal host: it drives an engine as a scheduler would, but without a scheduler's policy. A
//! request and the way in which it is run are separate, so that the same request can be run in many
//! ways, which must all give the same reply. The host makes simple plans and knows no particular
//! engine.

mod pages;
mod sequence;

use std::ops::Range;

use kilotok_abi::{SlotId, TokenId};
use kilotok_engine::{
    Caps, Engine, EngineError, RowFault, SlotSetup, StepOutput, StepPlan, TokenLogprobs,
};
use serde::Serialize;

use crate::mix::Stream;
use pages::{Pools, Tables};
use sequence::Sequence;

pub use pages::Prefix;

/// Returns the tokens allowed after these tokens, one bit each, given the size of the vocabulary.
pub type Mask = fn(&[TokenId], u32) -> Vec<u32>;

/// A [`Mask`] that allows two tokens in three, depending on the text.
pub fn some(text: &[TokenId], vocab_size: u32) -> Vec<u32> {
    let sum = text.iter().sum::<TokenId>();
    let mut mask = vec![0; vocab_size.div_ceil(32) as usize];
    for token in (0..vocab_size).filter(|token| (token + sum) % 3 != 0) {
        mask[(token / 32) as usize] |= 1 << (token % 32);
    }
    mask
}

/// A request. Its reply must not depend on anything else.
#[derive(Clone, Debug)]
pub struct Request {
    pub prompt: Vec<TokenId>,
    /// The host fills in `prompt_count` and `history`.
    pub setup: SlotSetup,
    /// The reply ends after this many tokens, or with one of `setup.end_tokens`.
    pub token_max: u32,
    pub mask: Option<Mask>,
    /// Number of alternatives reported with each token.
    pub top: u32,
    /// Whether the prompt's own tokens are scored.
    pub score: bool,
}

/// How a request is run.
#[derive(Clone, Debug)]
pub struct How {
    /// The step in which the request is admitted.
    pub joins: u32,
    /// The request is cancelled, that is, never mentioned again, after this many rows.
    pub leaves: Option<u32>,
    /// Steps in which the request is not mentioned.
    pub pause: Range<u32>,
    /// Most tokens of a row, without drafts. Prompts are cut into such chunks.
    pub chunk: u32,
    pub drafts: Drafts,
    /// The request is preempted each time it has this many tokens.
    pub preempt: Vec<u32>,
    /// Pages of an earlier request that hold the start of the prompt.
    pub prefix: Option<Prefix>,
    /// The number of positions whose pages are kept for later requests, see [`Reply::kept`].
    pub keep: Option<u32>,
}

/// The source of a request's drafts.
#[derive(Clone, Debug)]
pub enum Drafts {
    /// No drafts: the host gives each row its tokens.
    None,
    /// The engine makes this many; a row uses at most `used` of them.
    Held { made: u32, used: u32 },
    /// The host makes the drafts.
    Given(Guess),
}

/// Drafts from a text: `count` tokens, of which the first `right` are the text's and the others are
/// wrong.
#[derive(Clone, Debug)]
pub struct Guess {
    /// Prompt and reply.
    pub text: Vec<TokenId>,
    pub count: u32,
    pub right: u32,
}

/// The reply to a request.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Reply {
    pub tokens: Vec<TokenId>,
    /// One per token.
    pub logprobs: Vec<TokenLogprobs>,
    /// Scores of the prompt's tokens, without the first token and those of a reused prefix.
    pub scored: Vec<TokenLogprobs>,
    pub fault: Option<RowFault>,
    /// All drafts that were reported. They may differ between runs.
    #[serde(skip)]
    pub drafts: Vec<TokenId>,
    /// The number of rows that chose tokens. It may differ between runs.
    #[serde(skip)]
    pub sampled_rows: u32,
    /// The pages that [`How::keep`] asked to keep.
    #[serde(skip)]
    pub kept: Option<Prefix>,
}

/// Why a run ended early.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    #[error("step {step}: {source}")]
    Engine { step: u32, source: EngineError },
    /// An output that does not match its plan.
    #[error("step {step}, row {row}: {reason}")]
    Output { step: u32, row: usize, reason: String },
    #[error("group {group} has no free page; the run is too large for the engine")]
    OutOfPages { group: usize },
    #[error("no free slot; the run is too large for the engine")]
    OutOfSlots,
    #[error("nothing to do in step {step}, yet not all replies are complete")]
    Stuck { step: u32 },
    /// The finding of a [`Probe`].
    #[error("before step {step}: {reason}")]
    Probe { step: u32, reason: String },
}

/// Called with every plan before the plan is submitted.
pub type Probe<'p> = dyn FnMut(&mut dyn Engine, &StepPlan) -> Result<(), String> + 'p;

/// Drives one engine. The host manages the engine's pages and slots from its first run to its last.
pub struct Host<'e> {
    engine: &'e mut dyn Engine,
    caps: Caps,
    pools: Pools,
    slots: Vec<SlotId>,
    step: u32,
}

impl Request {
    /// Greedy, five alternatives, nothing else.
    pub fn greedy(prompt: Vec<TokenId>, token_max: u32) -> Self {
        let setup = SlotSetup::new(kilotok_abi::Sampling::GREEDY, 0);
        Self { prompt, setup, token_max, mask: None, top: 5, score: false }
    }
}

impl Reply {
    /// Checks that an engine that rounds differently gave the same reply: the same tokens, and
    /// log-probabilities within the tolerance.
    ///
    /// # Errors
    /// The first token or number that differs.
    pub fn near(&self, other: &Self, tolerance: f32) -> Result<(), String> {
        if self.tokens != other.tokens || self.fault != other.fault {
            return Err(format!("{:?} and {:?}", self.tokens, other.tokens));
        }
        let chosen = self.logprobs.iter().zip(&other.logprobs);
        for (index, (a, b)) in chosen.chain(self.scored.iter().zip(&other.scored)).enumerate() {
            let same = |token| b.top.iter().find(move |other| other.token == token);
            let listed = a.top.iter().filter_map(|a| Some((*a, *same(a.token)?)));
            for (a, b) in listed.chain([(a.chosen, b.chosen)]) {
                if (a.logprob - b.logprob).abs() > tolerance {
                    return Err(format!("number {index}: {a:?} and {b:?}"));
                }
            }
        }
        Ok(())
    }
}

impl Default for How {
    /// Run alone, from the first step, in as few rows as possible.
    fn default() -> Self {
        Self {
            joins: 0,
            leaves: None,
            pause: 0..0,
            chunk: u32::MAX,
            drafts: Drafts::None,
            preempt: Vec::new(),
            prefix: None,
            keep: None,
        }
    }
}

impl<'e> Host<'e> {
    /// The seed determines the order of pages and slots.
    pub fn new(engine: &'e mut dyn Engine, seed: u64) -> Self {
        let caps = engine.caps().clone();
        let mut slots: Vec<_> = (0..caps.slot_count).map(SlotId).collect();
        Stream::new(seed).shuffle(&mut slots);
        Self { engine, pools: Pools::new(&caps, seed), caps, slots, step: 0 }
    }

    /// Runs one request alone.
    pub fn run(&mut self, request: &Request, how: &How) -> Result<Reply, HostError> {
        let mut replies = self.run_all(&[(request, how)])?;
        Ok(replies.remove(0))
    }

    /// Runs requests together. Replies are in the order of the requests.
    pub fn run_all(&mut self, jobs: &[(&Request, &How)]) -> Result<Vec<Reply>, HostError> {
        self.run_probed(jobs, &mut |_, _| Ok(()))
    }

    /// Like [`Host::run_all`], with a probe of the engine before each step.
    pub fn run_probed(
        &mut self,
        jobs: &[(&Request, &How)],
        probe: &mut Probe<'_>,
    ) -> Result<Vec<Reply>, HostError> {
        self.step = 0;
        let mut waiting: Vec<_> = jobs.iter().enumerate().rev().collect();
        waiting.sort_by_key(|(_, (_, how))| std::cmp::Reverse(how.joins));
        let mut running: Vec<(usize, Sequence)> = Vec::new();
        let mut replies = vec![Reply::default(); jobs.len()];
        while !(waiting.is_empty() && running.is_empty()) {
            while let Some((index, (request, how))) =
                waiting.pop_if(|(_, (_, how))| how.joins <= self.step)
            {
                let slot = self.slots.pop().ok_or(HostError::OutOfSlots)?;
                running.push((index, Sequence::new(request, how, slot, &self.caps)));
            }
            // Rows change their order from step to step.
            let turn = usize::from(running.len() > 1);
            running.rotate_left(turn);
            self.step_all(&mut running, probe, !waiting.is_empty())?;
            for (index, sequence) in running.extract_if(.., |(_, sequence)| sequence.is_done()) {
                self.slots.insert(0, sequence.slot);
                replies[index] = sequence.finish(&self.caps, &mut self.pools);
            }
            self.step += 1;
        }
        Ok(replies)
    }

    /// Runs one step of all running requests.
    fn step_all(
        &mut self,
        running: &mut [(usize, Sequence<'_>)],
        probe: &mut Probe<'_>,
        more_to_come: bool,
    ) -> Result<(), HostError> {
        let mut plan = StepPlan::default();
        let mut owners = Vec::new();
        let (mut budget, mut wanted) = (self.caps.token_max, self.caps.wanted_max);
        for (owner, (_, sequence)) in running.iter_mut().enumerate() {
            if plan.rows.len() == self.caps.row_max as usize || sequence.is_paused(self.step) {
                continue;
            }
            if let Some(row) = sequence.row(&self.caps, budget, wanted, &mut self.pools)? {
                budget -= row.tokens.count();
                wanted -= row.wanted_count();
                plan.rows.push(row);
                owners.push(owner);
            }
        }
        let paused = running.iter().any(|(_, sequence)| sequence.is_paused(self.step));
        if plan.rows.is_empty() && !(paused || more_to_come) {
            return Err(HostError::Stuck { step: self.step });
        }
        let step = self.step;
        probe(self.engine, &plan).map_err(|reason| HostError::Probe { step, reason })?;
        let output = self.submit(&plan)?;
        for (row, owner) in owners.into_iter().enumerate() {
            let sequence = &mut running[owner].1;
            sequence
                .take(&plan.rows[row], &output.rows[row], &self.caps)
                .map_err(|reason| HostError::Output { step, row, reason })?;
            sequence.settle(&self.caps, &mut self.pools, &mut self.slots);
        }
        Ok(())
    }

    /// Runs one plan.
    pub fn submit(&mut self, plan: &StepPlan) -> Result<StepOutput, HostError> {
        let step = self.step;
        let output = self.engine.run(plan).map_err(|source| HostError::Engine { step, source })?;
        if output.rows.len() != plan.rows.len() {
            let reason = format!("{} rows came out of {}", output.rows.len(), plan.rows.len());
            return Err(HostError::Output { step, row: output.rows.len(), reason });
        }
        Ok(output)
    }

    /// Uses only this many slots from now on.
    pub fn limit_slots(&mut self, count: usize) {
        self.slots.truncate(count);
    }

    /// Gives back the pages of a prefix.
    pub fn release(&mut self, prefix: &Prefix) {
        let mut tables = Tables::of_prefix(prefix);
        tables.own();
        tables.release(&mut self.pools);
    }

    /// Free pages of each group.
    pub fn free_pages(&self) -> Vec<usize> {
        self.pools.free_counts()
    }
}
