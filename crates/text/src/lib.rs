//! Everything about text: a checkpoint's tokenizer and chat template, the streaming detokenizer,
//! stop strings, reasoning and tool calls within a reply, and grammars that constrain a reply. This
//! crate knows nothing of HTTP, engines and scheduling: tokens and text come in, text and events go
//! out.
//!
//! [`Text`] is read once from a checkpoint. A [`Reply`] parses one reply of the model, token by
//! token; its events do not depend on how many tokens a step produced.

mod controls;
mod conversation;
mod detokenizer;
mod dummy;
mod files;
mod formats;
mod grammar;
mod harmony;
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
pub use tokenizer::panic_is_expected;
