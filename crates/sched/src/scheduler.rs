//! The scheduler's interface: requests enter, outputs come back, requests leave. The content of a
//! step is decided in `planning`.

use std::collections::{BTreeMap, BTreeSet};

use kilotok_abi::{PageId, SlotId, TokenId};
use kilotok_engine::{
    Caps, EngineError, PageGroup, PageRun, Row, RowFault, RowOutput, RowTokens, SlotSetup,
    StepOutput, StepPlan, TokenLogprobs, check_plan,
};

use crate::cost::{CostModel, Size};
use crate::draft_costs::DraftCosts;
use crate::drafts::AcceptanceByRule;
use crate::pages::{Pages, Shortage};
use crate::request::{InFlightRow, Masks, Rank, Request};
use crate::trials::Trials;
use crate::{Cost, GroupUsage, Limits, RequestId, Stats, Submission};

/// Decay of a step's weight in the cost model of all steps; short, as prompts come and go.
const STEP_MEMORY: f64 = 0.98;
/// Decay in the model of steps without prompts; long, to remember several trials.
pub(crate) const ROUND_MEMORY: f64 = 0.998;

/// See the crate's documentation.
pub struct Scheduler {
    pub(crate) caps: Caps,
    pub(crate) limits: Limits,
    /// Requests that have a slot at once.
    pub(crate) running_max: usize,
    /// Rows of a step: each may choose a token.
    pub(crate) row_max: u32,
    pub(crate) context_max: u32,
    pub(crate) requests: BTreeMap<RequestId, Request>,
    pub(crate) waiting: BTreeSet<Rank>,
    pub(crate) running: BTreeSet<Rank>,
    /// Families of several replies: those that have not ended, by the id of the first.
    pub(crate) families: BTreeMap<RequestId, Vec<RequestId>>,
    pub(crate) slots: Vec<SlotId>,
    pub(crate) pages: Pages,
    /// What the first in the queue waits for.
    pub(crate) shortage: Option<Shortage>,
    pub(crate) in_flight: Option<Vec<InFlightRow>>,
    /// Requests that were removed while the step in flight computes a row of theirs.
    pub(crate) departed: Vec<Request>,
    /// The cost of all steps.
    pub(crate) cost: CostModel,
    /// The cost of steps without prompts: many tokens of one row cost less than as many rows.
    pub(crate) round_cost: CostModel,
    /// The same by number of rows, to choose how many drafts they make and verify.
    pub(crate) draft_costs: DraftCosts,
    pub(crate) trials: Trials,
    pub(crate) acceptance: AcceptanceByRule,
    pub(crate) stats: Stats,
    pub(crate) next_id: u64,
    /// Families that were admitted.
    pub(crate) arrival_count: u64,
}

/// A step, and the requests of its rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub step: StepPlan,
    /// One per row.
    pub ids: Vec<RequestId>,
}

/// What a step brought a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Advance {
    pub id: RequestId,
    /// Next tokens of the reply; none after a prompt chunk.
    pub tokens: Vec<TokenId>,
    /// One per token, if asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// Of the next tokens of the prompt, if asked for. The first has none.
    pub scored: Vec<TokenLogprobs>,
    /// Drafts that the next row will verify, for a request that needs masks.
    pub drafts: Vec<TokenId>,
    /// Drafts of the row, and how many were accepted.
    pub drafted_count: u32,
    pub accepted_count: u32,
    /// Prompt tokens found in the prefix cache.
    pub cached_count: u32,
    /// Set when the request has ended; its id is then unknown.
    pub finish: Option<Finish>,
}

/// Why a reply ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// It has as many tokens as were asked for, or the context is full.
    Length,
    /// Its last token is one of the end tokens.
    EndToken,
    /// No further token could be chosen.
    Fault(RowFault),
}

/// Why a request was not admitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("{waiting} requests are waiting, no more may")]
    QueueFull { waiting: u32 },
    #[error(
        "the prompt has {token_count} tokens; with one of the reply, at most {context_max} fit"
    )]
    PromptTooLong { token_count: u32, context_max: u32 },
    #[error("there is nothing to compute: no prompt, or no token to choose or score")]
    Nothing,
    /// It breaks a limit of the engine.
    #[error("{reason}")]
    Illegal { reason: String },
}

