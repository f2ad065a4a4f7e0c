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
    /// A conversation to be continued.
    pub struct ChatRequest {
        /// One of `/v1/models`. Default: the one that is served.
        pub model: Option<String>,
        #[schema(min_items = 1)]
        pub messages: Vec<ChatMessage>,
        /// The reply ends after so many tokens, reasoning included. Default: what there is room
        /// for.
        #[schema(minimum = 1)]
        pub max_completion_tokens: Option<i64>,
        /// The older name of `max_completion_tokens`.
        #[schema(minimum = 1)]
        pub max_tokens: Option<i64>,
        /// Log-probabilities of the reply's tokens.
        pub logprobs: Option<bool>,
        /// Alternatives beside each token.
        #[schema(minimum = 0, maximum = 20)]
        pub top_logprobs: Option<i64>,
        pub tools: Option<Vec<ChatTool>>,
        /// `none`, `auto`, `required`, the tool to call, or `allowed_tools`.
        #[schema(inline)]
        pub tool_choice: Option<ToolChoice>,
        /// Whether a reply may hold several calls.
        pub parallel_tool_calls: Option<bool>,
        /// `none` to `max`, a variable of the chat template; `none` turns reasoning off.
        pub reasoning_effort: Option<String>,
        /// Whether reasoning is part of the response.
        pub include_reasoning: Option<bool>,
        /// Whether reasoning is separate from the answer, as SGLang has it.
        pub separate_reasoning: Option<bool>,
        /// Variables of the chat template.
        #[schema(value_type = Option<Object>)]
        pub chat_template_kwargs: Option<Map<String, Value>>,
        /// Ends the prompt where the assistant's turn begins. Default: yes.
        pub add_generation_prompt: Option<bool>,
        /// Goes on with the last message.
        pub continue_final_message: Option<bool>,
        /// The last message comes before the reply's text.
        pub echo: Option<bool>,
        /// Has no effect: templates write their own special tokens.
        pub add_special_tokens: Option<bool>,
        /// Has no effect: a prediction changes speed only.
        #[schema(value_type = Option<Object>)]
        pub prediction: Option<Value>,
        /// Only text is written.
        pub modalities: Option<Vec<String>>,
        /// Voices of audio, which is not written.
        #[schema(value_type = Option<Object>)]
        pub audio: Option<Value>,
        /// Not used.
        #[schema(value_type = Option<Object>)]
        pub metadata: Option<Value>,
        /// Nothing is stored.
        pub store: Option<bool>,
        pub safety_identifier: Option<String>,
        pub prompt_cache_key: Option<String>,
        pub prompt_cache_retention: Option<String>,
        #[schema(value_type = Option<Object>)]
        pub prompt_cache_options: Option<Value>,
        /// `auto` and `default` only.
        pub service_tier: Option<String>,
        pub verbosity: Option<String>,
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
    pub tool_calls: Option<Vec<PastCall>>,
    pub tool_call_id: Option<String>,
    /// The assistant's reasoning.
    pub reasoning: Option<String>,
    /// The same, under the name of other servers.
    pub reasoning_content: Option<String>,
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
    pub created: u64,
    pub model: &'a str,
    pub choices: Vec<ChatChoice>,
    pub usage: Usage,
    pub service_tier: Option<&'static str>,
    pub system_fingerprint: &'a str,
    #[schema(value_type = Option<Vec<Option<Object>>>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<PromptLogprobs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<&'a [u32]>,
    /// Null for more than one choice.
    pub metrics: Option<Metrics>,
    /// What of the request's schemas is not enforced.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    pub warnings: &'a [String],
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ChatChoice {
    pub index: u32,
    pub message: ReplyMessage,
    pub logprobs: Option<ChatLogprobs>,
    /// `stop`, `length` or `tool_calls`.
    pub finish_reason: &'static str,
    /// The stop string or token that ended the reply.
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
    /// The reasoning before the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// The same, under the name of other servers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

/// One choice of a chunk of a stream.
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

/// The prompt that a conversation becomes.
#[derive(Debug, Serialize, ToSchema)]
pub struct RenderedPrompt {
    pub request_id: String,
    pub model: String,
    pub prompt: String,
    pub token_ids: Vec<u32>,
}
