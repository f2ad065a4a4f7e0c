//! Writes the measurements of the engine's thread. No series has a lock: the writes for every row
//! of every step cost a few atomic additions, and the scheduler's counts are written once per step.

use std::sync::Arc;

use kilotok_sched::Stats;

use super::{FinishedStats, Metrics};
use crate::clock::seconds;

pub(crate) struct Meter {
    metrics: Arc<Metrics>,
    seen: Stats,
}

/// The size and duration of a step.
pub(crate) struct StepSize {
    pub(crate) row_count: usize,
    /// Tokens of prompts and chosen tokens.
    pub(crate) token_count: usize,
    pub(crate) step_us: u64,
}

impl Meter {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, seen: Stats::default() }
    }

    /// Observes a request of `reply_count` replies.
    pub(crate) fn submitted(&self, reply_count: usize, token_max: u32) {
        let requests = &self.metrics.vllm.requests;
        requests.params_n.observe(reply_count as f64);
        requests.params_max_tokens.observe(f64::from(token_max));
    }

    pub(crate) fn first_token(&self, arrived_us: u64, now_us: u64) {
        self.metrics.vllm.requests.ttft.observe(seconds(arrived_us, now_us));
    }

    pub(crate) fn next_tokens(&self, newest_us: u64, now_us: u64) {
        self.metrics.vllm.requests.inter_token.observe(seconds(newest_us, now_us));
    }

    pub(crate) fn step(&self, step: &StepSize) {
        let Metrics { vllm, own, .. } = &*self.metrics;
        vllm.requests.step_tokens.observe(step.token_count as f64);
        own.step_rows.observe(step.row_count as f64);
        own.step_seconds.observe(seconds(0, step.step_us));
    }

    /// Observes a time in which the engine was idle although there was work.
    pub(crate) fn host(&self, from_us: u64, to_us: u64) {
        self.metrics.own.host_seconds.observe(seconds(from_us, to_us));
    }

    pub(crate) fn plan_refused(&self) {
        self.metrics.own.plans_refused.inc();
    }

    pub(crate) fn corrupted(&self) {
        self.metrics.vllm.counts.corrupted.inc();
    }

    /// Publishes the scheduler's counts.
    pub(crate) fn publish(&mut self, stats: &Stats) {
        if *stats == self.seen {
            return;
        }
        let vllm = &self.metrics.vllm;
        vllm.running.set(i64::from(stats.running));
        vllm.waiting.set(i64::from(stats.waiting) + i64::from(stats.deferred));
        vllm.waiting_capacity.set(f64::from(stats.waiting));
        vllm.waiting_deferred.set(f64::from(stats.deferred));
        vllm.usage.set(stats.usage());
        self.metrics.own.publish(stats);
        self.count(stats);
        self.seen.clone_from(stats);
    }

    /// Publishes that nothing runs or waits any more.
    pub(crate) fn stopped(&self) {
        let vllm = &self.metrics.vllm;
        for gauge in [&vllm.running, &vllm.waiting] {
            gauge.set(0);
        }
        for gauge in [&vllm.waiting_capacity, &vllm.waiting_deferred, &vllm.usage] {
            gauge.set(0.0);
        }
    }

    fn count(&self, stats: &Stats) {
        let (counts, drafts, seen) =
            (&self.metrics.vllm.counts, &self.metrics.vllm.drafts, &self.seen);
        let queries = stats.prefix_queries - seen.prefix_queries;
        let hits = stats.prefix_hits - seen.prefix_hits;
        counts.prefix_queries.inc_by(queries);
        counts.prefix_hits.inc_by(hits);
        counts.prompt_tokens.inc_by(queries);
        counts.prompt_cached.inc_by(hits);
        counts.prompt_hit.inc_by(hits);
        counts.prompt_computed.inc_by(queries - hits);
        counts.preemptions.inc_by(stats.preemption_count - seen.preemption_count);
        counts.generation_tokens.inc_by(stats.output_count - seen.output_count);
        drafts.rows.inc_by(stats.draft_row_count - seen.draft_row_count);
        let new = |now: &[u64], seen: &[u64], index: usize| {
            now.get(index).map_or(0, |now| now - seen.get(index).copied().unwrap_or_default())
        };
        let own = &self.metrics.own;
        for (series, now, seen) in [
            (&own.matched, &stats.matched, &seen.matched),
            (&own.judged, &stats.judged, &seen.judged),
            (&own.assumed, &stats.assumed, &seen.assumed),
        ] {
            for (index, (verified_at, accepted_at)) in series.iter().enumerate() {
                let verified = new(&now.verified, &seen.verified, index);
                let accepted = new(&now.accepted, &seen.accepted, index);
                verified_at.inc_by(verified);
                accepted_at.inc_by(accepted);
                drafts.drafted.inc_by(verified);
                drafts.accepted.inc_by(accepted);
                drafts.accepted_at[index].inc_by(accepted);
            }
        }
    }

    pub(crate) fn finished(&self, finished: FinishedStats) {
        self.metrics.finished(finished);
    }
}
