//! How a reply ended and what it took, counted once: by the engine's thread, or by the reader, who
//! alone knows whether the reply was complete before its last token.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use super::Metrics;
use crate::stopwatch::seconds;

/// Why a request ended, in vLLM's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndReason {
    Stop,
    Length,
    Abort,
    Error,
}

/// A reply that has ended. Times are readings of the stopwatch.
pub(crate) struct Ending {
    pub(crate) reason: EndReason,
    pub(crate) arrived_us: u64,
    /// When its first row was in a step.
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

/// The replies to one prompt, as far as they are counted.
pub(crate) struct Siblings {
    left: AtomicUsize,
    /// Of the longest.
    token_count: AtomicU32,
}

impl Siblings {
    pub(crate) fn of(reply_count: usize) -> Self {
        Self { left: AtomicUsize::new(reply_count), token_count: AtomicU32::new(0) }
    }

    /// Tokens of the longest reply, if this is the last one.
    fn ended(&self, token_count: u32) -> Option<u32> {
        self.token_count.fetch_max(token_count, Ordering::AcqRel);
        let last = self.left.fetch_sub(1, Ordering::AcqRel) == 1;
        last.then(|| self.token_count.load(Ordering::Acquire))
    }
}

impl Metrics {
    #[expect(clippy::needless_pass_by_value, reason = "nothing ends twice")]
    pub(crate) fn ended(&self, ending: Ending) {
        self.vllm.finished.with_label_values(&[ending.reason.name()]).inc();
        let requests = &self.vllm.requests;
        if let Some(token_count_max) = ending.siblings.ended(ending.token_count) {
            requests.generation_tokens_max.observe(f64::from(token_count_max));
        }
        requests.e2e.observe(seconds(ending.arrived_us, ending.ended_us));
        requests.prompt_tokens.observe(f64::from(ending.prompt_count));
        requests.generation_tokens.observe(f64::from(ending.token_count));
        requests.preemptions.observe(f64::from(ending.preemption_count));
        let Some(started_us) = ending.started_us else {
            requests.queue.observe(seconds(ending.arrived_us, ending.ended_us));
            return;
        };
        requests.queue.observe(seconds(ending.arrived_us, started_us));
        requests.inference.observe(seconds(started_us, ending.ended_us));
        requests.prefill_computed.observe(f64::from(ending.prompt_count - ending.cached_count));
        let Some(first_us) = ending.first_token_us else {
            return;
        };
        requests.prefill.observe(seconds(started_us, first_us));
        let decode = seconds(first_us, ending.newest_token_us);
        requests.decode.observe(decode);
        if ending.token_count > 1 {
            requests.per_token.observe(decode / f64::from(ending.token_count - 1));
        }
    }
}

impl EndReason {
    fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Error => "error",
        }
    }
}
