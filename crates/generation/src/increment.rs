//! What came of a reply since the last increment: one type, from the engine's thread to the encoder
//! of an API. The scheduler's own [`kilotok_sched::Advance`] is another one, because it is of one
//! step and of tokens alone: the scheduler knows neither text nor clocks.

use kilotok_abi::TokenId;
use kilotok_engine::{RowFault, TokenLogprobs};
use kilotok_sched::Advance;
use kilotok_text::Event;

use crate::stats::ReplyStats;

/// The engine's thread appends the tokens of each step and the statistics, and
/// [`crate::ReplyStream`] adds the text. Increments of one reply, appended, are the whole reply.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Increment {
    /// What the tokens say: content, reasoning and tool calls.
    pub events: Vec<Event>,
    /// The end token included.
    pub tokens: Vec<TokenId>,
    /// One per token, if asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// Of the prompt's next tokens, if asked for. The prompt's first token has none.
    pub prompt_logprobs: Vec<TokenLogprobs>,
    /// Of the whole reply so far.
    pub stats: ReplyStats,
    /// Set in the last increment.
    pub finish: Option<FinishReason>,
}

impl Increment {
    /// Appends the tokens that a step brought.
    pub(crate) fn append_step(&mut self, advance: Advance) {
        append(&mut self.tokens, advance.tokens);
        append(&mut self.logprobs, advance.logprobs);
        append(&mut self.prompt_logprobs, advance.scored);
    }

    /// Appends the next increment of the same reply.
    pub fn append(&mut self, next: Self) {
        append(&mut self.events, next.events);
        append(&mut self.tokens, next.tokens);
        append(&mut self.logprobs, next.logprobs);
        append(&mut self.prompt_logprobs, next.prompt_logprobs);
        self.stats = next.stats;
        self.finish = next.finish;
    }
}

/// A list that is alone is not copied.
fn append<T>(list: &mut Vec<T>, mut next: Vec<T>) {
    if list.is_empty() {
        *list = next;
    } else {
        list.append(&mut next);
    }
}

/// How a reply ended. The engine's thread knows the ends that the scheduler sees, aborts and
/// failures; [`crate::ReplyStream`], which reads the text, finds the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// Its last token is one of the model's end tokens.
    EndToken,
    /// Its last token is one that the request named.
    StopToken(TokenId),
    /// One of the request's stop strings appeared.
    StopString(String),
    /// It called tools.
    ToolCalls,
    /// It has as many tokens as were asked for, or as there is room for.
    Length,
    /// It was aborted by its id.
    Aborted,
    Failed(Failure),
}

impl FinishReason {
    pub(crate) fn failed(kind: FailureKind, message: impl Into<String>) -> Self {
        Self::Failed(Failure { kind, message: message.into() })
    }

    pub(crate) fn of_fault(fault: RowFault) -> Self {
        match fault {
            RowFault::NotFinite { .. } => {
                let hint = "the model or its weights are at fault";
                Self::failed(FailureKind::Fault, format!("{fault}: {hint}"))
            }
            // The position is left out: each reply to a prompt may reach it first, and the error is
            // that of all.
            RowFault::NothingAllowed { .. } => {
                let why =
                    "grammar, allowed tokens, bad words and min_tokens leave nothing to choose";
                let message = format!("no token is allowed: {why}");
                Self::failed(FailureKind::NothingAllowed, message)
            }
        }
    }

    /// The label of vLLM's metrics.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::EndToken | Self::StopToken(_) | Self::StopString(_) | Self::ToolCalls => "stop",
            Self::Length => "length",
            Self::Aborted | Self::Failed(Failure { kind: FailureKind::Shutdown, .. }) => "abort",
            Self::Failed(_) => "error",
        }
    }
}

/// Why a reply is not complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub kind: FailureKind,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The engine failed, and all replies with it.
    Engine,
    /// No further token can be chosen for this reply; others go on.
    Fault,
    /// The same, because the request itself forbids every token.
    NothingAllowed,
    /// There is too much to do just now; the same request may work later.
    Busy,
    /// The server stops and waits no longer.
    Shutdown,
}
