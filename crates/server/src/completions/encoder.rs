//! Encodes replies of `/v1/completions`: text, after the prompt's text if the request asks for
//! that.

use std::mem::take;
use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use kilotok_abi::TokenId;
use kilotok_engine::TokenLogprobs;
use kilotok_generation::{FinishReason, Increment, ReplyStats};
use kilotok_text::Event;
use serde_json::Value;

use super::wire::{Completion, CompletionChoice};
use crate::encoder::{Encoder, OutputOptions, finish_reason, finite, stop_reason};
use crate::error::ApiError;
use crate::sse::SseBuffer;
use crate::wire::chunk::Chunk;
use crate::wire::logprobs::{Pairs, TextLogprobs};

const OBJECT: &str = "text_completion";

pub(crate) struct CompletionsEncoder {
    output: OutputOptions,
    prompts: Vec<Arc<[TokenId]>>,
    /// The text of each prompt, if the response repeats it before the reply.
    echo: Option<Vec<String>>,
    choices: Vec<Progress>,
    /// The choices that need generating, in the order of their replies.
    generated: Vec<usize>,
    /// The other choices, whose replies have no tokens, until they are written.
    empty: Vec<(usize, Increment)>,
}

/// How far a streamed choice has been written.
#[derive(Clone, Default)]
struct Progress {
    begun: bool,
    stats: ReplyStats,
    prompt_logprobs: Vec<TokenLogprobs>,
    /// Characters written so far.
    offset: u32,
}

impl CompletionsEncoder {
    /// `is_generated` says for which prompts there is anything to generate.
    pub(crate) fn new(
        output: OutputOptions,
        prompts: Vec<Arc<[TokenId]>>,
        echo: Option<Vec<String>>,
        is_generated: impl Fn(&[TokenId]) -> bool,
    ) -> Self {
        let choices = vec![Progress::default(); output.choice_count];
        let (mut generated, mut empty) = (Vec::new(), Vec::new());
        for choice in 0..output.choice_count {
            let prompt = &prompts[choice / output.n as usize];
            if is_generated(prompt) {
                generated.push(choice);
            } else {
                let stats = ReplyStats::new(prompt.len() as u32);
                let finish = Some(FinishReason::Length);
                empty.push((choice, Increment { stats, finish, ..Increment::default() }));
            }
        }
        Self { output, prompts, echo, choices, generated, empty }
    }

    fn prompt(&self, choice: usize) -> usize {
        choice / self.output.n as usize
    }

    fn prompt_token_ids(&self, choice: usize) -> Option<&[TokenId]> {
        self.output.token_ids.then(|| self.prompts[self.prompt(choice)].as_ref())
    }

    /// Adds log-probabilities of the prompt's tokens. The first token has none.
    fn add_prompt(&self, choice: usize, logprobs: &[TokenLogprobs], out: &mut TextLogprobs) {
        let prompt = &self.prompts[self.prompt(choice)];
        let text = self.output.logprob_text();
        if let Some(first) = prompt.first() {
            push(out, text.token(*first), None, None);
        }
        self.add(logprobs, out);
    }

    fn add(&self, logprobs: &[TokenLogprobs], out: &mut TextLogprobs) {
        let text = self.output.logprob_text();
        let top_count = self.output.logprobs.unwrap_or_default();
        for each in logprobs {
            let token = text.token(each.chosen.token);
            let top = (top_count > 0).then(|| text.top(each, top_count));
            push(out, token, Some(finite(each.chosen.logprob)), top);
        }
    }