/// A call at the wrong time or with wrong data: a bug of the caller. The state is unchanged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misuse {
    #[error("a step is in flight: absorb or abandon it first")]
    InFlight,
    #[error("no step is in flight")]
    NotInFlight,
    #[error("output of row {row}: {reason}")]
    Output { row: usize, reason: String },
    #[error("masks of request {id}: {reason}")]
    Masks { id: RequestId, reason: String },
}

impl Scheduler {
    pub fn new(caps: &Caps, limits: Limits) -> Self {
        let pages = Pages::new(caps, limits.prefix_cache);
        Self {
            limits,
            running_max: limits.running(caps) as usize,
            row_max: caps.row_max.min(caps.token_max).min(caps.wanted_max).max(1),
            context_max: caps.position_max.min(pages.position_max()),
            requests: BTreeMap::new(),
            waiting: BTreeSet::new(),
            running: BTreeSet::new(),
            families: BTreeMap::new(),
            slots: (0..caps.slot_count).rev().map(SlotId).collect(),
            pages,
            shortage: None,
            in_flight: None,
            departed: Vec::new(),
            cost: CostModel::new(limits.cost, caps.token_max, caps.wide_from, STEP_MEMORY),
            round_cost: CostModel::new(limits.cost, caps.token_max, caps.wide_from, ROUND_MEMORY),
            draft_costs: DraftCosts::new(caps.token_max),
            trials: Trials::new(limits.learning_share),
            acceptance: AcceptanceByRule::new(caps.draft_max),
            stats: Stats::new(caps.draft_max),
            next_id: 0,
            arrival_count: 0,
            caps: caps.clone(),
        }
    }

    /// Most tokens of a prompt and its reply: [`Caps::position_max`], or less if pages hold less.
    pub fn context_max(&self) -> u32 {
        self.context_max
    }

    /// Queues a request, see [`Scheduler::admit_all`].
    pub fn admit(&mut self, asked: Submission) -> Result<RequestId, Refused> {
        self.admit_all(vec![asked]).map(|ids| ids[0])
    }

    /// Checks a request against all limits but that of the queue.
    pub(crate) fn refuse(&self, asked: &Submission) -> Result<(), Refused> {
        let (token_count, context_max) = (asked.prompt.len() as u32, self.context_max);
        if token_count >= context_max {
            return Err(Refused::PromptTooLong { token_count, context_max });
        }
        let scores = asked.score_prompt && token_count > 1;
        if token_count == 0 || (asked.token_max == 0 && !scores) {
            return Err(Refused::Nothing);
        }
        self.refuse_illegal(asked)
    }

    /// Refuses what would make a plan illegal, and with it the rows of others, such as tokens
    /// beyond the vocabulary. It runs the engine's own check on a row with all of the request's
    /// fields.
    fn refuse_illegal(&self, asked: &Submission) -> Result<(), Refused> {
        let setup = SlotSetup { history: asked.prompt.clone(), ..asked.setup.clone() };
        let page = PageRun { first: 0, pages: vec![PageId(0)] };
        let tokens = RowTokens::Given { tokens: asked.prompt[..1].to_vec(), draft_count: 0 };
        let row = Row {
            setup: Some(Box::new(setup)),
            sample: false,
            pages: vec![page; self.caps.groups.len()],
            logprobs: asked.logprobs,
            ..Row::new(SlotId(0), 0, tokens)
        };
        check_plan(&self.caps, &StepPlan { rows: vec![row] }).map_err(|error| match error {
            EngineError::Plan { reason, .. } => Refused::Illegal { reason },
            other => Refused::Illegal { reason: other.to_string() },
        })
    }

