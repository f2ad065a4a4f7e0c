//! One reply as text: parses the tokens of each increment into content, reasoning and tool calls,
//! and applies stop strings.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use kilotok_abi::TokenId;
use kilotok_text::{Reply, Stopped, Text};

use crate::admission::TokenStream;
use crate::increment::{Failure, FinishReason, Increment};
use crate::replies::GenerationRequest;

/// See the file's head. Dropping it cancels the reply.
pub struct ReplyStream {
    tokens: TokenStream,
    parser: Reply,
    text: Arc<Text>,
    stop_tokens: Vec<TokenId>,
    /// Whether the text of the end token belongs to the reply.
    show_end: bool,
    /// Number of tokens for which an increment waits.
    interval: u32,
    /// The index of the answer's first token, as far as the tokens so far tell.
    answer_start: u32,
    pending: Increment,
    over: bool,
}

impl ReplyStream {
    pub(crate) fn new(tokens: TokenStream, request: &GenerationRequest, text: &Arc<Text>) -> Self {
        Self {
            tokens,
            parser: Reply::new(Arc::clone(text), request.reply.clone()),
            text: Arc::clone(text),
            stop_tokens: request.stop_tokens.clone(),
            show_end: request.reply.include_stop && !request.reply.skip_special,
            interval: request.interval,
            answer_start: 0,
            pending: Increment::default(),
            over: false,
        }
    }

    /// The next increment; None after the last one. Nothing is lost when the caller stops polling.
    pub(crate) fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Increment, Failure>>> {
        loop {
            if self.over {
                return Poll::Ready(None);
            }
            let next = match pin!(self.tokens.next()).poll(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(next)) => next,
            };
            match self.read(next) {
                Ok(next) => self.pending.append(next),
                Err(failure) => {
                    self.over = true;
                    return Poll::Ready(Some(Err(failure)));
                }
            }
            let pending = &self.pending;
            self.over = pending.finish.is_some();
            let is_first = pending.stats.token_count == pending.tokens.len() as u32;
            let waits = !is_first && (pending.tokens.len() as u32) < self.interval;
            if self.over || !waits {
                return Poll::Ready(Some(Ok(std::mem::take(&mut self.pending))));
            }
        }
    }

    /// Adds the text of the tokens, and ends the reply if the text contains a stop string or its
    /// last call is complete.
    fn read(&mut self, mut next: Increment) -> Result<Increment, Failure> {
        let is_end = next.finish == Some(FinishReason::EndToken);
        let text_count = next.tokens.len() - usize::from(is_end && !self.show_end);
        let token_count_before = next.stats.token_count - next.tokens.len() as u32;
        let mut stopped = None;
        for (index, token) in next.tokens[..text_count].iter().enumerate() {
            let reasoning_count = self.parser.reasoning_count();
            stopped = self.parser.push(*token).map(|stop| (index + 1, stop));
            if self.parser.reasoning_count() > reasoning_count {
                self.answer_start = token_count_before + index as u32 + 1;
            }
            if stopped.is_some() {
                break;
            }
        }
        next.finish = match (stopped, next.finish) {
            (Some((kept, stop)), _) => {
                next.tokens.truncate(kept);
                next.logprobs.truncate(kept);
                next.stats.token_count = token_count_before + kept as u32;
                self.tokens.complete(next.stats.token_count);
                Some(match stop {
                    Stopped::String(text) => FinishReason::StopString(text),
                    Stopped::Calls => FinishReason::ToolCalls,
                })
            }
            (None, Some(FinishReason::EndToken)) => Some(self.end_token(next.tokens.last())),
            (None, Some(FinishReason::Failed(failure))) => return Err(failure),
            (None, finish) => finish,
        };
        match next.finish {
            None => {}
            Some(FinishReason::Length | FinishReason::Aborted | FinishReason::StopString(_)) => {
                self.parser.cut();
            }
            Some(_) => self.parser.finish(),
        }
        next.stats.reasoning_count = self.parser.reasoning_count();
        next.stats.answer_start = self.answer_start;
        next.events = self.parser.take();
        if matches!(next.finish, Some(FinishReason::EndToken | FinishReason::StopToken(_)))
            && self.parser.call_count() > 0
        {
            next.finish = Some(FinishReason::ToolCalls);
        }
        Ok(next)
    }

    /// The finish of a reply that ended with an end token: a stop token of the request, or the
    /// model's.
    fn end_token(&self, last: Option<&TokenId>) -> FinishReason {
        match last {
            Some(token)
                if self.stop_tokens.contains(token)
                    && !self.text.defaults().end_tokens.contains(token) =>
            {
                FinishReason::StopToken(*token)
            }
            _ => FinishReason::EndToken,
        }
    }
}
