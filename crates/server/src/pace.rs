//! How fast requests end, and from that when a caller who was sent away should come back.

/// Requests that ended longer ago than this hardly count.
const MEMORY_US: f64 = 10e6;
/// A caller who comes back sooner finds the same queue.
const RETRY_S_MIN: u64 = 1;
/// A caller who is told a longer time goes away for good.
const RETRY_S_MAX: u64 = 60;
/// Before anything ended nobody knows.
const RETRY_S_UNKNOWN: u64 = 5;

/// A count of endings that fades with time.
pub(crate) struct Pace {
    start_us: u64,
    newest_us: u64,
    count: f64,
}

impl Pace {
    pub(crate) fn new(now_us: u64) -> Self {
        Self { start_us: now_us, newest_us: now_us, count: 0.0 }
    }

    /// A request has ended.
    pub(crate) fn ended(&mut self, now_us: u64) {
        self.count = self.faded(now_us) + 1.0;
        self.newest_us = now_us;
    }

    fn faded(&self, now_us: u64) -> f64 {
        self.count * (-(now_us.saturating_sub(self.newest_us) as f64) / MEMORY_US).exp()
    }

    /// Requests that end in a second.
    fn per_s(&self, now_us: u64) -> f64 {
        let age = now_us.saturating_sub(self.start_us).max(1) as f64;
        // As much time as the count remembers.
        let span_us = MEMORY_US * (1.0 - (-age / MEMORY_US).exp());
        self.faded(now_us) / span_us * 1e6
    }

    /// Seconds until half of those who wait have found a place: late enough that a retry gets in,
    /// early enough that the queue is not empty by then.
    pub(crate) fn retry_after_s(&self, waiting: u32, now_us: u64) -> u64 {
        if self.count == 0.0 {
            return RETRY_S_UNKNOWN;
        }
        let seconds = f64::from(waiting) / 2.0 / self.per_s(now_us);
        // A cast of a float ends at the limits of the integer.
        (seconds.ceil() as u64).clamp(RETRY_S_MIN, RETRY_S_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_comes_back_when_half_of_the_queue_is_gone() {
        let mut pace = Pace::new(0);
        assert_eq!(pace.retry_after_s(1000, 0), RETRY_S_UNKNOWN);
        // 20 a second, for a minute.
        for index in 1..=1200_u64 {
            pace.ended(index * 50_000);
        }
        let now_us = 60_000_000;
        assert_eq!(pace.retry_after_s(400, now_us), 10);
        assert_eq!(pace.retry_after_s(4, now_us), RETRY_S_MIN);
        assert_eq!(pace.retry_after_s(100_000, now_us), RETRY_S_MAX);
        // Nothing ends any more.
        assert_eq!(pace.retry_after_s(4, now_us + 600_000_000), RETRY_S_MAX);
    }

    #[test]
    fn a_young_pace_is_not_a_slow_one() {
        let mut pace = Pace::new(0);
        for index in 1..=20_u64 {
            pace.ended(index * 50_000);
        }
        assert_eq!(pace.retry_after_s(200, 1_000_000), 5);
    }
}
