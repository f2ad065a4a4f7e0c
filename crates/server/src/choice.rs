//! One reply as it comes: tokens from the engine become text, stop strings end it, and what it cost
//! is counted. Knows no API: each says the pieces in its own words.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use kilotok_abi::TokenId;
use kilotok_engine::TokenLogprobs;
use kilotok_text::{Event, Reply, Stopped, Text};

use crate::error::ApiError;
use crate::params::Job;
use crate::tally::Tally;
use kilotok_generation::gate::{Ended, Ticket, Update};

/// What came of a reply since the last piece.
#[derive(Clone, Debug, Default)]
pub(crate) struct Piece {
    pub(crate) events: Vec<Event>,
    /// The end token included.
    pub(crate) tokens: Vec<TokenId>,
    /// Of the tokens, if asked for.
    pub(crate) logprobs: Vec<TokenLogprobs>,
    /// Of the prompt's tokens, all but the first, if asked for.
    pub(crate) scored: Vec<TokenLogprobs>,
    /// Of all pieces so far.
    pub(crate) tally: Tally,
    /// Set in the last piece.
    pub(crate) finish: Option<Finish>,
}

/// Why a reply ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    /// The model ended it.
    End,
    /// A token of the client's list did.
    StopToken(TokenId),
    StopString(String),
    /// It called tools.
    Calls,
    Length,
    Aborted,
}

/// One running reply.
pub(crate) struct Choice {
    ticket: Ticket,
    reply: Reply,
    text: Arc<Text>,
    stop_tokens: Vec<TokenId>,
    /// The end token's text belongs to the reply.
    show_end: bool,
    interval: u32,
    pending: Piece,
    over: bool,
}

impl Choice {
    pub(crate) fn new(ticket: Ticket, job: &Job, prompt_count: u32, text: &Arc<Text>) -> Self {
        let tally = Tally::new(prompt_count);
        Self {
            ticket,
            reply: Reply::new(Arc::clone(text), job.reply.clone()),
            text: Arc::clone(text),
            stop_tokens: job.stop_tokens.clone(),
            show_end: job.reply.include_stop && !job.reply.skip_special,
            interval: job.interval,
            pending: Piece { tally, ..Piece::default() },
            over: false,
        }
    }

    /// The next piece; None after the last one. Nothing is lost when it is not waited for.
    pub(crate) fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Piece, ApiError>>> {
        loop {
            if self.over {
                return Poll::Ready(None);
            }
            let update = match pin!(self.ticket.next()).poll(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(update)) => update,
            };
            if let Err(error) = self.take(update) {
                self.over = true;
                return Poll::Ready(Some(Err(error)));
            }
            let piece = &self.pending;
            let first = piece.tally.token_count == piece.tokens.len() as u32;
            let waits = !first && (piece.tokens.len() as u32) < self.interval;
            if piece.finish.is_some() || !waits {
                self.over = piece.finish.is_some();
                let tally = piece.tally.clone();
                let next = Piece { tally, ..Piece::default() };
                return Poll::Ready(Some(Ok(std::mem::replace(&mut self.pending, next))));
            }
        }
    }

    /// Adds an update to what is pending.
    fn take(&mut self, update: Update) -> Result<(), ApiError> {
        let Update { mut tokens, mut logprobs, scored, cached_count, steps, times, finish } =
            update;
        self.pending.scored.extend(scored);
        let ended = finish == Some(Ended::EndToken);
        let spoken = tokens.len() - usize::from(ended && !self.show_end);
        let mut stopped = None;
        for (index, token) in tokens[..spoken].iter().enumerate() {
            let reasoning_count = self.reply.reasoning_count();
            stopped = self.reply.push(*token).map(|stop| (index + 1, stop));
            let tally = &mut self.pending.tally;
            if self.reply.reasoning_count() > reasoning_count {
                tally.answer_start = tally.token_count + index as u32 + 1;
            }
            if stopped.is_some() {
                break;
            }
        }
        let finish = match (stopped, finish) {
            (Some((kept, stop)), _) => {
                tokens.truncate(kept);
                logprobs.truncate(kept);
                self.ticket.stop(self.pending.tally.token_count + kept as u32);
                Some(match stop {
                    Stopped::String(text) => Finish::StopString(text),
                    Stopped::Calls => Finish::Calls,
                })
            }
            (None, None) => None,
            (None, Some(Ended::EndToken)) => Some(self.end_token(tokens.last().copied())),
            (None, Some(Ended::Length)) => Some(Finish::Length),
            (None, Some(Ended::Aborted)) => Some(Finish::Aborted),
            (None, Some(Ended::Failed(failure))) => return Err(ApiError::from_failure(failure)),
        };
        match finish {
            None => {}
            Some(Finish::Length | Finish::Aborted | Finish::StopString(_)) => self.reply.cut(),
            Some(_) => self.reply.finish(),
        }
        let piece = &mut self.pending;
        piece.tally.add(tokens.len() as u32, cached_count, &steps, times);
        piece.tally.reasoning_count = self.reply.reasoning_count();
        piece.events.extend(self.reply.take());
        piece.tokens.extend(tokens);
        piece.logprobs.extend(logprobs);
        piece.finish = finish.map(|finish| match finish {
            Finish::End | Finish::StopToken(_) if self.reply.call_count() > 0 => Finish::Calls,
            other => other,
        });
        Ok(())
    }

    fn end_token(&self, last: Option<TokenId>) -> Finish {
        match last {
            Some(token)
                if self.stop_tokens.contains(&token)
                    && !self.text.defaults().end_tokens.contains(&token) =>
            {
                Finish::StopToken(token)
            }
            _ => Finish::End,
        }
    }
}
