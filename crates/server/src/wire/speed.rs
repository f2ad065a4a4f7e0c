//! How fast a reply came and how many drafts were accepted, in vLLM's names.

use serde::Serialize;
use utoipa::ToSchema;

/// Speed of one request, on every reply and on the last chunk of a stream.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Metrics {
    pub time_to_first_token_ms: Option<f64>,
    /// From the first token to the last.
    pub generation_time_ms: Option<f64>,
    /// From acceptance to the first step.
    pub queue_time_ms: Option<f64>,
    /// Between tokens, not steps.
    pub mean_itl_ms: Option<f64>,
    /// While generating: the first token and the time to it are left out.
    pub tokens_per_second: Option<f64>,
    /// Absent when nothing was drafted.
    pub speculative_decoding: Option<Speculation>,
}

#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Speculation {
    /// Tokens per step: accepted drafts and the one that the model adds.
    pub mean_acceptance_length: f64,
    /// Accepted drafts of all.
    pub draft_acceptance_rate: f64,
    /// Steps in which 0, 1, 2 ... drafts were accepted.
    pub acceptance_histogram: Vec<u64>,
    pub num_spec_steps: u64,
    pub num_accepted_draft_tokens: u64,
    pub num_draft_tokens: u64,
    /// The most drafts that a step may have.
    pub num_spec_tokens: u32,
}
