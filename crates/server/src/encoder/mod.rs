//! What the encoders of all APIs share. Each API has its own, beside its wire types: it turns the
//! increments of replies into a JSON response, or into the events of a stream.

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
    /// What the request asks for and is not enforced. Called before anything else.
    fn warn(&mut self, warnings: &[String]);
    /// Writes what came of the reply with this index. The first increment begins the stream.
    fn increment(&mut self, index: usize, increment: Increment, out: &mut SseBuffer);
    /// The request failed: only the end follows.
    fn fail(&mut self, error: &ApiError, out: &mut SseBuffer);
    fn end(&mut self, out: &mut SseBuffer);
    /// The response to a request without a stream, from all increments.
    fn response(self, increments: Vec<(usize, Increment)>) -> Response;
}

/// What every response and every chunk of a stream begins with.
pub(crate) struct ResponseHead {
    pub(crate) id: String,
    pub(crate) model: String,
    pub(crate) created: u64,
    pub(crate) service: Arc<Service>,
    /// What the request asks for and is not enforced.
    pub(crate) warnings: Vec<String>,
}

impl ResponseHead {
    pub(crate) fn new(id: String, model: String, service: &Arc<Service>) -> Self {
        let (created, service) = (unix_seconds(), Arc::clone(service));
        Self { id, model, created, service, warnings: Vec::new() }
    }

    /// Speed of a request with one reply.
    pub(crate) fn metrics(&self, stats: &ReplyStats) -> Metrics {
        Metrics::of(stats, self.service.admission.caps().draft_max)
    }

    pub(crate) fn logprob_text(&self, as_ids: bool) -> LogprobText<'_> {
        LogprobText { text: &self.service.text, as_ids }
    }
}

/// OpenAI's name for how a reply ended. A failed reply is an error and has none.
pub(crate) fn finish_reason(finish: &FinishReason) -> &'static str {
    match finish {
        FinishReason::EndToken | FinishReason::StopToken(_) | FinishReason::StopString(_) => "stop",
        FinishReason::ToolCalls => "tool_calls",
        FinishReason::Length => "length",
        FinishReason::Aborted => "abort",
        FinishReason::Failed(_) => "error",
    }
}

/// The string or token that ended the reply, as vLLM has it.
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
