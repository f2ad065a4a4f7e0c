//! [`Text`]: everything that a checkpoint's files say about text. This module knows the files and
//! their contents; tokenizing and rendering are in other modules.

use std::cell::RefCell;
use std::path::Path;

use kilotok_abi::TokenId;
use serde_json::{Map, Value};

use crate::controls::{Controls, NO_MARKS};
use crate::conversation::Source;
use crate::harmony::render::{Piece, render as render_harmony};
use crate::harmony::{FormatToken, FormatTokens};
use crate::template::{Sources, Template};
use crate::tokenizer::{Specials, Tokenizer};
use crate::{Conversation, Format, Keep, Message, ReasoningStart, Rendered, Wanted, dummy, files};

const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const TEMPLATE: &str = "chat_template.jinja";
const TEMPLATE_JSON: &str = "chat_template.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const CONFIG: &str = "config.json";

const THINK: &str = "<think>";
const END_THINK: &str = "</think>";

/// The text side of a checkpoint: tokenizer, chat template, reply format, defaults.
pub struct Text {
    tokenizer: Tokenizer,
    /// The template, and the name of its file.
    template: Option<(&'static str, Template)>,
    /// Whether the template supports reasoning.
    thinks: bool,
    /// Special tokens, including those around turns.
    controls: Controls,
    format: Format,
    /// Set if the format is harmony.
    format_tokens: Option<FormatTokens>,
    defaults: Defaults,
}

/// The checkpoint's sampling parameters. They apply to requests that do not set them.
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
    /// The template does what it may not, or takes more than it may.
    #[error("{0}")]
    Fault(String),
    /// The system allows no more threads for now: not the fault of what is rendered.
    #[error("no thread for the chat template: {0}")]
    NoThread(std::io::Error),
    #[error("the model has no chat template: ask for a completion of a finished prompt instead")]
    NoTemplate,
    #[error("the tokenizer cannot make tokens of the text: {0}")]
    Encode(String),
    #[error("the text has more than {token_max} tokens")]
    TooLong { token_max: usize },
    #[error("the client has left")]
    Cancelled,
    #[error("replies cannot be in harmony: the tokenizer has no special token {0}")]
    NoFormatToken(&'static str),
}

impl Text {
    /// Reads a checkpoint's folder.
    pub fn open(folder: &Path) -> Result<Self, TextError> {
        let failed = RefCell::new(None);
        let read = |name: &str| {
            let found = files::read(&folder.join(name));
            found.unwrap_or_else(|reason| {
                failed.replace(Some(reason));
                None
            })
        };
        let text = Self::from_files(&read);
        match failed.take() {
            Some(reason) => Err(TextError::Unreadable(reason)),
            None => text,
        }
    }

    /// For dummy weights: reads the checkpoint's tokenizer, or makes up one with `vocab_size`
    /// tokens if the checkpoint has none.
    ///
    /// # Errors
    /// As [`Self::open`], for the files that exist.
    pub fn dummy(folder: &Path, vocab_size: usize) -> Result<Self, TextError> {
        match Self::open(folder) {
            Err(TextError::Missing { file: TOKENIZER, .. }) => {
                Self::from_files(&|name| match name {
                    TOKENIZER => Some(dummy::tokenizer(vocab_size).to_string().into_bytes()),
                    TEMPLATE => Some(dummy::TEMPLATE.into()),
                    CONFIG => files::read(&folder.join(name)).ok().flatten(),
                    _ => None,
                })
            }
            text => text,
        }
    }

    /// Reads files by name, for a checkpoint that is compiled into the program.
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
        let special = |text: &str| tokenizer.id(text).filter(|&id| tokenizer.is_special(id));
        let has_format_tokens = FormatTokens::find(special).is_ok();
        let format = Format::detect(model_type, source.as_deref(), has_format_tokens);
        let thinks = source.is_some_and(|source| source.contains(THINK));
        let template = match found {
            None => None,
            Some((file, sources)) => {
                let compiled = Template::compile(sources, named_tokens(&tokenizer_config));
                Some((file, compiled.map_err(|reason| TextError::File { file, reason })?))
            }
        };
        let mut controls = tokenizer.specials();
        // Templates search earlier answers for these two tags, so they are not marked.
        controls.retain(|token| ![THINK, END_THINK].contains(&token.as_str()));
        let controls = Controls::new(controls)
            .map_err(|reason| TextError::File { file: TOKENIZER, reason })?;
        let format_tokens = None;
        let text = Self {
            tokenizer,
            template,
            thinks,
            controls,
            format: Format::Plain,
            format_tokens,
            defaults,
        };
        text.with_format(format)
    }

    /// Uses this reply format instead of the detected one.
    ///
    /// # Errors
    /// The tokenizer does not have the format's special tokens.
    pub fn with_format(mut self, format: Format) -> Result<Self, TextError> {
        self.format = format;
        self.format_tokens = None;
        if format == Format::Harmony {
            let special = |text: &str| self.token_id(text).filter(|&id| self.is_special(id));
            let tokens = FormatTokens::find(special).map_err(TextError::NoFormatToken)?;
            // Some published files lack one of the format's end tokens.
            let end_tokens = &mut self.defaults.end_tokens;
            end_tokens.extend([FormatToken::Call, FormatToken::Return].map(|end| tokens.id(end)));
            end_tokens.sort_unstable();
            end_tokens.dedup();
            self.format_tokens = Some(tokens);
        }
        Ok(self)
    }

