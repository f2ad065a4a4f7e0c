//! Encodes replies of `/v1/responses`: a response object that grows item by item. Without a stream,
//! the response is the finished object.

use axum::response::{IntoResponse, Response};
use kilotok_generation::{FinishReason, Increment, ReplyStats};
use kilotok_text::Event as ReplyEvent;
use serde::Serialize;
use uuid::Uuid;

use super::items::encrypted_content;
use super::wire::{
    ErrorEvent, Event, Incomplete, InputDetails, ItemEvent, OutputDetails, OutputItem, OutputPart,
    PartEvent, ResponseError, ResponseEvent, ResponseObject, ResponsesUsage,
};
use crate::encoder::{Encoder, ResponseHead, call_id};
use crate::error::ApiError;
use crate::params::tools::ToolNames;
use crate::sse::SseBuffer;
use crate::wire::logprobs::ChatLogprob;

/// The options of a request that shape its response.
#[derive(Clone, Copy)]
pub(crate) struct ReplyForm {
    /// Log-probabilities are wanted, with this many alternatives.
    pub(crate) logprobs: Option<u32>,
    /// Whether reasoning is repeated in the field `encrypted_content`.
    pub(crate) encrypted_content: bool,
}

pub(crate) struct ResponsesEncoder {
    head: ResponseHead,
    /// The response so far.
    object: ResponseObject,
    form: ReplyForm,
    /// The names of the tools that may be called.
    names: ToolNames,
    /// Entries of tokens whose text is not complete yet, such as parts of a character.
    pending: Vec<ChatLogprob>,
    begun: bool,
    /// Whether the last item of the output is open.
    open: bool,
    sequence: u64,
    stats: ReplyStats,
    finish: Option<FinishReason>,
    failed: bool,
}

impl ResponsesEncoder {
    pub(crate) fn new(
        head: ResponseHead,
        object: ResponseObject,
        form: ReplyForm,
        names: ToolNames,
    ) -> Self {
        Self {
            head,
            object,
            form,
            names,
            pending: Vec::new(),
            begun: false,
            open: false,
            sequence: 0,
            stats: ReplyStats::default(),
            finish: None,
            failed: false,
        }
    }

    fn send(&mut self, kind: &'static str, body: impl Serialize, out: &mut SseBuffer) {
        let sequence_number = self.sequence;
        self.sequence += 1;
        out.event(kind, &Event { kind, sequence_number, body });
    }

    fn send_object(&mut self, kind: &'static str, out: &mut SseBuffer) {
        let sequence_number = self.sequence;
        self.sequence += 1;
        let body = ResponseEvent { response: &self.object };
        out.event(kind, &Event { kind, sequence_number, body });
    }

    fn begin(&mut self, out: &mut SseBuffer) {
        if !std::mem::replace(&mut self.begun, true) {
            self.send_object("response.created", out);
            self.send_object("response.in_progress", out);
        }
    }

    fn last(&self) -> usize {
        self.object.output.len().saturating_sub(1)
    }

    /// Opens an item, after closing the one before.
    fn start(&mut self, item: &OutputItem, out: &mut SseBuffer) {
        self.close("completed", out);
        let part = match item {
            OutputItem::Reasoning { .. } => Some(OutputPart::ReasoningText { text: String::new() }),
            OutputItem::Message { .. } => Some(text_part(String::new())),
            OutputItem::FunctionCall { .. } | OutputItem::CustomToolCall { .. } => None,
        };
        self.object.output.push(item.clone());
        self.open = true;
        let output_index = self.last();
        self.send("response.output_item.added", ItemEvent { output_index, item }, out);
        if let Some(part) = part {
            let body = PartEvent { part: Some(&part), ..part_of(item.id(), output_index, true) };
            self.send("response.content_part.added", body, out);
            self.object.output[output_index].put(part);
        }
    }

    /// Closes the open item.
    fn close(&mut self, status: &'static str, out: &mut SseBuffer) {
        if !std::mem::take(&mut self.open) {
            return;
        }
        let output_index = self.last();
        self.object.output[output_index].set_status(status);
        if self.form.encrypted_content {
            self.object.output[output_index].keep_reasoning();
        }
        let item = self.object.output[output_index].clone();
        let content = part_of(item.id(), output_index, true);
        match &item {
            OutputItem::FunctionCall { arguments, name, .. } => {
                let body = PartEvent {
                    name: Some(name),
                    arguments: Some(arguments),
                    ..part_of(item.id(), output_index, false)
                };
                self.send("response.function_call_arguments.done", body, out);
            }
            OutputItem::CustomToolCall { input, .. } => {
                let body =
                    PartEvent { input: Some(input), ..part_of(item.id(), output_index, false) };
                self.send("response.custom_tool_call_input.done", body, out);
            }
            OutputItem::Reasoning { content: parts, .. }
            | OutputItem::Message { content: parts, .. } => {
                let Some(part) = parts.first() else { return };
                match part {
                    OutputPart::ReasoningText { text } => {
                        let body = PartEvent { text: Some(text), ..content.clone() };
                        self.send("response.reasoning_text.done", body, out);
                    }
                    OutputPart::OutputText { text, logprobs, .. } => {
                        let (text, logprobs) = (Some(text.as_str()), Some(logprobs.as_slice()));
                        let body = PartEvent { text, logprobs, ..content.clone() };
                        self.send("response.output_text.done", body, out);
                    }
                }
                let body = PartEvent { part: Some(part), ..content };
                self.send("response.content_part.done", body, out);
            }
        }
        self.send("response.output_item.done", ItemEvent { output_index, item: &item }, out);
    }

