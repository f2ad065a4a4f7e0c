//! The monotonic clock that measures durations, in microseconds since the server started. Tests use
//! their own.

use std::sync::Arc;
use std::time::Instant;

/// A function that returns the microseconds since some fixed time. It never goes back.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> u64 + Send + Sync>);

impl Clock {
    pub fn new(now_us: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(now_us))
    }

    pub(crate) fn now_us(&self) -> u64 {
        (self.0)()
    }
}

impl Default for Clock {
    /// The machine's clock.
    fn default() -> Self {
        #[expect(clippy::disallowed_methods, reason = "the one place that measures durations")]
        let start = Instant::now();
        Self::new(move || start.elapsed().as_micros() as u64)
    }
}

/// Seconds from one reading to a later one.
pub(crate) fn seconds(from_us: u64, to_us: u64) -> f64 {
    to_us.saturating_sub(from_us) as f64 / 1e6
}

pub(crate) fn milliseconds(from_us: u64, to_us: u64) -> f64 {
    to_us.saturating_sub(from_us) as f64 / 1e3
}
