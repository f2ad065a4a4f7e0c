//! The fields that chat and plain completions share: how tokens are sampled, what a reply must
//! match, when it ends, and which data is sent with it. A macro lists them once and makes them
//! fields of each request: errors of a nested struct would not name their place. `max_tokens`
//! differs between the two, so each has its own.

use serde::Deserialize;
use utoipa::ToSchema;

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

/// Calls the macro `$make` with `$own` and the shared fields: those of [`GenerationFields`], those
/// of [`ConstraintFields`], and the fields that are ignored or refused.
macro_rules! shared_fields {
    ($make:ident { $($own:tt)* }) => {
        $make! {
            { $($own)* }
            generation {
                /// 0 chooses the likeliest token. Default: the checkpoint's, else 1.
                #[schema(minimum = 0.0, maximum = 2.0)]
                temperature: Option<f64>,
                /// The likeliest tokens until their probabilities sum to this.
                #[schema(exclusive_minimum = 0.0, maximum = 1.0)]
                top_p: Option<f64>,
                /// This many of the likeliest tokens; 0 and -1 mean all.
                #[schema(minimum = -1)]
                top_k: Option<i64>,
                /// Drops tokens less likely than this fraction of the likeliest.
                #[schema(minimum = 0.0, maximum = 1.0)]
                min_p: Option<f64>,
                /// The same seed and request give the same reply, bit for bit. Drafts are then
                /// verified by sample and match.
                seed: Option<i64>,
                /// Replies to each prompt.
                #[schema(minimum = 1)]
                n: Option<i64>,
                #[schema(minimum = -2.0, maximum = 2.0)]
                presence_penalty: Option<f64>,
                #[schema(minimum = -2.0, maximum = 2.0)]
                frequency_penalty: Option<f64>,
                /// 1 leaves everything as it is.
                #[schema(minimum = 0.01, maximum = 10.0)]
                repetition_penalty: Option<f64>,
                /// Token ids, each with a number from -100 to 100 added to its logit.
                logit_bias: Option<std::collections::BTreeMap<String, f64>>,
                /// Texts that must not be completed.
                bad_words: Option<Vec<String>>,
                /// No other tokens are chosen.
                allowed_token_ids: Option<Vec<i64>>,
                /// The reply does not end before so many tokens.
                #[schema(minimum = 0)]
                min_tokens: Option<i64>,
                /// Texts that end the reply.
                #[schema(inline)]
                stop: Option<crate::wire::content::Strings>,
                /// Tokens that end the reply, beside the model's own.
                stop_token_ids: Option<Vec<i64>>,
                /// The model's own end tokens end nothing.
                ignore_eos: Option<bool>,
                /// The text that ended the reply stays in it.
                include_stop_str_in_output: Option<bool>,
                /// Whether tokens such as `<|im_end|>` are left out of the text.
                skip_special_tokens: Option<bool>,
                /// Log-probabilities of the prompt's tokens, with so many alternatives.
                #[schema(minimum = 0)]
                prompt_logprobs: Option<i64>,
                /// Adds `token_ids` and `prompt_token_ids`.
                return_token_ids: Option<bool>,
                /// Tokens in log-probabilities are written `token_id:7`.
                return_tokens_as_token_ids: Option<bool>,
                /// Keeps the last so many tokens of a longer prompt; -1 keeps what fits.
                #[schema(minimum = -1)]
                truncate_prompt_tokens: Option<i64>,
                /// Which end of a long prompt is cut: `left` or `right`.
                truncation_side: Option<String>,
                /// Lower goes first. Other than 0 only where the server allows it.
                #[schema(minimum = -100, maximum = 100)]
                priority: Option<i64>,
                /// Requests share cached prefixes only with those of the same salt.
                #[schema(min_length = 1, max_length = 128)]
                cache_salt: Option<String>,
                /// Names the request, if no `x-request-id` header does.
                #[serde(alias = "rid")]
                request_id: Option<String>,
                /// Sends the reply as it comes, as server-sent events.
                stream: Option<bool>,
                stream_options: Option<crate::wire::generation::StreamOptions>,
                /// Tokens that a chunk waits for, the last one excepted.
                #[schema(minimum = 1)]
                stream_interval: Option<i64>,
                /// Whether tokens may be drafted. It changes the speed, no token of a greedy reply
                /// or of one to a seed, and no probability of any token.
                drafts: Option<bool>,
            }
            constraints {
                response_format: Option<crate::wire::tools::ResponseFormat>,
                structured_outputs: Option<crate::wire::tools::StructuredOutputs>,
                /// The whole reply matches this, as SGLang has it.
                regex: Option<String>,
                /// The reply follows this grammar, as SGLang has it.
                ebnf: Option<String>,
                /// llama.cpp's name for the same.
                grammar: Option<String>,
                /// llama.cpp's name for a JSON schema that the reply follows.
                #[schema(value_type = Option<Object>)]
                json_schema: Option<serde_json::Value>,
                /// Ollama's: `json`, or a JSON schema.
                #[schema(value_type = Option<Object>)]
                format: Option<serde_json::Value>,
            }
            others {
                /// OpenAI's name for who asks; not used.
                user: Option<String>,
                /// Send `n` for several replies.
                #[serde(default)]
                best_of: crate::wire::unsupported::One,
                /// Send `temperature` 0 for the likeliest tokens, or `n` for several replies.
                #[serde(default)]
                use_beam_search: crate::wire::unsupported::Unsupported,
                /// Send `logprobs` for the likeliest tokens.
                #[serde(default)]
                logprob_token_ids: crate::wire::unsupported::Unsupported,
                #[serde(default)]
                repetition_detection: crate::wire::unsupported::Unsupported,
                /// Send `logit_bias`, `bad_words` or `allowed_token_ids`.
                #[serde(default)]
                logits_processors: crate::wire::unsupported::Unsupported,
                /// Send `logit_bias`, `bad_words` or `allowed_token_ids`.
                #[serde(default)]
                custom_logit_processor: crate::wire::unsupported::Unsupported,
                /// Send `stop`, which takes texts.
                #[serde(default)]
                stop_regex: crate::wire::unsupported::Unsupported,
                #[serde(default)]
                kv_transfer_params: crate::wire::unsupported::Unsupported,
                #[serde(default)]
                lora_path: crate::wire::unsupported::Unsupported,
                #[serde(default)]
                return_hidden_states: crate::wire::unsupported::Unsupported,
                /// Send `temperature`, `top_p` or `min_p`.
                #[serde(default)]
                mirostat: crate::wire::unsupported::Unsupported,
                /// Send `temperature`, `top_p` or `min_p`.
                #[serde(default)]
                xtc_probability: crate::wire::unsupported::Unsupported,
                /// Send `repetition_penalty`, `presence_penalty` or `frequency_penalty`.
                #[serde(default)]
                dry_multiplier: crate::wire::unsupported::Unsupported,
                /// Send `structured_outputs.json`, or `response_format`.
                #[serde(default)]
                guided_json: crate::wire::unsupported::Unsupported,
                /// Send `structured_outputs.regex`.
                #[serde(default)]
                guided_regex: crate::wire::unsupported::Unsupported,
                /// Send `structured_outputs.choice`.
                #[serde(default)]
                guided_choice: crate::wire::unsupported::Unsupported,
                /// Send `structured_outputs.grammar`.
                #[serde(default)]
                guided_grammar: crate::wire::unsupported::Unsupported,
            }
        }
    };
}

