//! Reader of harmony, which splits a reply into messages at the format's tokens. The header of a
//! message tells which part of the reply it is: a call if it is addressed to a declared tool, else
//! reasoning in the channel `analysis`, else a part of the answer.
//!
//! What it accepts beyond the format:
//! - a message without `<|start|>`, without `<|end|>`, or without a channel;
//! - a message without `<|message|>`: the text after the words of its header;
//! - words in a header that mean nothing, and roles other than the assistant's;
//! - a call in any channel, and a recipient without `to=` or `functions.`.

use std::sync::Arc;

use kilotok_abi::TokenId;

use super::arguments::Arguments;
use super::events::Events;
use super::reader::{Reader, TokenUse};
use crate::harmony::{Channel, FormatToken, FormatTokens, Header};
use crate::{ReasoningStart, Tool};

/// Text between two messages that are joined.
const BETWEEN: &str = "\n\n";

/// See the file's head.
#[expect(clippy::struct_excessive_bools, reason = "facts that do not exclude each other")]
pub(super) struct Harmony {
    tokens: FormatTokens,
    state: State,
    /// The declared tools; empty if calls are not to be recognised.
    tools: Arc<[Tool]>,
    parallel: bool,
    /// Whether a message has had reasoning, and below, content.
    has_reasoning: bool,
    has_content: bool,
    has_call: bool,
    over: bool,
}

enum State {
    Header(Header),
    /// The text of a message; `fresh` until some of it has arrived.
    Text {
        is_reasoning: bool,
        fresh: bool,
    },
    Call(Arguments),
}

impl Harmony {
    pub(super) fn new(
        tokens: FormatTokens,
        reasoning: ReasoningStart,
        tools: Arc<[Tool]>,
        parallel: bool,
    ) -> Self {
        let state = match reasoning {
            ReasoningStart::Maybe => State::Header(Header::default()),
            // The prompt ends within a message.
            ReasoningStart::Begun => State::Text { is_reasoning: true, fresh: true },
            ReasoningStart::Never => State::Text { is_reasoning: false, fresh: true },
        };
        Self {
            tokens,
            state,
            tools,
            parallel,
            has_reasoning: false,
            has_content: false,
            has_call: false,
            over: false,
        }
    }

    fn begin(&mut self, header: &Header, events: &mut Events) {
        let name = header.function();
        let tool = name.and_then(|name| self.tools.iter().find(|tool| tool.name == name));
        if let Some(tool) = tool {
            self.has_call = true;
            events.call(tool.name.clone(), tool.takes_text());
            self.state = State::Call(Arguments::new(tool));
            return;
        }
        let is_reasoning = header.channel() == Some(Channel::Analysis);
        self.state = State::Text { is_reasoning, fresh: true };
    }

    /// Ends a message. The header of another may follow.
    fn end(&mut self, events: &mut Events) {
        let header = State::Header(Header::default());
        match std::mem::replace(&mut self.state, header) {
            State::Header(header) => self.give_back(&header, events),
            State::Text { .. } => {}
            State::Call(mut arguments) => {
                arguments.finish(events);
                self.over = !self.parallel;
            }
        }
    }

    /// Gives the text of an unclosed header back: there is no more of the message.
    fn give_back(&mut self, header: &Header, events: &mut Events) {
        let text = header.text();
        let calls = header.function().is_some();
        if text.is_empty() && !calls {
            return;
        }
        self.begin(header, events);
        text.chars().for_each(|character| self.character(character, events));
        self.end(events);
    }

    fn say(&mut self, character: char, is_reasoning: bool, fresh: bool, events: &mut Events) {
        let emit = if is_reasoning { Events::reasoning } else { Events::content };
        let before = if is_reasoning { &mut self.has_reasoning } else { &mut self.has_content };
        if fresh && std::mem::replace(before, true) {
            BETWEEN.chars().for_each(|character| emit(events, character));
        }
        emit(events, character);
    }
}

impl Reader for Harmony {
    fn token_use(&self, token: TokenId) -> TokenUse {
        match self.state {
            _ if self.tokens.which(token).is_some() => TokenUse::Markup,
            State::Header(_) => TokenUse::Markup,
            State::Text { .. } | State::Call(_) => TokenUse::Ordinary,
        }
    }

    fn markup(&mut self, token: TokenId, bytes: &[u8], events: &mut Events) {
        use FormatToken::{Call, Channel, Constrain, End, Message, Return, Start};
        match (&mut self.state, self.tokens.which(token)) {
            (State::Header(header), Some(token @ (Channel | Constrain))) => {
                header.begin_section(token);
            }
            (State::Header(header), Some(Message)) => {
                let header = std::mem::take(header);
                self.begin(&header, events);
            }
            (State::Header(header), None) => {
                if !header.push(bytes) {
                    let header = std::mem::take(header);
                    self.begin(&header, events);
                    let text = header.text();
                    text.chars().for_each(|character| self.character(character, events));
                }
            }
            (_, Some(Start | End | Call | Return)) => self.end(events),
            (State::Text { .. } | State::Call(_), Some(token @ Channel)) => {
                self.end(events);
                if let State::Header(header) = &mut self.state {
                    header.begin_section(token);
                }
            }
            (State::Text { .. } | State::Call(_), Some(Message | Constrain) | None) => {}
        }
    }

    fn character(&mut self, character: char, events: &mut Events) {
        if self.over {
            return;
        }
        match &mut self.state {
            State::Call(arguments) => arguments.character(character, events),
            State::Text { is_reasoning, fresh } => {
                let (is_reasoning, fresh) = (*is_reasoning, std::mem::take(fresh));
                self.say(character, is_reasoning, fresh, events);
            }
            State::Header(_) => {}
        }
    }

    fn is_reasoning(&self) -> bool {
        match self.state {
            State::Header(_) => !self.has_content && !self.has_call,
            State::Text { is_reasoning, .. } => is_reasoning,
            State::Call(_) => false,
        }
    }

    fn is_over(&self) -> bool {
        self.over
    }

    fn finish(&mut self, cut: bool, events: &mut Events) {
        // If the reply was cut, the header or the call is incomplete.
        if !cut && !self.over {
            self.end(events);
        }
    }
}
