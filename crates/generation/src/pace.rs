//! How fast requests end while others wait, and from that when a caller who was sent away should
//! come back.

/// Requests that ended longer ago than this hardly count.
const MEMORY_US: f64 = 10e6;
/// A caller who comes back sooner finds the same queue.
const RETRY_S_MIN: u64 = 1;
/// A caller who is told a longer time goes away for good.
const RETRY_S_MAX: u64 = 60;
/// Before anything ended nobody knows.
const RETRY_S_UNKNOWN: u64 = 5;

/// A count of endings while others waited, and the time that they took; both fade. Endings of a
/// server that has places to spare say nothing of how fast it can be.
pub(crate) struct Pace {
    count: f64,
    span_us: f64,
    /// Endings to come until whoever waited when somebody was last sent away has found a place.
    backlog: u32,
    /// When the newest of them came, or the backlog did.
    newest_us: u64,
}

impl Pace {
    pub(crate) fn new(now_us: u64) -> Self {
        Self { count: 0.0, span_us: 0.0, backlog: 0, newest_us: now_us }
    }

    /// A request has ended.
    pub(crate) fn ended(&mut self, now_us: u64) {
        if self.backlog > 0 {
            self.backlog -= 1;
            let (count, span_us) = self.until(now_us);
            (self.count, self.span_us) = (count + 1.0, span_us);
            self.newest_us = now_us;
        }
    }

    /// The count and its time, if nothing ended since the newest.
    fn until(&self, now_us: u64) -> (f64, f64) {
        let since_us = now_us.saturating_sub(self.newest_us) as f64;
        let fading = (-since_us / MEMORY_US).exp();
        (self.count * fading, self.span_us * fading + since_us)
    }

    /// Somebody is sent away. Seconds until half of those who wait have found a place: late enough
    /// that a retry gets in, early enough that the queue is not empty by then.
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
        // A cast of a float ends at the limits of the integer.
        (seconds.round() as u64).clamp(RETRY_S_MIN, RETRY_S_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One that sent somebody away when so many waited, who then ended one every 50 ms.
    fn paced(count: u32) -> Pace {
        let mut pace = Pace::new(0);
        assert_eq!(pace.retry_after_s(count, 0), RETRY_S_UNKNOWN);
        for index in 1..=u64::from(count) {
            pace.ended(index * 50_000);
        }
        pace
    }

    #[test]
    fn a_caller_comes_back_when_half_of_the_queue_is_gone() {
        let mut pace = paced(1200);
        let now_us = 60_000_000;
        assert_eq!(pace.retry_after_s(400, now_us), 10);
        assert_eq!(pace.retry_after_s(4, now_us), RETRY_S_MIN);
        assert_eq!(pace.retry_after_s(100_000, now_us), RETRY_S_MAX);
        // Nothing ends any more.
        assert_eq!(pace.retry_after_s(4, now_us + 600_000_000), RETRY_S_MAX);
    }

    #[test]
    fn a_young_pace_is_not_a_slow_one() {
        assert_eq!(paced(20).retry_after_s(200, 1_000_000), 5);
    }

    #[test]
    fn time_without_a_queue_is_no_slow_pace() {
        let mut pace = Pace::new(0);
        // One after the other, and then nobody.
        for minute in 0..10 {
            pace.ended(minute * 60_000_000);
        }
        assert_eq!(pace.retry_after_s(1024, 3_600_000_000), RETRY_S_UNKNOWN);
        let mut pace = paced(20);
        pace.ended(600_000_000);
        assert_eq!(pace.retry_after_s(200, 3_600_000_000), 5);
    }
}
