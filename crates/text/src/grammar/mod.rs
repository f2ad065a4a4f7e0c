//! Constrained replies: JSON, regular expressions, grammars, choices and tool calls, as masks over
//! the vocabulary. llguidance does the parsing; this module translates the constraint, limits its
//! cost, and follows a reply, with its reasoning and drafts, through the grammar.
//!
//! Requests are treated as hostile: sizes are checked before anything is parsed, compiling runs on
//! a separate thread with limited fuel, and the cost of a mask is bounded.

mod cache;
mod calls;
mod compile;
mod disjoint;
mod gbnf;
mod lark;
mod lark_text;
mod listener;
mod lookahead;
mod messages;
mod multiples;
mod parse_gbnf;
mod patterns;
mod reword;
mod schema;
mod texts;
mod vocabulary;
mod walk;
mod weight;

#[cfg(test)]
mod tests;

use std::fmt::Write;
use std::sync::Arc;

use kilotok_abi::TokenId;
use llguidance::ParserFactory;
use llguidance::api::{GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::InferenceCapabilities;
use serde_json::{Value, json};

use crate::harmony::FormatTokens;
use crate::{Format, ReasoningStart, Text, TextError, Tool};

use cache::Cache;
use compile::{CompilePool, Compiled, library_error};
use listener::{Listener, TagListener};
use messages::{Answer, Bound, MessageListener};
use vocabulary::Vocabulary;

pub use walk::{Grammar, Masks};

/// Largest grammar, in bytes. The largest in use, of SQL dialects, have 50 KiB.
const GRAMMAR_BYTES_MAX: usize = 64 << 10;
/// Largest regular expression, in bytes. Its cost is quadratic.
const REGEX_BYTES_MAX: usize = 16 << 10;
/// Most choices, and below, most bytes of all choices together.
const CHOICES_MAX: usize = 4096;
const CHOICES_BYTES_MAX: usize = 128 << 10;

const LIMITS: ParserLimits = ParserLimits {
    // Each optional property that may come next takes four items, and ambiguity takes more.
    max_items_in_row: 10_000,
    // Enough for 20 ms. The largest public schemas need half of it.
    initial_lexer_fuel: 1_000_000,
    // Enough for 15 ms per mask; 0.1 ms is usual.
    step_lexer_fuel: 200_000,
    step_max_items: 50_000,
    // A state takes 1 to 2 KiB.
    max_lexer_states: 50_000,
    max_grammar_size: 200_000,
    precompute_large_lexemes: true,
    // Verbose errors would show one user's reply in another user's log.
    verbose_errors: false,
};

/// Fuel per remainder of a `multipleOf`. A mask may visit all remainders, at several places of a
/// number; a remainder that was visited before is free.
const REMAINDER_FUEL: u64 = 1000;

/// The limits of a grammar whose largest `multipleOf` has this many remainders.
fn limits(remainders: u64) -> ParserLimits {
    let step_lexer_fuel = LIMITS.step_lexer_fuel + REMAINDER_FUEL * remainders;
    ParserLimits { step_lexer_fuel, ..LIMITS }
}

/// The constraint of a reply.
#[derive(Clone, Debug, PartialEq)]
pub enum Constraint {
    /// Any JSON object.
    JsonObject,
    /// JSON matching a schema, with the user's own pattern for white space between its tokens.
    SpacedJson {
        schema: Value,
        space: String,
    },
    /// `strict`: a schema that cannot be enforced completely is refused. Otherwise keywords that
    /// cannot be enforced are left out, see [`Grammar::warnings`].
    JsonSchema {
        schema: Value,
        strict: bool,
    },
    /// The whole reply matches the regular expression, in the syntax of Rust's `regex`.
    Regex(String),
    /// A Lark grammar, or a GBNF grammar, which is recognised by its `::=`.
    Lark(String),
    Choice(Vec<String>),
    /// Only calls of these tools, in the format that the model was trained on: exactly one call, or
    /// with `parallel` at least one.
    Calls {
        tools: Vec<Tool>,
        format: Format,
        parallel: bool,
    },
    /// Text in which calls of these tools may begin. A call names one of them, and the arguments of
    /// a `strict` tool follow its schema.
    TextWithCalls {
        tools: Arc<[Tool]>,
        format: Format,
        parallel: bool,
    },
    /// Either the shape or calls. A model without a format for calls makes none.
    ShapeOrCalls {
        shape: Box<Constraint>,
        tools: Vec<Tool>,
        format: Format,
        parallel: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// The constraint is invalid; the text says what to change.
    #[error("{0}")]
    Invalid(String),
    /// It is valid, but costs more than one request may.
    #[error("{0}")]
    TooLarge(String),
    #[error("the request was cancelled while its grammar was compiled")]
    Cancelled,
    /// The system allows no more threads for now.
    #[error("no thread for a grammar: {0}")]
    NoThread(String),
    /// An internal error.
    #[error("{0}")]
    Fault(String),
}

/// Grammars for constrained replies of one model.
pub struct Grammars {
    vocabulary: Arc<Vocabulary>,
    factory: Arc<ParserFactory>,
    pool: CompilePool,
    cache: Arc<Cache<Arc<Compiled>>>,
}

impl Grammars {
    /// `vocab_size` is the engine's, which may be larger than the tokenizer's; ids without a token
    /// are never allowed. Any of `end_tokens` ends a reply.
    pub fn new(text: &Text, vocab_size: u32, end_tokens: &[TokenId]) -> Result<Self, TextError> {
        Self::over(Vocabulary::of(text, vocab_size, end_tokens)?)
            .map_err(|reason| TextError::File { file: "tokenizer.json", reason })
    }

    fn over(vocabulary: Vocabulary) -> Result<Self, String> {
        let slices = SlicedBiasComputer::general_slices();
        let none = InferenceCapabilities::default();
        let factory = ParserFactory::new(&vocabulary.env, none, &slices);
        let factory = factory.map_err(|error| format!("no grammars over it: {error}"))?;
        Ok(Self {
            vocabulary: Arc::new(vocabulary),
            factory: Arc::new(factory),
            pool: CompilePool::default(),
            cache: Arc::default(),
        })
    }

    /// The grammar of one reply: from the reply's first token, or, if the reply reasons, from the
    /// token after its reasoning. `true` means that the prompt has begun the reasoning.
    ///
    /// Takes milliseconds unless the same grammar was compiled recently, so call it off the
    /// engine's thread. `cancelled` is checked all the time, and once it returns true the call
    /// returns promptly.
    pub fn compile(
        &self,
        constraint: &Constraint,
        reasoning: impl Into<ReasoningStart>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Grammar, GrammarError> {
        if cancelled() {
            return Err(GrammarError::Cancelled);
        }
        // The key is text because it distinguishes objects by the order of their fields, unlike
        // `==`. The fields of the reply have the same order.
        let reasoning = reasoning.into();
        let tokens = self.vocabulary.format_tokens;
        let tokens = tokens.filter(|_| is_of_messages(constraint, reasoning));
        let key = match constraint {
            Constraint::TextWithCalls { tools, format, .. } => calls_key(tools, *format),
            _ if tokens.is_some() => format!("messages {constraint:?}"),
            _ => format!("{constraint:?}"),
        };
        let compiled = match (self.cache.get(&key), tokens) {
            (Some(compiled), _) => compiled,
            (None, Some(tokens)) => {
                self.compile_new(key, self.message_source(constraint, tokens)?, cancelled)?
            }
            (None, None) => self.compile_new(key, self.source(constraint)?, cancelled)?,
        };
        let listener = match tokens {
            Some(tokens) => Some(message_listener(constraint, tokens, reasoning)),
            None => listener(constraint, reasoning),
        };
        let in_text = matches!(constraint, Constraint::TextWithCalls { .. });
        Ok(Grammar::new(compiled, Arc::clone(&self.vocabulary), reasoning, listener, in_text))
    }

    fn compile_new(
        &self,
        key: String,
        source: Source,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Arc<Compiled>, GrammarError> {
        let (factory, cache) = (Arc::clone(&self.factory), Arc::clone(&self.cache));
        let work = move || {
            // Another request may have compiled the same grammar while this one waited.
            if let Some(compiled) = cache.get(&key) {
                return Ok(compiled);
            }
            let matcher = compile::matcher(&factory, source.grammar, limits(source.remainders))?;
            let compiled = Arc::new(Compiled { matcher, warnings: source.warnings.into() });
            cache.put(key, &compiled);
            Ok(compiled)
        };
        self.pool.run(work, cancelled)
    }

    /// The source of a grammar for a reply in the form of messages.
    fn message_source(
        &self,
        constraint: &Constraint,
        tokens: FormatTokens,
    ) -> Result<Source, GrammarError> {
        match constraint {
            Constraint::TextWithCalls { tools, .. } => {
                messages::source(tools, Answer::Free, tokens)
            }
            Constraint::Calls { tools, .. } if tools.is_empty() => Err(calls::no_tools()),
            Constraint::Calls { tools, .. } => messages::source(tools, Answer::None, tokens),
            Constraint::ShapeOrCalls { shape, tools, .. } => {
                messages::source(tools, Answer::Shape(self.source(shape)?), tokens)
            }
            shape => messages::source(&[], Answer::Shape(self.source(shape)?), tokens),
        }
    }

    fn source(&self, constraint: &Constraint) -> Result<Source, GrammarError> {
        match constraint {
            Constraint::JsonObject => {
                Ok(Source::json(schema::prepare(&json!({ "type": "object" }), true, None)?))
            }
            Constraint::JsonSchema { schema, strict } => {
                Ok(Source::json(schema::prepare(schema, *strict, None)?))
            }
            Constraint::SpacedJson { schema, space } => {
                Ok(Source::json(schema::prepare(schema, false, Some(space))?))
            }
            Constraint::Regex(regex) => {
                bounded(regex, REGEX_BYTES_MAX, "the regular expression")?;
                patterns::check(regex).map_err(|reason| {
                    GrammarError::Invalid(format!(
                        "the regular expression cannot be used: {reason}"
                    ))
                })?;
                Ok(Source::from(TopLevelGrammar::from_regex(regex)))
            }
            Constraint::Lark(text) => {
                bounded(text, GRAMMAR_BYTES_MAX, "the grammar")?;
                if gbnf::is_gbnf(text) {
                    return Ok(Source::from(TopLevelGrammar::from_lark(gbnf::to_lark(text)?)));
                }
                lark::prepare(text)
            }
            Constraint::Choice(choices) => choice(choices),
            Constraint::Calls { tools, format, parallel } => {
                calls::source(tools, *format, *parallel, &self.vocabulary)
            }
            Constraint::TextWithCalls { tools, format, .. } => {
                calls::one_in_text(tools, *format, &self.vocabulary)
            }
            Constraint::ShapeOrCalls { shape, format, .. } if !format.style().calls => {
                self.source(shape)
            }
            Constraint::ShapeOrCalls { shape, tools, format, parallel } => {
                let shape = self.source(shape)?;
                let calls = calls::source(tools, *format, *parallel, &self.vocabulary)?;
                Ok(Source::either(("shape", shape), ("calls", calls)))
            }
        }
    }
}

/// Whether a grammar begins with the header of a message. If the prompt ends within the answer, a
/// shape covers only the rest of the answer, without a header.
fn is_of_messages(constraint: &Constraint, reasoning: ReasoningStart) -> bool {
    reasoning != ReasoningStart::Never
        || matches!(constraint, Constraint::TextWithCalls { .. } | Constraint::Calls { .. })
}

/// Follows the messages of a reply; knows which of them are constrained.
fn message_listener(
    constraint: &Constraint,
    tokens: FormatTokens,
    reasoning: ReasoningStart,
) -> Listener {
    let names = |tools: &[Tool]| tools.iter().map(|tool| tool.name.clone()).collect();
    let (answers, functions, in_text) = match constraint {
        Constraint::TextWithCalls { tools, .. } => {
            let strict = calls::first_of_each_name(tools).filter(|tool| tool.strict);
            (false, strict.map(|tool| tool.name.clone()).collect(), true)
        }
        Constraint::Calls { tools, .. } => (false, names(tools), false),
        Constraint::ShapeOrCalls { tools, .. } => (true, names(tools), false),
        _ => (true, Vec::new(), false),
    };
    let bound = Bound { answers, functions };
    Listener::Messages(MessageListener::new(tokens, bound, reasoning, in_text))
}

/// Everything about the tools on which their grammar depends.
fn calls_key(tools: &[Tool], format: Format) -> String {
    let mut key = format!("text with {format} calls");
    for tool in tools {
        let _ = write!(key, " {:?}", tool.name);
        if tool.strict {
            let _ = write!(key, "{:?}{:?}", tool.parameters, tool.input);
        }
    }
    key
}

/// Finds where a call begins, if the constraint has calls. A call may also end the reasoning.
fn listener(constraint: &Constraint, reasoning: ReasoningStart) -> Option<Listener> {
    let (tools, format, parallel) = match constraint {
        Constraint::TextWithCalls { tools, format, parallel } => {
            (Arc::clone(tools), *format, *parallel)
        }
        Constraint::Calls { tools, format, parallel }
        | Constraint::ShapeOrCalls { tools, format, parallel, .. }
            if format.has_calls() && reasoning != ReasoningStart::Never =>
        {
            (tools.as_slice().into(), *format, *parallel)
        }
        _ => return None,
    };
    Some(Listener::Tags(Box::new(TagListener::new(format.style(), reasoning, &tools, parallel))))
}

/// The input of llguidance, and the parts of the constraint that it does not enforce.
struct Source {
    grammar: TopLevelGrammar,
    warnings: Vec<String>,
    /// Number of remainders of the largest `multipleOf` that is enforced.
    remainders: u64,
}

impl Source {
    fn json(prepared: schema::Prepared) -> Self {
        let grammar = GrammarWithLexer::from_json_schema(prepared.schema);
        let grammar = TopLevelGrammar::from_grammar(grammar);
        Self { grammar, warnings: prepared.warnings, remainders: prepared.remainders }
    }

    /// Matches one of two sources, under names that do not occur in them.
    fn either(one: (&str, Self), other: (&str, Self)) -> Self {
        let lark = format!("start: @{} | @{}", one.0, other.0);
        let mut either = Self::from(TopLevelGrammar::from_lark(lark));
        for (name, source) in [one, other] {
            either.append(name, source);
        }
        either
    }

    /// Adds a source, to which this one refers by name.
    fn append(&mut self, name: &str, mut source: Self) {
        source.grammar.grammars[0].name = Some(name.to_owned());
        self.grammar.grammars.append(&mut source.grammar.grammars);
        self.warnings.append(&mut source.warnings);
        self.remainders = self.remainders.max(source.remainders);
    }
}

impl From<TopLevelGrammar> for Source {
    fn from(grammar: TopLevelGrammar) -> Self {
        Self { grammar, warnings: Vec::new(), remainders: 0 }
    }
}

/// `true`: the prompt has begun the reasoning.
impl From<bool> for ReasoningStart {
    fn from(begun: bool) -> Self {
        if begun { Self::Begun } else { Self::Never }
    }
}

fn choice(choices: &[String]) -> Result<Source, GrammarError> {
    if choices.is_empty() {
        return Err(GrammarError::Invalid("a choice needs at least one string".to_owned()));
    }
    let bytes: usize = choices.iter().map(String::len).sum();
    if choices.len() > CHOICES_MAX || bytes > CHOICES_BYTES_MAX {
        return Err(GrammarError::TooLarge(format!(
            "{} choices of {bytes} bytes: at most {CHOICES_MAX} of {CHOICES_BYTES_MAX}",
            choices.len()
        )));
    }
    let literals: Vec<String> = choices.iter().map(|choice| lark::literal(choice)).collect();
    let lark = format!("start: CHOICE\nCHOICE: {}", literals.join(" | "));
    Ok(Source::from(TopLevelGrammar::from_lark(lark)))
}

fn bounded(text: &str, most: usize, what: &str) -> Result<(), GrammarError> {
    if text.len() > most {
        let text = format!("{what} has {} bytes: at most {most}", text.len());
        return Err(GrammarError::TooLarge(text));
    }
    Ok(())
}