    fn write(&mut self, event: &ReplyEvent, out: &mut SseBuffer) {
        let new_id = |prefix| format!("{prefix}_{}", Uuid::new_v4().simple());
        let open = self.object.output.last().filter(|_| self.open);
        match (event, open) {
            (ReplyEvent::Reasoning(_), Some(OutputItem::Reasoning { .. }))
            | (ReplyEvent::Content(_), Some(OutputItem::Message { .. }))
            | (ReplyEvent::Arguments { .. }, _) => {}
            (ReplyEvent::Reasoning(_), _) => {
                let reasoning = OutputItem::Reasoning {
                    id: new_id("rs"),
                    status: "in_progress",
                    summary: Vec::new(),
                    content: Vec::new(),
                    encrypted_content: None,
                };
                self.start(&reasoning, out);
            }
            (ReplyEvent::Content(_), _) => {
                let (id, content) = (new_id("msg"), Vec::new());
                let (status, role) = ("in_progress", "assistant");
                self.start(&OutputItem::Message { id, status, role, content }, out);
            }
            (ReplyEvent::Call { name, takes_text, .. }, _) => {
                let (namespace, name) = self.names.of_client(name);
                let (status, call_id) = ("in_progress", call_id());
                let call = if *takes_text {
                    let (id, input) = (new_id("ctc"), String::new());
                    OutputItem::CustomToolCall { id, status, call_id, name, namespace, input }
                } else {
                    let (id, arguments) = (new_id("fc"), String::new());
                    OutputItem::FunctionCall { id, status, call_id, name, namespace, arguments }
                };
                self.start(&call, out);
            }
        }
        self.grow(event, out);
    }

    /// Adds to the open item.
    fn grow(&mut self, event: &ReplyEvent, out: &mut SseBuffer) {
        let output_index = self.last();
        let Some(item) = self.object.output.get_mut(output_index) else { return };
        let id = item.id().to_owned();
        match (event, item) {
            (ReplyEvent::Reasoning(delta), OutputItem::Reasoning { content, .. }) => {
                if let Some(OutputPart::ReasoningText { text }) = content.first_mut() {
                    text.push_str(delta);
                }
                let body = PartEvent { delta: Some(delta), ..part_of(&id, output_index, true) };
                self.send("response.reasoning_text.delta", body, out);
            }
            (ReplyEvent::Content(delta), OutputItem::Message { content, .. }) => {
                let news = std::mem::take(&mut self.pending);
                if let Some(OutputPart::OutputText { text, logprobs, .. }) = content.first_mut() {
                    text.push_str(delta);
                    logprobs.extend_from_slice(&news);
                }
                let (delta, logprobs) = (Some(delta.as_str()), Some(news.as_slice()));
                let body = PartEvent { delta, logprobs, ..part_of(&id, output_index, true) };
                self.send("response.output_text.delta", body, out);
            }
            (ReplyEvent::Arguments { text, .. }, OutputItem::FunctionCall { arguments, .. }) => {
                arguments.push_str(text);
                let body = PartEvent { delta: Some(text), ..part_of(&id, output_index, false) };
                self.send("response.function_call_arguments.delta", body, out);
            }
            (ReplyEvent::Arguments { text, .. }, OutputItem::CustomToolCall { input, .. }) => {
                input.push_str(text);
                let body = PartEvent { delta: Some(text), ..part_of(&id, output_index, false) };
                self.send("response.custom_tool_call_input.delta", body, out);
            }
            _ => {}
        }
    }