    /// Removes a request, also while a step computes it; that step's output then skips it. False if
    /// the id is unknown, because it ended or never existed.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        self.stop(id, u32::MAX)
    }

    /// Ends a request whose reply is complete after `kept` tokens, because the host found a stop
    /// string in it. Pages of the tokens after that leave the cache.
    pub fn stop(&mut self, id: RequestId, kept: u32) -> bool {
        let Some(request) = self.requests.get(&id) else {
            return false;
        };
        let kept = request.prompt_count().saturating_add(kept);
        self.leave(id, kept);
        true
    }

    /// Removes a request. Its slot and pages are free at once, as the next plan runs after the step
    /// in flight.
    pub(crate) fn leave(&mut self, id: RequestId, kept: u32) {
        let Some(mut request) = self.requests.remove(&id) else {
            return;
        };
        self.waiting.remove(&request.rank);
        self.running.remove(&request.rank);
        if let Some(place) = request.pause() {
            self.slots.push(place.slot);
            self.pages.leave(place.holding, kept);
        }
        self.move_up(&request);
        self.shortage = None;
        if self.in_flight.iter().flatten().any(|row| row.id == id) {
            self.departed.push(request);
        }
    }

    /// Preempts a running request: puts it back into the queue. Its pages stay cached until they
    /// are evicted.
    pub(crate) fn preempt(&mut self, rank: Rank) {
        let request = self.requests.get_mut(&rank.id).expect("who runs is known");
        if let Some(place) = request.pause() {
            self.slots.push(place.slot);
            self.pages.leave(place.holding, u32::MAX);
        }
        self.running.remove(&rank);
        self.waiting.insert(rank);
        self.stats.preemption_count += 1;
        self.shortage = None;
    }

    /// Sets the masks of a request's next row: for `draft_count` of the drafts that were reported
    /// last, one for each and one for the token after; or none, if every token is allowed. Before
    /// the first row there are no drafts. Masks of drafts that were lost since are not used. False
    /// if the id is unknown.
    pub fn provide_masks(
        &mut self,
        id: RequestId,
        draft_count: u32,
        masks: Vec<Vec<u32>>,
    ) -> Result<bool, Misuse> {
        let word_count = self.caps.vocab_size.div_ceil(32) as usize;
        let Some(request) = self.requests.get_mut(&id) else {
            return Ok(false);
        };
        let refuse = |reason: String| Err(Misuse::Masks { id, reason });
        if !request.asked.needs_masks {
            return refuse("it needs none".into());
        }
        let mut flights = self.in_flight.iter().flatten();
        if flights.any(|row| row.id == id && row.sample) {
            return refuse("the row in flight has some, and decides which are next".into());
        }
        if !masks.is_empty() && masks.len() as u32 != draft_count + 1 {
            return refuse(format!("{} for {draft_count} drafts", masks.len()));
        }
        if let Some(mask) = masks.iter().find(|mask| mask.len() != word_count) {
            return refuse(format!("{} words, not {word_count}", mask.len()));
        }
        request.masks = Some(Masks { draft_count, masks });
        Ok(true)
    }

    /// Applies the output of the step in flight, which took `step_us` microseconds. Requests that
    /// were cancelled since are left out.
    pub fn absorb(&mut self, output: StepOutput, step_us: u32) -> Result<Vec<Advance>, Misuse> {
        let flights = self.in_flight.as_ref().ok_or(Misuse::NotInFlight)?;
        check_output(flights, &output)?;
        let flights = self.in_flight.take().unwrap_or_default();
        let tokens = output.rows.iter().map(|row| row.tokens.len()).sum();
        self.observe(&flights, tokens, step_us as f32);
        let mut advances = Vec::with_capacity(flights.len());
        let departed = self.take_departed(&flights, &output);
        for (row, out) in flights.iter().zip(output.rows) {
            advances.extend(self.take(row, out));
        }
        self.invalidate_departed(&departed);
        for advance in &advances {
            if let Some(finish) = advance.finish {
                self.finish(advance.id, finish);
            }
        }
        Ok(advances)
    }

    fn observe(&mut self, flights: &[InFlightRow], tokens: usize, us: f32) {
        if self.limits.learning_share == 0.0 {
            return;
        }
        let token_count = flights.iter().map(InFlightRow::token_count).sum();
        let drafting_count = flights.iter().filter(|row| row.draft_next > 0).count() as u32;
        let size = Size { token_count, drafting_count };
        self.cost.observe(size, us);
        if flights.iter().all(|row| row.end - row.start == 1) {
            let row_count = flights.len() as u32;
            let assumed = self.round_cost.cost(row_count);
            self.draft_costs.observe(row_count, size, us, assumed);
            self.round_cost.observe(size, us);
            let alone_us = self.draft_costs.cost(row_count, assumed).alone_us;
            let worth_us = tokens as f32 * alone_us / row_count as f32;
            self.trials.observe(row_count, us, worth_us, drafting_count > 0);
        }
    }

    fn take(&mut self, row: &InFlightRow, out: RowOutput) -> Option<Advance> {
        let request = self.requests.get_mut(&row.id)?;
        let rule = request.asked.setup.verification;
        let advance = request.take(row, out, self.acceptance.of(rule));
        let leads = !advance.tokens.is_empty() && request.reply_count() == advance.tokens.len();
        if row.judged() > 0 {
            self.acceptance.observe(rule, row.judged(), advance.accepted_count);
        }
        self.stats.count_drafts(rule, row.draft_count, advance.accepted_count);
        self.stats.output_count += advance.tokens.len() as u64;
        if let Some(place) = &mut request.place {
            let named = place.holding.named;
            self.pages.settle(&mut place.holding, &request.known, request.computed);
            if place.holding.named > named {
                // A waiting request may start with these pages, and so need fewer.
                self.shortage = None;
            }
        }
        if leads {
            self.lead(row.id);
        }
        Some(advance)
    }

    /// Gives up the step in flight, whose output will not come. Its requests go back into the queue
    /// and compute again what was lost, unless the caller cancels them.
    pub fn abandon(&mut self) -> Result<Vec<RequestId>, Misuse> {
        let flights = self.in_flight.take().ok_or(Misuse::NotInFlight)?;
        self.departed.clear();
        let mut ids: Vec<_> = flights.into_iter().map(|row| row.id).collect();
        ids.retain(|id| self.requests.contains_key(id));
        for id in &ids {
            self.preempt(self.requests[id].rank);
        }
        Ok(ids)
    }

    /// Whether no request runs or waits.
    pub fn is_idle(&self) -> bool {
        self.requests.is_empty()
    }

    /// Running requests, first rank first.
    pub fn running(&self) -> impl Iterator<Item = RequestId> {
        self.running.iter().map(|rank| rank.id)
    }

    /// The cost of steps without prompts that have about this many tokens.
    pub fn cost(&self, token_count: u32) -> Cost {
        self.round_cost.cost(token_count)
    }

    pub fn stats(&self) -> Stats {
        let usage = |((page_count, used, kept), group): (_, &PageGroup)| GroupUsage {
            page_count,
            used,
            kept,
            windowed: group.window.is_some(),
        };
        Stats {
            running: self.running.len() as u32,
            waiting: self.waiting.len() as u32,
            deferred: (self.requests.len() - self.running.len() - self.waiting.len()) as u32,
            groups: self.pages.usage().zip(&self.caps.groups).map(usage).collect(),
            ..self.stats.clone()
        }
    }
}

