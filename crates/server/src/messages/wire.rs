//! The JSON of `/v1/messages`, Anthropic's API.

use std::fmt;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::wire::content::{NameOr, OneOrMany};
use crate::wire::metrics::Metrics;
use crate::wire::unsupported::Unsupported;

/// Defines a request with the fields of a conversation and its own ones. Like the macro of
/// `wire/generation.rs` it lists fields once, where errors of a nested struct would not name their
/// place.
macro_rules! conversation {
    (pub struct $name:ident { $($own:tt)* }) => {
        #[derive(Debug, Deserialize, ToSchema)]
        pub struct $name {
            /// A name listed by `/v1/models`. Default: the served model.
            pub model: Option<String>,
            /// The conversation so far. If the last message is the assistant's, the reply continues
            /// it.
            #[schema(min_items = 1)]
            pub messages: Vec<InputMessage>,
            #[schema(inline)]
            pub system: Option<InputParts>,
            /// Tools that the model may call.
            pub tools: Option<Vec<MessagesTool>>,
            pub tool_choice: Option<MessagesChoice>,
            /// Whether the model reasons before it answers. Absent or `disabled` turns reasoning
            /// off if the chat template can.
            pub thinking: Option<Thinking>,
            /// Variables for the chat template, by name. They take precedence over `thinking`, and
            /// over `output_config.effort` of `/v1/messages`.
            #[schema(value_type = Option<Object>)]
            pub chat_template_kwargs: Option<Map<String, Value>>,
            $($own)*
        }
    };
}

conversation! { pub struct CountRequest {} }

conversation! {
    pub struct MessagesRequest {
        /// Most tokens of the reply, reasoning included.
        #[schema(minimum = 1)]
        pub max_tokens: i64,
        /// Texts that end the reply where they occur.
        pub stop_sequences: Option<Vec<String>>,
        /// Sends the reply while it is generated, as server-sent events. Default: false.
        pub stream: Option<bool>,
        /// Sampling temperature; 0 always chooses the likeliest token. Default: the checkpoint's,
        /// else 1.
        #[schema(minimum = 0.0, maximum = 2.0)]
        pub temperature: Option<f64>,
        /// Samples from the fewest likeliest tokens whose probabilities sum to at least this.
        /// Default: the checkpoint's, else 1.
        #[schema(exclusive_minimum = 0.0, maximum = 1.0)]
        pub top_p: Option<f64>,
        /// Samples from this many of the likeliest tokens; 0 and -1 mean all. Default: the
        /// checkpoint's, else all.
        #[schema(minimum = -1)]
        pub top_k: Option<i64>,
        pub output_config: Option<OutputConfig>,
        /// The older name of `output_config.format`.
        pub output_format: Option<OutputFormat>,
        /// Not used.
        #[schema(value_type = Option<Object>)]
        pub metadata: Option<Value>,
        /// `auto` or `standard_only`, which are the same here; other tiers are refused.
        pub service_tier: Option<String>,
        /// Has no effect: every prompt is cached.
        #[schema(value_type = Option<Object>)]
        pub cache_control: Option<Value>,
        /// Has no effect: the conversation is not edited.
        #[schema(value_type = Option<Object>)]
        pub context_management: Option<Value>,
        /// Send `tools`.
        #[serde(default)]
        pub mcp_servers: Unsupported,
        #[serde(default)]
        pub container: Unsupported,
        /// The name in OpenAI's API. Send `stop_sequences`.
        #[serde(default)]
        pub stop: Unsupported,
        /// The name in OpenAI's API. Send `output_config.format`.
        #[serde(default)]
        pub response_format: Unsupported,
        /// A name in the chat API. Send `output_config.format`.
        #[serde(default)]
        pub format: Unsupported,
        /// A name in the chat API. Send `output_config.format`.
        #[serde(default)]
        pub json_schema: Unsupported,
        /// A name in the chat API. Send `output_config.format`, or ask `/v1/chat/completions`.
        #[serde(default)]
        pub grammar: Unsupported,
    }
}

