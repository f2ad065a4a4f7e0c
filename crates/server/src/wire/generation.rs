//! The fields that chat and plain completions share: how tokens are sampled, what a reply must
//! match, when it ends, and which data is sent with it. A macro lists them once and makes them
//! fields of each request: errors of a nested struct would not name their place. `max_tokens`
//! differs between the two, so each has its own. The Messages and Responses APIs have few of these
//! fields, `temperature`, `top_p` and `top_k` among them, and describe them again: a macro that
//! shares three lines of description would be longer than these.

use serde::Deserialize;
use utoipa::ToSchema;

/// Options of a streamed reply.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
pub struct StreamOptions {
    /// Sends one more chunk at the end, with `usage` and without choices. Default: false.
    pub include_usage: Option<bool>,
    /// Sends `usage` and `metrics` so far with every chunk. Default: false.
    pub continuous_usage_stats: Option<bool>,
    /// Has no effect: chunks are never padded.
    pub include_obfuscation: Option<bool>,
}

/// Calls the macro `$make` with `$own` and the shared fields: those of [`GenerationFields`], those
/// of [`ConstraintFields`], and the fields that are ignored or refused.
macro_rules! shared_fields {
    ($make:ident { $($own:tt)* }) => {
        $make! {
            { $($own)* }
            generation {
                /// Sampling temperature; 0 always chooses the likeliest token. Default: the
                /// checkpoint's, else 1.
                #[schema(minimum = 0.0, maximum = 2.0)]
                temperature: Option<f64>,
                /// Samples from the fewest likeliest tokens whose probabilities sum to at least
                /// this. Default: the checkpoint's, else 1.
                #[schema(exclusive_minimum = 0.0, maximum = 1.0)]
                top_p: Option<f64>,
                /// Samples from this many of the likeliest tokens; 0 and -1 mean all. Default: the
                /// checkpoint's, else all.
                #[schema(minimum = -1)]
                top_k: Option<i64>,
                /// Drops tokens whose probability is less than this fraction of the likeliest
                /// token's. Default: the checkpoint's, else 0.
                #[schema(minimum = 0.0, maximum = 1.0)]
                min_p: Option<f64>,
                /// Seed of sampling: the same seed and request give the same reply, bit for bit.
                /// Drafts are then verified by sample and match. Default: random.
                seed: Option<i64>,
                /// Number of replies to each prompt. Default: 1.
                #[schema(minimum = 1)]
                n: Option<i64>,
                /// Subtracted once from the logit of every token that the reply contains. Default:
                /// 0.
                #[schema(minimum = -2.0, maximum = 2.0)]
                presence_penalty: Option<f64>,
                /// Subtracted from the logit of a token for each time the reply contains it.
                /// Default: 0.
                #[schema(minimum = -2.0, maximum = 2.0)]
                frequency_penalty: Option<f64>,
                /// Divides positive logits, and multiplies negative ones, of tokens that prompt or
                /// reply contain; 1 changes nothing. Default: the checkpoint's, else 1.
                #[schema(minimum = 0.01, maximum = 10.0)]
                repetition_penalty: Option<f64>,
                /// Maps token ids to numbers from -100 to 100 that are added to their logits.
                logit_bias: Option<std::collections::BTreeMap<String, f64>>,
                /// Texts that the reply must not contain: a token that would complete one is never
                /// chosen.
                bad_words: Option<Vec<String>>,
                /// Ids of the only tokens that may be chosen. Default: all.
                allowed_token_ids: Option<Vec<i64>>,
                /// The reply does not end before it has this many tokens. Default: 0.
                #[schema(minimum = 0)]
                min_tokens: Option<i64>,
                /// A text, or a list of texts, that ends the reply where it occurs.
                #[schema(inline)]
                stop: Option<crate::wire::content::Strings>,
                /// Ids of tokens that end the reply, besides the model's own end tokens.
                stop_token_ids: Option<Vec<i64>>,
                /// The reply goes on past the model's own end tokens. Default: false.
                ignore_eos: Option<bool>,
                /// Keeps the stop text that ended the reply in its text. Default: false.
                include_stop_str_in_output: Option<bool>,
                /// Whether special tokens such as `<|im_end|>` are left out of the text. Default:
                /// true.
                skip_special_tokens: Option<bool>,
                /// Adds log-probabilities of the prompt's tokens, with this many alternatives for
                /// each, at most 20.
                #[schema(minimum = 0)]
                prompt_logprobs: Option<i64>,
                /// Adds the token ids of reply and prompt, as `token_ids` and `prompt_token_ids`.
                /// Default: false.
                return_token_ids: Option<bool>,
                /// Writes tokens in log-probabilities as `token_id:7`, instead of as text. Default:
                /// false.
                return_tokens_as_token_ids: Option<bool>,
                /// Cuts longer prompts to this many tokens; -1 keeps as many as fit. Default:
                /// prompts are not cut, and one that does not fit is refused.
                #[schema(minimum = -1)]
                truncate_prompt_tokens: Option<i64>,
                /// Which end of a long prompt is cut: `left`, its beginning, or `right`. Default:
                /// `left`.
                truncation_side: Option<String>,
                /// Requests with a lower number are scheduled first. Default: 0. Other numbers are
                /// refused unless the server was started with `--allow-priority`.
                #[schema(minimum = -100, maximum = 100)]
                priority: Option<i64>,
                /// A request shares cached prefixes only with requests that have the same salt.
                /// Default: none.
                #[schema(min_length = 1, max_length = 128)]
                cache_salt: Option<String>,
                /// Id of the request, which its reply's id contains. An `x-request-id` header takes
                /// precedence. Default: random.
                #[serde(alias = "rid")]
                request_id: Option<String>,
                /// Sends the reply while it is generated, as server-sent events. Default: false.
                stream: Option<bool>,
                /// Options of a streamed reply; refused unless `stream` is true.
                stream_options: Option<crate::wire::generation::StreamOptions>,
                /// Number of tokens that a chunk waits for; the first and the last chunk do not
                /// wait. Default: 1.
                #[schema(minimum = 1)]
                stream_interval: Option<i64>,
                /// Whether tokens may be drafted (speculative decoding). Without drafts a reply is
                /// slower, but a greedy or seeded one has the same tokens, and any other the same
                /// distribution of tokens. Default: true.
                drafts: Option<bool>,
            }
            constraints {
                /// The form of the reply's text, as in OpenAI's API. A request may have only one of
                /// the fields that constrain the text.
                response_format: Option<crate::wire::tools::ResponseFormat>,
                /// A constraint of the reply's text, as in vLLM.
                structured_outputs: Option<crate::wire::tools::StructuredOutputs>,
                /// A regular expression that the whole reply matches, as in SGLang.
                regex: Option<String>,
                /// A grammar that the reply follows, as in SGLang: Lark, or EBNF in the manner of
                /// GBNF.
                ebnf: Option<String>,
                /// llama.cpp's name for `ebnf`.
                grammar: Option<String>,
                /// A JSON schema that the reply follows, as in llama.cpp.
                #[schema(value_type = Option<Object>)]
                json_schema: Option<serde_json::Value>,
                /// `json` for any JSON object, or a JSON schema that the reply follows, as in
                /// Ollama.
                #[schema(value_type = Option<Object>)]
                format: Option<serde_json::Value>,
            }
            others {
                /// OpenAI's name of the end user. Not used.
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
