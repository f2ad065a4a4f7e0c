//! Replies of `/v1/chat/completions`.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use kilotok_abi::TokenId;
use kilotok_engine::TokenLogprobs;
use kilotok_text::Event;

use super::show::Show;
use crate::choice::{Finish, Piece};
use crate::error::ApiError;
use crate::said::{Said, call_id, finish_reason, stop_reason};
use crate::sse::{Dialect, Frames};
use crate::tally::Tally;
use crate::wire::chat::{ChatChoice, ChatCompletion, ChunkChoice, Delta, ReplyMessage};
use crate::wire::chunk::Chunk;
use crate::wire::logprobs::ChatLogprobs;
use crate::wire::tools::{CustomDelta, FunctionDelta, ToolCallDelta};

/// What becomes of reasoning.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reasoning {
    Apart,
    Left,
    /// It is part of the answer.
    Inline,
}

/// The name of a streamed piece.
const CHUNK: &str = "chat.completion.chunk";

pub(crate) struct Chat {
    show: Show,
    prompt: Arc<[TokenId]>,
    reasoning: Reasoning,
    /// Comes before each reply.
    echo: Option<String>,
    /// Of each choice: its tally, once its first chunk is sent.
    tallies: Vec<Option<Tally>>,
    /// Of each choice: whether its last call is of a tool that takes a text.
    takes_text: Vec<bool>,
    scored: Vec<TokenLogprobs>,
}

impl Chat {
    pub(crate) fn new(
        show: Show,
        prompt: Arc<[TokenId]>,
        reasoning: Reasoning,
        echo: Option<String>,
    ) -> Self {
        let (tallies, takes_text) = (vec![None; show.choice_count], vec![false; show.choice_count]);
        Self { show, prompt, reasoning, echo, tallies, takes_text, scored: Vec::new() }
    }

    fn logprobs(&self, logprobs: &[TokenLogprobs]) -> Option<ChatLogprobs> {
        let top_count = self.show.logprobs?;
        let spelling = self.show.spelling();
        let content = logprobs.iter().map(|each| spelling.chat(each, top_count)).collect();
        Some(ChatLogprobs { content, refusal: () })
    }

    fn prompt_token_ids(&self) -> Option<&[TokenId]> {
        self.show.token_ids.then_some(&self.prompt)
    }

    fn choice(&self, index: u32, mut said: Said) -> ChatChoice {
        let reasoning = std::mem::take(&mut said.reasoning);
        if self.reasoning == Reasoning::Inline {
            said.content.insert_str(0, &reasoning);
        }
        if let Some(echo) = &self.echo {
            said.content.insert_str(0, echo);
        }
        let empty = said.content.is_empty() && !(said.calls.is_empty() && reasoning.is_empty());
        let shown = self.reasoning == Reasoning::Apart && !reasoning.is_empty();
        let reasoning = shown.then_some(reasoning);
        ChatChoice {
            index,
            logprobs: self.logprobs(&said.logprobs),
            finish_reason: said.finish_reason(),
            stop_reason: said.stop_reason(),
            token_ids: self.show.token_ids.then_some(said.tokens),
            message: ReplyMessage {
                role: "assistant",
                content: (!empty).then_some(said.content),
                refusal: (),
                reasoning_content: reasoning.clone(),
                reasoning,
                tool_calls: said.calls,
            },
        }
    }

    /// Of the choices that have begun: all have one prompt.
    fn tallies(&self) -> Vec<Tally> {
        self.tallies.iter().flatten().cloned().collect()
    }

