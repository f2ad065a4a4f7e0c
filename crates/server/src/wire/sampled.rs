//! The fields that chat and plain completions share: how tokens are chosen, what a reply must be,
//! when it ends, and what is told of it. A macro, because a nested struct would cost every error
//! its place. `max_tokens` differs between the two, and is a field of each.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::content::Strings;
use super::tools::{ResponseFormat, StructuredOutputs};

/// What a client may tune about a stream.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
pub struct StreamOptions {
    /// One chunk more, before the end, with `usage` and no choices.
    pub include_usage: Option<bool>,
    /// `usage` and `metrics` so far, on every chunk.
    pub continuous_usage_stats: Option<bool>,
    /// Has no effect: nothing is padded.
    pub include_obfuscation: Option<bool>,
}

/// The fields that may give a reply its shape.
#[derive(Clone, Debug, Default)]
pub struct Shapes {
    pub response_format: Option<ResponseFormat>,
    pub structured_outputs: Option<StructuredOutputs>,
    pub regex: Option<String>,
    pub ebnf: Option<String>,
    pub grammar: Option<String>,
    pub json_schema: Option<Value>,
    pub format: Option<Value>,
}

/// The shared fields, as they came.
#[derive(Clone, Debug, Default)]
pub struct Sampled {
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<i64>,
    pub min_p: Option<f64>,
    pub seed: Option<i64>,
    pub n: Option<i64>,
    pub presence_penalty: Option<f64>,
    pub frequency_penalty: Option<f64>,
    pub repetition_penalty: Option<f64>,
    pub logit_bias: Option<BTreeMap<String, f64>>,
    pub bad_words: Option<Vec<String>>,
    pub allowed_token_ids: Option<Vec<i64>>,
    pub max_tokens: Option<i64>,
    pub min_tokens: Option<i64>,
    pub stop: Option<Strings>,
    pub stop_token_ids: Option<Vec<i64>>,
    pub ignore_eos: Option<bool>,
    pub include_stop_str_in_output: Option<bool>,
    pub skip_special_tokens: Option<bool>,
    pub prompt_logprobs: Option<i64>,
    pub return_token_ids: Option<bool>,
    pub return_tokens_as_token_ids: Option<bool>,
    pub truncate_prompt_tokens: Option<i64>,
    pub truncation_side: Option<String>,
    pub priority: Option<i64>,
    pub cache_salt: Option<String>,
    pub request_id: Option<String>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    pub stream_interval: Option<i64>,
    pub drafts: Option<bool>,
    pub shapes: Shapes,
}

