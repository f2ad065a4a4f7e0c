//! Encodes replies of `/v1/chat/completions`.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use kilotok_abi::TokenId;
use kilotok_engine::TokenLogprobs;
use kilotok_generation::{FinishReason, Increment, ReplyStats};
use kilotok_text::Event;
use serde_json::Value;

use super::wire::{ChatChoice, ChatCompletion, ChunkChoice, Delta, ReplyMessage};
use crate::encoder::{Encoder, OutputOptions, call_id, finish_reason, stop_reason};
use crate::error::ApiError;
use crate::sse::SseBuffer;
use crate::wire::chunk::Chunk;
use crate::wire::logprobs::ChatLogprobs;
use crate::wire::tools::{
    CalledCustom, CalledFunction, CustomDelta, FunctionDelta, ToolCall, ToolCallDelta,
};

/// Where the reasoning appears in the response.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reasoning {
    /// In its own field.
    Separate,
    Omitted,
    /// In the answer's field, before the answer.
    Inline,
}

/// The `object` field of a chunk of a stream.
const CHUNK: &str = "chat.completion.chunk";

pub(crate) struct ChatEncoder {
    output: OutputOptions,
    prompt: Arc<[TokenId]>,
    reasoning: Reasoning,
    /// Text written before each reply.
    echo: Option<String>,
    /// Indexed by choice; set once the choice's first chunk is written.
    stats: Vec<Option<ReplyStats>>,
    /// Indexed by choice: whether the choice's last call is to a tool that takes text, not JSON.
    takes_text: Vec<bool>,
    prompt_logprobs: Vec<TokenLogprobs>,
}

impl ChatEncoder {
    pub(crate) fn new(
        output: OutputOptions,
        prompt: Arc<[TokenId]>,
        reasoning: Reasoning,
        echo: Option<String>,
    ) -> Self {
        let count = output.choice_count;
        let (stats, takes_text) = (vec![None; count], vec![false; count]);
        Self { output, prompt, reasoning, echo, stats, takes_text, prompt_logprobs: Vec::new() }
    }

    fn logprobs(&self, logprobs: &[TokenLogprobs]) -> Option<ChatLogprobs> {
        let top_count = self.output.logprobs?;
        let text = self.output.logprob_text();
        let content = logprobs.iter().map(|each| text.chat(each, top_count)).collect();
        Some(ChatLogprobs { content, refusal: () })
    }

    fn prompt_token_ids(&self) -> Option<&[TokenId]> {
        self.output.token_ids.then_some(&self.prompt)
    }

    /// A complete choice.
    fn choice(&self, index: u32, reply: Increment) -> ChatChoice {
        let ReplyParts { mut content, reasoning, calls, .. } =
            ReplyParts::of(&reply.events, Reasoning::Separate, false);
        if self.reasoning == Reasoning::Inline {
            content.insert_str(0, &reasoning);
        }
        if let Some(echo) = &self.echo {
            content.insert_str(0, echo);
        }
        let is_null = content.is_empty() && !(calls.is_empty() && reasoning.is_empty());
        let is_shown = self.reasoning == Reasoning::Separate && !reasoning.is_empty();
        let reasoning = is_shown.then_some(reasoning);
        ChatChoice {
            index,
            logprobs: self.logprobs(&reply.logprobs),
            finish_reason: reply.finish.as_ref().map_or("stop", finish_reason),
            stop_reason: reply.finish.as_ref().map_or(Value::Null, stop_reason),
            token_ids: self.output.token_ids.then_some(reply.tokens),
            message: ReplyMessage {
                role: "assistant",
                content: (!is_null).then_some(content),
                refusal: (),
                reasoning_content: reasoning.clone(),
                reasoning,
                tool_calls: calls.into_iter().map(Call::whole).collect(),
            },
        }
    }

    /// The stats of the choices that have begun. All choices have the same prompt.
    fn stats(&self) -> Vec<ReplyStats> {
        self.stats.iter().flatten().cloned().collect()
    }

