//! Encodes replies of `/v1/messages`, Anthropic's API: content parts, one after the other.

use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use kilotok_generation::{FinishReason, Increment, ReplyStats};
use kilotok_text::Event as ReplyEvent;
use serde_json::{Value, json};
use uuid::Uuid;

use super::wire::{
    ErrorBody, ErrorDetail, Event, Message, MessageDelta, MessagesUsage, OutputPart,
    OwnedErrorDetail, PartDelta,
};
use crate::encoder::{Encoder, ResponseHead};
use crate::error::ApiError;
use crate::sse::SseBuffer;

pub(crate) struct MessagesEncoder {
    head: ResponseHead,
    /// Whether reasoning is part of the content.
    thinking: bool,
    begun: bool,
    /// The part that is open, and its number.
    open: Option<OpenPart>,
    next_index: u32,
    stats: ReplyStats,
    finish: Option<FinishReason>,
    failed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum OpenPart {
    Text,
    Thinking,
    Call(u32),
}

impl MessagesEncoder {
    pub(crate) fn new(head: ResponseHead, thinking: bool) -> Self {
        Self {
            head,
            thinking,
            begun: false,
            open: None,
            next_index: 0,
            stats: ReplyStats::default(),
            finish: None,
            failed: false,
        }
    }

    fn message(&self, content: Vec<OutputPart>) -> Message {
        Message {
            id: self.head.id.clone(),
            kind: "message",
            role: "assistant",
            model: self.head.model.clone(),
            content,
            stop_reason: None,
            stop_sequence: None,
            usage: usage(&self.stats),
            metrics: None,
            warnings: self.head.warnings.clone(),
        }
    }

    fn add(&self, event: ReplyEvent, parts: &mut Vec<OutputPart>, arguments: &mut String) {
        match (event, parts.last_mut()) {
            (ReplyEvent::Reasoning(_), _) if !self.thinking => {}
            (ReplyEvent::Content(more), Some(OutputPart::Text { text })) => text.push_str(&more),
            (ReplyEvent::Reasoning(more), Some(OutputPart::Thinking { thinking, .. })) => {
                thinking.push_str(&more);
            }
            (ReplyEvent::Arguments { text, .. }, _) => arguments.push_str(&text),
            (event, _) => {
                close_call(parts, arguments);
                parts.push(match event {
                    ReplyEvent::Reasoning(text) => {
                        OutputPart::Thinking { thinking: text, signature: String::new() }
                    }
                    ReplyEvent::Call { name, .. } => tool_use(name),
                    ReplyEvent::Content(text) | ReplyEvent::Arguments { text, .. } => {
                        OutputPart::Text { text }
                    }
                });
            }
        }
    }

    fn begin(&mut self, out: &mut SseBuffer) {
        if !std::mem::replace(&mut self.begun, true) {
            send(out, &Event::Start { message: &self.message(Vec::new()) });
            send(out, &Event::Ping);
        }
    }

    /// Opens this part unless it is open already; returns its number.
    fn open_part(
        &mut self,
        part: OpenPart,
        new: impl FnOnce() -> OutputPart,
        out: &mut SseBuffer,
    ) -> u32 {
        if self.open != Some(part) {
            self.close(out);
            let event = Event::PartStart { index: self.next_index, content_block: new() };
            send(out, &event);
            self.open = Some(part);
        }
        self.next_index
    }

    fn close(&mut self, out: &mut SseBuffer) {
        let Some(open) = self.open.take() else { return };
        let index = self.next_index;
        if open == OpenPart::Thinking {
            // Clients send the signature back; it is not checked.
            let delta = PartDelta::SignatureDelta { signature: "" };
            send(out, &Event::PartDelta { index, delta });
        }
        send(out, &Event::PartStop { index });
        self.next_index += 1;
    }

    fn write(&mut self, event: &ReplyEvent, out: &mut SseBuffer) {
        match event {
            ReplyEvent::Reasoning(_) if !self.thinking => {}
            ReplyEvent::Reasoning(text) => {
                let new =
                    || OutputPart::Thinking { thinking: String::new(), signature: String::new() };
                let index = self.open_part(OpenPart::Thinking, new, out);
                let delta = PartDelta::ThinkingDelta { thinking: text };
                send(out, &Event::PartDelta { index, delta });
            }
            ReplyEvent::Content(text) => {
                let new = || OutputPart::Text { text: String::new() };
                let index = self.open_part(OpenPart::Text, new, out);
                send(out, &Event::PartDelta { index, delta: PartDelta::TextDelta { text } });
            }
            ReplyEvent::Call { index: call, name, .. } => {
                self.open_part(OpenPart::Call(*call), || tool_use(name.clone()), out);
            }
            ReplyEvent::Arguments { text, .. } => {
                let index = self.next_index;
                let delta = PartDelta::InputJsonDelta { partial_json: text };
                send(out, &Event::PartDelta { index, delta });
            }
        }
    }
}

fn tool_use(name: String) -> OutputPart {
    let id = Uuid::new_v4().simple().to_string();
    OutputPart::ToolUse { id: format!("toolu_{}", &id[..24]), name, input: json!({}) }
}

/// Sets the arguments of the last call.
fn close_call(parts: &mut [OutputPart], arguments: &mut String) {
    let arguments = std::mem::take(arguments);
    if let Some(OutputPart::ToolUse { input, .. }) = parts.last_mut()
        && !arguments.is_empty()
    {
        *input = whole_members(&arguments);
    }
}

/// An object that may be cut off, reduced to its complete members. Half a value would be taken for
/// a different value.
fn whole_members(json: &str) -> Value {
    let whole = |text: &str| serde_json::from_str(text).ok().filter(Value::is_object);
    if let Some(object) = whole(json) {
        return object;
    }
    let (mut depth, mut in_string, mut escaped, mut last_comma) = (0, false, false, 0);
    for (at, byte) in json.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            b',' if depth == 1 => last_comma = at,
            _ => {}
        }
    }
    // The end of a string, an object or an array is visible in the text; that of a number is not.
    let closed = json.trim_end().ends_with(['"', '}', ']']) && !in_string && depth == 1;
    let closed = closed.then(|| whole(&format!("{json}}}"))).flatten();
    closed.or_else(|| whole(&format!("{}}}", &json[..last_comma]))).unwrap_or_else(|| json!({}))
}