macro_rules! sampled {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $( $(#[$field_meta:meta])* pub $field:ident : $type:ty, )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, serde::Deserialize, utoipa::ToSchema)]
        pub struct $name {
            $( $(#[$field_meta])* pub $field: $type, )*
            /// 0 chooses the likeliest token. Default: the checkpoint's, else 1.
            #[schema(minimum = 0.0, maximum = 2.0)]
            pub temperature: Option<f64>,
            /// The likeliest tokens until their probabilities sum to this.
            #[schema(exclusive_minimum = 0.0, maximum = 1.0)]
            pub top_p: Option<f64>,
            /// This many of the likeliest tokens; 0 and -1 mean all.
            #[schema(minimum = -1)]
            pub top_k: Option<i64>,
            /// Drops tokens less likely than this fraction of the likeliest.
            #[schema(minimum = 0.0, maximum = 1.0)]
            pub min_p: Option<f64>,
            /// The same seed and request give the same reply, bit for bit.
            pub seed: Option<i64>,
            /// Replies to each prompt.
            #[schema(minimum = 1)]
            pub n: Option<i64>,
            #[schema(minimum = -2.0, maximum = 2.0)]
            pub presence_penalty: Option<f64>,
            #[schema(minimum = -2.0, maximum = 2.0)]
            pub frequency_penalty: Option<f64>,
            /// 1 leaves everything as it is.
            #[schema(minimum = 0.01, maximum = 10.0)]
            pub repetition_penalty: Option<f64>,
            /// Token ids, each with a number from -100 to 100 added to its logit.
            pub logit_bias: Option<std::collections::BTreeMap<String, f64>>,
            /// Texts that must not be completed.
            pub bad_words: Option<Vec<String>>,
            /// No other tokens are chosen.
            pub allowed_token_ids: Option<Vec<i64>>,
            /// The reply does not end before so many tokens.
            #[schema(minimum = 0)]
            pub min_tokens: Option<i64>,
            /// Texts that end the reply.
            #[schema(inline)]
            pub stop: Option<crate::wire::content::Strings>,
            /// Tokens that end the reply, beside the model's own.
            pub stop_token_ids: Option<Vec<i64>>,
            /// The model's own end tokens end nothing.
            pub ignore_eos: Option<bool>,
            /// The text that ended the reply stays in it.
            pub include_stop_str_in_output: Option<bool>,
            /// Whether tokens such as `<|im_end|>` are left out of the text.
            pub skip_special_tokens: Option<bool>,
            /// Log-probabilities of the prompt's tokens, with so many alternatives.
            #[schema(minimum = 0)]
            pub prompt_logprobs: Option<i64>,
            /// Adds `token_ids` and `prompt_token_ids`.
            pub return_token_ids: Option<bool>,
            /// Tokens in log-probabilities are written `token_id:7`.
            pub return_tokens_as_token_ids: Option<bool>,
            /// Keeps the last so many tokens of a longer prompt; -1 keeps what fits.
            #[schema(minimum = -1)]
            pub truncate_prompt_tokens: Option<i64>,
            /// Which end of a long prompt is cut: `left` or `right`.
            pub truncation_side: Option<String>,
            /// Lower goes first. Other than 0 only where the server allows it.
            #[schema(minimum = -100, maximum = 100)]
            pub priority: Option<i64>,
            /// Requests share cached prefixes only with those of the same salt.
            #[schema(min_length = 1, max_length = 128)]
            pub cache_salt: Option<String>,
            pub response_format: Option<crate::wire::tools::ResponseFormat>,
            pub structured_outputs: Option<crate::wire::tools::StructuredOutputs>,
            /// The whole reply matches this, as SGLang has it.
            pub regex: Option<String>,
            /// The reply follows this grammar, as SGLang has it.
            pub ebnf: Option<String>,
            /// llama.cpp's name for the same.
            pub grammar: Option<String>,
            /// llama.cpp's name for a JSON schema that the reply follows.
            #[schema(value_type = Option<Object>)]
            pub json_schema: Option<serde_json::Value>,
            /// Ollama's: `json`, or a JSON schema.
            #[schema(value_type = Option<Object>)]
            pub format: Option<serde_json::Value>,
            /// Names the request, if no `x-request-id` header does.
            #[serde(alias = "rid")]
            pub request_id: Option<String>,
            /// Sends the reply as it comes, as server-sent events.
            pub stream: Option<bool>,
            pub stream_options: Option<crate::wire::sampled::StreamOptions>,
            /// Tokens that a chunk waits for, the last one excepted.
            #[schema(minimum = 1)]
            pub stream_interval: Option<i64>,
            /// Whether tokens may be drafted. It changes no token, only the speed.
            pub drafts: Option<bool>,
            /// OpenAI's name for who asks; not used.
            pub user: Option<String>,
            /// Send `n` for several replies.
            #[serde(default)]
            pub best_of: crate::wire::absent::One,
            /// Send `temperature` 0 for the likeliest tokens, or `n` for several replies.
            #[serde(default)]
            pub use_beam_search: crate::wire::absent::Absent,
            /// Send `logprobs` for the likeliest tokens.
            #[serde(default)]
            pub logprob_token_ids: crate::wire::absent::Absent,
            #[serde(default)]
            pub repetition_detection: crate::wire::absent::Absent,
            /// Send `logit_bias`, `bad_words` or `allowed_token_ids`.
            #[serde(default)]
            pub logits_processors: crate::wire::absent::Absent,
            /// Send `logit_bias`, `bad_words` or `allowed_token_ids`.
            #[serde(default)]
            pub custom_logit_processor: crate::wire::absent::Absent,
            /// Send `stop`, which takes texts.
            #[serde(default)]
            pub stop_regex: crate::wire::absent::Absent,
            #[serde(default)]
            pub kv_transfer_params: crate::wire::absent::Absent,
            #[serde(default)]
            pub lora_path: crate::wire::absent::Absent,
            #[serde(default)]
            pub return_hidden_states: crate::wire::absent::Absent,
            /// Send `temperature`, `top_p` or `min_p`.
            #[serde(default)]
            pub mirostat: crate::wire::absent::Absent,
            /// Send `temperature`, `top_p` or `min_p`.
            #[serde(default)]
            pub xtc_probability: crate::wire::absent::Absent,
            /// Send `repetition_penalty`, `presence_penalty` or `frequency_penalty`.
            #[serde(default)]
            pub dry_multiplier: crate::wire::absent::Absent,
            /// Send `structured_outputs.json`, or `response_format`.
            #[serde(default)]
            pub guided_json: crate::wire::absent::Absent,
            /// Send `structured_outputs.regex`.
            #[serde(default)]
            pub guided_regex: crate::wire::absent::Absent,
            /// Send `structured_outputs.choice`.
            #[serde(default)]
            pub guided_choice: crate::wire::absent::Absent,
            /// Send `structured_outputs.grammar`.
            #[serde(default)]
            pub guided_grammar: crate::wire::absent::Absent,
        }

        impl $name {
            /// The shared fields, taken out.
            pub(crate) fn sampled(&mut self) -> crate::wire::sampled::Sampled {
                crate::wire::sampled::Sampled {
                    temperature: self.temperature,
                    top_p: self.top_p,
                    top_k: self.top_k,
                    min_p: self.min_p,
                    seed: self.seed,
                    n: self.n,
                    presence_penalty: self.presence_penalty,
                    frequency_penalty: self.frequency_penalty,
                    repetition_penalty: self.repetition_penalty,
                    logit_bias: self.logit_bias.take(),
                    bad_words: self.bad_words.take(),
                    allowed_token_ids: self.allowed_token_ids.take(),
                    max_tokens: self.max_tokens,
                    min_tokens: self.min_tokens,
                    stop: self.stop.take(),
                    stop_token_ids: self.stop_token_ids.take(),
                    ignore_eos: self.ignore_eos,
                    include_stop_str_in_output: self.include_stop_str_in_output,
                    skip_special_tokens: self.skip_special_tokens,
                    prompt_logprobs: self.prompt_logprobs,
                    return_token_ids: self.return_token_ids,
                    return_tokens_as_token_ids: self.return_tokens_as_token_ids,
                    truncate_prompt_tokens: self.truncate_prompt_tokens,
                    truncation_side: self.truncation_side.take(),
                    priority: self.priority,
                    cache_salt: self.cache_salt.take(),
                    request_id: self.request_id.take(),
                    stream: self.stream,
                    stream_options: self.stream_options,
                    stream_interval: self.stream_interval,
                    drafts: self.drafts,
                    shapes: crate::wire::sampled::Shapes {
                        response_format: self.response_format.take(),
                        structured_outputs: self.structured_outputs.take(),
                        regex: self.regex.take(),
                        ebnf: self.ebnf.take(),
                        grammar: self.grammar.take(),
                        json_schema: self.json_schema.take(),
                        format: self.format.take(),
                    },
                }
            }
        }
    };
}

pub(crate) use sampled;
