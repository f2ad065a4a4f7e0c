//! The JSON of `/v1/completions`.

use std::fmt;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{Error, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, SchemaType, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::wire::generation::{request, request_struct};
use crate::wire::lenient::integer;
use crate::wire::logprobs::{PromptLogprobs, TextLogprobs};
use crate::wire::metrics::Metrics;
use crate::wire::unsupported::Unsupported;
use crate::wire::usage::Usage;

request! {
    /// Texts that the model continues.
    pub struct CompletionRequest {
        /// A name listed by `/v1/models`. Default: the served model.
        pub model: Option<String>,
        #[schema(inline)]
        pub prompt: Prompts,
        /// Most tokens of each reply. Default: 16, as in OpenAI's API and vLLM, unless the server
        /// was started with `--max-tokens-default`.
        #[schema(minimum = 0)]
        pub max_tokens: Option<i64>,
        /// Puts the prompt before the reply's text, and its log-probabilities before the reply's if
        /// `logprobs` is set. Default: false.
        pub echo: Option<bool>,
        /// Adds log-probabilities of the reply's tokens, with this many alternatives for each.
        #[schema(minimum = 0, maximum = 20)]
        pub logprobs: Option<i64>,
        /// Has no effect: a prompt has only the special tokens that its text contains.
        pub add_special_tokens: Option<bool>,
        #[serde(default)]
        pub suffix: Unsupported,
        /// Send `prompt`, which takes tokens too.
        #[serde(default)]
        pub prompt_embeds: Unsupported,
        /// The name in the chat API. Send `max_tokens`.
        #[serde(default)]
        pub max_completion_tokens: Unsupported,
        /// The name in the chat API. Send the number as `logprobs`.
        #[serde(default)]
        pub top_logprobs: Unsupported,
    }
}

/// One prompt or several, as text or as tokens.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompts {
    Texts(Vec<String>),
    Tokens(Vec<Vec<u32>>),
}

/// One entry of a list of prompts.
enum Entry {
    Text(String),
    Token(u32),
    Tokens(Vec<u32>),
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Entry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a token id or a list of token ids")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Entry, E> {
                Ok(Entry::Text(text.to_owned()))
            }
            fn visit_u64<E: Error>(self, token: u64) -> Result<Entry, E> {
                let token = u32::try_from(token);
                token.map(Entry::Token).map_err(|_| E::custom("a token id beyond 32 bits"))
            }
            fn visit_f64<E: Error>(self, token: f64) -> Result<Entry, E> {
                let whole = integer(token).and_then(|token| u64::try_from(token).ok());
                let odd = || E::invalid_type(Unexpected::Float(token), &self);
                whole.ok_or_else(odd).and_then(|token| self.visit_u64(token))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Entry, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(Entry::Tokens)
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Prompts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a list of texts, token ids, or lists of token ids")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Prompts, E> {
                Ok(Prompts::Texts(vec![text.to_owned()]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Prompts, A::Error> {
                let mixed = || A::Error::custom("texts and tokens are mixed");
                let mut prompts = match list.next_element()? {
                    None => return Err(A::Error::custom("no prompt")),
                    Some(Entry::Text(text)) => Prompts::Texts(vec![text]),
                    Some(Entry::Tokens(tokens)) => Prompts::Tokens(vec![tokens]),
                    Some(Entry::Token(token)) => {
                        let mut tokens = vec![token];
                        while let Some(entry) = list.next_element()? {
                            let Entry::Token(token) = entry else { return Err(mixed()) };
                            tokens.push(token);
                        }
                        return Ok(Prompts::Tokens(vec![tokens]));
                    }
                };
                while let Some(entry) = list.next_element()? {
                    match (&mut prompts, entry) {
                        (Prompts::Texts(texts), Entry::Text(text)) => texts.push(text),
                        (Prompts::Tokens(all), Entry::Tokens(tokens)) => all.push(tokens),
                        _ => return Err(mixed()),
                    }
                }
                Ok(prompts)
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

impl PartialSchema for Prompts {
    fn schema() -> RefOr<Schema> {
        let simple = |kind| ObjectBuilder::new().schema_type(SchemaType::Type(kind));
        let token = || simple(Type::Integer).minimum(Some(0));
        let tokens = || ArrayBuilder::new().items(token()).min_items(Some(1));
        OneOfBuilder::new()
            .item(simple(Type::String))
            .item(ArrayBuilder::new().items(simple(Type::String)).min_items(Some(1)))
            .item(tokens())
            .item(ArrayBuilder::new().items(tokens()).min_items(Some(1)))
            .into()
    }
}

impl ToSchema for Prompts {}

/// A whole reply.
#[derive(Debug, Serialize, ToSchema)]
pub struct Completion<'a> {
    pub id: &'a str,
    /// `text_completion`.
    pub object: &'static str,
    /// Unix time in seconds.
    pub created: u64,
    pub model: &'a str,
    pub choices: Vec<CompletionChoice<'a>>,
    pub system_fingerprint: &'a str,
    pub usage: Usage,
    /// Speed of the reply. Null if there are several choices.
    pub metrics: Option<Metrics>,
    /// The parts of the request's schemas that are not enforced.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    pub warnings: &'a [String],
}

/// A reply, or the part of it that one chunk of a stream carries.
#[derive(Debug, Serialize, ToSchema)]
pub struct CompletionChoice<'a> {
    pub index: u32,
    pub text: String,
    pub logprobs: Option<TextLogprobs>,
    /// `stop`, `length`, or `abort` if `/abort_requests` ended the reply; null while the reply goes
    /// on.
    pub finish_reason: Option<&'static str>,
    /// The text of `stop` or the token of `stop_token_ids` that ended the reply, else null.
    pub stop_reason: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Option<Object>>>)]
    pub prompt_logprobs: Option<PromptLogprobs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<&'a [u32]>,
}
