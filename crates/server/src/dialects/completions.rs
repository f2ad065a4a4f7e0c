//! Replies of `/v1/completions`: text, with the prompt before it if that is wanted.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use kilotok_abi::TokenId;
use kilotok_engine::TokenLogprobs;
use kilotok_text::Event;
use serde_json::Value;

use super::{Extras, Letterhead};
use crate::choice::{Finish, Piece};
use crate::error::ApiError;
use crate::said::{Said, finish_reason, finite, stop_reason};
use crate::sse::{Dialect, Frames};
use crate::tally::{Tally, total};
use crate::wire::completions::{Completion, CompletionChoice, CompletionChunk};
use crate::wire::logprobs::{Pairs, TextLogprobs};

/// What the client wants to see.
pub(crate) struct Show {
    pub(crate) n: u32,
    pub(crate) prompts: Vec<Arc<[TokenId]>>,
    /// Log-probabilities, with so many alternatives.
    pub(crate) logprobs: Option<u32>,
    pub(crate) prompt_logprobs: Option<u32>,
    pub(crate) tokens_as_ids: bool,
    pub(crate) token_ids: bool,
    /// The text of each prompt, if it comes before the reply.
    pub(crate) echo: Option<Vec<String>>,
    pub(crate) extras: Extras,
}

pub(crate) struct Completions {
    head: Letterhead,
    show: Show,
    choices: Vec<Progress>,
}

/// How far a streamed choice is.
#[derive(Clone, Default)]
struct Progress {
    begun: bool,
    tally: Tally,
    scored: Vec<TokenLogprobs>,
    /// Characters told so far.
    offset: u32,
}

impl Completions {
    pub(crate) fn new(head: Letterhead, show: Show) -> Self {
        let choices = vec![Progress::default(); show.prompts.len() * show.n as usize];
        Self { head, show, choices }
    }

    fn prompt(&self, choice: usize) -> usize {
        choice / self.show.n as usize
    }

    /// Log-probabilities of the prompt's tokens. The first has none.
    fn echoed(&self, choice: usize, scored: &[TokenLogprobs], out: &mut TextLogprobs) {
        let prompt = &self.show.prompts[self.prompt(choice)];
        let spelling = self.head.spelling(self.show.tokens_as_ids);
        if let Some(first) = prompt.first() {
            push(out, spelling.token(*first), None, None);
        }
        self.spoken(scored, out);
    }

    fn spoken(&self, logprobs: &[TokenLogprobs], out: &mut TextLogprobs) {
        let spelling = self.head.spelling(self.show.tokens_as_ids);
        let top_count = self.show.logprobs.unwrap_or_default();
        for each in logprobs {
            let token = spelling.token(each.chosen.token);
            let top = (top_count > 0).then(|| spelling.top(each, top_count));
            push(out, token, Some(finite(each.chosen.logprob)), top);
        }
    }

    /// The replies as one answer.
    pub(crate) fn whole(&self, said: Vec<Said>) -> Response {
        let tallies: Vec<_> = said.iter().map(|said| said.tally.clone()).collect();
        let choices = said.into_iter().enumerate();
        let completion = Completion {
            id: &self.head.id,
            object: "text_completion",
            created: self.head.created,
            model: &self.head.model,
            choices: choices.map(|(index, said)| self.choice(index, said)).collect(),
            system_fingerprint: &self.head.service.fingerprint,
            usage: total(tallies.iter(), self.show.n),
            metrics: self.head.metrics(&tallies),
        };
        axum::Json(completion).into_response()
    }