impl InFlightRow {
    fn token_count(&self) -> u32 {
        self.end - self.start + self.draft_count
    }

    /// Drafts of which the output shows whether they were accepted.
    pub(crate) fn judged(&self) -> u32 {
        self.draft_count + u32::from(self.draft_refused)
    }

    /// Checks that an output fits this row.
    fn check(&self, out: &RowOutput) -> Result<(), String> {
        let count = out.tokens.len() as u32;
        let (least, most) = match (self.sample, out.fault) {
            (false, _) => (0, 0),
            (true, None) => (1, self.draft_count + u32::from(self.goes_on)),
            (true, Some(_)) => (0, self.draft_count),
        };
        if !(least..=most).contains(&count) {
            return Err(format!("{count} tokens, {least} to {most} are possible"));
        }
        // The engine would refuse a step in which a slot is asked for more drafts than it holds.
        let reported = if self.report_drafts { out.held_count } else { 0 };
        let logprob_count = if self.logprobs { count } else { 0 };
        let scored_least = if out.fault.is_some() { 0 } else { self.scored_count };
        for (what, found, least, most) in [
            ("log-probabilities", out.logprobs.len(), logprob_count, logprob_count),
            ("held drafts", out.held_count as usize, 0, self.draft_next),
            ("drafts", out.drafts.len(), reported, reported),
            ("scored tokens", out.scored.len(), scored_least, self.scored_count),
        ] {
            if !(least..=most).contains(&(found as u32)) {
                return Err(format!("{found} {what}, {least} to {most} are possible"));
            }
        }
        Ok(())
    }
}

