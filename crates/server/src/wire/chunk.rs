//! A chunk of a streamed reply, of chat and of plain completions.

use serde::Serialize;
use utoipa::ToSchema;

use super::logprobs::PromptLogprobs;
use super::metrics::Metrics;
use super::usage::Usage;

#[derive(Debug, Serialize, ToSchema)]
pub struct Chunk<'a, C> {
    pub id: &'a str,
    /// `chat.completion.chunk` or `text_completion`.
    pub object: &'static str,
    /// Unix time in seconds.
    pub created: u64,
    pub model: &'a str,
    pub choices: &'a [C],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_fingerprint: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Option<Object>>>)]
    pub prompt_logprobs: Option<PromptLogprobs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<&'a [u32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Metrics>,
    /// The parts of the request's schemas that are not enforced, in the last chunk of a choice.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    pub warnings: &'a [String],
}
