//! Harmony, the format of gpt-oss. A reply is a list of messages. Each message has a header, whose
//! channel tells the kind of message, and whose recipient makes it a call:
//!
//! ```text
//! <|start|>assistant<|channel|>analysis<|message|>reasoning<|end|>
//! <|start|>assistant<|channel|>commentary<|message|>what the user sees before a call<|end|>
//! <|start|>assistant<|channel|>commentary to=functions.name <|constrain|>json<|message|>{}<|call|>
//! <|start|>assistant<|channel|>final<|message|>answer<|return|>
//! ```
//!
//! There is nothing between messages. The recipient may also follow the role. A prompt ends with
//! `<|start|>assistant`, so a reply begins within a header.

mod header;
pub(crate) mod render;
mod typescript;

use kilotok_abi::TokenId;

pub(crate) use header::{Channel, Header};

/// The namespace of the tools that a request declares.
pub(crate) const FUNCTIONS: &str = "functions.";

/// A special token of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FormatToken {
    Start,
    Channel,
    Constrain,
    Message,
    End,
    /// Ends a call, and the reply.
    Call,
    /// Ends the last message, and the reply.
    Return,
}

impl FormatToken {
    pub(crate) const ALL: [Self; 7] = [
        Self::Start,
        Self::Channel,
        Self::Constrain,
        Self::Message,
        Self::End,
        Self::Call,
        Self::Return,
    ];

    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Start => "<|start|>",
            Self::Channel => "<|channel|>",
            Self::Constrain => "<|constrain|>",
            Self::Message => "<|message|>",
            Self::End => "<|end|>",
            Self::Call => "<|call|>",
            Self::Return => "<|return|>",
        }
    }
}

/// The ids of the format's tokens in a vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FormatTokens([TokenId; FormatToken::ALL.len()]);

impl FormatTokens {
    /// By a vocabulary's ids of special tokens.
    ///
    /// # Errors
    /// The error is the first token that the vocabulary does not have.
    pub(crate) fn find(special: impl Fn(&str) -> Option<TokenId>) -> Result<Self, &'static str> {
        let mut ids = [0; FormatToken::ALL.len()];
        for (id, token) in ids.iter_mut().zip(FormatToken::ALL) {
            *id = special(token.text()).ok_or(token.text())?;
        }
        Ok(Self(ids))
    }

    pub(crate) fn id(&self, token: FormatToken) -> TokenId {
        self.0[token as usize]
    }

    pub(crate) fn which(&self, id: TokenId) -> Option<FormatToken> {
        let at = self.0.iter().position(|&each| each == id)?;
        FormatToken::ALL.get(at).copied()
    }
}