    /// Keeps the log-probabilities of the answer's tokens until the text that they belong to is
    /// written. Reasoning has none, and the token that ended the reply is left out.
    fn keep_logprobs(&mut self, next: &Increment) {
        let Some(top_count) = self.form.logprobs else { return };
        let before = next.stats.token_count - next.tokens.len() as u32;
        let reasoning = next.stats.answer_start.saturating_sub(before) as usize;
        if reasoning > 0 {
            self.pending.clear();
        }
        let text = self.head.logprob_text(false);
        let is_end = matches!(
            next.finish,
            Some(FinishReason::EndToken | FinishReason::StopToken(_) | FinishReason::ToolCalls)
        );
        let count = next.logprobs.len() - usize::from(is_end).min(next.logprobs.len());
        let of_answer = next.logprobs[..count].iter().skip(reasoning);
        self.pending.extend(of_answer.map(|each| text.chat(each, top_count)));
    }
}

impl OutputItem {
    fn id(&self) -> &str {
        match self {
            Self::Reasoning { id, .. }
            | Self::Message { id, .. }
            | Self::FunctionCall { id, .. }
            | Self::CustomToolCall { id, .. } => id,
        }
    }

    fn set_status(&mut self, to: &'static str) {
        match self {
            Self::Reasoning { status, .. }
            | Self::Message { status, .. }
            | Self::FunctionCall { status, .. }
            | Self::CustomToolCall { status, .. } => *status = to,
        }
    }

    /// Copies the reasoning into the field that some clients send back instead of its text.
    fn keep_reasoning(&mut self) {
        if let Self::Reasoning { content, encrypted_content: kept, .. } = self
            && let Some(OutputPart::ReasoningText { text }) = content.first()
        {
            *kept = Some(encrypted_content(text));
        }
    }

    fn put(&mut self, part: OutputPart) {
        if let Self::Reasoning { content, .. } | Self::Message { content, .. } = self {
            content.push(part);
        }
    }
}

fn text_part(text: String) -> OutputPart {
    OutputPart::OutputText { text, annotations: [], logprobs: Vec::new() }
}

/// The position of an event. All items except calls have one part.
fn part_of(item_id: &str, output_index: usize, content: bool) -> PartEvent<'_> {
    PartEvent {
        item_id,
        output_index,
        content_index: content.then_some(0),
        part: None,
        delta: None,
        text: None,
        name: None,
        arguments: None,
        input: None,
        logprobs: None,
    }
}

fn usage(stats: &ReplyStats) -> ResponsesUsage {
    ResponsesUsage {
        input_tokens: stats.prompt_count,
        input_tokens_details: InputDetails { cached_tokens: stats.cached_count },
        output_tokens: stats.token_count,
        output_tokens_details: OutputDetails { reasoning_tokens: stats.reasoning_count },
        total_tokens: stats.prompt_count + stats.token_count,
    }
}

impl Encoder for ResponsesEncoder {
    fn warn(&mut self, warnings: &[String]) {
        self.object.warnings = warnings.to_vec();
    }

    fn increment(&mut self, _index: usize, next: Increment, out: &mut SseBuffer) {
        self.begin(out);
        self.keep_logprobs(&next);
        for event in &next.events {
            self.write(event, out);
        }
        if matches!(
            next.events.last(),
            Some(ReplyEvent::Call { .. } | ReplyEvent::Arguments { .. })
        ) {
            self.pending.clear();
        }
        self.stats = next.stats;
        self.finish = next.finish;
    }

    fn fail(&mut self, error: &ApiError, out: &mut SseBuffer) {
        self.begin(out);
        self.failed = true;
        let code = error.code.unwrap_or("server_error");
        let (message, param) = (error.message.as_str(), error.param.as_deref());
        self.send("error", ErrorEvent { code: Some(code), message, param }, out);
        self.close("incomplete", out);
        self.object.status = "failed";
        self.object.error =
            Some(ResponseError { code: code.into(), message: error.message.clone() });
        self.send_object("response.failed", out);
    }

    fn end(&mut self, out: &mut SseBuffer) {
        if self.failed {
            return;
        }
        self.begin(out);
        if !self.pending.is_empty() {
            // No text follows the pending tokens, for example because white space was left out.
            self.grow(&ReplyEvent::Content(String::new()), out);
        }
        let cut = match self.finish.take() {
            Some(FinishReason::Length) => Some("max_output_tokens"),
            Some(FinishReason::Aborted) => Some("aborted"),
            _ => None,
        };
        let status = if cut.is_some() { "incomplete" } else { "completed" };
        self.close(status, out);
        self.object.status = status;
        self.object.incomplete_details = cut.map(|reason| Incomplete { reason });
        self.object.usage = Some(usage(&self.stats));
        self.object.metrics = Some(self.head.metrics(&self.stats));
        let kind = if cut.is_some() { "response.incomplete" } else { "response.completed" };
        self.send_object(kind, out);
    }

    fn response(mut self, increments: Vec<(usize, Increment)>) -> Response {
        let mut unsent = SseBuffer::default();
        for (_, increment) in increments {
            self.increment(0, increment, &mut unsent);
        }
        self.end(&mut unsent);
        axum::Json(&self.object).into_response()
    }
}
