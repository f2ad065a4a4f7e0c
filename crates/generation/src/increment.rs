//! The progress of a reply since its last increment, in one type from the engine's thread to the
//! encoder of an API. The scheduler has its own type, [`kilotok_sched::Advance`], which covers one
//! step and tokens only: the scheduler knows neither text nor clocks.

use kilotok_abi::TokenId;
use kilotok_engine::{RowFault, TokenLogprobs};
use kilotok_sched::Advance;
use kilotok_text::Event;

use crate::stats::ReplyStats;

/// The engine's thread appends the tokens and the statistics of each step, and
/// [`crate::ReplyStream`] adds the text. All increments of a reply, appended, are the complete
/// reply.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Increment {
    /// The text of the tokens: content, reasoning and tool calls.
    pub events: Vec<Event>,
    /// Including the end token.
    pub tokens: Vec<TokenId>,
    /// One per token, if the request asks for them.
    pub logprobs: Vec<TokenLogprobs>,
    /// Log-probabilities of the prompt's next tokens, if the request asks for them. The prompt's
    /// first token has none.
    pub prompt_logprobs: Vec<TokenLogprobs>,
    /// Statistics of the whole reply so far.
    pub stats: ReplyStats,
    /// Set in the last increment.
    pub finish: Option<FinishReason>,
}

impl Increment {
    /// Appends the tokens of a step.
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

/// Appends `next`. If `list` is empty, nothing is copied.
fn append<T>(list: &mut Vec<T>, mut next: Vec<T>) {
    if list.is_empty() {
        *list = next;
    } else {
        list.append(&mut next);
    }
}

/// How a reply ended. The engine's thread sees end tokens, the length, aborts and failures;
/// [`crate::ReplyStream`], which reads the text, finds the other ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The last token is one of the model's end tokens.
    EndToken,
    /// The last token is a stop token of the request.
    StopToken(TokenId),
    /// One of the request's stop strings appeared.
    StopString(String),
    /// The reply called tools.
    ToolCalls,
    /// The reply has as many tokens as were asked for, or as there is room for.
    Length,
    /// The reply was aborted by its id.
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
            // The position is left out: any of the replies to a prompt may reach it first, and all
            // get this error.
            RowFault::NothingAllowed { .. } => {
                let why =
                    "grammar, allowed tokens, bad words and min_tokens leave nothing to choose";
                let message = format!("no token is allowed: {why}");
                Self::failed(FailureKind::NothingAllowed, message)
            }
        }
    }

    /// The label in vLLM's metrics.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::EndToken | Self::StopToken(_) | Self::StopString(_) | Self::ToolCalls => "stop",
            Self::Length => "length",
            Self::Aborted | Self::Failed(Failure { kind: FailureKind::Shutdown, .. }) => "abort",
            Self::Failed(_) => "error",
        }
    }
}

/// The reason why a reply is incomplete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub kind: FailureKind,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The engine failed, and all replies with it.
    Engine,
    /// No further token can be chosen for this reply; others continue.
    Fault,
    /// No further token can be chosen, because the request itself forbids every token.
    NothingAllowed,
    /// The server is overloaded; the same request may succeed later.
    Busy,
    /// The server is shutting down and waits no longer.
    Shutdown,
}
