//! A running reply: its channel, its grammar, and the times of its events.

use std::sync::Arc;
use std::task::Waker;

use kilotok_engine::Verification;
use kilotok_sched::{Advance, RequestId};
use kilotok_text::Grammar;

use crate::clock::milliseconds;
use crate::increment::FinishReason;
use crate::metrics::{FinishedStats, Meter, Siblings};
use crate::reply_channel::{CancelReason, ReplyChannel};

pub(super) struct ActiveReply {
    pub(super) channel: Arc<ReplyChannel>,
    /// The scheduler's id of the reply.
    pub(super) id: RequestId,
    siblings: Arc<Siblings>,
    /// `None` while a worker computes masks with it.
    pub(super) grammar: Option<Grammar>,
    pub(super) has_grammar: bool,
    verification: Verification,
    arrived_us: u64,
    started_us: Option<u64>,
    /// How often the reply entered a slot.
    start_count: u32,
    first_token_us: Option<u64>,
    newest_token_us: u64,
    prompt_count: u32,
    cached_count: u32,
    token_count: u32,
}

impl ActiveReply {
    pub(super) fn new(
        channel: Arc<ReplyChannel>,
        id: RequestId,
        siblings: Arc<Siblings>,
        arrived_us: u64,
        prompt_count: u32,
        (grammar, verification): (Option<Grammar>, Verification),
    ) -> Self {
        Self {
            channel,
            id,
            siblings,
            has_grammar: grammar.is_some(),
            verification,
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

    /// Notes that the reply's row enters a slot in the step that starts now.
    pub(super) fn enters_slot(&mut self, now_us: u64) {
        self.started_us.get_or_insert(now_us);
        self.start_count += 1;
    }

    /// Counts the outcome of a step.
    pub(super) fn record(&mut self, advance: &Advance, now_us: u64, meter: &Meter) {
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

    /// Puts the outcome of a step into the reply's channel. If the reply was cancelled, returns the
    /// reason.
    pub(super) fn put(
        &self,
        advance: Advance,
        finish: Option<FinishReason>,
        wakers: &mut Vec<Waker>,
    ) -> Option<CancelReason> {
        self.channel.put(wakers, |increment| {
            let stats = &mut increment.stats;
            stats.cached_count = stats.cached_count.max(advance.cached_count);
            stats.token_count = self.token_count;
            stats.verification = self.verification;
            stats.queue_ms = self.ms_since_arrival(self.started_us);
            stats.ttft_ms = self.ms_since_arrival(self.first_token_us);
            stats.decode_ms =
                self.first_token_us.map_or(0.0, |first| milliseconds(first, self.newest_token_us));
            if !advance.tokens.is_empty() {
                stats.count_drafts(advance.drafted_count, advance.accepted_count);
            }
            increment.append_step(advance);
            increment.finish = finish;
        })
    }

    fn ms_since_arrival(&self, us: Option<u64>) -> f64 {
        us.map_or(0.0, |us| milliseconds(self.arrived_us, us))
    }

    /// `finish` is the label of the metric.
    pub(super) fn finished(&self, finish: &'static str, ended_us: u64) -> FinishedStats {
        FinishedStats {
            finish,
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
