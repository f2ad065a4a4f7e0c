//! The arguments of a call whose markup holds nothing else. They are streamed as they come.

use serde_json::Value;

use super::echo::{Echo, Taken};
use super::events::Events;
use super::schema;
use crate::Tool;

/// Whatever the text is, what is given out is a JSON object.
#[derive(Clone, Debug)]
pub(super) struct Arguments {
    at: At,
    echo: Echo,
    /// The only argument of the tool, if that is a text: a model may write it without any JSON.
    only: Option<String>,
    /// What the echo writes, to be used again.
    out: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Start,
    Object,
    /// Within the only argument.
    Text,
    /// What came is no object.
    Nothing,
    /// The object is complete: what follows is left out.
    Over,
}

impl Arguments {
    pub(super) fn new(tool: &Tool) -> Self {
        let only = schema::only_text(&tool.parameters).map(str::to_owned);
        Self { at: At::Start, echo: Echo::default(), only, out: String::new() }
    }

    pub(super) fn character(&mut self, character: char, events: &mut Events) {
        match self.at {
            At::Start if matches!(character, ' ' | '\n' | '\t' | '\r') => {}
            At::Start if character == '{' => {
                self.at = At::Object;
                self.object(character, events);
            }
            At::Start => {
                self.at = At::Nothing;
                if let Some(only) = &self.only {
                    self.at = At::Text;
                    events.arguments(&format!("{{{}: \"", Value::from(only.as_str())));
                    events.string(character);
                }
            }
            At::Object => self.object(character, events),
            At::Text => events.string(character),
            At::Nothing | At::Over => {}
        }
    }

    fn object(&mut self, character: char, events: &mut Events) {
        self.out.clear();
        match self.echo.push(character, &mut self.out) {
            Taken::More => {}
            Taken::Complete | Taken::CompleteBefore => self.at = At::Over,
            Taken::Broken => {
                self.echo.close(&mut self.out);
                self.at = At::Over;
            }
        }
        events.arguments(&self.out);
    }

    /// The message is over.
    pub(super) fn finish(&mut self, events: &mut Events) {
        match self.at {
            At::Start | At::Nothing => events.arguments("{}"),
            At::Object => {
                self.out.clear();
                self.echo.close(&mut self.out);
                events.arguments(&self.out);
            }
            At::Text => events.arguments("\"}"),
            At::Over => {}
        }
        self.at = At::Over;
    }
}