    /// Tokens of a raw prompt: special tokens are recognised wherever they stand.
    ///
    /// # Errors
    /// The tokenizer fails on the text.
    pub fn encode(&self, text: &str) -> Result<Vec<TokenId>, TextError> {
        self.encode_wanted(text, &Wanted::default())
    }

    /// Encodes as much of a raw prompt as is wanted.
    ///
    /// # Errors
    /// The text has more tokens than are wanted, the caller has cancelled, or the tokenizer fails
    /// on the text.
    pub fn encode_wanted(&self, text: &str, wanted: &Wanted) -> Result<Vec<TokenId>, TextError> {
        self.tokenizer.encode(text, Specials::Recognized(&NO_MARKS), wanted)
    }

    /// Encodes as much of a rendered conversation as is wanted. Special tokens are recognised if
    /// the template wrote them; in text of the conversation they are spelled out.
    ///
    /// # Errors
    /// As [`Self::encode_wanted`].
    pub fn encode_rendered(
        &self,
        rendered: &Rendered,
        wanted: &Wanted,
    ) -> Result<Vec<TokenId>, TextError> {
        match &rendered.source {
            Source::Prompt => self.encode_wanted(&rendered.prompt, wanted),
            Source::Marked(text, marks) => {
                self.tokenizer.encode(text, Specials::Recognized(marks), wanted)
            }
            Source::Pieces(pieces) => self.encode_pieces(pieces, wanted),
        }
    }

    fn encode_pieces(&self, pieces: &[Piece], wanted: &Wanted) -> Result<Vec<TokenId>, TextError> {
        let token_max = wanted.token_max;
        let mut order: Vec<&Piece> = pieces.iter().collect();
        if wanted.keep == Keep::Last {
            order.reverse();
        }
        let (mut lists, mut left) = (Vec::new(), token_max);
        for piece in order {
            if left == 0 && wanted.keep != Keep::All {
                break;
            }
            let tokens = match piece {
                Piece::Token(token) => vec![*token],
                Piece::Text(text) => {
                    let wanted = Wanted { token_max: left, ..*wanted };
                    let tokens = self.tokenizer.encode(text, Specials::Spelled, &wanted);
                    tokens.map_err(|error| match error {
                        TextError::TooLong { .. } => TextError::TooLong { token_max },
                        other => other,
                    })?
                }
            };
            left = left.checked_sub(tokens.len()).ok_or(TextError::TooLong { token_max })?;
            lists.push(tokens);
        }
        if wanted.keep == Keep::Last {
            lists.reverse();
        }
        Ok(lists.concat())
    }

