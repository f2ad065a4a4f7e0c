//! The JSON of `/v1/chat/completions`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::wire::content::Content;
use crate::wire::generation::{request, request_struct};
use crate::wire::logprobs::{ChatLogprobs, PromptLogprobs};
use crate::wire::metrics::Metrics;
use crate::wire::tools::{ChatTool, PastCall, ToolCall, ToolCallDelta, ToolChoice};
use crate::wire::unsupported::Unsupported;
use crate::wire::usage::Usage;

request! {
    /// A conversation that the model continues.
    pub struct ChatRequest {
        /// A name listed by `/v1/models`. Default: the served model.
        pub model: Option<String>,
        /// The conversation so far.
        #[schema(min_items = 1)]
        pub messages: Vec<ChatMessage>,
        /// Most tokens of the reply, reasoning included. Default: the rest of the context, unless
        /// the server was started with `--max-tokens-default`.
        #[schema(minimum = 1)]
        pub max_completion_tokens: Option<i64>,
        /// The older name of `max_completion_tokens`, which takes precedence.
        #[schema(minimum = 1)]
        pub max_tokens: Option<i64>,
        /// Adds log-probabilities of the reply's tokens. Default: false.
        pub logprobs: Option<bool>,
        /// Number of alternatives listed with each token's log-probability; needs `logprobs`.
        /// Default: 0.
        #[schema(minimum = 0, maximum = 20)]
        pub top_logprobs: Option<i64>,
        /// Tools that the model may call.
        pub tools: Option<Vec<ChatTool>>,
        /// `none`, `auto` (the model decides), `required` (at least one call), an object that names
        /// the tool to call, or `allowed_tools`. Default: `auto`.
        #[schema(inline)]
        pub tool_choice: Option<ToolChoice>,
        /// Whether a reply may contain several calls. Default: true.
        pub parallel_tool_calls: Option<bool>,
        /// `none`, `minimal`, `low`, `medium`, `high`, `xhigh` or `max`, given to the chat template
        /// as a variable; `none` turns reasoning off if the template can. Default: the template's.
        pub reasoning_effort: Option<String>,
        /// Whether the response contains the reasoning. Default: true.
        pub include_reasoning: Option<bool>,
        /// Whether reasoning has a field of its own instead of being part of `content`, as in
        /// SGLang. Default: true.
        pub separate_reasoning: Option<bool>,
        /// Variables for the chat template, by name. They take precedence over `reasoning_effort`.
        #[schema(value_type = Option<Object>)]
        pub chat_template_kwargs: Option<Map<String, Value>>,
        /// Whether the prompt ends with the beginning of an assistant's turn. Default: true, unless
        /// `continue_final_message` is.
        pub add_generation_prompt: Option<bool>,
        /// The reply continues the last message, instead of beginning a new one. Default: false.
        pub continue_final_message: Option<bool>,
        /// Puts the text of the last message before the reply's, if it is the assistant's. Default:
        /// false.
        pub echo: Option<bool>,
        /// Has no effect: the chat template writes all special tokens.
        pub add_special_tokens: Option<bool>,
        /// Has no effect: a predicted reply could change the speed only.
        #[schema(value_type = Option<Object>)]
        pub prediction: Option<Value>,
        /// `text` only: the model writes nothing else, and other values are refused.
        pub modalities: Option<Vec<String>>,
        /// Has no effect: no audio is generated.
        #[schema(value_type = Option<Object>)]
        pub audio: Option<Value>,
        /// Not used.
        #[schema(value_type = Option<Object>)]
        pub metadata: Option<Value>,
        /// Has no effect: nothing is stored.
        pub store: Option<bool>,
        /// Not used.
        pub safety_identifier: Option<String>,
        /// Not used.
        pub prompt_cache_key: Option<String>,
        /// Not used.
        pub prompt_cache_retention: Option<String>,
        /// Not used.
        #[schema(value_type = Option<Object>)]
        pub prompt_cache_options: Option<Value>,
        /// `auto` or `default`, which are the same here; other tiers are refused.
        pub service_tier: Option<String>,
        /// Not used.
        pub verbosity: Option<String>,
        /// Not used.
        pub session_id: Option<String>,
        /// Send `tools`.
        #[serde(default)]
        pub functions: Unsupported,
        /// Send `tool_choice`.
        #[serde(default)]
        pub function_call: Unsupported,
        /// Send a search as one of `tools`.
        #[serde(default)]
        pub web_search_options: Unsupported,
        #[serde(default)]
        pub moderation: Unsupported,
        /// The model's own template is used; send its variables as `chat_template_kwargs`.
        #[serde(default)]
        pub chat_template: Unsupported,
        /// Send their text in `messages`.
        #[serde(default)]
        pub documents: Unsupported,
        /// Send `max_completion_tokens`, which bounds reasoning and answer together.
        #[serde(default)]
        pub thinking_token_budget: Unsupported,
        #[serde(default)]
        pub mm_processor_kwargs: Unsupported,
        /// The name in the Responses API. Send `max_completion_tokens`.
        #[serde(default)]
        pub max_output_tokens: Unsupported,
    }
}

