//! A call as JSON: `{"name": …, "arguments": {…}}`, up to its closing brace. Arguments are streamed
//! once the name is known.

use serde_json::Value as Json;

use super::echo::{Echo, Taken};
use super::events::Events;
use super::tagged::{NAME_MAX, Step};
use super::tags::Tag;

#[derive(Clone, Default)]
pub(super) struct JsonCall {
    at: At,
    /// The current value or key, and below, its JSON as far as it is needed.
    echo: Echo,
    text: String,
    /// A reusable buffer for the echo's output.
    out: String,
    role: Role,
    named: bool,
    /// Whether a grammar guarantees that everything is JSON, so that tags in strings are text.
    exact: bool,
    arguments: Arguments,
    /// After a tag within a string that may end the call: the tag and all text since.
    tail: Option<String>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum At {
    /// Before the first brace.
    #[default]
    Start,
    /// Before a key or the end.
    Next,
    Key,
    Colon,
    Value,
    /// The text is not JSON: only a tag ends the call.
    Broken,
}

/// The meaning of the current member.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Role {
    Name,
    Arguments,
    #[default]
    Other,
}

#[derive(Clone, Default)]
enum Arguments {
    #[default]
    None,
    /// They came before the name, and are kept until it is known.
    Kept(String),
    /// They are being written.
    Open,
    /// They have been written completely.
    Given,
}

impl JsonCall {
    /// The call's name is accepted: writes arguments that came before it.
    pub(super) fn begin(&mut self, exact: bool, events: &mut Events) {
        self.named = true;
        self.exact = exact;
        if let Arguments::Kept(kept) = &self.arguments {
            events.arguments(kept);
            self.arguments = Arguments::Given;
        }
    }

    pub(super) fn character(&mut self, character: char, events: &mut Events) -> Step {
        if let Some(tail) = &mut self.tail {
            tail.push(character);
            if matches!(character, ' ' | '\n' | '\t' | '\r') {
                return Step::Stay;
            }
            return self.resume(events);
        }
        let is_space = matches!(character, ' ' | '\n' | '\t' | '\r');
        match (self.at, character) {
            (At::Start, '{') => self.at = At::Next,
            (At::Broken, _) | (At::Next, ',') => {}
            (At::Start | At::Next | At::Colon, _) if is_space => {}
            (At::Next, '"') => {
                self.at = At::Key;
                self.take(character, events);
            }
            (At::Next, '}') => return self.complete(events),
            (At::Colon, ':') => self.at = At::Value,
            (At::Key | At::Value, _) => return self.take(character, events),
            (At::Start | At::Next | At::Colon, _) => return self.broken(events),
        }
        Step::Stay
    }

    /// A tag. Within a string it is text unless it ends the call.
    pub(super) fn tag(&mut self, tag: Tag, events: &mut Events) -> Step {
        if let Some(tail) = &mut self.tail {
            if tag == Tag::Call {
                return self.cut_off(tag, events);
            }
            let tail = std::mem::replace(tail, tag.text().to_owned());
            return self.feed(&tail, events);
        }
        if self.echo.is_in_string() && self.at != At::Broken {
            if tag == Tag::EndCall && !self.exact {
                self.tail = Some(tag.text().to_owned());
                return Step::Stay;
            }
            return self.feed(tag.text(), events);
        }
        self.cut_off(tag, events)
    }

    /// Ends the call at a tag before its last brace.
    fn cut_off(&mut self, tag: Tag, events: &mut Events) -> Step {
        if !self.named {
            return Step::GiveBack;
        }
        self.finish(events);
        Step::Over(Some(tag))
    }

    /// Ends the call, whose name is known, with the reply.
    pub(super) fn finish(&mut self, events: &mut Events) {
        let mut out = String::new();
        match self.arguments {
            Arguments::Given => {}
            Arguments::Open => self.echo.close(&mut out),
            Arguments::None | Arguments::Kept(_) => out.push_str("{}"),
        }
        self.arguments = Arguments::Given;
        events.arguments(&out);
    }

    /// Continues with the tag as text.
    fn resume(&mut self, events: &mut Events) -> Step {
        let tail = self.tail.take().unwrap_or_default();
        self.feed(&tail, events)
    }

    fn feed(&mut self, text: &str, events: &mut Events) -> Step {
        let pending = self.tail.take();
        let mut step = Step::Stay;
        for character in text.chars() {
            // The text is inside a string, so only the last character can name or end the call.
            step = self.character(character, events);
        }
        self.tail = pending;
        step
    }

    fn take(&mut self, character: char, events: &mut Events) -> Step {
        if self.at == At::Value && self.role == Role::Arguments && self.named {
            self.begin_arguments(character);
        }
        self.out.clear();
        let taken = self.echo.push(character, &mut self.out);
        if let Arguments::Open = self.arguments {
            events.arguments(&self.out);
        } else {
            self.text.push_str(&self.out);
        }
        match taken {
            Taken::More => Step::Stay,
            Taken::Complete => self.member(events),
            Taken::CompleteBefore => match self.member(events) {
                Step::Stay => self.character(character, events),
                step => step,
            },
            Taken::Broken => self.broken(events),
        }
    }

    /// Begins to stream the arguments if they are an object.
    fn begin_arguments(&mut self, character: char) {
        if character == '{' && self.text.is_empty() && matches!(self.arguments, Arguments::None) {
            self.arguments = Arguments::Open;
        }
    }

    /// Handles a complete key or value.
    fn member(&mut self, events: &mut Events) -> Step {
        self.echo = Echo::default();
        let text = std::mem::take(&mut self.text);
        if self.at == At::Key {
            self.at = At::Colon;
            self.role = match string(&text).as_str() {
                "name" => Role::Name,
                "arguments" | "parameters" => Role::Arguments,
                _ => Role::Other,
            };
            return Step::Stay;
        }
        self.at = At::Next;
        match self.role {
            Role::Name if !self.named => {
                let name = string(&text);
                if name.is_empty() || name.chars().count() > NAME_MAX {
                    return Step::GiveBack;
                }
                return Step::Named(name);
            }
            Role::Arguments => self.arguments(text, events),
            Role::Name | Role::Other => {}
        }
        Step::Stay
    }

    fn arguments(&mut self, text: String, events: &mut Events) {
        match self.arguments {
            Arguments::Open => self.arguments = Arguments::Given,
            Arguments::None => {
                // Some models write the object as a string.
                let object = if text.starts_with('"') { string(&text) } else { text };
                let is_object = serde_json::from_str::<Json>(&object).is_ok_and(|o| o.is_object());
                let object = if is_object { object } else { "{}".to_owned() };
                if self.named {
                    events.arguments(&object);
                    self.arguments = Arguments::Given;
                } else {
                    self.arguments = Arguments::Kept(object);
                }
            }
            Arguments::Given | Arguments::Kept(_) => {}
        }
    }

    /// Handles the last brace.
    fn complete(&mut self, events: &mut Events) -> Step {
        if !self.named {
            return Step::GiveBack;
        }
        self.finish(events);
        Step::Over(None)
    }

    fn broken(&mut self, events: &mut Events) -> Step {
        if !self.named {
            return Step::GiveBack;
        }
        self.finish(events);
        self.at = At::Broken;
        Step::Stay
    }
}

/// The text of a JSON string.
fn string(json: &str) -> String {
    serde_json::from_str(json).unwrap_or_default()
}