    fn choice(&self, index: usize, said: Said) -> CompletionChoice<'_> {
        let echo = self.show.echo.as_ref().map(|texts| &texts[self.prompt(index)]);
        let logprobs = self.show.logprobs.map(|_| {
            let mut out = TextLogprobs::default();
            if echo.is_some() {
                self.echoed(index, &said.scored, &mut out);
            }
            self.spoken(&said.logprobs, &mut out);
            out
        });
        let (finish, stop_reason) = (said.finish_reason(), said.stop_reason());
        let spelling = self.head.spelling(self.show.tokens_as_ids);
        CompletionChoice {
            index: index as u32,
            text: echo.map_or(String::new(), String::clone) + &said.content,
            logprobs,
            finish_reason: Some(finish),
            stop_reason,
            prompt_logprobs: self
                .show
                .prompt_logprobs
                .map(|top_count| spelling.prompt(&said.scored, top_count)),
            token_ids: self.show.token_ids.then_some(said.tokens),
            prompt_token_ids: self
                .show
                .token_ids
                .then(|| self.show.prompts[self.prompt(index)].as_ref()),
        }
    }

    fn tallies(&self) -> Vec<Tally> {
        self.choices.iter().map(|choice| choice.tally.clone()).collect()
    }

    fn chunk<'a>(&'a self, choices: &'a [CompletionChoice<'a>]) -> CompletionChunk<'a> {
        let running = self.show.extras.running_usage;
        CompletionChunk {
            id: &self.head.id,
            object: "text_completion",
            created: self.head.created,
            model: &self.head.model,
            choices,
            system_fingerprint: None,
            usage: running.then(|| total(self.tallies().iter(), self.show.n)),
            metrics: if running { self.head.metrics(&self.tallies()) } else { None },
        }
    }

    /// The first chunk of a choice that has its prompt before it.
    fn begin(&mut self, index: usize, out: &mut Frames) {
        self.choices[index].begun = true;
        let echo = self.show.echo.as_ref().map(|texts| texts[self.prompt(index)].clone());
        if echo.is_none() && !self.show.token_ids {
            return;
        }
        let mut logprobs = None;
        if self.show.logprobs.is_some() && echo.is_some() {
            let mut told = TextLogprobs::default();
            self.echoed(index, &self.choices[index].scored, &mut told);
            self.choices[index].offset = end_of(&told);
            logprobs = Some(told);
        }
        let prompt = self.show.prompts[self.prompt(index)].as_ref();
        let choice = CompletionChoice {
            logprobs,
            prompt_token_ids: self.show.token_ids.then_some(prompt),
            ..choice_of(index, echo.unwrap_or_default())
        };
        out.data(&self.chunk(&[choice]));
    }

    fn progress(&mut self, index: usize, piece: Piece, out: &mut Frames) {
        let mut text = String::new();
        for event in &piece.events {
            if let Event::Content(more) | Event::Reasoning(more) = event {
                text.push_str(more);
            }
        }
        let mut logprobs = None;
        if self.show.logprobs.is_some() && !piece.logprobs.is_empty() {
            let mut told = TextLogprobs::default();
            self.spoken(&piece.logprobs, &mut told);
            let offset = self.choices[index].offset;
            self.choices[index].offset += end_of(&told);
            told.text_offset.iter_mut().for_each(|each| *each += offset);
            logprobs = Some(told);
        }
        let ids = self.show.token_ids && !piece.tokens.is_empty();
        let usage = self.show.extras.running_usage && !piece.tokens.is_empty();
        if text.is_empty() && logprobs.is_none() && !ids && !usage {
            return;
        }
        let token_ids = ids.then_some(piece.tokens);
        let choice = CompletionChoice { logprobs, token_ids, ..choice_of(index, text) };
        out.data(&self.chunk(&[choice]));
    }

    fn finish(&self, index: usize, finish: &Finish, out: &mut Frames) {
        let spelling = self.head.spelling(self.show.tokens_as_ids);
        let scored = &self.choices[index].scored;
        let prompt_logprobs = self.show.prompt_logprobs.map(|top| spelling.prompt(scored, top));
        let choice = CompletionChoice {
            finish_reason: Some(finish_reason(finish)),
            stop_reason: stop_reason(finish),
            prompt_logprobs,
            ..choice_of(index, String::new())
        };
        let choices = [choice];
        let mut chunk = self.chunk(&choices);
        chunk.system_fingerprint = Some(&self.head.service.fingerprint);
        if !self.show.extras.usage && self.choices.len() == 1 {
            chunk.metrics = self.head.metrics(&self.tallies());
        }
        out.data(&chunk);
    }
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

/// Where the next token begins.
fn end_of(logprobs: &TextLogprobs) -> u32 {
    match (logprobs.text_offset.last(), logprobs.tokens.last()) {
        (Some(offset), Some(token)) => offset + token.chars().count() as u32,
        _ => 0,
    }
}

impl Dialect for Completions {
    fn piece(&mut self, index: usize, piece: Piece, out: &mut Frames) {
        let progress = &mut self.choices[index];
        progress.tally = piece.tally.clone();
        if self.show.logprobs.is_some() || self.show.prompt_logprobs.is_some() {
            progress.scored.extend_from_slice(&piece.scored);
        }
        // Before its first token, the prompt's scores may be incomplete.
        let told = !piece.tokens.is_empty() || piece.finish.is_some();
        if told && !progress.begun {
            self.begin(index, out);
        }
        let finish = piece.finish.clone();
        self.progress(index, piece, out);
        if let Some(finish) = finish {
            self.finish(index, &finish, out);
        }
    }

    fn fail(&mut self, error: &ApiError, out: &mut Frames) {
        self.show.extras.usage = false;
        out.data(&error.body());
    }

    fn end(&mut self, out: &mut Frames) {
        if self.show.extras.usage {
            let mut chunk = self.chunk(&[]);
            let tallies = self.tallies();
            chunk.usage = Some(total(tallies.iter(), self.show.n));
            chunk.metrics = self.head.metrics(&tallies);
            out.data(&chunk);
        }
        out.text("[DONE]");
    }
}
