//! Runs a workload: with a scheduler, a scripted engine whose K/V is in the plans' pages, and a
//! host that makes masks, stops and cancels. All invariants are checked after every step.

use std::collections::{BTreeMap, BTreeSet};

use kilotok_abi::TokenId;
use kilotok_engine::{Engine, StepOutput, StepPlan, TokenLogprobs};
use kilotok_sched::{Advance, Finish, Plan, Refused, RequestId, Scheduler};
use kilotok_testkit::{Random, ScriptedEngine};

use crate::poison::Poison;
use crate::workload::{Job, Workload};

/// The reply to a request.
#[derive(Clone, Debug, Default)]
pub(super) struct Reply {
    pub(super) tokens: Vec<TokenId>,
    pub(super) logprobs: Vec<TokenLogprobs>,
    pub(super) scored: Vec<TokenLogprobs>,
    pub(super) end: Option<End>,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Finished(Finish),
    Stopped,
    Cancelled,
    Refused,
}

/// Counts of events, to check that each kind occurred.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) steps: u64,
    pub(super) rows: u64,
    pub(super) requests: u64,
    pub(super) finished: u64,
    pub(super) stopped: u64,
    pub(super) cancelled: u64,
    pub(super) faults: u64,
    pub(super) refused: u64,
    pub(super) preempted: u64,
    /// Requests that were preempted because window groups had no page left.
    pub(super) window_preempted: u64,
    pub(super) hits: u64,
    pub(super) drafted: u64,
    pub(super) accepted: u64,
    pub(super) failures: u64,
}

pub(super) struct World<'w> {
    workload: &'w Workload,
    engine: ScriptedEngine,
    sched: Scheduler,
    draw: Random,
    step: u32,
    replies: Vec<Reply>,
    /// Families that have not been admitted yet.
    outside: Vec<usize>,
    inside: BTreeMap<RequestId, usize>,
    /// Requests of admitted families that have not ended, in the families' order of arrival.
    families: Vec<Vec<RequestId>>,
    /// Preempted requests that have not yet computed again what they lost.
    behind: BTreeSet<RequestId>,
    poison: Poison,
    /// Drafts of requests that wait for masks, and the step in which the masks arrive.
    unmasked: BTreeMap<RequestId, (u32, Vec<TokenId>)>,
    pub(super) tally: Tally,
    pub(super) plans: Vec<StepPlan>,
}

impl<'w> World<'w> {
    pub(super) fn new(workload: &'w Workload, seed: u64) -> Self {
        Self {
            workload,
            engine: ScriptedEngine::new(workload.caps.clone(), workload.skill),
            sched: Scheduler::new(&workload.caps, workload.limits),
            draw: Random::new(!seed),
            step: 0,
            replies: vec![Reply::default(); workload.jobs.len()],
            outside: (0..workload.families.len()).collect(),
            inside: BTreeMap::new(),
            families: Vec::new(),
            behind: BTreeSet::new(),
            poison: Poison::default(),
            unmasked: BTreeMap::new(),
            tally: Tally { requests: workload.jobs.len() as u64, ..Tally::default() },
            plans: Vec::new(),
        }
    }

    pub(super) fn context_max(&self) -> u32 {
        self.sched.context_max()
    }

    /// Runs until all requests have ended.
    pub(super) fn run(&mut self) -> Result<Vec<Reply>, String> {
        let bound = self.step_max();
        while !(self.outside.is_empty() && self.inside.is_empty()) {
            if self.step > bound {
                return Err(format!("{} requests are left after {bound} steps", self.inside.len()));
            }
            self.admit();
            self.cancel(false);
            self.provide_masks();
            self.one_step()?;
            self.step += 1;
        }
        self.check()?;
        self.check_end()?;
        Ok(std::mem::take(&mut self.replies))
    }

    /// Most steps that a run may take. The first request in rank advances in each step for which it
    /// has masks, and so does the next one once the first has ended. Preempted requests and failed
    /// steps are computed again.
    fn step_max(&self) -> u32 {
        let steps = |job: &Job| {
            let tokens = job.asked.prompt.len() as u32 + job.asked.token_max;
            tokens * (1 + job.mask_delay)
        };
        let all = self.workload.jobs.iter().map(steps).sum::<u32>();
        let failures = self.workload.failures.len() as u32;
        40 + all * (2 + failures)
    }

