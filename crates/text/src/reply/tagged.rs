//! Reader of the formats whose markup is tags: it splits a reply into reasoning, answer and calls,
//! character by character. Whether a call is XML or JSON is decided by its beginning and not by the
//! model's format, because models make mistakes.
//!
//! What it accepts beyond the formats:
//! - `<tool_call>` within reasoning ends it, if a call follows;
//! - `<function=name>` without `<tool_call>`, if there is such a tool;
//! - a missing end of any of call, function, parameter;
//! - tags that are doubled.
//!
//! Text that turns out not to be a call is given back as text. So is a call of an undeclared
//! function.

use std::sync::Arc;

use kilotok_abi::TokenId;

use super::events::Events;
use super::json_call::JsonCall;
use super::reader::{Reader, TokenUse};
use super::speech::{Part, Speech};
use super::tags::{Finder, Found, Tag};
use super::xml_call::XmlCall;
use crate::formats::Style;
use crate::{ReasoningStart, Tool};

/// Longest name of a function or parameter, in characters; the API's own limit is 64.
pub(super) const NAME_MAX: usize = 256;

#[derive(Clone)]
pub(crate) struct Tagged {
    finder: Finder,
    machine: Machine,
    /// Tokens of tags. They are read even if special tokens are left out.
    tags: Vec<TokenId>,
}

#[expect(clippy::struct_excessive_bools, reason = "four facts that do not exclude each other")]
#[derive(Clone)]
struct Machine {
    state: State,
    speech: Speech,
    style: Style,
    /// `None` if calls are not to be recognised.
    tools: Option<Arc<[Tool]>>,
    parallel: bool,
    /// Whether an answer that has begun can no longer contain calls.
    calls_first: bool,
    /// Whether the reply may still open its reasoning itself.
    may_think: bool,
    over: bool,
    /// The text of a call that has just begun, for [`Tagged::take_begun`].
    begun: Option<String>,
}

#[derive(Clone)]
enum State {
    Speech,
    /// After `<tool_call>`, before it is certain that a call follows.
    Opened(Opening),
    /// After `<function=`.
    Name(Opening, String),
    /// The opening is kept until the call has its name.
    Json(JsonCall, Option<Opening>),
    Xml(XmlCall, Wrapped),
    /// A call is complete, but its `</tool_call>` is still missing.
    Closing,
}

/// Text that becomes a call, or is given back.
#[derive(Clone, Default)]
struct Opening {
    raw: String,
    wrapped: Wrapped,
    /// Whether it follows another call within the same `<tool_call>`.
    follows: bool,
}

/// Whether a call is within `<tool_call>`.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Wrapped(bool);

/// The effect of a character or tag on a call.
pub(super) enum Step {
    Stay,
    /// The call's name is complete. The caller decides whether to accept the call.
    Named(String),
    /// The call is complete. The tag, if any, comes after it.
    Over(Option<Tag>),
    /// This is no call.
    GiveBack,
}

impl Opening {
    /// The text from the last `<tool_call>` on; the tag may have been doubled.
    fn last_tag(&self) -> &str {
        self.raw.rfind(Tag::Call.text()).map_or(&self.raw, |at| &self.raw[at..])
    }
}

impl Tagged {
    pub(crate) fn new(
        style: Style,
        reasoning: ReasoningStart,
        tools: Option<Arc<[Tool]>>,
        parallel: bool,
        calls_first: bool,
    ) -> Self {
        let begun = reasoning == ReasoningStart::Begun && style.reasons;
        let part = if begun { Part::Reasoning } else { Part::Answer };
        let machine = Machine {
            state: State::Speech,
            speech: Speech::new(part, style.padded),
            style,
            tools,
            parallel,
            calls_first,
            may_think: reasoning == ReasoningStart::Maybe && style.reasons,
            over: false,
            begun: None,
        };
        Self { finder: Finder::default(), machine, tags: Vec::new() }
    }