#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct ChatMessage {
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    pub role: String,
    #[schema(inline)]
    pub content: Option<Content>,
    pub name: Option<String>,
    /// Of an assistant's message: its calls.
    pub tool_calls: Option<Vec<PastCall>>,
    /// Of a `tool` message: the id of the call that it answers.
    pub tool_call_id: Option<String>,
    /// Of an assistant's message: its reasoning.
    pub reasoning: Option<String>,
    /// The same as `reasoning`, under the name that other servers use.
    pub reasoning_content: Option<String>,
    /// Of an assistant's message without `content`: its text.
    pub refusal: Option<String>,
    /// Send `tool_calls`.
    #[serde(default)]
    pub function_call: Unsupported,
    #[serde(default)]
    pub audio: Unsupported,
}

/// A whole reply.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatCompletion<'a> {
    pub id: &'a str,
    /// `chat.completion`.
    pub object: &'static str,
    /// Unix time in seconds.
    pub created: u64,
    pub model: &'a str,
    pub choices: Vec<ChatChoice>,
    pub usage: Usage,
    pub service_tier: Option<&'static str>,
    pub system_fingerprint: &'a str,
    /// For each token of the prompt: log-probabilities by token id, its own among them. The first
    /// entry is null.
    #[schema(value_type = Option<Vec<Option<Object>>>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<PromptLogprobs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<&'a [u32]>,
    /// Speed of the reply. Null if there are several choices.
    pub metrics: Option<Metrics>,
    /// The parts of the request's schemas that are not enforced.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    pub warnings: &'a [String],
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ChatChoice {
    pub index: u32,
    pub message: ReplyMessage,
    pub logprobs: Option<ChatLogprobs>,
    /// `stop`, `length`, `tool_calls`, or `abort` if `/abort_requests` ended the reply.
    pub finish_reason: &'static str,
    /// The text of `stop` or the token of `stop_token_ids` that ended the reply, else null.
    pub stop_reason: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

#[derive(Debug, Default, Serialize, ToSchema)]
pub struct ReplyMessage {
    pub role: &'static str,
    pub content: Option<String>,
    #[schema(value_type = Option<String>)]
    pub refusal: (),
    /// The model's reasoning before its answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// The same as `reasoning`, under the name that other servers use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

/// The part of a choice that one chunk of a stream carries.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChunkChoice<'a> {
    pub index: u32,
    pub delta: Delta<'a>,
    pub logprobs: Option<ChatLogprobs>,
    pub finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<&'a [u32]>,
}

#[derive(Debug, Default, Serialize, ToSchema)]
pub struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta<'a>>,
}

/// A prompt as the model reads it.
#[derive(Debug, Serialize, ToSchema)]
pub struct RenderedPrompt {
    pub request_id: String,
    pub model: String,
    /// The prompt's text, special tokens included.
    pub prompt: String,
    pub token_ids: Vec<u32>,
}