    /// Encodes text in which nothing is special: text that looks like a special token is spelled
    /// out.
    ///
    /// # Errors
    /// The text is larger than some megabytes, or the tokenizer fails on it.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<TokenId>, TextError> {
        self.tokenizer.encode_plain(text)
    }

    /// Bytes that are not UTF-8 become U+FFFD; unknown tokens become nothing.
    pub fn decode(&self, tokens: &[TokenId], skip_special: bool) -> String {
        self.tokenizer.decode(tokens, skip_special)
    }

    /// `None` for an id without a token.
    pub fn token_bytes(&self, token: TokenId) -> Option<&[u8]> {
        self.tokenizer.bytes(token)
    }

    /// The text of one token for display, even of a special token.
    pub fn token_text(&self, token: TokenId) -> String {
        self.decode(&[token], false)
    }

    /// Whether the token is markup that users do not see. Tokens such as `<think>` often are not
    /// special.
    pub fn is_special(&self, token: TokenId) -> bool {
        self.tokenizer.is_special(token)
    }

    pub fn token_id(&self, text: &str) -> Option<TokenId> {
        self.tokenizer.id(text)
    }

    /// One more than the largest token id. The model's own vocabulary may be larger.
    pub fn vocab_count(&self) -> usize {
        self.tokenizer.count()
    }

    pub fn defaults(&self) -> &Defaults {
        &self.defaults
    }

    /// The format of replies.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The tokens of the format, if it is harmony.
    pub(crate) fn format_tokens(&self) -> Option<FormatTokens> {
        self.format_tokens
    }

    /// Whether conversations can be rendered: by the template, or by the format's own rules.
    pub fn has_template(&self) -> bool {
        self.template.is_some() || self.format_tokens.is_some()
    }

    /// Renders a greeting, so that a broken template is found before the first request.
    ///
    /// # Errors
    /// The template fails. A template that refuses the greeting with its own message is fine.
    pub fn check_template(&self) -> Result<(), TextError> {
        let Some((file, template)) =
            self.template.as_ref().filter(|_| self.format_tokens.is_none())
        else {
            return Ok(());
        };
        let (role, content) = ("user".to_owned(), "Hello".to_owned());
        let greeting = Conversation {
            messages: vec![Message { role, content, ..Message::default() }],
            add_generation_prompt: true,
            ..Conversation::default()
        };
        match template.render(&greeting, &self.controls) {
            Err(TextError::Fault(reason)) => Err(TextError::File { file, reason }),
            _ => Ok(()),
        }
    }

    /// Renders a conversation in the form that the model was trained on.
    ///
    /// # Errors
    /// The template refuses it, or fails.
    pub fn render(&self, conversation: &Conversation) -> Result<Rendered, TextError> {
        if let Some(tokens) = self.format_tokens {
            let (pieces, reasoning) = render_harmony(conversation, tokens)?;
            let text = |piece: &Piece| match piece {
                Piece::Token(token) => self.token_text(*token),
                Piece::Text(text) => text.clone(),
            };
            let prompt = pieces.iter().map(text).collect();
            return Ok(Rendered { prompt, reasoning, source: Source::Pieces(pieces) });
        }
        let (_, template) = self.template.as_ref().ok_or(TextError::NoTemplate)?;
        let (written, marks) = template.render(conversation, &self.controls)?;
        let (prompt, marked) = self.controls.tell_apart(written, marks);
        let turns = marked.as_ref().map_or(prompt.as_str(), |(text, _)| text);
        let reasoning = self.reasoning_after(turns, conversation.continue_final_message);
        let source = marked.map_or(Source::Prompt, |(text, marks)| Source::Marked(text, marks));
        Ok(Rendered { prompt, reasoning, source })
    }

    /// Where a reply to this prompt begins. Only the text after the last special token counts: what
    /// looks like a tag in a finished turn says nothing about the reply.
    fn reasoning_after(&self, prompt: &str, continues: bool) -> ReasoningStart {
        if !self.thinks || !self.format.style().reasons {
            return ReasoningStart::Never;
        }
        let turn = &prompt[self.controls.last_end(prompt)..];
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
        let count = tokenizer.count();
        let mut end_tokens = ids(generation, GENERATION_CONFIG, count)?;
        let named = named_tokens(tokenizer_config);
        let eos = named.get("eos_token").and_then(Value::as_str);
        end_tokens.extend(eos.and_then(|eos| tokenizer.id(eos)));
        if end_tokens.is_empty() {
            end_tokens = ids(config, CONFIG, count)?;
        }
        end_tokens.sort_unstable();
        end_tokens.dedup();
        let number = |name, low, high, range| number(generation, name, low, high, range);
        let float = |name, low, high, range| {
            Ok::<_, TextError>(number(name, low, high, range)?.map(|value| value as f32))
        };
        let top_k = number("top_k", -1.0, f64::from(i32::MAX), "-1, 0 or a count of tokens")?;
        Ok(Self {
            end_tokens,
            temperature: float("temperature", 0.0, 2.0, "between 0 and 2")?,
            top_p: float("top_p", f64::MIN_POSITIVE, 1.0, "above 0 and at most 1")?,
            top_k: top_k.map(|value| value as u32),
            min_p: float("min_p", 0.0, 1.0, "between 0 and 1")?,
            repetition_penalty: float("repetition_penalty", 0.01, 10.0, "between 0.01 and 10")?,
        })
    }
}

/// A number in the range that requests have too. Outside of it, every request would fail.
fn number(
    generation: &Map<String, Value>,
    name: &str,
    low: f64,
    high: f64,
    range: &str,
) -> Result<Option<f64>, TextError> {
    let value = match generation.get(name) {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => value,
    };
    let problem = |reason| TextError::File { file: GENERATION_CONFIG, reason };
    match value.as_f64() {
        None => Err(problem(format!("{name} is {value}, not a number"))),
        Some(number) if number < low || number > high => {
            Err(problem(format!("{name} is {value}, it must be {range}")))
        }
        number => Ok(number),
    }
}

/// The tokens that end a reply: one id or a list of them.
fn ids(
    config: &Map<String, Value>,
    file: &'static str,
    count: usize,
) -> Result<Vec<TokenId>, TextError> {
    let id = |value: &Value| {
        let id = value.as_u64().and_then(|id| TokenId::try_from(id).ok());
        id.filter(|&id| (id as usize) < count).ok_or_else(|| TextError::File {
            file,
            reason: format!("eos_token_id has {value}, a token is a number below {count}"),
        })
    };
    match config.get("eos_token_id") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(values)) => values.iter().map(id).collect(),
        Some(value) => Ok(vec![id(value)?]),
    }
}

/// The named tokens, such as `eos_token`, by their texts, as templates see them.
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

/// The checkpoint's templates, and the name of their file. A separate template file takes
/// precedence.
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

/// The object in a JSON file; empty if there is no such file.
fn read_object(
    read: &dyn Fn(&str) -> Option<Vec<u8>>,
    file: &'static str,
) -> Result<Map<String, Value>, TextError> {
    let Some(bytes) = read(file) else { return Ok(Map::new()) };
    serde_json::from_slice(&bytes)
        .map_err(|error| TextError::File { file, reason: error.to_string() })
}