    fn admit(&mut self) {
        let workload = self.workload;
        let joins = |family: usize| workload.jobs[workload.families[family].start].joins;
        let now: Vec<_> =
            self.outside.extract_if(.., |family| joins(*family) <= self.step).collect();
        for family in now {
            let indices = workload.families[family].clone();
            let jobs = &workload.jobs[indices.clone()];
            match self.sched.admit_all(jobs.iter().map(|job| job.asked.clone()).collect()) {
                Ok(ids) => {
                    for ((id, index), job) in ids.iter().zip(indices).zip(jobs) {
                        self.inside.insert(*id, index);
                        if job.mask.is_some() {
                            self.unmasked.insert(*id, (self.step + job.mask_delay, Vec::new()));
                        }
                    }
                    self.families.push(ids);
                }
                Err(Refused::QueueFull { waiting }) => {
                    let stats = self.sched.stats();
                    assert_eq!(waiting, stats.waiting + stats.deferred);
                    assert!(waiting + jobs.len() as u32 > workload.limits.queue_max);
                    self.outside.push(family);
                }
                Err(Refused::PromptTooLong { .. } | Refused::Nothing) => {
                    indices.for_each(|index| self.replies[index].end = Some(End::Refused));
                }
                Err(refused @ Refused::Illegal { .. }) => panic!("{refused}"),
            }
        }
    }

    fn cancel(&mut self, in_flight: bool) {
        let due = |job: &Job| job.cancel == Some((self.step, in_flight));
        let jobs = &self.workload.jobs;
        let ids: Vec<_> = self.inside.iter().filter(|(_, job)| due(&jobs[**job])).collect();
        let ids: Vec<RequestId> = ids.into_iter().map(|(id, _)| *id).collect();
        for id in ids {
            assert!(self.sched.cancel(id) && !self.sched.cancel(id));
            self.end(id, End::Cancelled);
        }
    }

    fn end(&mut self, id: RequestId, end: End) {
        self.unmasked.remove(&id);
        self.families.iter_mut().for_each(|family| family.retain(|other| *other != id));
        if let Some(job) = self.inside.remove(&id) {
            self.replies[job].end = Some(end);
        }
    }

    /// Provides masks for the drafts that are allowed, and for the token after them.
    fn provide_masks(&mut self) {
        let due = self.unmasked.extract_if(.., |_, (step, _)| *step <= self.step);
        for (id, (_, drafts)) in due {
            let index = self.inside[&id];
            let job = &self.workload.jobs[index];
            let Some(mask) = job.mask else {
                continue;
            };
            let mut text = [&job.asked.prompt[..], &self.replies[index].tokens].concat();
            let mut masks = vec![mask(&text, self.workload.caps.vocab_size)];
            for draft in drafts {
                let allowed = &masks[masks.len() - 1];
                if allowed[(draft / 32) as usize] >> (draft % 32) & 1 == 0 {
                    break;
                }
                text.push(draft);
                masks.push(mask(&text, self.workload.caps.vocab_size));
            }
            let provided = self.sched.provide_masks(id, masks.len() as u32 - 1, masks);
            assert_eq!(provided, Ok(true));
        }
    }

    fn one_step(&mut self) -> Result<(), String> {
        let before: BTreeSet<_> = self.sched.running().collect();
        let whole_texts_fit = self.whole_texts_fit();
        let plan = self.sched.plan().map_err(|misuse| misuse.to_string())?;
        if whole_texts_fit {
            self.tally.window_preempted += self.lost_firsts(&before);
        }
        self.note_places();
        self.check()?;
        self.check_order(&before)?;
        self.check_plan(&plan)?;
        if plan.step.rows.is_empty() {
            return Ok(());
        }
        assert!(self.sched.plan().is_err());
        self.tally.steps += 1;
        self.tally.rows += plan.step.rows.len() as u64;
        let id = self.engine.submit(&plan.step).map_err(|error| error.to_string())?;
        let tokens: u32 = plan.step.rows.iter().map(|row| row.tokens.count()).sum();
        self.cancel(true);
        let mut output = StepOutput::default();
        self.engine.wait(id, &mut output).map_err(|error| error.to_string())?;
        let poisoned = self.workload.poisons.contains(&self.tally.steps);
        let poisoned = poisoned.then(|| self.draw.between(0, plan.step.rows.len() as u32 - 1));
        self.poison.spread(&self.workload.caps, &plan.step, &mut output, poisoned);
        for (id, _) in plan.ids.iter().zip(&plan.step.rows).filter(|(_, row)| row.sample) {
            self.behind.remove(id);
        }
        self.plans.push(plan.step);
        if self.workload.failures.contains(&self.tally.steps) {
            // The effects of a lost step on slots and pages must not matter.
            self.tally.failures += 1;
            self.sched.abandon().map_err(|misuse| misuse.to_string())?;
            return self.check();
        }
        let wide = self.workload.caps.wide_from.is_some_and(|from| tokens >= from);
        let step_us = if wide { 400 + tokens } else { 100 + 10 * tokens };
        let step_us = step_us + self.draw.between(0, 50);
        let advances = self.sched.absorb(output, step_us).map_err(|misuse| misuse.to_string())?;
        self.poison.is_known();
        self.note_places();
        self.check()?;
        advances.into_iter().try_for_each(|advance| self.take(advance))
    }

