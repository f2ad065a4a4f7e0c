//! Log-probabilities: of chat replies, of plain completions, and of prompts in vLLM's form.

use serde::{Serialize, Serializer};
use utoipa::ToSchema;

/// Log-probabilities of a chat reply.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct ChatLogprobs {
    pub content: Vec<ChatLogprob>,
    #[schema(value_type = Option<String>)]
    pub refusal: (),
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ChatLogprob {
    pub token: String,
    pub logprob: f32,
    pub bytes: Option<Vec<u8>>,
    pub top_logprobs: Vec<TopLogprob>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct TopLogprob {
    pub token: String,
    pub logprob: f32,
    pub bytes: Option<Vec<u8>>,
}

/// Log-probabilities of a plain completion. Each list has one entry per token.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct TextLogprobs {
    pub tokens: Vec<String>,
    /// Null for the first token of an echoed prompt.
    pub token_logprobs: Vec<Option<f32>>,
    #[schema(value_type = Vec<Option<Object>>)]
    pub top_logprobs: Vec<Option<Pairs<String, f32>>>,
    /// Where each token begins in the text, in characters.
    pub text_offset: Vec<u32>,
}

/// Of a prompt: per token the alternatives by token id, itself among them; the first is null.
pub type PromptLogprobs = Vec<Option<Pairs<u32, PromptLogprob>>>;

#[derive(Clone, Debug, Serialize)]
pub struct PromptLogprob {
    pub logprob: f32,
    /// 1 is the likeliest.
    pub rank: u32,
    pub decoded_token: String,
}

/// A JSON object, in the order of its fields.
#[derive(Clone, Debug)]
pub struct Pairs<K, V>(pub Vec<(K, V)>);

impl<K: PartialEq, V> Pairs<K, V> {
    /// Adds a field, unless the key exists.
    pub(crate) fn add(&mut self, key: K, value: V) {
        if !self.0.iter().any(|(known, _)| *known == key) {
            self.0.push((key, value));
        }
    }
}

impl<K: Serialize, V: Serialize> Serialize for Pairs<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}
