//! The JSON of `/v1/responses`, the part of it that needs no memory of earlier requests.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::wire::content::{Content, NameOr, OneOrMany, Part};
use crate::wire::logprobs::ChatLogprob;
use crate::wire::metrics::Metrics;
use crate::wire::tools::CustomFormat;
use crate::wire::unsupported::Unsupported;

#[derive(Debug, Deserialize, ToSchema)]
pub struct ResponsesRequest {
    /// A name listed by `/v1/models`. Default: the served model.
    pub model: Option<String>,
    #[schema(inline)]
    pub input: InputItems,
    /// A system message, put before `input`.
    pub instructions: Option<String>,
    /// Sampling temperature; 0 always chooses the likeliest token. Default: the checkpoint's, else
    /// 1.
    #[schema(minimum = 0.0, maximum = 2.0)]
    pub temperature: Option<f64>,
    /// Samples from the fewest likeliest tokens whose probabilities sum to at least this. Default:
    /// the checkpoint's, else 1.
    #[schema(exclusive_minimum = 0.0, maximum = 1.0)]
    pub top_p: Option<f64>,
    /// Samples from this many of the likeliest tokens; 0 and -1 mean all. Default: the
    /// checkpoint's, else all.
    #[schema(minimum = -1)]
    pub top_k: Option<i64>,
    /// Seed of sampling: the same seed and request give the same reply, bit for bit. Default:
    /// random.
    pub seed: Option<i64>,
    /// Most tokens of the reply, reasoning included. Default: the rest of the context, unless the
    /// server was started with `--max-tokens-default`.
    #[schema(minimum = 1)]
    pub max_output_tokens: Option<i64>,
    /// Adds log-probabilities of the reply's tokens, with this many alternatives for each.
    #[schema(minimum = 0, maximum = 20)]
    pub top_logprobs: Option<i64>,
    /// Sends the reply while it is generated, as server-sent events. Default: false.
    pub stream: Option<bool>,
    /// Has no effect: the last event has the usage. Refused unless `stream` is true.
    pub stream_options: Option<crate::wire::generation::StreamOptions>,
    /// Tools that the model may call.
    pub tools: Option<Vec<ResponsesTool>>,
    /// `none`, `auto` (the model decides), `required` (at least one call), an object that names the
    /// tool to call, or `allowed_tools`. Default: `auto`.
    #[schema(inline)]
    pub tool_choice: Option<ToolChoice>,
    /// Whether a reply may contain several calls. Default: true.
    pub parallel_tool_calls: Option<bool>,
    pub text: Option<TextOptions>,
    pub reasoning: Option<ReasoningOptions>,
    /// `message.output_text.logprobs` adds log-probabilities. `reasoning.encrypted_content` adds
    /// the reasoning as `encrypted_content` too, which some clients send back instead of its text.
    /// Other values have no effect: they are about tools that run at OpenAI.
    pub include: Option<Vec<String>>,
    /// `disabled` refuses a prompt that is too long, `auto` cuts its beginning. Default:
    /// `disabled`.
    pub truncation: Option<String>,
    /// Has no effect: nothing is stored, and the response says false.
    pub store: Option<bool>,
    /// Variables for the chat template, by name. They take precedence over `reasoning.effort`.
    #[schema(value_type = Option<Object>)]
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// Requests with a lower number are scheduled first. Default: 0. Other numbers are refused
    /// unless the server was started with `--allow-priority`.
    pub priority: Option<i64>,
    /// A request shares cached prefixes only with requests that have the same salt. Default: none.
    #[schema(min_length = 1, max_length = 128)]
    pub cache_salt: Option<String>,
    /// Id of the request, which its reply's id contains. An `x-request-id` header takes precedence.
    /// Default: random.
    #[serde(alias = "rid")]
    pub request_id: Option<String>,
    /// Returned unchanged in the response.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
    /// Returned unchanged in the response; not used otherwise.
    pub user: Option<String>,
    /// Not used.
    pub safety_identifier: Option<String>,
    /// Not used.
    pub prompt_cache_key: Option<String>,
    /// Not used.
    pub prompt_cache_retention: Option<String>,
    /// `auto` or `default`, which are the same here; other tiers are refused.
    pub service_tier: Option<String>,
    /// Has no effect: it limits calls of tools that run at OpenAI.
    pub max_tool_calls: Option<i64>,
    /// Not used.
    #[schema(value_type = Option<Object>)]
    pub client_metadata: Option<Value>,
    /// Refused unless absent or null: no responses are stored. Send the whole conversation in
    /// `input`.
    #[schema(value_type = Unsupported)]
    pub previous_response_id: Option<Value>,
    /// Refused unless absent or null: no conversations are stored. Send the whole conversation in
    /// `input`.
    #[schema(value_type = Unsupported)]
    pub conversation: Option<Value>,
    /// Refused unless absent, null or false: no responses are stored.
    #[schema(value_type = Unsupported)]
    pub background: Option<Value>,
    /// Refused unless absent or null: no prompts are stored.
    #[schema(value_type = Unsupported)]
    pub prompt: Option<Value>,
    #[serde(default)]
    pub context_management: Unsupported,
    /// The name in the chat API. Send `max_output_tokens`.
    #[serde(default)]
    pub max_tokens: Unsupported,
    /// The name in the chat API. Send `max_output_tokens`.
    #[serde(default)]
    pub max_completion_tokens: Unsupported,
    /// The name in the chat API. Send `text.format`.
    #[serde(default)]
    pub response_format: Unsupported,
    /// A name in the chat API. Send `text.format`.
    #[serde(default)]
    pub format: Unsupported,
    /// A name in the chat API. Send `text.format`.
    #[serde(default)]
    pub json_schema: Unsupported,
    /// A name in the chat API. Send a tool of the type `custom` with a `grammar`.
    #[serde(default)]
    pub grammar: Unsupported,
    /// The name in the chat API. Send `reasoning.effort`.
    #[serde(default)]
    pub reasoning_effort: Unsupported,
}