    fn chunk<'a>(&'a self, choices: &'a [ChunkChoice<'a>]) -> Chunk<'a, ChunkChoice<'a>> {
        self.show.chunk(CHUNK, choices, &self.tallies())
    }

    /// The first chunk of a choice.
    fn begin(&self, index: u32, out: &mut Frames) {
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

    fn progress(&self, index: u32, said: &Parts, piece: &Piece, out: &mut Frames) {
        let tells = self.show.logprobs.is_some() && !piece.logprobs.is_empty();
        let ids = self.show.token_ids && !piece.tokens.is_empty();
        let usage = self.show.running_usage() && !piece.tokens.is_empty();
        if said.is_empty() && !tells && !ids && !usage {
            return;
        }
        let choice = ChunkChoice {
            logprobs: self.logprobs(&piece.logprobs).filter(|_| tells),
            token_ids: ids.then_some(&piece.tokens),
            ..chunk_choice(index, said.delta())
        };
        out.data(&self.chunk(&[choice]));
    }

    fn finish(&self, index: u32, finish: &Finish, out: &mut Frames) {
        let choice = ChunkChoice {
            finish_reason: Some(finish_reason(finish)),
            stop_reason: Some(stop_reason(finish)),
            ..chunk_choice(index, Delta::default())
        };
        let choices = [choice];
        let mut chunk = self.show.last_chunk(CHUNK, &choices, &self.tallies());
        chunk.prompt_logprobs = self.show.prompt_logprobs(&self.scored);
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

impl Dialect for Chat {
    fn warn(&mut self, warnings: &[String]) {
        self.show.head.warnings = warnings.to_vec();
    }

    fn piece(&mut self, index: usize, piece: Piece, out: &mut Frames) {
        let first = self.tallies[index].is_none();
        self.tallies[index] = Some(piece.tally.clone());
        if index == 0 && self.show.prompt_logprobs.is_some() {
            self.scored.extend_from_slice(&piece.scored);
        }
        if first {
            self.begin(index as u32, out);
        }
        let said = Parts::of(&piece.events, self.reasoning, self.takes_text[index]);
        self.takes_text[index] = said.takes_text;
        self.progress(index as u32, &said, &piece, out);
        if let Some(finish) = &piece.finish {
            self.finish(index as u32, finish, out);
        }
    }

    fn fail(&mut self, error: &ApiError, out: &mut Frames) {
        self.show.fail(error, out);
    }

    fn end(&mut self, out: &mut Frames) {
        self.show.end::<ChunkChoice<'_>>(CHUNK, &self.tallies(), out);
    }

    fn whole(self, pieces: Vec<(usize, Piece)>) -> Response {
        let said = Said::all(self.show.choice_count, pieces);
        let tallies: Vec<_> = said.iter().map(|said| said.tally.clone()).collect();
        let scored = said.first().map_or(&[][..], |said| &said.scored);
        let prompt_logprobs = self.show.prompt_logprobs(scored);
        let choices = (0..).zip(said).map(|(index, said)| self.choice(index, said)).collect();
        let head = &self.show.head;
        let completion = ChatCompletion {
            id: &head.id,
            object: "chat.completion",
            created: head.created,
            model: &head.model,
            choices,
            usage: self.show.total(&tallies),
            service_tier: None,
            system_fingerprint: &head.service.fingerprint,
            prompt_logprobs,
            prompt_token_ids: self.prompt_token_ids(),
            metrics: self.show.metrics(&tallies),
            warnings: &head.warnings,
        };
        axum::Json(completion).into_response()
    }
}

/// More of a call.
struct Call {
    index: u32,
    takes_text: bool,
    /// Its id and name, if it begins.
    begun: Option<(String, String)>,
    arguments: String,
}

impl Call {
    fn delta(&self) -> ToolCallDelta<'_> {
        let name = self.begun.as_ref().map(|(_, name)| name.as_str());
        let (text, kind) = (Some(self.arguments.as_str()), self.kind());
        ToolCallDelta {
            index: self.index,
            id: self.begun.as_ref().map(|(id, _)| id.clone()),
            kind: self.begun.is_some().then_some(kind),
            function: (!self.takes_text).then_some(FunctionDelta { name, arguments: text }),
            custom: self.takes_text.then_some(CustomDelta { name, input: text }),
        }
    }

    fn kind(&self) -> &'static str {
        if self.takes_text { "custom" } else { "function" }
    }
}

/// What a piece said, sorted into the fields of a delta.
#[derive(Default)]
struct Parts {
    content: String,
    reasoning: String,
    calls: Vec<Call>,
    /// Whether the last call is of a tool that takes a text.
    takes_text: bool,
}

impl Parts {
    /// `takes_text` is of the call that began in an earlier piece.
    fn of(events: &[Event], reasoning: Reasoning, takes_text: bool) -> Self {
        let mut parts = Self { takes_text, ..Self::default() };
        for event in events {
            match event {
                Event::Content(text) => parts.content.push_str(text),
                Event::Reasoning(text) => match reasoning {
                    Reasoning::Apart => parts.reasoning.push_str(text),
                    Reasoning::Inline => parts.content.push_str(text),
                    Reasoning::Left => {}
                },
                Event::Call { index, name, takes_text } => {
                    let begun = Some((call_id(), name.clone()));
                    parts.takes_text = *takes_text;
                    parts.more(*index, begun, String::new());
                }
                Event::Arguments { index, text } => match parts.calls.last_mut() {
                    Some(call) if call.index == *index => call.arguments.push_str(text),
                    _ => parts.more(*index, None, text.clone()),
                },
            }
        }
        parts
    }

    fn more(&mut self, index: u32, begun: Option<(String, String)>, arguments: String) {
        self.calls.push(Call { index, takes_text: self.takes_text, begun, arguments });
    }

    fn is_empty(&self) -> bool {
        self.content.is_empty() && self.reasoning.is_empty() && self.calls.is_empty()
    }

    fn delta(&self) -> Delta<'_> {
        fn told(text: &str) -> Option<&str> {
            (!text.is_empty()).then_some(text)
        }
        Delta {
            role: None,
            content: told(&self.content),
            reasoning: told(&self.reasoning),
            reasoning_content: told(&self.reasoning),
            tool_calls: self.calls.iter().map(Call::delta).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn delta_of(events: &[Event]) -> Value {
        serde_json::to_value(Parts::of(events, Reasoning::Apart, false).delta()).unwrap()
    }

    #[test]
    fn one_delta_tells_all_of_a_step() {
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
        let parts = Parts::of(&later, Reasoning::Apart, true);
        let call = json!({"index": 0, "custom": {"input": "c"}});
        assert_eq!(json!(parts.delta()), json!({"tool_calls": [call]}));
    }

    #[test]
    fn later_arguments_carry_no_name() {
        let delta = delta_of(&[Event::Arguments { index: 1, text: "3}".into() }]);
        let call = json!({"index": 1, "function": {"arguments": "3}"}});
        assert_eq!(delta, json!({"tool_calls": [call]}));
    }
}