    fn chunk<'a>(&'a self, choices: &'a [ChunkChoice<'a>]) -> Chunk<'a, ChunkChoice<'a>> {
        self.output.chunk(CHUNK, choices, &self.stats())
    }

    /// Writes the first chunk of a choice.
    fn begin(&self, index: u32, out: &mut SseBuffer) {
        let delta = Delta { role: Some("assistant"), content: Some(""), ..Delta::default() };
        let choices = [chunk_choice(index, delta)];
        let mut chunk = self.chunk(&choices);
        chunk.prompt_token_ids = self.prompt_token_ids();
        out.data(&chunk);
        if let Some(echo) = self.echo.as_deref().filter(|echo| !echo.is_empty()) {
            let delta = Delta { content: Some(echo), ..Delta::default() };
            out.data(&self.chunk(&[chunk_choice(index, delta)]));
        }
    }

    fn progress(&self, index: u32, parts: &ReplyParts, next: &Increment, out: &mut SseBuffer) {
        let has_logprobs = self.output.logprobs.is_some() && !next.logprobs.is_empty();
        let has_ids = self.output.token_ids && !next.tokens.is_empty();
        let has_usage = self.output.has_continuous_usage() && !next.tokens.is_empty();
        if parts.is_empty() && !has_logprobs && !has_ids && !has_usage {
            return;
        }
        let choice = ChunkChoice {
            logprobs: self.logprobs(&next.logprobs).filter(|_| has_logprobs),
            token_ids: has_ids.then_some(&next.tokens),
            ..chunk_choice(index, parts.delta())
        };
        out.data(&self.chunk(&[choice]));
    }

    fn finish(&self, index: u32, finish: &FinishReason, out: &mut SseBuffer) {
        let choice = ChunkChoice {
            finish_reason: Some(finish_reason(finish)),
            stop_reason: Some(stop_reason(finish)),
            ..chunk_choice(index, Delta::default())
        };
        let choices = [choice];
        let mut chunk = self.output.last_chunk(CHUNK, &choices, &self.stats());
        chunk.prompt_logprobs = self.output.prompt_logprobs(&self.prompt_logprobs);
        out.data(&chunk);
    }
}

fn chunk_choice(index: u32, delta: Delta<'_>) -> ChunkChoice<'_> {
    ChunkChoice {
        index,
        delta,
        logprobs: None,
        finish_reason: None,
        stop_reason: None,
        token_ids: None,
    }
}

impl Encoder for ChatEncoder {
    fn warn(&mut self, warnings: &[String]) {
        self.output.head.warnings = warnings.to_vec();
    }

    fn increment(&mut self, index: usize, next: Increment, out: &mut SseBuffer) {
        let is_first = self.stats[index].is_none();
        self.stats[index] = Some(next.stats.clone());
        if index == 0 && self.output.prompt_logprobs.is_some() {
            self.prompt_logprobs.extend_from_slice(&next.prompt_logprobs);
        }
        if is_first {
            self.begin(index as u32, out);
        }
        let parts = ReplyParts::of(&next.events, self.reasoning, self.takes_text[index]);
        self.takes_text[index] = parts.takes_text;
        self.progress(index as u32, &parts, &next, out);
        if let Some(finish) = &next.finish {
            self.finish(index as u32, finish, out);
        }
    }

    fn fail(&mut self, error: &ApiError, out: &mut SseBuffer) {
        self.output.fail(error, out);
    }

    fn end(&mut self, out: &mut SseBuffer) {
        self.output.end::<ChunkChoice<'_>>(CHUNK, &self.stats(), out);
    }

    fn response(self, increments: Vec<(usize, Increment)>) -> Response {
        let replies = self.output.replies(increments);
        let stats: Vec<_> = replies.iter().map(|reply| reply.stats.clone()).collect();
        let prompt_logprobs = replies.first().map_or(&[][..], |reply| &reply.prompt_logprobs);
        let prompt_logprobs = self.output.prompt_logprobs(prompt_logprobs);
        let choices = (0..).zip(replies).map(|(index, reply)| self.choice(index, reply)).collect();
        let head = &self.output.head;
        let completion = ChatCompletion {
            id: &head.id,
            object: "chat.completion",
            created: head.created,
            model: &head.model,
            choices,
            usage: self.output.usage(&stats),
            service_tier: None,
            system_fingerprint: &head.service.fingerprint,
            prompt_logprobs,
            prompt_token_ids: self.prompt_token_ids(),
            metrics: self.output.metrics(&stats),
            warnings: &head.warnings,
        };
        axum::Json(completion).into_response()
    }
}

/// A tool call, or a further piece of one.
struct Call {
    index: u32,
    takes_text: bool,
    /// Its id and name, if it begins here.
    begun: Option<(String, String)>,
    arguments: String,
}

impl Call {
    fn delta(&self) -> ToolCallDelta<'_> {
        let name = self.begun.as_ref().map(|(_, name)| name.as_str());
        let text = Some(self.arguments.as_str());
        let kind = if self.takes_text { "custom" } else { "function" };
        ToolCallDelta {
            index: self.index,
            id: self.begun.as_ref().map(|(id, _)| id.clone()),
            kind: self.begun.is_some().then_some(kind),
            function: (!self.takes_text).then_some(FunctionDelta { name, arguments: text }),
            custom: self.takes_text.then_some(CustomDelta { name, input: text }),
        }
    }

    fn whole(self) -> ToolCall {
        let (id, name) = self.begun.unwrap_or_default();
        let text = self.arguments;
        if self.takes_text {
            ToolCall::Custom { id, custom: CalledCustom { name, input: text } }
        } else {
            ToolCall::Function { id, function: CalledFunction { name, arguments: text } }
        }
    }
}

/// Reply events, sorted into the fields of a message or of a delta.
#[derive(Default)]
struct ReplyParts {
    content: String,
    reasoning: String,
    calls: Vec<Call>,
    /// Whether the last call is to a tool that takes text, not JSON.
    takes_text: bool,
}

