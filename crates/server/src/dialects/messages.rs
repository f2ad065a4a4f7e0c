//! Replies of `/v1/messages`, Anthropic's API: parts of content, one after the other.

use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use kilotok_text::Event as Said;
use serde_json::{Value, json};
use uuid::Uuid;

use super::Letterhead;
use crate::choice::{Finish, Piece};
use crate::error::ApiError;
use crate::sse::{Dialect, Frames};
use crate::tally::Tally;
use crate::wire::messages::{
    ErrorBody, ErrorDetail, Event, Message, MessageDelta, MessagesUsage, OutputPart,
    OwnedErrorDetail, PartDelta,
};

pub(crate) struct Messages {
    head: Letterhead,
    /// Whether reasoning is told.
    thinking: bool,
    begun: bool,
    /// The part that is open, and its number.
    open: Option<Open>,
    next_index: u32,
    tally: Tally,
    finish: Option<Finish>,
    failed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Open {
    Text,
    Thinking,
    Call(u32),
}

impl Messages {
    pub(crate) fn new(head: Letterhead, thinking: bool) -> Self {
        Self {
            head,
            thinking,
            begun: false,
            open: None,
            next_index: 0,
            tally: Tally::default(),
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
            usage: usage(&self.tally),
            metrics: None,
            warnings: self.head.warnings.clone(),
        }
    }

    fn add(&self, event: Said, parts: &mut Vec<OutputPart>, arguments: &mut String) {
        match (event, parts.last_mut()) {
            (Said::Reasoning(_), _) if !self.thinking => {}
            (Said::Content(more), Some(OutputPart::Text { text })) => text.push_str(&more),
            (Said::Reasoning(more), Some(OutputPart::Thinking { thinking, .. })) => {
                thinking.push_str(&more);
            }
            (Said::Arguments { text, .. }, _) => arguments.push_str(&text),
            (event, _) => {
                close_call(parts, arguments);
                parts.push(match event {
                    Said::Reasoning(text) => {
                        OutputPart::Thinking { thinking: text, signature: String::new() }
                    }
                    Said::Call { name, .. } => tool_use(name),
                    Said::Content(text) | Said::Arguments { text, .. } => OutputPart::Text { text },
                });
            }
        }
    }

    fn begin(&mut self, out: &mut Frames) {
        if !std::mem::replace(&mut self.begun, true) {
            send(out, &Event::Start { message: &self.message(Vec::new()) });
            send(out, &Event::Ping);
        }
    }

    /// Makes sure that the open part is this one; returns its number.
    fn turn_to(&mut self, part: Open, new: impl FnOnce() -> OutputPart, out: &mut Frames) -> u32 {
        if self.open != Some(part) {
            self.close(out);
            let event = Event::PartStart { index: self.next_index, content_block: new() };
            send(out, &event);
            self.open = Some(part);
        }
        self.next_index
    }

    fn close(&mut self, out: &mut Frames) {
        let Some(open) = self.open.take() else { return };
        let index = self.next_index;
        if open == Open::Thinking {
            // Clients send it back; nobody checks it.
            let delta = PartDelta::SignatureDelta { signature: "" };
            send(out, &Event::PartDelta { index, delta });
        }
        send(out, &Event::PartStop { index });
        self.next_index += 1;
    }

