//! Replies of `/v1/chat/completions`.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use kilotok_abi::TokenId;
use kilotok_engine::TokenLogprobs;
use kilotok_text::Event;

use super::{Extras, Letterhead};
use crate::choice::{Finish, Piece};
use crate::error::ApiError;
use crate::said::{Said, call_id, finish_reason, stop_reason};
use crate::sse::{Dialect, Frames};
use crate::tally::{Tally, total};
use crate::wire::chat::{ChatChoice, ChatChunk, ChatCompletion, ChunkChoice, Delta, ReplyMessage};
use crate::wire::logprobs::ChatLogprobs;
use crate::wire::tools::{FunctionDelta, ToolCallDelta};
use crate::wire::usage::Usage;

/// What the client wants to see.
pub(crate) struct Show {
    pub(crate) n: u32,
    /// Log-probabilities, with so many alternatives.
    pub(crate) logprobs: Option<u32>,
    pub(crate) prompt_logprobs: Option<u32>,
    pub(crate) tokens_as_ids: bool,
    /// The prompt's, and with them the reply's.
    pub(crate) token_ids: Option<Arc<[TokenId]>>,
    pub(crate) reasoning: Reasoning,
    /// Comes before each reply.
    pub(crate) echo: Option<String>,
    pub(crate) extras: Extras,
}

/// What becomes of reasoning.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reasoning {
    Apart,
    Left,
    /// It is part of the answer.
    Inline,
}

pub(crate) struct Chat {
    pub(crate) head: Letterhead,
    pub(crate) show: Show,
    /// Of each choice: its tally, once its first chunk is sent.
    tallies: Vec<Option<Tally>>,
    scored: Vec<TokenLogprobs>,
}

impl Chat {
    pub(crate) fn new(head: Letterhead, show: Show) -> Self {
        let tallies = vec![None; show.n as usize];
        Self { head, show, tallies, scored: Vec::new() }
    }

    fn logprobs(&self, logprobs: &[TokenLogprobs]) -> Option<ChatLogprobs> {
        let top_count = self.show.logprobs?;
        let spelling = self.head.spelling(self.show.tokens_as_ids);
        let content = logprobs.iter().map(|each| spelling.chat(each, top_count)).collect();
        Some(ChatLogprobs { content, refusal: () })
    }

    /// The replies as one answer.
    pub(crate) fn whole(&self, said: Vec<Said>) -> Response {
        let tallies: Vec<_> = said.iter().map(|said| said.tally.clone()).collect();
        let spelling = self.head.spelling(self.show.tokens_as_ids);
        let prompt_logprobs = self.show.prompt_logprobs.zip(said.first());
        let prompt_logprobs = prompt_logprobs.map(|(top, said)| spelling.prompt(&said.scored, top));
        let choices = (0..).zip(said).map(|(index, said)| self.choice(index, said)).collect();
        let completion = ChatCompletion {
            id: &self.head.id,
            object: "chat.completion",
            created: self.head.created,
            model: &self.head.model,
            choices,
            usage: total(tallies.iter(), self.show.n),
            service_tier: None,
            system_fingerprint: &self.head.service.fingerprint,
            prompt_logprobs,
            prompt_token_ids: self.show.token_ids.as_deref(),
            metrics: self.head.metrics(&tallies),
        };
        axum::Json(completion).into_response()
    }

