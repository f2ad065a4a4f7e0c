//! Statistics of a finished reply. They are counted once: by the engine's thread, or by the reader,
//! which alone knows whether the reply was complete before its last token.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use super::Metrics;
use crate::clock::seconds;

/// A reply that has ended. Times are clock readings, in microseconds.
pub(crate) struct FinishedStats {
    /// See [`crate::FinishReason::label`].
    pub(crate) finish: &'static str,
    pub(crate) arrived_us: u64,
    /// When the reply's first row was in a step.
    pub(crate) started_us: Option<u64>,
    pub(crate) first_token_us: Option<u64>,
    pub(crate) newest_token_us: u64,
    pub(crate) ended_us: u64,
    pub(crate) prompt_count: u32,
    pub(crate) cached_count: u32,
    pub(crate) token_count: u32,
    pub(crate) preemption_count: u32,
    pub(crate) siblings: Arc<Siblings>,
}

/// The replies to one prompt, counted as they end.
pub(crate) struct Siblings {
    left: AtomicUsize,
    /// Tokens of the longest reply so far.
    token_count: AtomicU32,
}

impl Siblings {
    pub(crate) fn of(reply_count: usize) -> Self {
        Self { left: AtomicUsize::new(reply_count), token_count: AtomicU32::new(0) }
    }

    /// Counts a reply that has ended. Returns the tokens of the longest reply if it was the last
    /// one.
    fn ended(&self, token_count: u32) -> Option<u32> {
        self.token_count.fetch_max(token_count, Ordering::AcqRel);
        let last = self.left.fetch_sub(1, Ordering::AcqRel) == 1;
        last.then(|| self.token_count.load(Ordering::Acquire))
    }
}

impl Metrics {
    #[expect(clippy::needless_pass_by_value, reason = "nothing ends twice")]
    pub(crate) fn finished(&self, finished: FinishedStats) {
        self.vllm.finished.with_label_values(&[finished.finish]).inc();
        let requests = &self.vllm.requests;
        if let Some(token_count_max) = finished.siblings.ended(finished.token_count) {
            requests.generation_tokens_max.observe(f64::from(token_count_max));
        }
        requests.e2e.observe(seconds(finished.arrived_us, finished.ended_us));
        requests.prompt_tokens.observe(f64::from(finished.prompt_count));
        requests.generation_tokens.observe(f64::from(finished.token_count));
        requests.preemptions.observe(f64::from(finished.preemption_count));
        let Some(started_us) = finished.started_us else {
            requests.queue.observe(seconds(finished.arrived_us, finished.ended_us));
            return;
        };
        requests.queue.observe(seconds(finished.arrived_us, started_us));
        requests.inference.observe(seconds(started_us, finished.ended_us));
        requests.prefill_computed.observe(f64::from(finished.prompt_count - finished.cached_count));
        let Some(first_us) = finished.first_token_us else {
            return;
        };
        requests.prefill.observe(seconds(started_us, first_us));
        let decode = seconds(first_us, finished.newest_token_us);
        requests.decode.observe(decode);
        if finished.token_count > 1 {
            requests.per_token.observe(decode / f64::from(finished.token_count - 1));
        }
    }
}