#[derive(Debug, Deserialize, ToSchema)]
pub struct InputMessage {
    /// `user` or `assistant`; `system` is accepted too.
    pub role: String,
    #[schema(inline)]
    pub content: InputParts,
}

/// A text, or parts.
pub type InputParts = OneOrMany<InputPart>;

/// A part of a message: text, reasoning, a tool call, or a call's result.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct InputPart {
    /// `text`, `document`, `search_result`, `thinking`, `redacted_thinking`, `tool_use`,
    /// `tool_result`, `tool_reference`, or a type of Anthropic's own tools.
    #[serde(rename = "type")]
    pub kind: String,
    pub text: Option<String>,
    pub thinking: Option<String>,
    pub signature: Option<String>,
    pub data: Option<String>,
    pub id: Option<String>,
    pub name: Option<String>,
    #[schema(value_type = Option<Object>)]
    pub input: Option<Value>,
    pub tool_use_id: Option<String>,
    /// Of a call's result or a search result: a text, or parts of text.
    #[schema(value_type = Option<String>)]
    pub content: Option<PartContent>,
    pub is_error: Option<bool>,
    /// Of a document: its content. Of a search result: where it comes from.
    #[schema(inline)]
    pub source: Option<Source>,
    pub title: Option<String>,
    /// Of a document: context that the model is shown before its text.
    pub context: Option<String>,
    pub url: Option<String>,
    /// Of a `tool_reference`: the tool's name.
    pub tool_name: Option<String>,
    /// Has no effect: every prompt is cached.
    #[schema(value_type = Option<Object>)]
    pub cache_control: Option<Value>,
    #[schema(value_type = Option<Vec<Object>>)]
    pub citations: Option<Value>,
}

impl From<String> for InputPart {
    fn from(text: String) -> Self {
        Self { kind: "text".into(), text: Some(text), ..Self::default() }
    }
}

/// A text, parts, or the object that a tool of Anthropic's servers answered.
#[derive(Clone, Debug)]
pub enum PartContent {
    Parts(InputParts),
    Object(Map<String, Value>),
}

impl<'de> Deserialize<'de> for PartContent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = PartContent;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(PartContent::Parts(OneOrMany(vec![text.to_owned().into()])))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
                let list = SeqAccessDeserializer::new(list);
                Vec::deserialize(list).map(|parts| PartContent::Parts(OneOrMany(parts)))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                Map::deserialize(MapAccessDeserializer::new(map)).map(PartContent::Object)
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// Where a search's result is from, or what a document says.
pub type Source = NameOr<DocumentSource>;

/// The content of a document.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct DocumentSource {
    /// `text` (in `data`) or `content`: the model reads text only.
    #[serde(rename = "type")]
    pub kind: String,
    pub media_type: Option<String>,
    pub data: Option<String>,
    /// A text, or parts of text.
    #[schema(value_type = Option<String>)]
    pub content: Option<InputParts>,
}

#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct MessagesTool {
    pub name: Option<String>,
    /// `custom` (the default). Tools of other types are left out of the prompt.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub description: Option<String>,
    /// JSON schema of the arguments.
    #[schema(value_type = Option<Object>)]
    pub input_schema: Option<Value>,
    /// Whether the arguments of calls must follow `input_schema`. Default: false.
    pub strict: Option<bool>,
    #[schema(value_type = Option<Object>)]
    pub cache_control: Option<Value>,
}

#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct MessagesChoice {
    /// `auto` (the model decides), `any` (at least one call), `tool` or `none`.
    #[serde(rename = "type")]
    pub kind: String,
    /// With `tool`: the name of the tool to call.
    pub name: Option<String>,
    /// Whether a reply may contain at most one call. Default: false.
    pub disable_parallel_tool_use: Option<bool>,
}

