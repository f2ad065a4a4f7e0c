//! Replies of `/v1/completions`: text, with the prompt before it if that is wanted.

use std::mem::take;
use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use kilotok_abi::TokenId;
use kilotok_engine::TokenLogprobs;
use kilotok_text::Event;
use serde_json::Value;

use super::show::Show;
use crate::choice::{Finish, Piece};
use crate::error::ApiError;
use crate::said::{Said, finish_reason, finite, stop_reason};
use crate::sse::{Dialect, Frames};
use crate::tally::Tally;
use crate::wire::chunk::Chunk;
use crate::wire::completions::{Completion, CompletionChoice};
use crate::wire::logprobs::{Pairs, TextLogprobs};

const OBJECT: &str = "text_completion";

pub(crate) struct Completions {
    show: Show,
    prompts: Vec<Arc<[TokenId]>>,
    /// The text of each prompt, if it comes before the reply.
    echo: Option<Vec<String>>,
    choices: Vec<Progress>,
    /// Of the choices that the engine makes: their numbers among all.
    asked: Vec<usize>,
    /// What became of the others, until it is told.
    idle: Vec<(usize, Piece)>,
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
    pub(crate) fn new(show: Show, prompts: Vec<Arc<[TokenId]>>, echo: Option<Vec<String>>) -> Self {
        let choices = vec![Progress::default(); show.choice_count];
        let asked = (0..show.choice_count).collect();
        Self { show, prompts, echo, choices, asked, idle: Vec::new() }
    }

    /// Only some prompts go to the engine: with the others there is nothing to do.
    pub(crate) fn ask(&mut self, goes: impl Fn(&[TokenId]) -> bool) {
        for choice in take(&mut self.asked) {
            let prompt = &self.prompts[self.prompt(choice)];
            if goes(prompt) {
                self.asked.push(choice);
                continue;
            }
            let tally = Tally::new(prompt.len() as u32);
            let piece = Piece { tally, finish: Some(Finish::Length), ..Piece::default() };
            self.idle.push((choice, piece));
        }
    }

    fn prompt(&self, choice: usize) -> usize {
        choice / self.show.n as usize
    }

    fn prompt_token_ids(&self, choice: usize) -> Option<&[TokenId]> {
        self.show.token_ids.then(|| self.prompts[self.prompt(choice)].as_ref())
    }

    /// Log-probabilities of the prompt's tokens. The first has none.
    fn echoed(&self, choice: usize, scored: &[TokenLogprobs], out: &mut TextLogprobs) {
        let prompt = &self.prompts[self.prompt(choice)];
        let spelling = self.show.spelling();
        if let Some(first) = prompt.first() {
            push(out, spelling.token(*first), None, None);
        }
        self.spoken(scored, out);
    }

    fn spoken(&self, logprobs: &[TokenLogprobs], out: &mut TextLogprobs) {
        let spelling = self.show.spelling();
        let top_count = self.show.logprobs.unwrap_or_default();
        for each in logprobs {
            let token = spelling.token(each.chosen.token);
            let top = (top_count > 0).then(|| spelling.top(each, top_count));
            push(out, token, Some(finite(each.chosen.logprob)), top);
        }
    }

    fn choice(&self, index: usize, said: Said) -> CompletionChoice<'_> {
        let echo = self.echo.as_ref().map(|texts| &texts[self.prompt(index)]);
        let logprobs = self.show.logprobs.map(|_| {
            let mut out = TextLogprobs::default();
            if echo.is_some() {
                self.echoed(index, &said.scored, &mut out);
            }
            self.spoken(&said.logprobs, &mut out);
            out
        });
        let (finish, stop_reason) = (said.finish_reason(), said.stop_reason());
        CompletionChoice {
            index: index as u32,
            text: echo.map_or(String::new(), String::clone) + &said.content,
            logprobs,
            finish_reason: Some(finish),
            stop_reason,
            prompt_logprobs: self.show.prompt_logprobs(&said.scored),
            token_ids: self.show.token_ids.then_some(said.tokens),
            prompt_token_ids: self.prompt_token_ids(index),
        }
    }

    fn tallies(&self) -> Vec<Tally> {
        self.choices.iter().map(|choice| choice.tally.clone()).collect()
    }

    fn chunk<'a>(&'a self, choices: &'a [CompletionChoice<'a>]) -> Chunk<'a, CompletionChoice<'a>> {
        self.show.chunk(OBJECT, choices, &self.tallies())
    }

    /// The first chunk of a choice that has its prompt before it.
    fn begin(&mut self, index: usize, out: &mut Frames) {
        self.choices[index].begun = true;
        let echo = self.echo.as_ref().map(|texts| texts[self.prompt(index)].clone());
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
        let choice = CompletionChoice {
            logprobs,
            prompt_token_ids: self.prompt_token_ids(index),
            ..choice_of(index, echo.unwrap_or_default())
        };
        out.data(&self.chunk(&[choice]));
    }

    fn tell(&mut self, index: usize, piece: Piece, out: &mut Frames) {
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
        let usage = self.show.running_usage() && !piece.tokens.is_empty();
        if text.is_empty() && logprobs.is_none() && !ids && !usage {
            return;
        }
        let token_ids = ids.then_some(piece.tokens);
        let choice = CompletionChoice { logprobs, token_ids, ..choice_of(index, text) };
        out.data(&self.chunk(&[choice]));
    }

    fn finish(&self, index: usize, finish: &Finish, out: &mut Frames) {
        let choice = CompletionChoice {
            finish_reason: Some(finish_reason(finish)),
            stop_reason: stop_reason(finish),
            prompt_logprobs: self.show.prompt_logprobs(&self.choices[index].scored),
            ..choice_of(index, String::new())
        };
        out.data(&self.show.last_chunk(OBJECT, &[choice], &self.tallies()));
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
    fn warn(&mut self, warnings: &[String]) {
        self.show.head.warnings = warnings.to_vec();
    }

    fn piece(&mut self, index: usize, piece: Piece, out: &mut Frames) {
        for (choice, piece) in take(&mut self.idle) {
            self.tell(choice, piece, out);
        }
        self.tell(self.asked[index], piece, out);
    }

    fn fail(&mut self, error: &ApiError, out: &mut Frames) {
        self.show.fail(error, out);
    }

    fn end(&mut self, out: &mut Frames) {
        self.show.end::<CompletionChoice<'_>>(OBJECT, &self.tallies(), out);
    }

    fn whole(mut self, pieces: Vec<(usize, Piece)>) -> Response {
        let pieces = pieces.into_iter().map(|(index, piece)| (self.asked[index], piece));
        let pieces = pieces.chain(take(&mut self.idle)).collect();
        let said = Said::all(self.show.choice_count, pieces);
        let tallies: Vec<_> = said.iter().map(|said| said.tally.clone()).collect();
        let choices = said.into_iter().enumerate();
        let head = &self.show.head;
        let completion = Completion {
            id: &head.id,
            object: OBJECT,
            created: head.created,
            model: &head.model,
            choices: choices.map(|(index, said)| self.choice(index, said)).collect(),
            system_fingerprint: &head.service.fingerprint,
            usage: self.show.total(&tallies),
            metrics: self.show.metrics(&tallies),
            warnings: &self.show.head.warnings,
        };
        axum::Json(completion).into_response()
    }
}