    /// Whether the groups that hold all positions of a text have enough pages for the next step, in
    /// which each running request may need one.
    fn whole_texts_fit(&self) -> bool {
        let stats = self.sched.stats();
        let mut whole = stats.groups.iter().filter(|usage| !usage.windowed);
        whole.all(|usage| usage.page_count - usage.used >= stats.running)
    }

    /// How many of the requests that lost their slot are the first of their family. They can only
    /// have lost it for lack of pages, because they give way to no other reply.
    fn lost_firsts(&self, before: &BTreeSet<RequestId>) -> u64 {
        let running: BTreeSet<_> = self.sched.running().collect();
        let lost = before.difference(&running).map(|id| self.inside[id]);
        let families = &self.workload.families;
        lost.filter(|job| families.iter().any(|family| family.start == *job)).count() as u64
    }

    fn take(&mut self, advance: Advance) -> Result<(), String> {
        let Advance { id, tokens, logprobs, scored, drafts, drafted_count, accepted_count, .. } =
            advance;
        let index = *self.inside.get(&id).ok_or("an advance of an unknown request")?;
        let job = &self.workload.jobs[index];
        let reply = &mut self.replies[index];
        self.tally.drafted += u64::from(drafted_count);
        self.tally.accepted += u64::from(accepted_count);
        let chosen = !tokens.is_empty();
        reply.tokens.extend(tokens);
        reply.logprobs.extend(logprobs);
        reply.scored.extend(scored);
        if let Some(finish) = advance.finish {
            self.end(id, End::Finished(finish));
        } else if let Some(kept) = job.stop.filter(|kept| (*kept as usize) < reply.tokens.len()) {
            reply.tokens.truncate(kept as usize);
            reply.logprobs.truncate(kept as usize);
            assert!(self.sched.stop(id, kept));
            self.end(id, End::Stopped);
        } else if chosen && job.mask.is_some() {
            self.unmasked.insert(id, (self.step + job.mask_delay, drafts));
        }
        Ok(())
    }

    fn note_places(&mut self) {
        let running: BTreeSet<_> = self.sched.running().collect();
        self.behind.extend(self.inside.keys().filter(|id| !running.contains(id)));
    }

    fn check(&self) -> Result<(), String> {
        self.sched.check()?;
        let stats = self.sched.stats();
        let caps = &self.workload.caps;
        for (usage, group) in stats.groups.iter().zip(&caps.groups) {
            if usage.page_count != group.page_count || usage.used + usage.kept > group.page_count {
                return Err(format!("{usage:?} of {} pages", group.page_count));
            }
        }
        let waiting_max = self.workload.limits.queue_max + self.workload.limits.running_max;
        if stats.running > caps.slot_count || stats.waiting + stats.deferred > waiting_max {
            return Err(format!("{} run, {} wait", stats.running, stats.waiting));
        }
        Ok(())
    }

    /// Checks that no request starts before a waiting one of lower rank, or keeps its slot while
    /// one of lower rank loses it.
    fn check_order(&self, before: &BTreeSet<RequestId>) -> Result<(), String> {
        let running: BTreeSet<_> = self.sched.running().collect();
        let mut waiting = self.inside.keys().filter(|id| !running.contains(id));
        if let Some(id) = waiting.clone().find(|id| self.rank(**id).0 == 0 && self.follows(**id)) {
            return Err(format!("{id} is the first of its family, and follows"));
        }
        let waiting = waiting.by_ref().filter(|id| !self.follows(**id));
        let first_waiting = waiting.map(|id| self.rank(*id)).min();
        let last_started = running.difference(before).map(|id| self.rank(*id)).max();
        let first_lost = before.difference(&running).map(|id| self.rank(*id)).min();
        let last_kept = before.intersection(&running).map(|id| self.rank(*id)).max();
        if let (Some(waits), Some(started)) = (first_waiting, last_started)
            && started > waits
        {
            return Err(format!("{started:?} started before {waits:?}"));
        }
        match (first_lost, last_kept) {
            (Some(lost), Some(kept)) if kept > lost => {
                Err(format!("{lost:?} lost its place, {kept:?} kept it"))
            }
            _ => Ok(()),
        }
    }

    /// A request's rank: first the number of replies before it in its family, then priority and
    /// arrival.
    fn rank(&self, id: RequestId) -> (usize, i64, u64) {
        let priority = self.workload.jobs[self.inside[&id]].asked.priority;
        let (arrival, copy) = self.place(id);
        let due = i64::from(priority) * i64::from(self.workload.limits.aging) + arrival as i64;
        (copy, due, id.0)
    }

