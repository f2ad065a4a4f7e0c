//! From what a client asked to what the engine is asked: every value checked, every default filled
//! in, the same for all four APIs. Knows the wire's types, not its routes.

pub(crate) mod conversation;
pub(crate) mod items;
pub(crate) mod parts;
pub(crate) mod prompt;
pub(crate) mod ranges;
pub(crate) mod sampling;
pub(crate) mod shape;
pub(crate) mod talk;
pub(crate) mod tools;

use std::sync::Arc;

use kilotok_abi::TokenId;
use kilotok_sched::Submission;
use kilotok_text::{Constraint, ReplyOptions};

use crate::trace::ReplyId;

/// A request that was checked.
pub(crate) struct Job {
    /// Of the reply, and what `/abort_requests` knows it by.
    pub(crate) id: ReplyId,
    /// Each gets `n` replies.
    pub(crate) prompts: Vec<Arc<[TokenId]>>,
    pub(crate) n: u32,
    /// Without prompt, and with the seed of the first reply.
    pub(crate) submission: Submission,
    pub(crate) reply: ReplyOptions,
    /// With the name of the field that asks for it.
    pub(crate) constraint: Option<(Constraint, &'static str)>,
    /// Tokens that end the reply because the client said so.
    pub(crate) stop_tokens: Vec<TokenId>,
    /// Tokens that a piece of a stream waits for.
    pub(crate) interval: u32,
    /// The field that a prompt's errors are about.
    pub(crate) prompt_param: &'static str,
}