    /// A complete choice.
    fn choice(&self, index: usize, reply: Increment) -> CompletionChoice<'_> {
        let echo = self.echo.as_ref().map(|texts| &texts[self.prompt(index)]);
        let logprobs = self.output.logprobs.map(|_| {
            let mut out = TextLogprobs::default();
            if echo.is_some() {
                self.add_prompt(index, &reply.prompt_logprobs, &mut out);
            }
            self.add(&reply.logprobs, &mut out);
            out
        });
        let finish = reply.finish.as_ref();
        CompletionChoice {
            index: index as u32,
            text: echo.map_or(String::new(), String::clone) + &text_of(&reply.events),
            logprobs,
            finish_reason: Some(finish.map_or("stop", finish_reason)),
            stop_reason: finish.map_or(Value::Null, stop_reason),
            prompt_logprobs: self.output.prompt_logprobs(&reply.prompt_logprobs),
            token_ids: self.output.token_ids.then_some(reply.tokens),
            prompt_token_ids: self.prompt_token_ids(index),
        }
    }

    fn stats(&self) -> Vec<ReplyStats> {
        self.choices.iter().map(|choice| choice.stats.clone()).collect()
    }

    fn chunk<'a>(&'a self, choices: &'a [CompletionChoice<'a>]) -> Chunk<'a, CompletionChoice<'a>> {
        self.output.chunk(OBJECT, choices, &self.stats())
    }

    /// Writes the first chunk of a choice that begins with its prompt.
    fn begin(&mut self, index: usize, out: &mut SseBuffer) {
        self.choices[index].begun = true;
        let echo = self.echo.as_ref().map(|texts| texts[self.prompt(index)].clone());
        if echo.is_none() && !self.output.token_ids {
            return;
        }
        let mut logprobs = None;
        if self.output.logprobs.is_some() && echo.is_some() {
            let mut of_prompt = TextLogprobs::default();
            self.add_prompt(index, &self.choices[index].prompt_logprobs, &mut of_prompt);
            self.choices[index].offset = end_of(&of_prompt);
            logprobs = Some(of_prompt);
        }
        let choice = CompletionChoice {
            logprobs,
            prompt_token_ids: self.prompt_token_ids(index),
            ..choice_of(index, echo.unwrap_or_default())
        };
        out.data(&self.chunk(&[choice]));
    }

    fn write(&mut self, index: usize, next: Increment, out: &mut SseBuffer) {
        let progress = &mut self.choices[index];
        progress.stats = next.stats.clone();
        if self.output.logprobs.is_some() || self.output.prompt_logprobs.is_some() {
            progress.prompt_logprobs.extend_from_slice(&next.prompt_logprobs);
        }
        // Until the reply's first token, the prompt's log-probabilities may be incomplete.
        let is_scored = !next.tokens.is_empty() || next.finish.is_some();
        if is_scored && !progress.begun {
            self.begin(index, out);
        }
        let finish = next.finish.clone();
        self.progress(index, next, out);
        if let Some(finish) = finish {
            self.finish(index, &finish, out);
        }
    }

    /// Writes the choices that need no generating.
    fn write_empty(&mut self, out: &mut SseBuffer) {
        for (choice, reply) in take(&mut self.empty) {
            self.write(choice, reply, out);
        }
    }

    fn progress(&mut self, index: usize, next: Increment, out: &mut SseBuffer) {
        let text = text_of(&next.events);
        let mut logprobs = None;
        if self.output.logprobs.is_some() && !next.logprobs.is_empty() {
            let mut of_tokens = TextLogprobs::default();
            self.add(&next.logprobs, &mut of_tokens);
            let offset = self.choices[index].offset;
            self.choices[index].offset += end_of(&of_tokens);
            of_tokens.text_offset.iter_mut().for_each(|each| *each += offset);
            logprobs = Some(of_tokens);
        }
        let has_ids = self.output.token_ids && !next.tokens.is_empty();
        let has_usage = self.output.has_continuous_usage() && !next.tokens.is_empty();
        if text.is_empty() && logprobs.is_none() && !has_ids && !has_usage {
            return;
        }
        let token_ids = has_ids.then_some(next.tokens);
        let choice = CompletionChoice { logprobs, token_ids, ..choice_of(index, text) };
        out.data(&self.chunk(&[choice]));
    }

    fn finish(&self, index: usize, finish: &FinishReason, out: &mut SseBuffer) {
        let choice = CompletionChoice {
            finish_reason: Some(finish_reason(finish)),
            stop_reason: stop_reason(finish),
            prompt_logprobs: self.output.prompt_logprobs(&self.choices[index].prompt_logprobs),
            ..choice_of(index, String::new())
        };
        out.data(&self.output.last_chunk(OBJECT, &[choice], &self.stats()));
    }
}

/// The text of the events. Plain completions are not parsed, so every event is content.
fn text_of(events: &[Event]) -> String {
    let mut text = String::new();
    for event in events {
        if let Event::Content(more) | Event::Reasoning(more) = event {
            text.push_str(more);
        }
    }
    text
}

fn choice_of<'a>(index: usize, text: String) -> CompletionChoice<'a> {
    CompletionChoice {
        index: index as u32,
        text,
        logprobs: None,
        finish_reason: None,
        stop_reason: Value::Null,
        prompt_logprobs: None,
        token_ids: None,
        prompt_token_ids: None,
    }
}

fn push(
    out: &mut TextLogprobs,
    token: String,
    logprob: Option<f32>,
    top: Option<Pairs<String, f32>>,
) {
    let offset = end_of(out);
    out.tokens.push(token);
    out.token_logprobs.push(logprob);
    out.top_logprobs.push(top);
    out.text_offset.push(offset);
}

/// The offset at which the next token begins.
fn end_of(logprobs: &TextLogprobs) -> u32 {
    match (logprobs.text_offset.last(), logprobs.tokens.last()) {
        (Some(offset), Some(token)) => offset + token.chars().count() as u32,
        _ => 0,
    }
}

impl Encoder for CompletionsEncoder {
    fn warn(&mut self, warnings: &[String]) {
        self.output.head.warnings = warnings.to_vec();
    }

    fn increment(&mut self, index: usize, next: Increment, out: &mut SseBuffer) {
        self.write_empty(out);
        self.write(self.generated[index], next, out);
    }

    fn fail(&mut self, error: &ApiError, out: &mut SseBuffer) {
        self.empty.clear();
        self.output.fail(error, out);
    }

    fn end(&mut self, out: &mut SseBuffer) {
        self.write_empty(out);
        self.output.end::<CompletionChoice<'_>>(OBJECT, &self.stats(), out);
    }

    fn response(mut self, increments: Vec<(usize, Increment)>) -> Response {
        let generated = increments.into_iter().map(|(index, next)| (self.generated[index], next));
        let increments = generated.chain(take(&mut self.empty)).collect();
        let replies = self.output.replies(increments);
        let stats: Vec<_> = replies.iter().map(|reply| reply.stats.clone()).collect();
        let choices = replies.into_iter().enumerate();
        let head = &self.output.head;
        let completion = Completion {
            id: &head.id,
            object: OBJECT,
            created: head.created,
            model: &head.model,
            choices: choices.map(|(index, reply)| self.choice(index, reply)).collect(),
            system_fingerprint: &head.service.fingerprint,
            usage: self.output.usage(&stats),
            metrics: self.output.metrics(&stats),
            warnings: &head.warnings,
        };
        axum::Json(completion).into_response()
    }
}