    /// The arrival of a request's family, and the number of replies before it in the family.
    fn place(&self, id: RequestId) -> (usize, usize) {
        let mut families = self.families.iter().enumerate();
        let found = families.find_map(|(arrival, family)| {
            Some((arrival, family.iter().position(|other| *other == id)?))
        });
        found.expect("who is inside is of a family")
    }

    /// Whether a request may wait for another one to compute its prompt.
    fn follows(&self, id: RequestId) -> bool {
        let (arrival, copy) = self.place(id);
        let asked = |id: RequestId| &self.workload.jobs[self.inside[&id]].asked;
        self.families[arrival][..copy].iter().any(|other| {
            let same = asked(*other).prompt == asked(id).prompt;
            same && self.replies[self.inside[other]].tokens.is_empty()
        })
    }

    /// Whether more requests run than can decode in one step.
    fn take_turns(&self) -> bool {
        let caps = &self.workload.caps;
        let row_max = caps.row_max.min(caps.token_max).min(caps.wanted_max);
        // Prompts may take up to half of a narrow step.
        let narrow = caps.wide_from.map_or(u32::MAX, |from| (from - 1).div_ceil(2));
        self.sched.running().count() as u32 > row_max.min(narrow)
    }

    /// Checks that every request that must have a row has one, and that no row writes a page that
    /// another one reads.
    fn check_plan(&self, plan: &Plan) -> Result<(), String> {
        let ready = |id: &RequestId| !self.unmasked.contains_key(id);
        let mut running = self.sched.running();
        if let Some(first) = running.next().filter(ready)
            && !plan.ids.contains(&first)
        {
            return Err(format!("{first} is the first, and has no row"));
        }
        let decodes = |id: &RequestId| {
            !self.behind.contains(id) && !self.replies[self.inside[id]].tokens.is_empty()
        };
        let decoding = running.find(|id| ready(id) && decodes(id) && !plan.ids.contains(id));
        let may_wait = self.tally.failures > 0 || self.take_turns();
        if let Some(id) = decoding.filter(|_| self.workload.ample && !may_wait) {
            return Err(format!("{id} decodes, and has no row"));
        }
        self.poison.check(&self.workload.caps, &plan.step)?;
        for (index, group) in self.workload.caps.groups.iter().enumerate() {
            let mut written = BTreeSet::new();
            let mut read = BTreeSet::new();
            for row in &plan.step.rows {
                let run = &row.pages[index];
                let writes = row.start / group.page_tokens - run.first;
                read.extend(&run.pages[..writes as usize]);
                for page in &run.pages[writes as usize..] {
                    if !written.insert(page) {
                        return Err(format!("two rows write page {page} of group {index}"));
                    }
                }
            }
            if let Some(page) = written.intersection(&read).next() {
                return Err(format!("page {page} of group {index} is read and written"));
            }
        }
        Ok(())
    }

    /// Checks that only cached pages are left.
    fn check_end(&mut self) -> Result<(), String> {
        let stats = self.sched.stats();
        if !self.sched.is_idle() || stats.groups.iter().any(|usage| usage.used > 0) {
            return Err(format!("something is left: {stats:?}"));
        }
        let tally = &mut self.tally;
        (tally.preempted, tally.hits) = (stats.preemption_count, stats.prefix_hits);
        for reply in &self.replies {
            let counter = match reply.end.ok_or("a request has no end")? {
                End::Finished(Finish::Fault(_)) => &mut tally.faults,
                End::Finished(_) => &mut tally.finished,
                End::Stopped => &mut tally.stopped,
                End::Cancelled => &mut tally.cancelled,
                End::Refused => &mut tally.refused,
            };
            *counter += 1;
        }
        Ok(())
    }
}

impl Tally {
    pub(super) fn add(&mut self, other: &Self) {
        let Self { steps, rows, requests, finished, stopped, cancelled, .. } = other;
        let Self { faults, refused, preempted, window_preempted, hits, .. } = other;
        let Self { drafted, accepted, failures, .. } = other;
        for (sum, count) in [
            (&mut self.steps, steps),
            (&mut self.rows, rows),
            (&mut self.requests, requests),
            (&mut self.finished, finished),
            (&mut self.stopped, stopped),
            (&mut self.cancelled, cancelled),
            (&mut self.faults, faults),
            (&mut self.refused, refused),
            (&mut self.preempted, preempted),
            (&mut self.window_preempted, window_preempted),
            (&mut self.hits, hits),
            (&mut self.drafted, drafted),
            (&mut self.accepted, accepted),
            (&mut self.failures, failures),
        ] {
            *sum += count;
        }
    }
}
