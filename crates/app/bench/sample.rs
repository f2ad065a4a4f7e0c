//! Measurements of a single request and of a whole run.

use std::time::Duration;

/// One request.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample {
    /// When the request was sent, from the start of the run.
    pub(super) start: Duration,
    /// How long the request waited at the client, because too many were in flight.
    pub(super) held_back: Duration,
    /// Arrivals of tokens: the time since the request was sent, and the number of tokens.
    pub(super) came: Vec<(Duration, u32)>,
    pub(super) latency: Duration,
    pub(super) input_count: u32,
    pub(super) output_count: u32,
    pub(super) cached_count: u32,
    pub(super) text: String,
    pub(super) drafting: Drafting,
    pub(super) error: Option<String>,
}

/// Acceptance of drafts.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Drafting {
    /// Rows that verified drafts.
    pub(super) row_count: u64,
    pub(super) drafted_count: u64,
    pub(super) accepted_count: u64,
    /// Accepted drafts by position in the row; may be empty if unknown.
    pub(super) accepted_at: Vec<u64>,
    /// Whether the server assumes which drafts are accepted.
    pub(super) assumed: bool,
}

impl Drafting {
    pub(super) fn add(&mut self, other: &Self) {
        self.row_count += other.row_count;
        self.drafted_count += other.drafted_count;
        self.accepted_count += other.accepted_count;
        self.assumed |= other.assumed;
        let places = self.accepted_at.len().max(other.accepted_at.len());
        self.accepted_at.resize(places, 0);
        for (sum, count) in self.accepted_at.iter_mut().zip(&other.accepted_at) {
            *sum += count;
        }
    }

    /// Growth of the counters since `before`.
    pub(super) fn since(&self, before: &Self) -> Self {
        let earlier = |place: usize| before.accepted_at.get(place).copied().unwrap_or_default();
        let grown = |(place, count): (usize, &u64)| count.saturating_sub(earlier(place));
        Self {
            row_count: self.row_count.saturating_sub(before.row_count),
            drafted_count: self.drafted_count.saturating_sub(before.drafted_count),
            accepted_count: self.accepted_count.saturating_sub(before.accepted_count),
            accepted_at: self.accepted_at.iter().enumerate().map(grown).collect(),
            assumed: self.assumed,
        }
    }

    /// Average number of tokens per row: accepted drafts, and the target's own token.
    pub(super) fn acceptance(&self) -> Option<f64> {
        let rows = self.row_count as f64;
        (self.row_count > 0).then(|| 1.0 + self.accepted_count as f64 / rows)
    }
}

impl Sample {
    pub(super) fn first(&self) -> Option<Duration> {
        self.came.first().map(|(at, _)| *at)
    }

    /// The time from each arrival of tokens to the next.
    pub(super) fn gaps(&self) -> impl Iterator<Item = Duration> {
        self.came.windows(2).map(|pair| pair[1].0.saturating_sub(pair[0].0))
    }

    /// The time per token after the first arrival, if more tokens arrived.
    pub(super) fn per_token(&self) -> Option<Duration> {
        let first = self.first()?;
        let rest = self.output_count.checked_sub(1).filter(|rest| *rest > 0)?;
        Some(self.latency.saturating_sub(first) / rest)
    }
}

/// A whole run.
pub(super) struct Outcome {
    pub(super) model: String,
    /// The measured server's address, or the engine.
    pub(super) what: String,
    pub(super) samples: Vec<Sample>,
    pub(super) duration: Duration,
    pub(super) drafting: Drafting,
}

impl Outcome {
    pub(super) fn good(&self) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(|sample| sample.error.is_none())
    }

    pub(super) fn failed_count(&self) -> usize {
        self.samples.iter().filter(|sample| sample.error.is_some()).count()
    }
}