/// A text, or items.
pub type InputItems = OneOrMany<InputItem>;

/// `none`, `auto`, `required`, the tool to call, or those that may be called.
pub type ToolChoice = NameOr<ResponsesChoice>;

/// A message, a tool call, a call's result, or earlier reasoning. Items of other types are shown to
/// the model if they have text, and left out otherwise.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct InputItem {
    /// `message` (the default), `reasoning`, `function_call`, `custom_tool_call`,
    /// `function_call_output`, `custom_tool_call_output`, or any other type.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub id: Option<String>,
    pub status: Option<String>,
    pub role: Option<String>,
    #[schema(inline)]
    pub content: Option<Content>,
    pub call_id: Option<String>,
    pub name: Option<String>,
    /// Of a call: the namespace of its tool.
    pub namespace: Option<String>,
    /// Of a function's call: its arguments, as JSON.
    #[schema(value_type = Option<String>)]
    pub arguments: Option<Value>,
    /// Of a custom tool's call: its input, a text.
    pub input: Option<String>,
    /// Of a call's output: the result, as a text or as parts.
    #[schema(value_type = Option<Content>, inline)]
    pub output: Option<Value>,
    pub summary: Option<Vec<Part>>,
    pub encrypted_content: Option<String>,
    /// Arguments of a call of one of OpenAI's own tools, such as `web_search_call`. Other types
    /// have them in `operation`, `actions`, `queries` or `code`.
    #[schema(value_type = Option<Object>)]
    pub action: Option<Value>,
    #[schema(value_type = Option<Object>)]
    pub operation: Option<Value>,
    #[schema(value_type = Option<Vec<Object>>)]
    pub actions: Option<Value>,
    #[schema(value_type = Option<Vec<String>>)]
    pub queries: Option<Value>,
    pub code: Option<String>,
    pub server_label: Option<String>,
    /// Result of a call of one of OpenAI's own tools. Other types have it in `outputs`.
    #[schema(value_type = Option<Vec<Object>>)]
    pub results: Option<Value>,
    #[schema(value_type = Option<Vec<Object>>)]
    pub outputs: Option<Value>,
    /// Of an item of the type `additional_tools`: tools that the model may call, besides those of
    /// the request. Of a call's output without `output`: the result.
    #[schema(value_type = Option<Vec<Object>>)]
    pub tools: Option<Value>,
    #[schema(value_type = Option<Object>)]
    pub error: Option<Value>,
}