    /// With the tokens that are tags.
    pub(super) fn with_tags(self, tags: Vec<TokenId>) -> Self {
        Self { tags, ..self }
    }

    /// The text of a call that began with the last character: with the brace of its JSON, with
    /// `<function=` within `<tool_call>`, or with `<function=name>` outside.
    pub(crate) fn take_begun(&mut self) -> Option<String> {
        self.machine.begun.take()
    }

    /// The text so far of a call that may be about to begin.
    pub(crate) fn opening(&self) -> Option<String> {
        let pending = self.finder.pending();
        let begins = |tag: Tag| tag.text().starts_with(pending) && self.machine.takes(tag);
        match &self.machine.state {
            _ if self.machine.over => None,
            State::Opened(opening) => Some(opening.last_tag().to_owned() + pending),
            State::Name(opening, _) if !opening.wrapped.0 => Some(opening.raw.clone() + pending),
            _ if pending.is_empty() => None,
            _ => (begins(Tag::Call) || begins(Tag::Function)).then(|| pending.to_owned()),
        }
    }

    pub(crate) fn push(&mut self, character: char, events: &mut Events) {
        if self.machine.over {
            return;
        }
        match self.finder.push(character, |tag| self.machine.takes(tag)) {
            Found::Nothing => {}
            Found::Character => self.machine.character(character, events),
            Found::Text(text) => self.text(&text, events),
            Found::Tag(tag) => self.machine.tag(tag, events),
        }
    }

    /// Whether the text that is held back is more likely a tag than text.
    fn is_in_tag(&self) -> bool {
        self.finder.pending().len() > 1 || self.machine.speech.is_fresh()
    }

    fn text(&mut self, text: &str, events: &mut Events) {
        for character in text.chars() {
            if !self.machine.over {
                self.machine.character(character, events);
            }
        }
    }
}

impl Reader for Tagged {
    fn token_use(&self, token: TokenId) -> TokenUse {
        if self.tags.contains(&token) { TokenUse::Text } else { TokenUse::Ordinary }
    }

    fn markup(&mut self, _: TokenId, _: &[u8], _: &mut Events) {}

    fn character(&mut self, character: char, events: &mut Events) {
        self.push(character, events);
    }

    fn is_reasoning(&self) -> bool {
        self.machine.speech.part() == Part::Reasoning
    }

    fn is_over(&self) -> bool {
        self.machine.over
    }

    fn finish(&mut self, cut: bool, events: &mut Events) {
        if cut && self.machine.is_in_call() {
            return;
        }
        if cut && self.is_in_tag() {
            self.finder.finish();
        }
        let text = self.finder.finish();
        self.text(&text, events);
        self.machine.finish(events);
    }
}

impl Machine {
    /// Whether a call has begun or may be beginning, and is not complete.
    fn is_in_call(&self) -> bool {
        match &self.state {
            State::Speech | State::Closing => false,
            State::Opened(_) | State::Name(..) | State::Json(..) | State::Xml(..) => true,
        }
    }

    /// Whether a tag is markup in this state; otherwise it is text.
    fn takes(&self, tag: Tag) -> bool {
        match &self.state {
            State::Speech | State::Name(..) => self.speech_takes(tag),
            State::Opened(_) => matches!(tag, Tag::Function | Tag::Call) || self.speech_takes(tag),
            State::Json(..) => matches!(tag, Tag::EndCall | Tag::Call),
            State::Xml(call, _) => call.takes(tag),
            State::Closing => matches!(tag, Tag::EndCall | Tag::Call | Tag::Function),
        }
    }

    fn speech_takes(&self, tag: Tag) -> bool {
        let (answers, fresh) = (self.speech.part() == Part::Answer, self.speech.is_fresh());
        match tag {
            Tag::Think => fresh && (self.may_think || !answers),
            Tag::EndThink => self.style.reasons && (fresh || !answers),
            Tag::Call => self.tools.is_some() && (fresh || !answers || !self.calls_first),
            Tag::Function => self.tools.is_some() && answers && (fresh || !self.calls_first),
            Tag::EndCall => self.speech.follows_call(),
            Tag::EndFunction | Tag::Parameter | Tag::EndParameter => false,
        }
    }

