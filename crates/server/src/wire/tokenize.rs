//! `/tokenize` and `/detokenize`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::tools::ChatTool;
use crate::chat::wire::ChatMessage;

/// A text or a conversation to tokenize: `prompt` or `messages`, not both.
#[derive(Debug, Deserialize, ToSchema)]
pub struct TokenizeRequest {
    pub model: Option<String>,
    /// A text to tokenize. Special tokens in it are recognised.
    pub prompt: Option<String>,
    /// A conversation to render with the chat template and to tokenize.
    pub messages: Option<Vec<ChatMessage>>,
    /// With `messages`: tools that the model may call.
    pub tools: Option<Vec<ChatTool>>,
    /// With `messages`: whether the prompt ends with the beginning of an assistant's turn. Default:
    /// true, unless `continue_final_message` is.
    pub add_generation_prompt: Option<bool>,
    /// With `messages`: leaves the last message open, to be continued. Default: false.
    pub continue_final_message: Option<bool>,
    /// With `messages`: variables for the chat template, by name. They take precedence over
    /// `reasoning_effort`.
    #[schema(value_type = Option<Object>)]
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// With `messages`: `none`, `minimal`, `low`, `medium`, `high`, `xhigh` or `max`, given to the
    /// chat template as a variable; `none` turns reasoning off if the template can.
    pub reasoning_effort: Option<String>,
    /// Has no effect: a prompt has only the special tokens that its text contains, and a chat
    /// template writes its own.
    pub add_special_tokens: Option<bool>,
    /// Adds the text of each token, as `token_strs`. Default: false.
    pub return_token_strs: Option<bool>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Tokenized {
    /// Number of tokens.
    pub count: usize,
    /// Most tokens that a prompt and its reply may have together.
    pub max_model_len: u32,
    pub tokens: Vec<u32>,
    pub token_strs: Option<Vec<String>>,
}

#[derive(Debug, Deserialize, ToSchema)]
pub struct DetokenizeRequest {
    pub model: Option<String>,
    pub tokens: Vec<u32>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Detokenized {
    /// The text of the tokens.
    pub prompt: String,
}
