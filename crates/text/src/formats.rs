//! Formats of reasoning and tool calls, one file per format. Each has its reader in
//! [`crate::reply`]; the formats whose markup is tags share one.

mod harmony;
mod hermes;
mod mimo;
mod plain;
mod qwen3_coder;

use std::fmt;
use std::str::FromStr;

/// The format in which a model writes its replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    Mimo,
    Qwen3Coder,
    Hermes,
    Harmony,
    Plain,
}

/// The properties of a format on which the parsing of replies depends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    /// Replies may have reasoning: between `<think>` and `</think>` where markup is tags.
    pub(crate) reasons: bool,
    /// Replies may have calls: where markup is tags, between `<tool_call>` and `</tool_call>`, as
    /// XML or as JSON.
    pub(crate) calls: bool,
    /// The template puts newlines around reasoning, answer, calls and XML values, and strips them
    /// again: these newlines are markup. Otherwise every character belongs to the text.
    pub(crate) padded: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown reply format {0:?}: use mimo, qwen3_coder, hermes, harmony or plain")]
pub struct UnknownFormat(pub String);

impl Format {
    pub const ALL: [Self; 5] =
        [Self::Mimo, Self::Qwen3Coder, Self::Hermes, Self::Harmony, Self::Plain];

    /// The format that a checkpoint most likely uses, judged by its `model_type`, its chat
    /// template, and whether it has harmony's special tokens.
    pub(crate) fn detect(
        model_type: &str,
        template: Option<&str>,
        has_format_tokens: bool,
    ) -> Self {
        let template = template.unwrap_or_default();
        if has_format_tokens && harmony::writes(model_type, template) {
            Self::Harmony
        } else if mimo::writes(model_type, template) {
            Self::Mimo
        } else if qwen3_coder::writes(template) {
            Self::Qwen3Coder
        } else if hermes::writes(template) {
            Self::Hermes
        } else {
            Self::Plain
        }
    }

    /// Whether replies may have calls.
    pub fn has_calls(self) -> bool {
        self.style().calls
    }

    pub(crate) fn style(self) -> Style {
        match self {
            Self::Mimo => mimo::STYLE,
            Self::Qwen3Coder => qwen3_coder::STYLE,
            Self::Hermes => hermes::STYLE,
            Self::Harmony => harmony::STYLE,
            Self::Plain => plain::STYLE,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Mimo => "mimo",
            Self::Qwen3Coder => "qwen3_coder",
            Self::Hermes => "hermes",
            Self::Harmony => "harmony",
            Self::Plain => "plain",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        let named = Self::ALL.into_iter().find(|format| format.name() == name);
        named.ok_or_else(|| UnknownFormat(name.to_owned()))
    }
}
