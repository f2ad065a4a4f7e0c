//! What a checkpoint's files say about text: [`Text`]. Knows which files there are and what is in
//! them; how text becomes tokens and prompts is next door.

use std::cell::RefCell;
use std::io;
use std::path::Path;

use kilotok_abi::TokenId;
use serde_json::{Map, Value};

use crate::dummy;
use crate::template::{Sources, Template};
use crate::tokenizer::Tokenizer;
use crate::{Conversation, Format, ReasoningStart, Rendered};

const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const TEMPLATE: &str = "chat_template.jinja";
const TEMPLATE_JSON: &str = "chat_template.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const CONFIG: &str = "config.json";

const THINK: &str = "<think>";
const END_THINK: &str = "</think>";

/// All that a checkpoint says about text: tokenizer, chat template, reply format, defaults.
pub struct Text {
    tokenizer: Tokenizer,
    template: Option<Template>,
    /// Whether the template has reasoning.
    thinks: bool,
    /// Special tokens, among them those around turns.
    turns: Vec<String>,
    format: Format,
    defaults: Defaults,
}

/// How the checkpoint wants to be sampled where a request does not say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Defaults {
    /// Tokens that end a reply.
    pub end_tokens: Vec<TokenId>,
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<u32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
}

#[derive(Debug, thiserror::Error)]
pub enum TextError {
    #[error("the checkpoint has no {file}: {purpose}")]
    Missing { file: &'static str, purpose: &'static str },
    #[error("cannot read {0}")]
    Unreadable(String),
    #[error("{file}: {reason}")]
    File { file: &'static str, reason: String },
    /// The conversation is not one that the template takes; its author wrote the message.
    #[error("{0}")]
    Template(String),
    #[error("the model has no chat template: ask for a completion of a finished prompt instead")]
    NoTemplate,
    #[error("the tokenizer refused the text: {0}")]
    Encode(String),
}

impl Text {
    /// From a checkpoint's folder.
    pub fn open(folder: &Path) -> Result<Self, TextError> {
        let failed = RefCell::new(None);
        let read = |name: &str| match std::fs::read(folder.join(name)) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                failed.replace(Some(format!("{}: {error}", folder.join(name).display())));
                None
            }
        };
        let text = Self::from_files(&read);
        match failed.take() {
            Some(reason) => Err(TextError::Unreadable(reason)),
            None => text,
        }
    }

    /// For made-up weights: of a checkpoint, or where that has no tokenizer, made up too, for so
    /// many tokens.
    ///
    /// # Errors
    /// As [`Self::open`], for files that are there.
    pub fn dummy(folder: &Path, vocab_size: usize) -> Result<Self, TextError> {
        match Self::open(folder) {
            Err(TextError::Missing { file: TOKENIZER, .. }) => {
                Self::from_files(&|name| match name {
                    TOKENIZER => Some(dummy::tokenizer(vocab_size).to_string().into_bytes()),
                    TEMPLATE => Some(dummy::TEMPLATE.into()),
                    CONFIG => std::fs::read(folder.join(name)).ok(),
                    _ => None,
                })
            }
            text => text,
        }
    }

    /// From files by name, as a checkpoint that is part of the program has them.
    pub fn from_files(read: &dyn Fn(&str) -> Option<Vec<u8>>) -> Result<Self, TextError> {
        let purpose = "text cannot become tokens without it";
        let file = read(TOKENIZER).ok_or(TextError::Missing { file: TOKENIZER, purpose })?;
        let problem = |reason: String| TextError::File { file: TOKENIZER, reason };
        let tokenizer = Tokenizer::read(&file).map_err(|error| problem(error.to_string()))?;
        let tokenizer_config = read_object(read, TOKENIZER_CONFIG)?;
        let config = read_object(read, CONFIG)?;
        let generation = read_object(read, GENERATION_CONFIG)?;
        let defaults = Defaults::read(&generation, &config, &tokenizer_config, &tokenizer)?;
        let found = find_template(read, &tokenizer_config)?;
        let source = found.as_ref().map(|(_, sources)| sources.chat.clone());
        let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let format = Format::detect(model_type, source.as_deref());
        let thinks = source.is_some_and(|source| source.contains(THINK));
        let template = match found {
            None => None,
            Some((file, sources)) => {
                let compiled = Template::compile(sources, named_tokens(&tokenizer_config));
                Some(compiled.map_err(|reason| TextError::File { file, reason })?)
            }
        };
        let mut turns = tokenizer.specials();
        turns.retain(|token| token != THINK && token != END_THINK);
        Ok(Self { tokenizer, template, thinks, turns, format, defaults })
    }

    /// The same with another reply format than was found.
    #[must_use]
    pub fn with_format(mut self, format: Format) -> Self {
        self.format = format;
        self
    }

    /// Tokens of a prompt: special tokens are recognised in its text.
    pub fn encode(&self, text: &str) -> Result<Vec<TokenId>, TextError> {
        self.tokenizer.encode(text).map_err(|error| TextError::Encode(error.to_string()))
    }

    /// Tokens of text that is only text: what looks like a special token is spelled out.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<TokenId>, TextError> {
        self.tokenizer.encode_plain(text).map_err(|error| TextError::Encode(error.to_string()))
    }

    /// Bytes that are no UTF-8 become U+FFFD; unknown tokens are nothing.
    pub fn decode(&self, tokens: &[TokenId], skip_special: bool) -> String {
        self.tokenizer.decode(tokens, skip_special)
    }

    /// `None` for an id without a token.
    pub fn token_bytes(&self, token: TokenId) -> Option<&[u8]> {
        self.tokenizer.bytes(token)
    }

    /// One token for people to see, special ones too.
    pub fn token_text(&self, token: TokenId) -> String {
        self.decode(&[token], false)
    }

    /// Whether the token is markup that users are not shown. `<think>` and the like often are not.
    pub fn is_special(&self, token: TokenId) -> bool {
        self.tokenizer.is_special(token)
    }

    pub fn token_id(&self, text: &str) -> Option<TokenId> {
        self.tokenizer.id(text)
    }

    /// One more than the largest token. The model's own vocabulary may be larger.
    pub fn vocab_count(&self) -> usize {
        self.tokenizer.count()
    }

    pub fn defaults(&self) -> &Defaults {
        &self.defaults
    }

    /// How replies are written.
    pub fn format(&self) -> Format {
        self.format
    }

    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// A conversation as the model wants to read it.
    pub fn render(&self, conversation: &Conversation) -> Result<Rendered, TextError> {
        let template = self.template.as_ref().ok_or(TextError::NoTemplate)?;
        let prompt = template.render(conversation)?;
        let reasoning = self.reasoning_after(&prompt, conversation.continue_final_message);
        Ok(Rendered { prompt, reasoning })
    }

    /// Only what follows the last special token counts: what looks like a tag in a turn that is
    /// over says nothing of the reply.
    fn reasoning_after(&self, prompt: &str, continues: bool) -> ReasoningStart {
        if !self.thinks || !self.format.style().reasons {
            return ReasoningStart::Never;
        }
        let ends = self.turns.iter().filter_map(|turn| Some(prompt.rfind(turn)? + turn.len()));
        let turn = &prompt[ends.max().unwrap_or(0)..];
        match (turn.rfind(THINK), turn.rfind(END_THINK)) {
            (Some(begun), ended) if ended.is_none_or(|ended| ended < begun) => {
                ReasoningStart::Begun
            }
            (None, None) if !continues => ReasoningStart::Maybe,
            _ => ReasoningStart::Never,
        }
    }
}