#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct Thinking {
    /// `enabled`, `adaptive` or `disabled`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Has no effect: the model ends its reasoning itself.
    pub budget_tokens: Option<i64>,
    pub display: Option<String>,
}

#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct OutputConfig {
    /// `none`, `minimal`, `low`, `medium`, `high`, `xhigh` or `max`, given to the chat template as
    /// a variable. Default: the template's.
    pub effort: Option<String>,
    pub format: Option<OutputFormat>,
}

#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct OutputFormat {
    /// `json_schema`.
    #[serde(rename = "type")]
    pub kind: String,
    /// JSON schema that the reply follows.
    #[schema(value_type = Option<Object>)]
    pub schema: Option<Value>,
}

/// A whole reply.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Message {
    pub id: String,
    /// `message`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub role: &'static str,
    pub model: String,
    pub content: Vec<OutputPart>,
    /// `end_turn`, `max_tokens`, `stop_sequence` or `tool_use`.
    pub stop_reason: Option<&'static str>,
    pub stop_sequence: Option<String>,
    pub usage: MessagesUsage,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Metrics>,
    /// The parts of the request's schemas that are not enforced.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = MessagesPart)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutputPart {
    Text {
        text: String,
    },
    Thinking {
        thinking: String,
        signature: String,
    },
    ToolUse {
        id: String,
        name: String,
        #[schema(value_type = Object)]
        input: Value,
    },
}

#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub struct MessagesUsage {
    /// Tokens of the prompt that were computed for this reply.
    pub input_tokens: u32,
    pub output_tokens: u32,
    pub cache_creation_input_tokens: u32,
    /// Tokens of the prompt that were found in the prefix cache and not computed.
    pub cache_read_input_tokens: u32,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct TokenCount {
    pub input_tokens: usize,
}

/// One event of a stream.
#[derive(Debug, Serialize)]
#[serde(tag = "type")]
pub enum Event<'a> {
    #[serde(rename = "message_start")]
    Start { message: &'a Message },
    #[serde(rename = "content_block_start")]
    PartStart { index: u32, content_block: OutputPart },
    #[serde(rename = "content_block_delta")]
    PartDelta { index: u32, delta: PartDelta<'a> },
    #[serde(rename = "content_block_stop")]
    PartStop { index: u32 },
    #[serde(rename = "message_delta")]
    Delta {
        delta: MessageDelta<'a>,
        usage: MessagesUsage,
        #[serde(skip_serializing_if = "Option::is_none")]
        metrics: Option<Metrics>,
    },
    #[serde(rename = "message_stop")]
    Stop,
    #[serde(rename = "ping")]
    Ping,
    #[serde(rename = "error")]
    Error { error: ErrorDetail<'a> },
}

impl Event<'_> {
    /// Its name, which goes before its data.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Start { .. } => "message_start",
            Self::PartStart { .. } => "content_block_start",
            Self::PartDelta { .. } => "content_block_delta",
            Self::PartStop { .. } => "content_block_stop",
            Self::Delta { .. } => "message_delta",
            Self::Stop => "message_stop",
            Self::Ping => "ping",
            Self::Error { .. } => "error",
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum PartDelta<'a> {
    TextDelta { text: &'a str },
    ThinkingDelta { thinking: &'a str },
    SignatureDelta { signature: &'a str },
    InputJsonDelta { partial_json: &'a str },
}

#[derive(Debug, Serialize)]
pub struct MessageDelta<'a> {
    pub stop_reason: &'static str,
    pub stop_sequence: Option<&'a str>,
}

/// The body of an error.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MessagesErrorBody)]
pub struct ErrorBody {
    /// `error`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub error: OwnedErrorDetail,
    pub request_id: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MessagesErrorDetail)]
pub struct OwnedErrorDetail {
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub message: String,
}

#[derive(Debug, Serialize)]
pub struct ErrorDetail<'a> {
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub message: &'a str,
}