impl From<String> for InputItem {
    fn from(text: String) -> Self {
        let content = Some(OneOrMany(vec![Part::from(text)]));
        Self { role: Some("user".into()), content, ..Self::default() }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct ResponsesTool {
    /// `function`, `custom` or `namespace`. Tools of other types are left out of the prompt.
    #[serde(rename = "type")]
    pub kind: String,
    pub name: Option<String>,
    pub description: Option<String>,
    /// Of a function: JSON schema of its arguments.
    #[schema(value_type = Option<Object>)]
    pub parameters: Option<Value>,
    /// Of a function: whether the arguments of calls must follow `parameters`. Default: false.
    pub strict: Option<bool>,
    /// Of a custom tool: the form of its input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<CustomFormat>,
    /// Of a namespace: its functions and custom tools.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(no_recursion)]
    pub tools: Option<Vec<ResponsesTool>>,
}

#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct ResponsesChoice {
    /// `function`, `custom` or `allowed_tools`.
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The namespace of the tool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Of `allowed_tools`: `auto`, or `required` if one of the tools must be called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Of `allowed_tools`: the tools that may be called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools: Option<Vec<AllowedTool>>,
}

#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[schema(as = ResponsesAllowedTool)]
pub struct AllowedTool {
    /// `function` or `custom`. Tools of other types are left out.
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The namespace of the tool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
pub struct TextOptions {
    pub format: Option<TextFormat>,
    pub verbosity: Option<String>,
}

#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct TextFormat {
    /// `text` (any text), `json_object` or `json_schema`.
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub schema: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
pub struct ReasoningOptions {
    /// `none`, `minimal`, `low`, `medium`, `high`, `xhigh` or `max`, given to the chat template as
    /// a variable; `none` turns reasoning off if the template can. Default: the template's.
    pub effort: Option<String>,
    /// Has no effect: reasoning is returned as a whole, never summarised.
    pub summary: Option<String>,
}

/// A reply, whole or as far as it is generated.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ResponseObject {
    pub id: String,
    /// `response`.
    pub object: &'static str,
    /// Unix time in seconds.
    pub created_at: u64,
    /// `in_progress`, `completed`, `incomplete` or `failed`.
    pub status: &'static str,
    pub error: Option<ResponseError>,
    pub incomplete_details: Option<Incomplete>,
    pub instructions: Option<String>,
    pub max_output_tokens: Option<i64>,
    pub model: String,
    pub output: Vec<OutputItem>,
    pub parallel_tool_calls: bool,
    #[schema(value_type = Option<String>)]
    pub previous_response_id: (),
    pub reasoning: ReasoningOptions,
    pub store: bool,
    pub temperature: f64,
    pub text: TextOptions,
    /// The request's `tool_choice`, else `auto`.
    pub tool_choice: Value,
    /// The request's tools, except those that were left out of the prompt.
    pub tools: Vec<ResponsesTool>,
    pub top_p: f64,
    pub truncation: String,
    pub usage: Option<ResponsesUsage>,
    pub user: Option<String>,
    #[schema(value_type = Object)]
    pub metadata: Map<String, Value>,
    pub metrics: Option<Metrics>,
    /// The parts of the request's schemas that are not enforced.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ResponseError {
    pub code: String,
    pub message: String,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Incomplete {
    /// `max_output_tokens`, or `aborted` if `/abort_requests` ended the reply.
    pub reason: &'static str,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutputItem {
    Reasoning {
        id: String,
        status: &'static str,
        summary: Vec<OutputPart>,
        content: Vec<OutputPart>,
        #[serde(skip_serializing_if = "Option::is_none")]
        encrypted_content: Option<String>,
    },
    Message {
        id: String,
        status: &'static str,
        role: &'static str,
        content: Vec<OutputPart>,
    },
    FunctionCall {
        id: String,
        status: &'static str,
        call_id: String,
        name: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        namespace: Option<String>,
        /// The arguments, as a string of JSON.
        arguments: String,
    },
    CustomToolCall {
        id: String,
        status: &'static str,
        call_id: String,
        name: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        namespace: Option<String>,
        /// The input, a text.
        input: String,
    },
}

#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutputPart {
    ReasoningText {
        text: String,
    },
    OutputText {
        text: String,
        #[schema(value_type = Vec<Object>)]
        annotations: [(); 0],
        logprobs: Vec<ChatLogprob>,
    },
}

#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct ResponsesUsage {
    pub input_tokens: u32,
    pub input_tokens_details: InputDetails,
    pub output_tokens: u32,
    pub output_tokens_details: OutputDetails,
    pub total_tokens: u32,
}

#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct InputDetails {
    pub cached_tokens: u32,
}

#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct OutputDetails {
    pub reasoning_tokens: u32,
}

/// One event of a stream: its type, its number, and its fields.
#[derive(Debug, Serialize)]
pub struct Event<T> {
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub sequence_number: u64,
    #[serde(flatten)]
    pub body: T,
}

/// The reply as a whole.
#[derive(Debug, Serialize)]
pub struct ResponseEvent<'a> {
    pub response: &'a ResponseObject,
}

/// An item begins or ends.
#[derive(Debug, Serialize)]
pub struct ItemEvent<'a> {
    pub output_index: usize,
    pub item: &'a OutputItem,
}

/// A part of an item: it begins, grows or ends.
#[derive(Clone, Debug, Serialize)]
pub struct PartEvent<'a> {
    pub item_id: &'a str,
    pub output_index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_index: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<&'a OutputPart>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arguments: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<&'a [ChatLogprob]>,
}

/// The stream failed.
#[derive(Debug, Serialize)]
pub struct ErrorEvent<'a> {
    pub code: Option<&'a str>,
    pub message: &'a str,
    pub param: Option<&'a str>,
}