impl Defaults {
    fn read(
        generation: &Map<String, Value>,
        config: &Map<String, Value>,
        tokenizer_config: &Map<String, Value>,
        tokenizer: &Tokenizer,
    ) -> Result<Self, TextError> {
        let mut end_tokens = ids(generation.get("eos_token_id"));
        let named = named_tokens(tokenizer_config);
        let eos = named.get("eos_token").and_then(Value::as_str);
        end_tokens.extend(eos.and_then(|eos| tokenizer.id(eos)));
        if end_tokens.is_empty() {
            end_tokens = ids(config.get("eos_token_id"));
        }
        end_tokens.sort_unstable();
        end_tokens.dedup();
        let number = |name: &str| match generation.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or_else(|| TextError::File {
                file: GENERATION_CONFIG,
                reason: format!("{name} is {value}, not a number"),
            }),
        };
        let float = |name| Ok(number(name)?.map(|value| value as f32));
        Ok(Self {
            end_tokens,
            temperature: float("temperature")?,
            top_p: float("top_p")?,
            top_k: number("top_k")?.map(|value| value as u32),
            min_p: float("min_p")?,
            repetition_penalty: float("repetition_penalty")?,
        })
    }
}

/// One id or a list of them.
fn ids(value: Option<&Value>) -> Vec<TokenId> {
    let id = |value: &Value| value.as_u64().and_then(|id| TokenId::try_from(id).ok());
    match value {
        Some(Value::Array(values)) => values.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    }
}

/// The tokens that have a part, such as `eos_token`, as templates see them: by their texts.
fn named_tokens(tokenizer_config: &Map<String, Value>) -> Map<String, Value> {
    let mut named = Map::new();
    for part in ["bos", "eos", "unk", "sep", "pad", "cls", "mask"] {
        let name = format!("{part}_token");
        let text = match tokenizer_config.get(&name) {
            Some(Value::Object(token)) => token.get("content"),
            other => other,
        };
        if let Some(text) = text.filter(|text| text.is_string()) {
            named.insert(name, text.clone());
        }
    }
    named
}

/// The checkpoint's templates and the file they are in. A file of their own comes first.
fn find_template(
    read: &dyn Fn(&str) -> Option<Vec<u8>>,
    tokenizer_config: &Map<String, Value>,
) -> Result<Option<(&'static str, Sources)>, TextError> {
    if let Some(bytes) = read(TEMPLATE) {
        let chat = String::from_utf8(bytes)
            .map_err(|error| TextError::File { file: TEMPLATE, reason: error.to_string() })?;
        return Ok(Some((TEMPLATE, Sources { chat, tool_use: None })));
    }
    let alone = read_object(read, TEMPLATE_JSON)?;
    for (file, object) in [(TEMPLATE_JSON, &alone), (TOKENIZER_CONFIG, tokenizer_config)] {
        match object.get("chat_template") {
            Some(Value::String(chat)) => {
                return Ok(Some((file, Sources { chat: chat.clone(), tool_use: None })));
            }
            Some(Value::Array(named)) => {
                let source = |name: &str| {
                    let entry = named.iter().find(|entry| entry["name"] == name)?;
                    entry["template"].as_str().map(str::to_owned)
                };
                if let Some(chat) = source("default") {
                    return Ok(Some((file, Sources { chat, tool_use: source("tool_use") })));
                }
            }
            _ => {}
        }
    }
    Ok(None)
}

/// The object in a JSON file; an empty one if there is no such file.
fn read_object(
    read: &dyn Fn(&str) -> Option<Vec<u8>>,
    file: &'static str,
) -> Result<Map<String, Value>, TextError> {
    let Some(bytes) = read(file) else { return Ok(Map::new()) };
    serde_json::from_slice(&bytes)
        .map_err(|error| TextError::File { file, reason: error.to_string() })
}