fn check_output(flights: &[InFlightRow], output: &StepOutput) -> Result<(), Misuse> {
    if flights.len() != output.rows.len() {
        let reason = format!("{} rows came out of {}", output.rows.len(), flights.len());
        return Err(Misuse::Output { row: output.rows.len(), reason });
    }
    for (index, (row, out)) in flights.iter().zip(&output.rows).enumerate() {
        row.check(out).map_err(|reason| Misuse::Output { row: index, reason })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use kilotok_abi::Sampling;
    use kilotok_engine::TokenLogprob;
    use kilotok_testkit::ScriptedEngine;

    use super::*;

    fn asked(prompt: Vec<TokenId>, token_max: u32) -> Submission {
        let setup = SlotSetup::new(Sampling::GREEDY, 0);
        Submission::new(prompt, setup, token_max)
    }

    fn sched() -> Scheduler {
        let mut caps = ScriptedEngine::caps();
        caps.groups[0].page_count = 10;
        Scheduler::new(&caps, Limits { queue_max: 2, ..Limits::default() })
    }

    #[test]
    fn what_can_never_run_is_refused_with_numbers() {
        let mut sched = sched();
        assert_eq!(sched.context_max(), 80);
        let long = sched.admit(asked(vec![1; 80], 1)).unwrap_err();
        let text = "the prompt has 80 tokens; with one of the reply, at most 80 fit";
        assert_eq!(long.to_string(), text);
        assert_eq!(sched.admit(asked(vec![], 1)), Err(Refused::Nothing));
        assert_eq!(sched.admit(asked(vec![1], 0)), Err(Refused::Nothing));
        let mut illegal = |asked| sched.admit(asked).unwrap_err().to_string();
        assert_eq!(illegal(asked(vec![1, 256], 1)), "token 256 of a vocabulary of 256");
        let curious = Submission { logprobs: Some(9), ..asked(vec![1], 1) };
        assert_eq!(illegal(curious), "more than 8 log-probabilities");
        let mut biased = asked(vec![1], 1);
        biased.setup.logit_bias = vec![(3, f32::NAN)];
        assert_eq!(illegal(biased), "logit bias NaN of token 3 is not finite");
        for _ in 0..2 {
            sched.admit(asked(vec![1; 79], 100)).unwrap();
        }
        assert_eq!(sched.admit(asked(vec![1], 1)), Err(Refused::QueueFull { waiting: 2 }));
    }

    #[test]
    fn masks_are_checked_and_waited_for() {
        let mut sched = sched();
        let plain = sched.admit(asked(vec![1, 2], 3)).unwrap();
        let mut masked = asked(vec![1, 2, 3], 3);
        masked.needs_masks = true;
        let masked = sched.admit(masked).unwrap();
        let masks = |count: usize| vec![vec![u32::MAX; 8]; count];
        assert_eq!(sched.provide_masks(RequestId(9), 0, masks(1)), Ok(false));
        assert!(sched.provide_masks(plain, 0, masks(1)).is_err());
        assert!(sched.provide_masks(masked, 1, masks(1)).is_err());
        assert!(sched.provide_masks(masked, 0, vec![vec![1; 7]]).is_err());
        let rows = sched.plan().unwrap().step.rows;
        assert_eq!((rows[1].tokens.count(), rows[1].sample), (2, false));
        let outputs = [vec![7], vec![]].map(|tokens| RowOutput { tokens, ..RowOutput::default() });
        sched.absorb(StepOutput { rows: outputs.into() }, 10).unwrap();
        assert_eq!(sched.plan().unwrap().ids, [plain]);
        sched.abandon().unwrap();
        // A mask for a draft that the slot does not hold is left out.
        assert_eq!(sched.provide_masks(masked, 1, masks(2)), Ok(true));
        let rows = sched.plan().unwrap().step.rows;
        assert_eq!((rows.len(), rows[1].sample, rows[1].masks.len()), (2, true, 1));
        assert!(sched.provide_masks(masked, 0, masks(1)).is_err(), "they would be lost");
    }

    #[test]
    fn drafts_that_were_not_made_are_not_verified() {
        let mut sched = sched();
        let id = sched.admit(Submission { needs_masks: true, ..asked(vec![1, 2], 30) }).unwrap();
        let masks = |sched: &mut Scheduler, count| {
            sched.provide_masks(id, count, vec![vec![u32::MAX; 8]; count as usize + 1]).unwrap()
        };
        assert!(masks(&mut sched, 0));
        assert_eq!(sched.plan().unwrap().step.rows[0].draft_next, 7);
        let output = |held_count, drafts| StepOutput {
            rows: vec![RowOutput { tokens: vec![3], held_count, drafts, ..RowOutput::default() }],
        };
        let many = sched.absorb(output(8, vec![4; 8]), 10).unwrap_err().to_string();
        assert_eq!(many, "output of row 0: 8 held drafts, 0 to 7 are possible");
        let other = sched.absorb(output(3, vec![4; 7]), 10).unwrap_err().to_string();
        assert_eq!(other, "output of row 0: 7 drafts, 3 to 3 are possible");
        sched.absorb(output(3, vec![4; 3]), 10).unwrap();
        assert!(masks(&mut sched, 7));
        assert_eq!(sched.plan().unwrap().step.rows[0].tokens.draft_count(), 3);
    }

    #[test]
    fn a_drafter_that_stops_short_is_not_asked_for_more() {
        let mut sched = sched();
        sched.admit(asked(vec![1, 2], 30)).unwrap();
        for held_count in [7, 2, 0] {
            assert_eq!(sched.plan().unwrap().step.rows[0].draft_next, 7);
            let row = RowOutput { tokens: vec![3], held_count, ..RowOutput::default() };
            sched.absorb(StepOutput { rows: vec![row] }, 10).unwrap();
            let tokens = sched.plan().unwrap().step.rows.remove(0).tokens;
            assert_eq!(tokens, RowTokens::Held { draft_count: held_count });
            sched.abandon().unwrap();
        }
    }

    #[test]
    fn a_fault_among_scored_tokens_ends_one_request() {
        let mut sched = sched();
        let scored = Submission { score_prompt: true, ..asked(vec![1, 2, 3], 0) };
        let ids = [(); 2].map(|()| sched.admit(scored.clone()).unwrap());
        assert_eq!(sched.plan().unwrap().step.rows[0].scored, [2, 3]);
        let chosen = TokenLogprob { token: 2, logprob: -1.0 };
        let logprobs = TokenLogprobs { chosen, rank: 0, top: vec![] };
        let whole = RowOutput { scored: vec![logprobs; 2], ..RowOutput::default() };
        let fault = RowFault::NotFinite { position: 1 };
        let faulty = RowOutput { fault: Some(fault), ..RowOutput::default() };
        let advances = sched.absorb(StepOutput { rows: vec![faulty, whole] }, 10).unwrap();
        let ends: Vec<_> = advances.into_iter().map(|own| (own.id, own.finish)).collect();
        let finishes = [Finish::Fault(fault), Finish::Length].map(Some);
        assert_eq!(ends, ids.into_iter().zip(finishes).collect::<Vec<_>>());
        sched.admit(scored).unwrap();
        sched.plan().unwrap();
        let rows = vec![RowOutput::default()];
        let without = sched.absorb(StepOutput { rows }, 10).unwrap_err().to_string();
        assert_eq!(without, "output of row 0: 0 scored tokens, 2 to 2 are possible");
    }

    #[test]
    fn the_last_token_before_a_fault_has_no_keys_in_a_page_yet() {
        let mut sched = sched();
        let prompt: Vec<TokenId> = vec![1, 2, 3, 4, 5];
        sched.admit(asked(prompt.clone(), 20)).unwrap();
        sched.plan().unwrap();
        let output = |tokens, held_count, fault| StepOutput {
            rows: vec![RowOutput { tokens, held_count, fault, ..RowOutput::default() }],
        };
        sched.absorb(output(vec![6], 7, None), 10).unwrap();
        assert_eq!(sched.plan().unwrap().step.rows[0].tokens.draft_count(), 7);
        // Pages end behind the second draft.
        let fault = Some(RowFault::NothingAllowed { position: 8 });
        sched.absorb(output(vec![7, 8], 0, fault), 10).unwrap();
        sched.admit(asked([&prompt[..], &[6, 7, 8, 9]].concat(), 1)).unwrap();
        assert_eq!(sched.plan().unwrap().step.rows[0].start, 0);
    }

    #[test]
    fn a_slot_is_free_for_the_step_after() {
        let mut caps = ScriptedEngine::caps();
        caps.slot_count = 1;
        let mut sched = Scheduler::new(&caps, Limits::default());
        let ids = [1, 2].map(|token| sched.admit(asked(vec![token; 20], 3)).unwrap());
        assert_eq!(sched.plan().unwrap().ids, [ids[0]]);
        assert!(sched.cancel(ids[0]));
        sched.check().unwrap();
        let output =
            StepOutput { rows: vec![RowOutput { tokens: vec![7], ..RowOutput::default() }] };
        assert_eq!(sched.absorb(output, 10), Ok(vec![]));
        assert_eq!(sched.plan().unwrap().ids, [ids[1]]);
        sched.check().unwrap();
    }
}
