//! The speed of a reply and the acceptance of its drafts, under vLLM's names.

use kilotok_engine::Verification;
use kilotok_generation::ReplyStats;
use serde::Serialize;
use utoipa::ToSchema;

/// Speed of one request, on every reply and on the last chunk of a stream.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Metrics {
    /// Milliseconds from the request's admission, when its prompt was tokenized, to the first
    /// token.
    pub time_to_first_token_ms: Option<f64>,
    /// Milliseconds from the first token to the last.
    pub generation_time_ms: Option<f64>,
    /// Milliseconds from the request's admission to its first step.
    pub queue_time_ms: Option<f64>,
    /// Mean milliseconds from one token to the next; a step may bring several tokens.
    pub mean_itl_ms: Option<f64>,
    /// Tokens per second after the first token; the time to the first token does not count.
    pub tokens_per_second: Option<f64>,
    /// Acceptance of drafts. Null if nothing was drafted.
    pub speculative_decoding: Option<Speculation>,
}

/// How drafts are verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// Sample and match: the tokens are the same as without drafts.
    Match,
    /// Rejection sampling: the distribution of tokens is the same as without drafts.
    Rejection,
    /// Drafts are accepted at random, to measure with made-up weights.
    Assumed,
}

impl From<Verification> for Rule {
    fn from(verification: Verification) -> Self {
        match verification {
            Verification::Match => Self::Match,
            Verification::Rejection { .. } => Self::Rejection,
            Verification::Assumed { .. } => Self::Assumed,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Speculation {
    pub verification: Rule,
    /// Mean tokens per step that verified drafts: the accepted drafts, and the token that the model
    /// adds.
    pub mean_acceptance_length: f64,
    /// Share of drafts that were accepted, from 0 to 1.
    pub draft_acceptance_rate: f64,
    /// Number of steps in which 0, 1, 2 ... drafts were accepted.
    pub acceptance_histogram: Vec<u64>,
    /// Steps that verified drafts.
    pub num_spec_steps: u64,
    pub num_accepted_draft_tokens: u64,
    pub num_draft_tokens: u64,
    /// Most drafts that a step may verify.
    pub num_spec_tokens: u32,
}

impl Metrics {
    /// `draft_max`: most drafts that a step may have.
    pub(crate) fn of(stats: &ReplyStats, draft_max: u32) -> Self {
        let later = stats.token_count.saturating_sub(1);
        let decode_ms = (later > 0 && stats.decode_ms > 0.0).then_some(stats.decode_ms);
        let rounded = |ms: f64| (ms * 1000.0).round() / 1000.0;
        let per_token = decode_ms.map(|ms| ms / f64::from(later));
        Self {
            time_to_first_token_ms: (stats.token_count > 0).then(|| rounded(stats.ttft_ms)),
            generation_time_ms: decode_ms.map(rounded),
            queue_time_ms: (stats.queue_ms > 0.0).then(|| rounded(stats.queue_ms)),
            mean_itl_ms: per_token.map(rounded),
            tokens_per_second: per_token.map(|ms| rounded(1000.0 / ms)),
            speculative_decoding: Speculation::of(stats, draft_max),
        }
    }
}

impl Speculation {
    fn of(stats: &ReplyStats, draft_max: u32) -> Option<Self> {
        let step_count: u64 = stats.steps_by_accepted.iter().sum();
        (step_count > 0).then(|| {
            let mut histogram = stats.steps_by_accepted.clone();
            histogram.resize(histogram.len().max(draft_max as usize + 1), 0);
            let (drafted, accepted) = (stats.drafted_count, stats.accepted_count);
            let rounded = |part: f64| (part * 1e4).round() / 1e4;
            Self {
                verification: stats.verification.into(),
                mean_acceptance_length: rounded(1.0 + accepted as f64 / step_count as f64),
                draft_acceptance_rate: rounded(accepted as f64 / drafted as f64),
                acceptance_histogram: histogram,
                num_spec_steps: step_count,
                num_accepted_draft_tokens: accepted,
                num_draft_tokens: drafted,
                num_spec_tokens: draft_max,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drafts_are_counted() {
        let times =
            ReplyStats { queue_ms: 1.0, ttft_ms: 8.0, decode_ms: 4.0, ..ReplyStats::new(5) };
        let mut stats = ReplyStats { token_count: 1, ..times };
        stats.count_drafts(0, 0);
        assert_eq!(Metrics::of(&stats, 3).speculative_decoding, None);
        stats.token_count += 5;
        stats.count_drafts(3, 3);
        stats.count_drafts(3, 0);
        let metrics = Metrics::of(&stats, 3);
        let speculation = metrics.speculative_decoding.unwrap();
        assert_eq!(speculation.acceptance_histogram, [1, 0, 0, 1]);
        assert_eq!((speculation.num_spec_steps, speculation.num_draft_tokens), (2, 6));
        assert_eq!(speculation.mean_acceptance_length, 2.5);
        assert_eq!(speculation.verification, Rule::Match);
        stats.verification = Verification::Rejection { draft_temperature: 1.0 };
        let rejection = Metrics::of(&stats, 3).speculative_decoding.unwrap();
        assert_eq!(rejection.verification, Rule::Rejection);
        assert_eq!(speculation.draft_acceptance_rate, 0.5);
        assert_eq!(metrics.mean_itl_ms, Some(0.8));
        assert_eq!(metrics.tokens_per_second, Some(1250.0));
    }

    #[test]
    fn one_token_has_no_pace() {
        let stats =
            ReplyStats { token_count: 1, queue_ms: 0.5, ttft_ms: 2.0, ..ReplyStats::new(1) };
        let metrics = Metrics::of(&stats, 0);
        assert_eq!((metrics.mean_itl_ms, metrics.tokens_per_second), (None, None));
        assert_eq!(metrics.time_to_first_token_ms, Some(2.0));
    }
}
