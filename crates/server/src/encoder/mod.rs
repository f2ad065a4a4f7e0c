//! The parts that the encoders of all APIs share. Each API has its own encoder, beside its wire
//! types: it turns the increments of replies into a JSON response, or into the events of a stream.

mod logprob_text;
mod output_options;
mod respond;

use std::sync::Arc;

use axum::response::Response;
use kilotok_generation::{FinishReason, Increment, ReplyStats};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::date::unix_seconds;
use crate::error::ApiError;
use crate::service::Service;
use crate::sse::SseBuffer;
use crate::wire::metrics::Metrics;

pub(crate) use logprob_text::{LogprobText, finite};
pub(crate) use output_options::OutputOptions;
pub(crate) use respond::{WARNING_HEADER, check_tier, respond};

/// Encodes the replies of one request.
pub(crate) trait Encoder: Send + 'static {
    /// Takes the warnings about constraints of the request that are not enforced. Called first.
    fn warn(&mut self, warnings: &[String]);
    /// Writes one increment of the reply `index`. The first increment begins the stream.
    fn increment(&mut self, index: usize, increment: Increment, out: &mut SseBuffer);
    /// Writes the error of a failed request. Only `end` follows.
    fn fail(&mut self, error: &ApiError, out: &mut SseBuffer);
    fn end(&mut self, out: &mut SseBuffer);
    /// The response to a request without a stream, made of all increments.
    fn response(self, increments: Vec<(usize, Increment)>) -> Response;
}

/// The fields at the beginning of every response and of every chunk of a stream.
pub(crate) struct ResponseHead {
    pub(crate) id: String,
    pub(crate) model: String,
    pub(crate) created: u64,
    pub(crate) service: Arc<Service>,
    /// Constraints of the request that are not enforced.
    pub(crate) warnings: Vec<String>,
}

impl ResponseHead {
    pub(crate) fn new(id: String, model: String, service: &Arc<Service>) -> Self {
        let (created, service) = (unix_seconds(), Arc::clone(service));
        Self { id, model, created, service, warnings: Vec::new() }
    }

    /// The speed of a request with one reply.
    pub(crate) fn metrics(&self, stats: &ReplyStats) -> Metrics {
        Metrics::of(stats, self.service.admission.caps().draft_max)
    }

    pub(crate) fn logprob_text(&self, as_ids: bool) -> LogprobText<'_> {
        LogprobText { text: &self.service.text, as_ids }
    }
}

/// OpenAI's name for how a reply ended. A failed reply is reported as an error and has no name.
pub(crate) fn finish_reason(finish: &FinishReason) -> &'static str {
    match finish {
        FinishReason::EndToken | FinishReason::StopToken(_) | FinishReason::StopString(_) => "stop",
        FinishReason::ToolCalls => "tool_calls",
        FinishReason::Length => "length",
        FinishReason::Aborted => "abort",
        FinishReason::Failed(_) => "error",
    }
}

/// The string or token that ended the reply, in the form that vLLM gives it.
pub(crate) fn stop_reason(finish: &FinishReason) -> Value {
    match finish {
        FinishReason::StopToken(token) => json!(token),
        FinishReason::StopString(text) => json!(text),
        _ => Value::Null,
    }
}

/// A new id of a tool call.
pub(crate) fn call_id() -> String {
    let id = Uuid::new_v4().simple().to_string();
    format!("call_{}", &id[..24])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn call_ids_look_like_openais() {
        let id = call_id();
        let hex = id.strip_prefix("call_").unwrap();
        assert!(hex.len() == 24 && hex.chars().all(|c| c.is_ascii_hexdigit()), "{id}");
        assert_ne!(id, call_id());
    }
}
