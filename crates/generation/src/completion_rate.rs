//! How fast requests complete while others wait. From this rate follows the `Retry-After` of a
//! request that is refused because the queue is full.

/// The time constant of the decay: completions longer ago than this hardly count.
const MEMORY_US: f64 = 10e6;
/// A client that retried sooner would find the queue as full.
const RETRY_S_MIN: u64 = 1;
/// A client that is told a longer time would not retry at all.
const RETRY_S_MAX: u64 = 60;
/// The answer while the rate is unknown.
const RETRY_S_UNKNOWN: u64 = 5;

/// The number of completions while other requests waited, and the time that they took; both decay.
/// Completions of a server that is not full say nothing about how fast it can be.
pub(crate) struct CompletionRate {
    count: f64,
    span_us: f64,
    /// How many completions it takes until the requests that waited at the last refusal are
    /// admitted.
    backlog: u32,
    /// When the newest completion came, or, if that was later, when the backlog began.
    newest_us: u64,
}

impl CompletionRate {
    pub(crate) fn new(now_us: u64) -> Self {
        Self { count: 0.0, span_us: 0.0, backlog: 0, newest_us: now_us }
    }

    /// Counts a completed request.
    pub(crate) fn completed(&mut self, now_us: u64) {
        if self.backlog > 0 {
            self.backlog -= 1;
            let (count, span_us) = self.until(now_us);
            (self.count, self.span_us) = (count + 1.0, span_us);
            self.newest_us = now_us;
        }
    }

    /// The count and its time as of `now_us`, if nothing has completed since `newest_us`.
    fn until(&self, now_us: u64) -> (f64, f64) {
        let since_us = now_us.saturating_sub(self.newest_us) as f64;
        let decay = (-since_us / MEMORY_US).exp();
        (self.count * decay, self.span_us * decay + since_us)
    }

    /// Counts a refused request. Returns the seconds until half of the waiting requests have been
    /// admitted: late enough for a retry to be admitted, early enough that the queue is not empty
    /// by then.
    pub(crate) fn retry_after_s(&mut self, waiting: u32, now_us: u64) -> u64 {
        if self.backlog == 0 {
            self.newest_us = now_us;
        }
        self.backlog = waiting;
        if self.count == 0.0 {
            return RETRY_S_UNKNOWN;
        }
        let (count, span_us) = self.until(now_us);
        let seconds = f64::from(waiting) / 2.0 * span_us / count / 1e6;
        // A cast of a float saturates at the limits of the integer.
        (seconds.round() as u64).clamp(RETRY_S_MIN, RETRY_S_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A rate after a refusal while `count` requests waited, of which one then completed every 50
    /// ms.
    fn after(count: u32) -> CompletionRate {
        let mut rate = CompletionRate::new(0);
        assert_eq!(rate.retry_after_s(count, 0), RETRY_S_UNKNOWN);
        for index in 1..=u64::from(count) {
            rate.completed(index * 50_000);
        }
        rate
    }

    #[test]
    fn a_client_retries_when_half_of_the_queue_is_gone() {
        let mut rate = after(1200);
        let now_us = 60_000_000;
        assert_eq!(rate.retry_after_s(400, now_us), 10);
        assert_eq!(rate.retry_after_s(4, now_us), RETRY_S_MIN);
        assert_eq!(rate.retry_after_s(100_000, now_us), RETRY_S_MAX);
        // Nothing has completed for a long time.
        assert_eq!(rate.retry_after_s(4, now_us + 600_000_000), RETRY_S_MAX);
    }

    #[test]
    fn a_short_history_is_not_a_slow_one() {
        assert_eq!(after(20).retry_after_s(200, 1_000_000), 5);
    }

    #[test]
    fn time_without_a_queue_does_not_count() {
        let mut rate = CompletionRate::new(0);
        // Requests one after the other, with no queue.
        for minute in 0..10 {
            rate.completed(minute * 60_000_000);
        }
        assert_eq!(rate.retry_after_s(1024, 3_600_000_000), RETRY_S_UNKNOWN);
        let mut rate = after(20);
        rate.completed(600_000_000);
        assert_eq!(rate.retry_after_s(200, 3_600_000_000), 5);
    }
}