    fn character(&mut self, character: char, events: &mut Events) {
        match std::mem::replace(&mut self.state, State::Speech) {
            State::Speech => self.speech.say(character, events),
            State::Opened(mut opening) => {
                opening.raw.push(character);
                match character {
                    ' ' | '\n' | '\t' | '\r' => self.state = State::Opened(opening),
                    '{' => {
                        self.begun = Some(opening.last_tag().to_owned());
                        self.begin_json(opening, events);
                    }
                    _ => self.give_back(&opening.raw, events),
                }
            }
            State::Name(mut opening, mut name) => {
                opening.raw.push(character);
                if character == '>' {
                    self.begin_xml(&opening, &name, events);
                } else if matches!(character, '\n' | '<') || name.chars().count() == NAME_MAX {
                    self.give_back(&opening.raw, events);
                } else {
                    name.push(character);
                    self.state = State::Name(opening, name);
                }
            }
            State::Json(mut call, mut opening) => {
                if let Some(opening) = &mut opening {
                    opening.raw.push(character);
                }
                let step = call.character(character, events);
                self.json_step(step, call, opening, events);
            }
            State::Xml(mut call, wrapped) => {
                call.character(character, events);
                self.state = State::Xml(call, wrapped);
            }
            State::Closing => self.after_call(character, events),
        }
    }

    fn tag(&mut self, tag: Tag, events: &mut Events) {
        match std::mem::replace(&mut self.state, State::Speech) {
            State::Speech => self.speech_tag(tag),
            State::Opened(mut opening) => match tag {
                Tag::Function => {
                    opening.raw.push_str(tag.text());
                    self.begun = Some(opening.last_tag().to_owned());
                    self.state = State::Name(opening, String::new());
                }
                Tag::Call => {
                    opening.raw.push_str(tag.text());
                    self.state = State::Opened(opening);
                }
                _ => {
                    self.give_back(&opening.raw, events);
                    self.retry(tag, events);
                }
            },
            State::Name(opening, _) => {
                self.give_back(&opening.raw, events);
                self.retry(tag, events);
            }
            State::Json(mut call, mut opening) => match call.tag(tag, events) {
                Step::GiveBack => {
                    self.give_back(&opening.unwrap_or_default().raw, events);
                    self.retry(tag, events);
                }
                step => {
                    if let Some(opening) = &mut opening {
                        opening.raw.push_str(tag.text());
                    }
                    self.json_step(step, call, opening, events);
                }
            },
            State::Xml(mut call, wrapped) => match call.tag(tag, events) {
                Step::Over(next) => {
                    self.close(wrapped);
                    if let Some(next) = next {
                        self.retry(next, events);
                    }
                }
                _ => self.state = State::Xml(call, wrapped),
            },
            State::Closing => {
                self.leave_call();
                if tag != Tag::EndCall {
                    self.retry(tag, events);
                }
            }
        }
    }

    /// Handles a tag in the state to which another tag or character has led.
    fn retry(&mut self, tag: Tag, events: &mut Events) {
        if self.over {
            return;
        }
        if self.takes(tag) {
            self.tag(tag, events);
        } else {
            tag.text().chars().for_each(|character| self.character(character, events));
        }
    }

    fn speech_tag(&mut self, tag: Tag) {
        match tag {
            Tag::Think => {
                self.may_think = false;
                self.speech.turn_to(Part::Reasoning);
            }
            Tag::EndThink => {
                self.may_think = false;
                self.speech.turn_to(Part::Answer);
            }
            Tag::Call => {
                let raw = tag.text().to_owned();
                self.state = State::Opened(Opening { raw, wrapped: Wrapped(true), follows: false });
            }
            Tag::Function => {
                let raw = tag.text().to_owned();
                let opening = Opening { raw, ..Opening::default() };
                self.state = State::Name(opening, String::new());
            }
            Tag::EndCall | Tag::EndFunction | Tag::Parameter | Tag::EndParameter => {}
        }
    }

