//! The speed of one reply: as reported by the server, else as observed here.

use std::fmt;
use std::time::{Duration, Instant};

use serde_json::Value;

/// See the module's documentation.
pub(super) struct Speed {
    start: Instant,
    /// When the first tokens arrived, and how many.
    first: Option<(Duration, u64)>,
    last: Duration,
    token_count: u64,
    step_count: u64,
    /// The time to the first token, as reported by the server.
    told_first_ms: Option<f64>,
    told_rate: Option<f64>,
    told_acceptance: Option<f64>,
    /// Whether the server accepted drafts without verifying them.
    assumed: bool,
}

#[expect(clippy::disallowed_methods, reason = "the app owns the clock")]
fn now() -> Instant {
    Instant::now()
}

impl Speed {
    pub(super) fn start() -> Self {
        Self {
            start: now(),
            first: None,
            last: Duration::ZERO,
            token_count: 0,
            step_count: 0,
            told_first_ms: None,
            told_rate: None,
            told_acceptance: None,
            assumed: false,
        }
    }

    /// Takes an event. `spoke` is whether it had text.
    pub(super) fn take(&mut self, event: &Value, spoke: bool) {
        self.take_at(event, spoke, self.start.elapsed());
    }

    fn take_at(&mut self, event: &Value, spoke: bool, at: Duration) {
        let counted = event["usage"]["completion_tokens"].as_u64();
        // Without a count, a chunk with text is taken for one token.
        let count = counted.unwrap_or(self.token_count + u64::from(spoke));
        let with_choices = event["choices"].as_array().is_some_and(|all| !all.is_empty());
        if count > self.token_count && with_choices {
            self.step_count += 1;
            self.last = at;
            self.first.get_or_insert((at, count));
        }
        self.token_count = count.max(self.token_count);
        let metrics = &event["metrics"];
        let told = |old: Option<f64>, value: &Value| value.as_f64().or(old);
        self.told_first_ms = told(self.told_first_ms, &metrics["time_to_first_token_ms"]);
        self.told_rate = told(self.told_rate, &metrics["tokens_per_second"]);
        let drafts = &metrics["speculative_decoding"];
        self.told_acceptance = told(self.told_acceptance, &drafts["mean_acceptance_length"]);
        self.assumed |= drafts["verification"] == "assumed";
    }

    fn per_second(&self) -> Option<f64> {
        let (first, count) = self.first?;
        let seconds = self.last.saturating_sub(first).as_secs_f64();
        let seen = (seconds > 0.0).then(|| (self.token_count - count) as f64 / seconds);
        self.told_rate.or(seen)
    }

    fn acceptance(&self) -> Option<f64> {
        let seen = (self.step_count > 0).then(|| self.token_count as f64 / self.step_count as f64);
        self.told_acceptance.or(seen)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.token_count == 0
    }
}

fn tokens(count: u64) -> String {
    if count == 1 { "1 token".to_owned() } else { format!("{count} tokens") }
}

/// One line.
impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let assumed = if self.assumed { " (assumed)" } else { "" };
        write!(f, "{}", tokens(self.token_count))?;
        if let Some(speed) = self.per_second() {
            write!(f, ", {speed:.1} a second{assumed}")?;
        }
        let seen = self.first.map(|(at, _)| at.as_secs_f64() * 1e3);
        if let Some(first) = self.told_first_ms.or(seen) {
            write!(f, ", first after {first:.0} ms")?;
        }
        if let Some(acceptance) = self.acceptance() {
            write!(f, ", acceptance {acceptance:.2}{assumed}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_server_that_tells_nothing_is_timed() {
        let mut speed = Speed::start();
        let event = json!({ "choices": [{ "delta": { "content": "a" } }] });
        for ms in [100, 200, 300] {
            speed.take_at(&event, true, Duration::from_millis(ms));
        }
        assert_eq!(
            speed.to_string(),
            "3 tokens, 10.0 a second, first after 100 ms, acceptance 1.00"
        );
    }

    #[test]
    fn what_the_server_measured_goes_first() {
        let mut speed = Speed::start();
        let event = |count: u64, choices: Value| {
            json!({
                "choices": choices,
                "usage": { "completion_tokens": count },
                "metrics": {
                    "time_to_first_token_ms": 12.0,
                    "tokens_per_second": 800.0,
                    "speculative_decoding": { "mean_acceptance_length": 4.0 },
                },
            })
        };
        speed.take_at(&event(4, json!([{}])), true, Duration::from_millis(50));
        speed.take_at(&event(8, json!([{}])), true, Duration::from_millis(60));
        speed.take_at(&event(8, json!([])), false, Duration::from_millis(900));
        assert_eq!(
            speed.to_string(),
            "8 tokens, 800.0 a second, first after 12 ms, acceptance 4.00"
        );
    }

    #[test]
    fn what_rests_on_an_assumed_acceptance_is_marked() {
        let mut speed = Speed::start();
        let event = |verification: &str| {
            json!({
                "choices": [{}],
                "usage": { "completion_tokens": 4 },
                "metrics": {
                    "tokens_per_second": 800.0,
                    "speculative_decoding": {
                        "verification": verification, "mean_acceptance_length": 4.0,
                    },
                },
            })
        };
        speed.take_at(&event("rejection"), true, Duration::from_millis(50));
        assert!(!speed.to_string().contains("assumed"), "{speed}");
        speed.take_at(&event("assumed"), true, Duration::from_millis(60));
        let line =
            "4 tokens, 800.0 a second (assumed), first after 50 ms, acceptance 4.00 (assumed)";
        assert_eq!(speed.to_string(), line);
    }
}
