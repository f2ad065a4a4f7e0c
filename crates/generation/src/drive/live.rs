//! A reply that is being made: who reads it, what it waits for, and when what happened to it.

use std::sync::Arc;
use std::task::Waker;

use kilotok_sched::{Advance, RequestId};
use kilotok_text::Grammar;

use crate::metrics::{EndReason, Ending, Meter, Siblings};
use crate::stopwatch::milliseconds;
use crate::updates::{Ended, Leave, Mailbox, StepShare, Times, Update};

pub(super) struct Live {
    pub(super) mailbox: Arc<Mailbox>,
    /// What the scheduler knows it by.
    pub(super) id: RequestId,
    siblings: Arc<Siblings>,
    /// Away while masks are made.
    pub(super) grammar: Option<Grammar>,
    /// Whether there is a grammar at all.
    pub(super) guided: bool,
    arrived_us: u64,
    started_us: Option<u64>,
    /// How often it entered a slot.
    start_count: u32,
    first_token_us: Option<u64>,
    newest_token_us: u64,
    prompt_count: u32,
    cached_count: u32,
    token_count: u32,
}

impl Live {
    pub(super) fn new(
        mailbox: Arc<Mailbox>,
        id: RequestId,
        siblings: Arc<Siblings>,
        arrived_us: u64,
        prompt_count: u32,
        grammar: Option<Grammar>,
    ) -> Self {
        Self {
            mailbox,
            id,
            siblings,
            guided: grammar.is_some(),
            grammar,
            arrived_us,
            started_us: None,
            start_count: 0,
            first_token_us: None,
            newest_token_us: arrived_us,
            prompt_count,
            cached_count: 0,
            token_count: 0,
        }
    }

    /// Its row enters a slot in the step that starts now.
    pub(super) fn enters(&mut self, now_us: u64) {
        self.started_us.get_or_insert(now_us);
        self.start_count += 1;
    }

    /// Takes note of what a step brought.
    pub(super) fn advances(&mut self, advance: &Advance, now_us: u64, meter: &Meter) {
        self.cached_count = advance.cached_count;
        if advance.tokens.is_empty() {
            return;
        }
        self.token_count += advance.tokens.len() as u32;
        if self.first_token_us.is_none() {
            self.first_token_us = Some(now_us);
            meter.first_token(self.arrived_us, now_us);
        } else {
            meter.next_tokens(self.newest_token_us, now_us);
        }
        self.newest_token_us = now_us;
    }

    /// Hands the reader what a step brought. If nobody reads any more, says why.
    pub(super) fn put(
        &self,
        advance: Advance,
        ended: Option<Ended>,
        wakers: &mut Vec<Waker>,
    ) -> Option<Leave> {
        let share = StepShare {
            token_count: advance.tokens.len() as u32,
            drafted_count: advance.drafted_count,
            accepted_count: advance.accepted_count,
        };
        let times = self.times();
        self.mailbox.put(wakers, |update| {
            join(&mut update.tokens, advance.tokens);
            join(&mut update.logprobs, advance.logprobs);
            join(&mut update.scored, advance.scored);
            if share.token_count > 0 {
                update.steps.push(share);
            }
            *update = Update {
                cached_count: advance.cached_count,
                times,
                finish: ended,
                ..std::mem::take(update)
            };
        })
    }

    fn times(&self) -> Times {
        let after = |us: Option<u64>| us.map_or(0.0, |us| milliseconds(self.arrived_us, us));
        let decode = |first| milliseconds(first, self.newest_token_us);
        Times {
            queue_ms: after(self.started_us),
            ttft_ms: after(self.first_token_us),
            decode_ms: self.first_token_us.map_or(0.0, decode),
        }
    }

    pub(super) fn ending(&self, reason: EndReason, ended_us: u64) -> Ending {
        Ending {
            reason,
            arrived_us: self.arrived_us,
            started_us: self.started_us,
            first_token_us: self.first_token_us,
            newest_token_us: self.newest_token_us,
            ended_us,
            prompt_count: self.prompt_count,
            cached_count: self.cached_count,
            token_count: self.token_count,
            preemption_count: self.start_count.saturating_sub(1),
            siblings: Arc::clone(&self.siblings),
        }
    }
}

/// Appends; what is alone is not copied.
fn join<T>(all: &mut Vec<T>, more: Vec<T>) {
    if all.is_empty() {
        *all = more;
    } else {
        all.extend(more);
    }
}