impl ReplyParts {
    /// `takes_text` describes a call that began in an earlier increment.
    fn of(events: &[Event], reasoning: Reasoning, takes_text: bool) -> Self {
        let mut parts = Self { takes_text, ..Self::default() };
        for event in events {
            match event {
                Event::Content(text) => parts.content.push_str(text),
                Event::Reasoning(text) => match reasoning {
                    Reasoning::Separate => parts.reasoning.push_str(text),
                    Reasoning::Inline => parts.content.push_str(text),
                    Reasoning::Omitted => {}
                },
                Event::Call { index, name, takes_text } => {
                    let begun = Some((call_id(), name.clone()));
                    parts.takes_text = *takes_text;
                    parts.add_call(*index, begun, String::new());
                }
                Event::Arguments { index, text } => match parts.calls.last_mut() {
                    Some(call) if call.index == *index => call.arguments.push_str(text),
                    _ => parts.add_call(*index, None, text.clone()),
                },
            }
        }
        parts
    }

    fn add_call(&mut self, index: u32, begun: Option<(String, String)>, arguments: String) {
        self.calls.push(Call { index, takes_text: self.takes_text, begun, arguments });
    }

    fn is_empty(&self) -> bool {
        self.content.is_empty() && self.reasoning.is_empty() && self.calls.is_empty()
    }

    fn delta(&self) -> Delta<'_> {
        fn unless_empty(text: &str) -> Option<&str> {
            (!text.is_empty()).then_some(text)
        }
        Delta {
            role: None,
            content: unless_empty(&self.content),
            reasoning: unless_empty(&self.reasoning),
            reasoning_content: unless_empty(&self.reasoning),
            tool_calls: self.calls.iter().map(Call::delta).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn delta_of(events: &[Event]) -> Value {
        serde_json::to_value(ReplyParts::of(events, Reasoning::Separate, false).delta()).unwrap()
    }

    #[test]
    fn one_delta_has_all_of_a_step() {
        let events = [
            Event::Reasoning("so".into()),
            Event::Content("a".into()),
            Event::Call { index: 0, name: "f".into(), takes_text: false },
            Event::Arguments { index: 0, text: "{}".into() },
            Event::Call { index: 1, name: "g".into(), takes_text: false },
        ];
        let delta = delta_of(&events);
        assert_eq!(delta["reasoning"], "so");
        assert_eq!(delta["reasoning_content"], "so");
        assert_eq!(delta["content"], "a");
        let calls = delta["tool_calls"].as_array().unwrap();
        assert_eq!(calls.len(), 2);
        assert_eq!(calls[0]["function"], json!({"name": "f", "arguments": "{}"}));
        assert_eq!(calls[0]["type"], "function");
        assert_eq!(calls[1]["function"], json!({"name": "g", "arguments": ""}));
        assert!(calls[1]["id"].as_str().unwrap().starts_with("call_"));
    }

    #[test]
    fn custom_tools_are_called_with_a_text() {
        let call = Event::Call { index: 0, name: "note".into(), takes_text: true };
        let delta = delta_of(&[call, Event::Arguments { index: 0, text: "a\"b".into() }]);
        let call = &delta["tool_calls"][0];
        assert_eq!(call["type"], "custom");
        assert_eq!(call["custom"], json!({"name": "note", "input": "a\"b"}));
        let later = [Event::Arguments { index: 0, text: "c".into() }];
        let parts = ReplyParts::of(&later, Reasoning::Separate, true);
        let call = json!({"index": 0, "custom": {"input": "c"}});
        assert_eq!(json!(parts.delta()), json!({"tool_calls": [call]}));
    }

    #[test]
    fn later_arguments_carry_no_name() {
        let delta = delta_of(&[Event::Arguments { index: 1, text: "3}".into() }]);
        let call = json!({"index": 1, "function": {"arguments": "3}"}});
        assert_eq!(delta, json!({"tool_calls": [call]}));
    }

    #[test]
    fn all_increments_make_one_message() {
        let call = |name: &str, index| Event::Call { index, name: name.into(), takes_text: false };
        let arguments = |text: &str, index| Event::Arguments { index, text: text.into() };
        let mut whole = Increment::default();
        for events in [
            vec![Event::Reasoning("hm".into()), Event::Content("a".into())],
            vec![Event::Content("b".into()), call("f", 0), arguments("{\"x\":", 0)],
            vec![arguments("1}", 0), call("g", 1), arguments("{}", 1)],
        ] {
            whole.append(Increment { events, tokens: vec![1], ..Increment::default() });
        }
        let parts = ReplyParts::of(&whole.events, Reasoning::Separate, false);
        assert_eq!((parts.content.as_str(), parts.reasoning.as_str()), ("ab", "hm"));
        let calls = json!(parts.calls.into_iter().map(Call::whole).collect::<Vec<_>>());
        assert_eq!(calls[0]["function"], json!({"name": "f", "arguments": "{\"x\":1}"}));
        assert_eq!(calls[1]["function"], json!({"name": "g", "arguments": "{}"}));
        assert_eq!(whole.tokens, [1, 1, 1]);
    }
}
