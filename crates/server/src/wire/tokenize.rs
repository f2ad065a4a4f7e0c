//! `/tokenize` and `/detokenize`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::tools::ChatTool;
use crate::chat::wire::ChatMessage;

/// A text or a conversation, to be cut into tokens: `prompt` or `messages`, not both.
#[derive(Debug, Deserialize, ToSchema)]
pub struct TokenizeRequest {
    pub model: Option<String>,
    pub prompt: Option<String>,
    pub messages: Option<Vec<ChatMessage>>,
    pub tools: Option<Vec<ChatTool>>,
    pub add_generation_prompt: Option<bool>,
    pub continue_final_message: Option<bool>,
    #[schema(value_type = Option<Object>)]
    pub chat_template_kwargs: Option<Map<String, Value>>,
    pub reasoning_effort: Option<String>,
    /// Has no effect on a conversation: templates write their own.
    pub add_special_tokens: Option<bool>,
    pub return_token_strs: Option<bool>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Tokenized {
    pub count: usize,
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
    pub prompt: String,
}