    fn choice(&self, index: u32, mut said: Said) -> ChatChoice {
        let reasoning = std::mem::take(&mut said.reasoning);
        if self.show.reasoning == Reasoning::Inline {
            said.content.insert_str(0, &reasoning);
        }
        if let Some(echo) = &self.show.echo {
            said.content.insert_str(0, echo);
        }
        let empty = said.content.is_empty() && !(said.calls.is_empty() && reasoning.is_empty());
        let shown = self.show.reasoning == Reasoning::Apart && !reasoning.is_empty();
        let reasoning = shown.then_some(reasoning);
        ChatChoice {
            index,
            logprobs: self.logprobs(&said.logprobs),
            finish_reason: said.finish_reason(),
            stop_reason: said.stop_reason(),
            token_ids: self.show.token_ids.is_some().then_some(said.tokens),
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

    fn tallies(&self) -> Vec<Tally> {
        self.tallies.iter().flatten().cloned().collect()
    }

    fn usage(&self) -> Usage {
        // All choices have one prompt.
        total(self.tallies.iter().flatten(), self.show.n)
    }

    fn chunk<'a>(&'a self, choices: &'a [ChunkChoice<'a>]) -> ChatChunk<'a> {
        let running = self.show.extras.running_usage;
        ChatChunk {
            id: &self.head.id,
            object: "chat.completion.chunk",
            created: self.head.created,
            model: &self.head.model,
            choices,
            system_fingerprint: None,
            usage: running.then(|| self.usage()),
            prompt_logprobs: None,
            prompt_token_ids: None,
            metrics: if running { self.head.metrics(&self.tallies()) } else { None },
        }
    }

    /// The first chunk of a choice.
    fn begin(&self, index: u32, out: &mut Frames) {
        let delta = Delta { role: Some("assistant"), content: Some(""), ..Delta::default() };
        let choices = [chunk_choice(index, delta)];
        let mut chunk = self.chunk(&choices);
        chunk.prompt_token_ids = self.show.token_ids.as_deref();
        out.data(&chunk);
        if let Some(echo) = self.show.echo.as_deref().filter(|echo| !echo.is_empty()) {
            let delta = Delta { content: Some(echo), ..Delta::default() };
            out.data(&self.chunk(&[chunk_choice(index, delta)]));
        }
    }

    fn progress(&self, index: u32, piece: &Piece, out: &mut Frames) {
        let said = Parts::of(&piece.events, self.show.reasoning);
        let tells = self.show.logprobs.is_some() && !piece.logprobs.is_empty();
        let ids = self.show.token_ids.is_some() && !piece.tokens.is_empty();
        let usage = self.show.extras.running_usage && !piece.tokens.is_empty();
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
        let mut chunk = self.chunk(&choices);
        chunk.system_fingerprint = Some(&self.head.service.fingerprint);
        if let Some(top_count) = self.show.prompt_logprobs {
            let spelling = self.head.spelling(self.show.tokens_as_ids);
            chunk.prompt_logprobs = Some(spelling.prompt(&self.scored, top_count));
        }
        if !self.show.extras.usage && self.show.n == 1 {
            chunk.metrics = self.head.metrics(&self.tallies());
        }
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
    fn piece(&mut self, index: usize, piece: Piece, out: &mut Frames) {
        let first = self.tallies[index].is_none();
        self.tallies[index] = Some(piece.tally.clone());
        if index == 0 && self.show.prompt_logprobs.is_some() {
            self.scored.extend_from_slice(&piece.scored);
        }
        if first {
            self.begin(index as u32, out);
        }
        self.progress(index as u32, &piece, out);
        if let Some(finish) = &piece.finish {
            self.finish(index as u32, finish, out);
        }
    }

    fn fail(&mut self, error: &ApiError, out: &mut Frames) {
        self.show.extras.usage = false;
        out.data(&error.body());
    }

    fn end(&mut self, out: &mut Frames) {
        if self.show.extras.usage {
            let mut chunk = self.chunk(&[]);
            chunk.usage = Some(self.usage());
            chunk.metrics = self.head.metrics(&self.tallies());
            out.data(&chunk);
        }
        out.text("[DONE]");
    }
}

/// More of a call.
struct Call {
    index: u32,
    /// Its id and name, if it begins.
    begun: Option<(String, String)>,
    arguments: String,
}

/// What a piece said, sorted into the fields of a delta.
#[derive(Default)]
struct Parts {
    content: String,
    reasoning: String,
    calls: Vec<Call>,
}

impl Parts {
    fn of(events: &[Event], reasoning: Reasoning) -> Self {
        let mut parts = Self::default();
        for event in events {
            match event {
                Event::Content(text) => parts.content.push_str(text),
                Event::Reasoning(text) => match reasoning {
                    Reasoning::Apart => parts.reasoning.push_str(text),
                    Reasoning::Inline => parts.content.push_str(text),
                    Reasoning::Left => {}
                },
                Event::Call { index, name } => {
                    let begun = Some((call_id(), name.clone()));
                    parts.calls.push(Call { index: *index, begun, arguments: String::new() });
                }
                Event::Arguments { index, text } => match parts.calls.last_mut() {
                    Some(call) if call.index == *index => call.arguments.push_str(text),
                    _ => {
                        let call = Call { index: *index, begun: None, arguments: text.clone() };
                        parts.calls.push(call);
                    }
                },
            }
        }
        parts
    }

    fn is_empty(&self) -> bool {
        self.content.is_empty() && self.reasoning.is_empty() && self.calls.is_empty()
    }

    fn delta(&self) -> Delta<'_> {
        fn told(text: &str) -> Option<&str> {
            (!text.is_empty()).then_some(text)
        }
        let calls = self.calls.iter().map(|Call { index, begun, arguments }| ToolCallDelta {
            index: *index,
            id: begun.as_ref().map(|(id, _)| id.clone()),
            kind: begun.is_some().then_some("function"),
            function: FunctionDelta {
                name: begun.as_ref().map(|(_, name)| name.as_str()),
                arguments: Some(arguments),
            },
        });
        Delta {
            role: None,
            content: told(&self.content),
            reasoning: told(&self.reasoning),
            reasoning_content: told(&self.reasoning),
            tool_calls: calls.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn delta_of(events: &[Event]) -> Value {
        serde_json::to_value(Parts::of(events, Reasoning::Apart).delta()).unwrap()
    }

    #[test]
    fn one_delta_tells_all_of_a_step() {
        let events = [
            Event::Reasoning("so".into()),
            Event::Content("a".into()),
            Event::Call { index: 0, name: "f".into() },
            Event::Arguments { index: 0, text: "{}".into() },
            Event::Call { index: 1, name: "g".into() },
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
    fn later_arguments_carry_no_name() {
        let delta = delta_of(&[Event::Arguments { index: 1, text: "3}".into() }]);
        let call = json!({"index": 1, "function": {"arguments": "3}"}});
        assert_eq!(delta, json!({"tool_calls": [call]}));
    }
}
