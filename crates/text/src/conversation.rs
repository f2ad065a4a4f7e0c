//! A conversation as the input of a chat template, and the rendered prompt. Plain data, independent
//! of the API's request fields.

use std::time::SystemTime;

use serde_json::{Map, Value, json};

use crate::controls::Marks;
use crate::harmony::render::Piece;

/// Input of a template.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    pub messages: Vec<Message>,
    /// No tools and an empty list are the same: the template sees `tools` as none.
    pub tools: Vec<Tool>,
    /// Further variables of the template, such as `enable_thinking`. They cannot replace the
    /// variables that every template gets (`messages`, `tools`, `add_generation_prompt`).
    pub variables: Map<String, Value>,
    /// Ends the prompt where the assistant's turn begins.
    pub add_generation_prompt: bool,
    /// Ends the prompt within the last message, so that the model continues it.
    pub continue_final_message: bool,
    /// The time of `strftime_now`, in UTC; the system's clock if absent.
    pub now: Option<SystemTime>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    pub role: String,
    pub content: String,
    /// Reasoning of the assistant before its answer.
    pub reasoning: Option<String>,
    pub tool_calls: Vec<ToolCall>,
    /// In a tool's result: the id of the call that it answers.
    pub tool_call_id: Option<String>,
    pub name: Option<String>,
}

/// A call that the assistant made earlier.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ToolCall {
    pub id: String,
    pub name: String,
    /// An object, because templates iterate over its entries.
    pub arguments: Value,
}

/// A function that the model may call.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tool {
    pub name: String,
    pub description: Option<String>,
    /// JSON schema of the arguments. Null leaves it out of the prompt.
    pub parameters: Value,
    /// Whether arguments must follow the schema. Only grammars use it; templates do not see it.
    pub strict: bool,
    /// Used by grammars and readers of replies. To a template, a tool that takes text has the
    /// single argument `input`.
    pub input: ToolInput,
}

/// The input that a call gives its tool.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ToolInput {
    /// Arguments in JSON, which the tool's `parameters` describe.
    #[default]
    Json,
    /// Text, which must match the grammar if there is one.
    Text(Option<TextGrammar>),
}

/// A grammar of a tool's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TextGrammar {
    /// In the dialect of Lark that llguidance reads.
    Lark(String),
    /// In the syntax of Rust's `regex`; the whole text must match.
    Regex(String),
}

/// The single argument of a tool that takes text.
pub(crate) const TEXT_ARGUMENT: &str = "input";

impl Tool {
    /// A tool that takes text instead of JSON. To the model it is a function with one argument,
    /// whose description shows the grammar.
    pub fn of_text(
        name: String,
        description: Option<String>,
        grammar: Option<TextGrammar>,
    ) -> Self {
        let told = match &grammar {
            None => "The input as plain text.".to_owned(),
            Some(TextGrammar::Lark(lark)) => {
                format!("The input as plain text. It must match this Lark grammar:\n{lark}")
            }
            Some(TextGrammar::Regex(regex)) => {
                format!("The input as plain text. It must match this regular expression:\n{regex}")
            }
        };
        let parameters = json!({
            "type": "object",
            "properties": { TEXT_ARGUMENT: { "type": "string", "description": told } },
            "required": [TEXT_ARGUMENT],
            "additionalProperties": false,
        });
        Self { name, description, parameters, strict: true, input: ToolInput::Text(grammar) }
    }

    pub fn takes_text(&self) -> bool {
        matches!(self.input, ToolInput::Text(_))
    }
}

impl ToolCall {
    /// An earlier call of a tool that takes text.
    pub fn of_text(id: String, name: String, text: &str) -> Self {
        Self { id, name, arguments: json!({ TEXT_ARGUMENT: text }) }
    }
}

/// A rendered conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    pub prompt: String,
    pub reasoning: ReasoningStart,
    pub(crate) source: Source,
}

/// The part of a rendered conversation that is tokenized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The prompt's text. Everything in it that looks like a special token is one.
    Prompt,
    /// The text, with stand-ins in what only looks like a special token.
    Marked(String, Marks),
    /// Special tokens, and text without any.
    Pieces(Vec<Piece>),
}

/// How many tokens of a text are wanted, and from which end.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    pub token_max: usize,
    pub keep: Keep,
    /// Checked now and then; stops the work when it returns true.
    pub cancelled: &'a dyn Fn() -> bool,
}

impl Default for Wanted<'_> {
    /// All tokens, however many.
    fn default() -> Self {
        Self { token_max: usize::MAX, keep: Keep::All, cancelled: &|| false }
    }
}

/// The treatment of a text that has more tokens than are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The text is refused.
    All,
    /// Its first tokens are kept.
    First,
    /// Its last tokens are kept.
    Last,
}

/// Where the reply to a prompt begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReasoningStart {
    /// In the answer: the model does not reason, or the prompt has closed the reasoning.
    #[default]
    Never,
    /// Before the answer: the model decides whether to open its reasoning.
    Maybe,
    /// Within reasoning, which the prompt has opened.
    Begun,
}
