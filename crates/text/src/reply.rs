//! Parses one reply of the model, token by token: text, stop strings, reasoning, tool calls. Every
//! token takes the same path whichever step brought it, so events depend on the tokens alone.
//! Parsing cannot fail: at worst markup appears as text.

mod echo;
pub(crate) mod events;
mod json_call;
mod literal;
pub(crate) mod reader;
mod schema;
mod speech;
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
use reader::Reader;
use tags::Tag;

/// Options of parsing a reply.
#[derive(Clone, Debug, Default)]
pub struct ReplyOptions {
    pub parse: Parse,
    /// Their schemas say how XML values become JSON.
    pub tools: Vec<Tool>,
    pub reasoning: ReasoningStart,
    /// Strings that end the reply where they first appear. Empty ones do not count.
    pub stop: Vec<String>,
    /// Whether the stop string itself belongs to the reply.
    pub include_stop: bool,
    /// Stop strings do not count within this many tokens.
    pub min_tokens: u32,
    /// Whether special tokens are left out of the text.
    pub skip_special: bool,
    /// Whether the reply may have more than one call.
    pub parallel_calls: bool,
}

/// The parts that are recognised in a reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Parse {
    /// None: all is content.
    #[default]
    Nothing,
    Reasoning,
    ReasoningAndCalls,
    /// The same, but an answer that begins with anything else than a call has none: it is of a
    /// shape in which text may speak of calls.
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
        /// Whether the tool takes a text instead of JSON.
        takes_text: bool,
    },
    /// More of a call's arguments. Joined, they are a JSON object, or the text of a tool that takes
    /// one.
    Arguments {
        index: u32,
        text: String,
    },
}

/// Why a reply ended before the model ended it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// This stop string appeared.
    String(String),
    /// The first call is complete, and there may be no other.
    Calls,
}

/// Reads one reply.
pub struct Reply {
    text: Arc<Text>,
    detokenizer: Detokenizer,
    stops: Stops,
    /// None when all is content.
    reader: Option<Reader>,
    events: Events,
    /// Special tokens that the reader needs even where special tokens are left out.
    tags: Vec<TokenId>,
    /// Texts on their way, empty between tokens.
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
        let style = text.format().style();
        let calls = matches!(options.parse, Parse::ReasoningAndCalls | Parse::ReasoningThenCalls);
        let calls = calls && style.calls;
        let reads = calls || (options.parse != Parse::Nothing && style.reasons);
        let tags = Tag::ALL.iter().filter_map(|tag| text.token_id(tag.text()));
        Self {
            tags: if reads { tags.collect() } else { Vec::new() },
            text,
            detokenizer: Detokenizer::default(),
            stops: Stops::new(options.stop, options.include_stop),
            reader: reads.then(|| {
                let tools = calls.then(|| options.tools.into());
                let calls_first = options.parse == Parse::ReasoningThenCalls;
                Reader::new(style, options.reasoning, tools, options.parallel_calls, calls_first)
            }),
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

    /// Adds a token. Returns why the reply ends with it, if it does; later tokens are ignored.
    pub fn push(&mut self, token: TokenId) -> Option<Stopped> {
        if self.ended {
            return None;
        }
        self.token_count += 1;
        let reasons = self.reader.as_ref().is_some_and(Reader::is_reasoning);
        self.reasoning_count += u32::from(reasons);
        let hidden = self.skip_special && self.text.is_special(token);
        if !hidden || self.tags.contains(&token) {
            let bytes = self.text.token_bytes(token).unwrap_or_default();
            self.detokenizer.push(bytes, &mut self.decoded);
        }
        let counts = self.token_count > self.min_tokens;
        let stop = self.stops.push(&self.decoded, counts, &mut self.passed);
        self.decoded.clear();
        let calls_over = self.read();
        let stopped = stop.map(Stopped::String).or(calls_over.then_some(Stopped::Calls));
        self.ended = stopped.is_some();
        stopped
    }

    /// The model has ended the reply: text that was held back is released.
    pub fn finish(&mut self) {
        self.end(false);
    }

    /// The reply ends though the model might have gone on: text is released, but an incomplete call
    /// stays incomplete, so that it is not taken for a complete one.
    pub fn cut(&mut self) {
        self.end(true);
    }

    fn end(&mut self, cut: bool) {
        if !self.ended {
            self.detokenizer.finish(&mut self.decoded);
            self.stops.finish(&self.decoded, &mut self.passed);
            self.read();
        }
        self.ended = true;
        if let Some(mut reader) = self.reader.take() {
            reader.finish(cut, &mut self.events);
        }
    }

    /// Events since the last call, neighbours of one kind joined.
    pub fn take(&mut self) -> Vec<Event> {
        self.events.take()
    }

    /// Tokens up to the end of reasoning, the closing tag included.
    pub fn reasoning_count(&self) -> u32 {
        self.reasoning_count
    }

    pub fn call_count(&self) -> u32 {
        self.events.call_count()
    }

    /// Parses the text that has passed. Returns whether the calls of the reply are over.
    fn read(&mut self) -> bool {
        let mut over = false;
        for character in self.passed.chars() {
            let Some(reader) = &mut self.reader else {
                self.events.content(character);
                continue;
            };
            reader.push(character, &mut self.events);
            over = reader.is_over();
        }
        self.passed.clear();
        over
    }
}