    fn give_back(&mut self, raw: &str, events: &mut Events) {
        self.state = State::Speech;
        raw.chars().for_each(|character| self.speech.say(character, events));
    }

    fn begin_json(&mut self, opening: Opening, events: &mut Events) {
        let mut call = JsonCall::default();
        let step = call.character('{', events);
        self.json_step(step, call, Some(opening), events);
    }

    fn json_step(
        &mut self,
        step: Step,
        mut call: JsonCall,
        opening: Option<Opening>,
        events: &mut Events,
    ) {
        match step {
            Step::Stay => self.state = State::Json(call, opening),
            Step::Named(name) => {
                let opening = opening.unwrap_or_default();
                // A call that begins like this is not constrained by a grammar.
                let (takes_text, strict) = match self.tool(&name) {
                    Some(tool) if !(tool.strict && opening.follows) => {
                        (tool.takes_text(), tool.strict)
                    }
                    _ => return self.give_back(&opening.raw, events),
                };
                self.speech.turn_to_call();
                events.call(name, takes_text);
                call.begin(strict, events);
                self.state = State::Json(call, None);
            }
            Step::Over(next) => {
                self.close(Wrapped(true));
                if let Some(next) = next {
                    self.retry(next, events);
                }
            }
            Step::GiveBack => {
                self.give_back(&opening.unwrap_or_default().raw, events);
            }
        }
    }

    fn begin_xml(&mut self, opening: &Opening, written: &str, events: &mut Events) {
        let name = written.trim().trim_matches(['"', '\'']);
        let exact = name == written;
        let tool = match self.tool(name) {
            Some(tool) if exact || opening.wrapped.0 || !tool.strict => tool,
            _ => return self.give_back(&opening.raw, events),
        };
        let (takes_text, strict) = (tool.takes_text(), tool.strict);
        let call = XmlCall::new(tool.parameters.clone(), self.style.padded, strict);
        if exact && !opening.wrapped.0 {
            self.begun = Some(opening.raw.clone());
        }
        self.speech.turn_to_call();
        events.call(name.to_owned(), takes_text);
        self.state = State::Xml(call, opening.wrapped);
    }

    fn tool(&self, name: &str) -> Option<&Tool> {
        self.tools.iter().flat_map(|tools| tools.iter()).find(|tool| tool.name == name)
    }

    /// Ends a complete call.
    fn close(&mut self, wrapped: Wrapped) {
        self.state = State::Closing;
        if !wrapped.0 {
            self.leave_call();
        }
    }

    fn leave_call(&mut self) {
        self.state = State::Speech;
        self.over |= !self.parallel;
    }

    /// Handles a character where `</tool_call>` should come. One brace too many is common.
    fn after_call(&mut self, character: char, events: &mut Events) {
        match character {
            ' ' | '\n' | '\t' | '\r' | '}' => self.state = State::Closing,
            _ => {
                self.leave_call();
                if self.over {
                    return;
                }
                match character {
                    '{' => {
                        let raw = "{".to_owned();
                        let opening = Opening { raw, wrapped: Wrapped(true), follows: true };
                        self.begin_json(opening, events);
                    }
                    _ => self.speech.say(character, events),
                }
            }
        }
    }

    fn finish(&mut self, events: &mut Events) {
        match std::mem::replace(&mut self.state, State::Speech) {
            State::Speech | State::Closing => {}
            State::Opened(opening) | State::Name(opening, _) | State::Json(_, Some(opening)) => {
                self.give_back(&opening.raw, events);
            }
            State::Json(mut call, None) => call.finish(events),
            State::Xml(mut call, _) => call.finish(events),
        }
        self.speech.finish(events);
    }
}