fn send(out: &mut SseBuffer, event: &Event<'_>) {
    out.event(event.name(), event);
}

fn usage(stats: &ReplyStats) -> MessagesUsage {
    MessagesUsage {
        input_tokens: stats.prompt_count - stats.cached_count.min(stats.prompt_count),
        output_tokens: stats.token_count,
        cache_creation_input_tokens: 0,
        cache_read_input_tokens: stats.cached_count,
    }
}

fn stop_reason(finish: &FinishReason) -> &'static str {
    match finish {
        FinishReason::EndToken | FinishReason::StopToken(_) => "end_turn",
        FinishReason::StopString(_) => "stop_sequence",
        FinishReason::ToolCalls => "tool_use",
        // Anthropic has no other name for an incomplete reply. An error would make its clients
        // repeat a request that was aborted.
        FinishReason::Length | FinishReason::Aborted | FinishReason::Failed(_) => "max_tokens",
    }
}

fn stop_sequence(finish: &FinishReason) -> Option<&str> {
    match finish {
        FinishReason::StopString(text) => Some(text),
        _ => None,
    }
}

/// Whether one of Anthropic's clients sent this request: they name the version of their API.
pub(crate) fn is_client(headers: &HeaderMap) -> bool {
    headers.contains_key("anthropic-version")
}

/// Anthropic's name for an error.
pub(crate) fn error_kind(error: &ApiError) -> &'static str {
    match error.status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        400..500 => "invalid_request_error",
        _ => "api_error",
    }
}

/// An error in Anthropic's form.
pub(crate) fn translate_error(response: Response, request_id: &str) -> Response {
    let Some(error) = response.extensions().get::<ApiError>() else { return response };
    let detail = OwnedErrorDetail { kind: error_kind(error), message: error.message.clone() };
    let body = ErrorBody { kind: "error", error: detail, request_id: Some(request_id.into()) };
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    (parts.status, parts.headers, axum::Json(body)).into_response()
}

impl Encoder for MessagesEncoder {
    fn warn(&mut self, warnings: &[String]) {
        self.head.warnings = warnings.to_vec();
    }

    fn increment(&mut self, _index: usize, next: Increment, out: &mut SseBuffer) {
        self.stats = next.stats;
        self.begin(out);
        for event in &next.events {
            self.write(event, out);
        }
        self.finish = next.finish;
    }

    fn fail(&mut self, error: &ApiError, out: &mut SseBuffer) {
        self.failed = true;
        let error = ErrorDetail { kind: error_kind(error), message: &error.message };
        send(out, &Event::Error { error });
    }

    fn end(&mut self, out: &mut SseBuffer) {
        if self.failed {
            return;
        }
        self.begin(out);
        self.close(out);
        let finish = self.finish.take().unwrap_or(FinishReason::EndToken);
        let delta = MessageDelta {
            stop_reason: stop_reason(&finish),
            stop_sequence: stop_sequence(&finish),
        };
        let metrics = Some(self.head.metrics(&self.stats));
        send(out, &Event::Delta { delta, usage: usage(&self.stats), metrics });
        send(out, &Event::Stop);
    }

    fn response(self, increments: Vec<(usize, Increment)>) -> Response {
        let mut parts = Vec::new();
        let (mut stats, mut finish) = (ReplyStats::default(), None);
        let mut arguments = String::new();
        for (_, increment) in increments {
            for event in increment.events {
                self.add(event, &mut parts, &mut arguments);
            }
            (stats, finish) = (increment.stats, increment.finish);
        }
        close_call(&mut parts, &mut arguments);
        let finish = finish.unwrap_or(FinishReason::EndToken);
        let message = Message {
            stop_reason: Some(stop_reason(&finish)),
            stop_sequence: stop_sequence(&finish).map(str::to_owned),
            usage: usage(&stats),
            metrics: Some(self.head.metrics(&stats)),
            ..self.message(parts)
        };
        axum::Json(message).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_member_is_none() {
        for (cut, whole) in [
            ("", json!({})),
            ("{\"city", json!({})),
            ("{\"city\"", json!({})),
            ("{\"city\": \"Par", json!({})),
            ("{\"city\": \"a, \\\"b\"", json!({"city": "a, \"b"})),
            ("{\"n\": 12", json!({})),
            ("{\"a\": [1, 2], \"b\": {\"c\": 1, \"d\"", json!({"a": [1, 2]})),
            ("{\"a\": [1, 2]", json!({"a": [1, 2]})),
            ("{\"a\": 1}", json!({"a": 1})),
        ] {
            assert_eq!(whole_members(cut), whole, "{cut}");
        }
    }
}