macro_rules! structs {
    (
        {}
        generation { $( $(#[$g_meta:meta])* $g:ident : $g_type:ty, )* }
        constraints { $( $(#[$c_meta:meta])* $c:ident : $c_type:ty, )* }
        others { $($others:tt)* }
    ) => {
        /// The shared fields, as the client sent them.
        #[derive(Clone, Debug, Default)]
        pub struct GenerationFields {
            pub max_tokens: Option<i64>,
            $( pub $g: $g_type, )*
            pub constraints: ConstraintFields,
        }

        /// The fields that may constrain a reply's text.
        #[derive(Clone, Debug, Default)]
        pub struct ConstraintFields {
            $( pub $c: $c_type, )*
        }
    };
}

shared_fields! { structs {} }

/// Defines a request with the shared fields and its own ones, including `max_tokens`.
macro_rules! request {
    ($($own:tt)*) => {
        crate::wire::generation::shared_fields! { request_struct { $($own)* } }
    };
}

macro_rules! request_struct {
    (
        {
            $(#[$meta:meta])*
            pub struct $name:ident {
                $( $(#[$own_meta:meta])* pub $own:ident : $own_type:ty, )*
            }
        }
        generation { $( $(#[$g_meta:meta])* $g:ident : $g_type:ty, )* }
        constraints { $( $(#[$c_meta:meta])* $c:ident : $c_type:ty, )* }
        others { $( $(#[$o_meta:meta])* $o:ident : $o_type:ty, )* }
    ) => {
        $(#[$meta])*
        #[derive(Debug, serde::Deserialize, utoipa::ToSchema)]
        pub struct $name {
            $( $(#[$own_meta])* pub $own: $own_type, )*
            $( $(#[$g_meta])* pub $g: $g_type, )*
            $( $(#[$c_meta])* pub $c: $c_type, )*
            $( $(#[$o_meta])* pub $o: $o_type, )*
        }

        impl $name {
            /// Moves the shared fields out of the request.
            pub(crate) fn take_generation(&mut self) -> crate::wire::generation::GenerationFields {
                crate::wire::generation::GenerationFields {
                    max_tokens: self.max_tokens,
                    $( $g: self.$g.take(), )*
                    constraints: crate::wire::generation::ConstraintFields {
                        $( $c: self.$c.take(), )*
                    },
                }
            }
        }
    };
}

pub(crate) use {request, request_struct, shared_fields};