    fn tell(&mut self, event: &Said, out: &mut Frames) {
        match event {
            Said::Reasoning(_) if !self.thinking => {}
            Said::Reasoning(text) => {
                let new =
                    || OutputPart::Thinking { thinking: String::new(), signature: String::new() };
                let index = self.turn_to(Open::Thinking, new, out);
                let delta = PartDelta::ThinkingDelta { thinking: text };
                send(out, &Event::PartDelta { index, delta });
            }
            Said::Content(text) => {
                let new = || OutputPart::Text { text: String::new() };
                let index = self.turn_to(Open::Text, new, out);
                send(out, &Event::PartDelta { index, delta: PartDelta::TextDelta { text } });
            }
            Said::Call { index: call, name, .. } => {
                self.turn_to(Open::Call(*call), || tool_use(name.clone()), out);
            }
            Said::Arguments { text, .. } => {
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

/// Gives the last call its arguments.
fn close_call(parts: &mut [OutputPart], arguments: &mut String) {
    let arguments = std::mem::take(arguments);
    if let Some(OutputPart::ToolUse { input, .. }) = parts.last_mut()
        && !arguments.is_empty()
    {
        *input = whole_members(&arguments);
    }
}

/// An object as far as it came: the members that are whole. Half a value would be taken for another
/// one.
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
    // A value that is a string or has brackets shows its own end.
    let closed = json.trim_end().ends_with(['"', '}', ']']) && !in_string && depth == 1;
    let closed = closed.then(|| whole(&format!("{json}}}"))).flatten();
    closed.or_else(|| whole(&format!("{}}}", &json[..last_comma]))).unwrap_or_else(|| json!({}))
}

fn send(out: &mut Frames, event: &Event<'_>) {
    out.event(event.name(), event);
}

fn usage(tally: &Tally) -> MessagesUsage {
    MessagesUsage {
        input_tokens: tally.prompt_count - tally.cached_count.min(tally.prompt_count),
        output_tokens: tally.token_count,
        cache_creation_input_tokens: 0,
        cache_read_input_tokens: tally.cached_count,
    }
}

fn stop_reason(finish: &Finish) -> &'static str {
    match finish {
        Finish::End | Finish::StopToken(_) => "end_turn",
        Finish::StopString(_) => "stop_sequence",
        Finish::Calls => "tool_use",
        // Anthropic has no other word for a reply that is not complete, and an error would have
        // its clients ask again for what somebody had ended.
        Finish::Length | Finish::Aborted => "max_tokens",
    }
}

fn stop_sequence(finish: &Finish) -> Option<&str> {
    match finish {
        Finish::StopString(text) => Some(text),
        _ => None,
    }
}

/// Whether Anthropic's clients sent this: they name the version of their API.
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
pub(crate) fn translate(response: Response, request_id: &str) -> Response {
    let Some(error) = response.extensions().get::<ApiError>() else { return response };
    let detail = OwnedErrorDetail { kind: error_kind(error), message: error.message.clone() };
    let body = ErrorBody { kind: "error", error: detail, request_id: Some(request_id.into()) };
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    (parts.status, parts.headers, axum::Json(body)).into_response()
}

impl Dialect for Messages {
    fn warn(&mut self, warnings: &[String]) {
        self.head.warnings = warnings.to_vec();
    }

    fn piece(&mut self, _index: usize, piece: Piece, out: &mut Frames) {
        self.tally = piece.tally;
        self.begin(out);
        for event in &piece.events {
            self.tell(event, out);
        }
        self.finish = piece.finish;
    }

    fn fail(&mut self, error: &ApiError, out: &mut Frames) {
        self.failed = true;
        let error = ErrorDetail { kind: error_kind(error), message: &error.message };
        send(out, &Event::Error { error });
    }

    fn end(&mut self, out: &mut Frames) {
        if self.failed {
            return;
        }
        self.begin(out);
        self.close(out);
        let finish = self.finish.take().unwrap_or(Finish::End);
        let delta = MessageDelta {
            stop_reason: stop_reason(&finish),
            stop_sequence: stop_sequence(&finish),
        };
        let metrics = Some(self.head.metrics(&self.tally));
        send(out, &Event::Delta { delta, usage: usage(&self.tally), metrics });
        send(out, &Event::Stop);
    }

    fn whole(self, pieces: Vec<(usize, Piece)>) -> Response {
        let mut parts = Vec::new();
        let (mut tally, mut finish) = (Tally::default(), None);
        let mut arguments = String::new();
        for (_, piece) in pieces {
            for event in piece.events {
                self.add(event, &mut parts, &mut arguments);
            }
            (tally, finish) = (piece.tally, piece.finish);
        }
        close_call(&mut parts, &mut arguments);
        let finish = finish.unwrap_or(Finish::End);
        let message = Message {
            stop_reason: Some(stop_reason(&finish)),
            stop_sequence: stop_sequence(&finish).map(str::to_owned),
            usage: usage(&tally),
            metrics: Some(self.head.metrics(&tally)),
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
