//! Parses one reply of the model, token by token: text, stop strings, reasoning, tool calls. Every
//! token is handled in the same way whichever step produced it, so events depend on the tokens
//! alone. Parsing cannot fail: at worst markup appears as text. The format's own [`Reader`] decides
//! what the text means.

mod arguments;
mod echo;
pub(crate) mod events;
mod harmony;
mod json_call;
mod literal;
pub(crate) mod reader;
mod schema;
mod speech;
pub(crate) mod tagged;
pub(crate) mod tags;
mod text_input;
pub(crate) mod value;
mod xml_call;

use std::sync::Arc;

use kilotok_abi::TokenId;

use crate::detokenizer::Detokenizer;
use crate::stops::Stops;
use crate::{ReasoningStart, Text, Tool};
use events::Events;
use harmony::Harmony;
use reader::{Reader, TokenUse, Verbatim};
use tagged::Tagged;
use tags::Tag;

/// Options of parsing a reply.
#[derive(Clone, Debug, Default)]
pub struct ReplyOptions {
    pub parse: Parse,
    /// The declared tools. Their schemas determine how XML values become JSON.
    pub tools: Vec<Tool>,
    pub reasoning: ReasoningStart,
    /// Strings that end the reply where they first appear. Empty strings are ignored.
    pub stop: Vec<String>,
    /// Whether the stop string itself belongs to the reply.
    pub include_stop: bool,
    /// Stop strings are ignored within this many tokens.
    pub min_tokens: u32,
    /// Whether special tokens are left out of the text.
    pub skip_special: bool,
    /// Whether the reply may have more than one call.
    pub parallel_calls: bool,
}

/// The parts that are recognised in a reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Parse {
    /// Nothing is recognised: the whole reply is content.
    #[default]
    Nothing,
    Reasoning,
    ReasoningAndCalls,
    /// Reasoning and calls; but an answer that does not begin with a call contains none, because it
    /// has a constrained shape in which text may look like a call.
    ReasoningThenCalls,
}

/// Parts of a reply, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Reasoning(String),
    Content(String),
    /// A call begins; its arguments follow.
    Call {
        index: u32,
        name: String,
        /// Whether the tool takes text instead of JSON.
        takes_text: bool,
    },
    /// A further piece of a call's arguments. The pieces, joined, are a JSON object, or the text if
    /// the tool takes text.
    Arguments {
        index: u32,
        text: String,
    },
}

/// The reason why a reply ended before the model ended it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// This stop string appeared.
    String(String),
    /// The first call is complete, and only one is allowed.
    Calls,
}

/// Parses one reply.
pub struct Reply {
    text: Arc<Text>,
    detokenizer: Detokenizer,
    stops: Stops,
    reader: Box<dyn Reader>,
    events: Events,
    /// Decoded text, and below, text that has passed the search for stop strings. Both are empty
    /// between tokens.
    decoded: String,
    passed: String,
    skip_special: bool,
    min_tokens: u32,
    token_count: u32,
    reasoning_count: u32,
    ended: bool,
}

impl Reply {
    pub fn new(text: Arc<Text>, options: ReplyOptions) -> Self {
        Self {
            reader: reader(&text, &options),
            text,
            detokenizer: Detokenizer::default(),
            stops: Stops::new(options.stop, options.include_stop),
            events: Events::default(),
            decoded: String::new(),
            passed: String::new(),
            skip_special: options.skip_special,
            min_tokens: options.min_tokens,
            token_count: 0,
            reasoning_count: 0,
            ended: false,
        }
    }

    /// Adds a token. If the reply ends with it, returns the reason; later tokens are ignored.
    pub fn push(&mut self, token: TokenId) -> Option<Stopped> {
        if self.ended {
            return None;
        }
        self.token_count += 1;
        self.reasoning_count += u32::from(self.reader.is_reasoning());
        let shown = match self.reader.token_use(token) {
            TokenUse::Ordinary => !(self.skip_special && self.text.is_special(token)),
            TokenUse::Text => true,
            TokenUse::Markup => {
                self.finish_text();
                let bytes = self.text.token_bytes(token).unwrap_or_default();
                self.reader.markup(token, bytes, &mut self.events);
                false
            }
        };
        let stop = if shown { self.push_text(token) } else { None };
        let calls_over = self.reader.is_over().then_some(Stopped::Calls);
        let stopped = stop.map(Stopped::String).or(calls_over);
        self.ended = stopped.is_some();
        stopped
    }

    /// Adds a token of text. Returns the stop string that it completes, if any.
    fn push_text(&mut self, token: TokenId) -> Option<String> {
        let bytes = self.text.token_bytes(token).unwrap_or_default();
        self.detokenizer.push(bytes, &mut self.decoded);
        let counts = self.token_count > self.min_tokens;
        let stop = self.stops.push(&self.decoded, counts, &mut self.passed);
        self.decoded.clear();
        self.read();
        stop
    }

    /// Releases all text that is held back, because markup or the end follows.
    fn finish_text(&mut self) {
        self.detokenizer.finish(&mut self.decoded);
        self.stops.finish(&self.decoded, &mut self.passed);
        self.decoded.clear();
        self.read();
    }

    /// The model has ended the reply: releases the text that is held back.
    pub fn finish(&mut self) {
        self.end(false);
    }

    /// The reply ends although the model might have continued: releases text, but leaves an
    /// incomplete call incomplete, so that it is not taken for a complete one.
    pub fn cut(&mut self) {
        self.end(true);
    }

    fn end(&mut self, cut: bool) {
        if !self.ended {
            self.finish_text();
        }
        self.ended = true;
        let mut reader = std::mem::replace(&mut self.reader, Box::new(Verbatim));
        reader.finish(cut, &mut self.events);
    }

    /// The events since the last call. Adjacent events of the same kind are joined.
    pub fn take(&mut self) -> Vec<Event> {
        self.events.take()
    }

    /// Number of tokens up to the end of reasoning, including the closing tag.
    pub fn reasoning_count(&self) -> u32 {
        self.reasoning_count
    }

    pub fn call_count(&self) -> u32 {
        self.events.call_count()
    }

    /// Passes the text that is certain to the reader.
    fn read(&mut self) {
        for character in self.passed.chars() {
            self.reader.character(character, &mut self.events);
        }
        self.passed.clear();
    }
}

/// The reader for the format and for the parts to be recognised.
fn reader(text: &Text, options: &ReplyOptions) -> Box<dyn Reader> {
    let style = text.format().style();
    let calls = matches!(options.parse, Parse::ReasoningAndCalls | Parse::ReasoningThenCalls);
    let calls = calls && style.calls;
    if !calls && (options.parse == Parse::Nothing || !style.reasons) {
        return Box::new(Verbatim);
    }
    let tools: Option<Arc<[Tool]>> = calls.then(|| options.tools.as_slice().into());
    if let Some(tokens) = text.format_tokens() {
        let (tools, parallel) = (tools.unwrap_or_default(), options.parallel_calls);
        return Box::new(Harmony::new(tokens, options.reasoning, tools, parallel));
    }
    let calls_first = options.parse == Parse::ReasoningThenCalls;
    let tagged = Tagged::new(style, options.reasoning, tools, options.parallel_calls, calls_first);
    let tags = Tag::ALL.iter().filter_map(|tag| text.token_id(tag.text()));
    Box::new(tagged.with_tags(tags.collect()))
}
