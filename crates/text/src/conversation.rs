//! A conversation as a chat template reads it, and what comes of rendering it. Plain data: which
//! request fields it came from is not known here.

use std::time::SystemTime;

use serde_json::{Map, Value};

/// What a template is given.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    pub messages: Vec<Message>,
    /// No tools and an empty list are the same: the template sees `tools` as none.
    pub tools: Vec<Tool>,
    /// Further variables of the template, such as `enable_thinking`. Those that every template
    /// gets (`messages`, `tools`, `add_generation_prompt`) cannot be replaced by them.
    pub variables: Map<String, Value>,
    /// Ends the prompt where the assistant's turn begins.
    pub add_generation_prompt: bool,
    /// Ends the prompt within the last message, for the model to go on with it.
    pub continue_final_message: bool,
    /// What `strftime_now` tells, in UTC; the system's clock if absent.
    pub now: Option<SystemTime>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    pub role: String,
    pub content: String,
    /// What the assistant thought before it answered.
    pub reasoning: Option<String>,
    pub tool_calls: Vec<ToolCall>,
    /// Of a tool's result: the call that it answers.
    pub tool_call_id: Option<String>,
    pub name: Option<String>,
}

/// A call that the assistant made earlier.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ToolCall {
    pub id: String,
    pub name: String,
    /// An object: templates go through its entries.
    pub arguments: Value,
}

/// A function that the model may call.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tool {
    pub name: String,
    pub description: Option<String>,
    /// JSON schema of the arguments. Null leaves it out of the prompt.
    pub parameters: Value,
    /// Whether arguments must follow the schema; for grammars, no template sees it.
    pub strict: bool,
}

/// A conversation in the model's own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    pub prompt: String,
    pub reasoning: ReasoningStart,
}

/// Where the reply to a prompt begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReasoningStart {
    /// In the answer: the model does not reason, or the prompt has ended its reasoning.
    #[default]
    Never,
    /// The model itself decides whether it opens its reasoning.
    Maybe,
    /// Within reasoning: the prompt has opened it.
    Begun,
}
