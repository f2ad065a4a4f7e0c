//! All that is text: tokenizer and chat template of a checkpoint, text from tokens as they come,
//! stop strings, reasoning and tool calls within a reply, and grammars that constrain one. It
//! knows no HTTP, no engine and no schedule; tokens and text come in, text and events go out.
//!
//! [`Text`] is what a checkpoint says about text, read once. A [`Reply`] reads one reply of the
//! model, a token at a time: how many tokens a step brought makes no difference to its events.

mod controls;
mod conversation;
mod detokenizer;
mod dummy;
mod files;
mod formats;
mod grammar;
mod reply;
mod stops;
mod template;
mod text;
mod tokenizer;

pub use conversation::{
    Conversation, Keep, Message, ReasoningStart, Rendered, TextGrammar, Tool, ToolCall, ToolInput,
    Wanted,
};
pub use formats::{Format, UnknownFormat};
pub use grammar::{Constraint, Grammar, GrammarError, Grammars, Masks};
pub use kilotok_abi::TokenId;
pub use reply::{Event, Parse, Reply, ReplyOptions, Stopped};
pub use text::{Defaults, Text, TextError};
