//! The arguments of a call whose markup is only around them. They are streamed as they arrive.

use serde_json::Value;

use super::echo::{Echo, Taken};
use super::events::Events;
use super::schema;
use crate::Tool;

/// Writes a JSON object, whatever the text is.
#[derive(Clone, Debug)]
pub(super) struct Arguments {
    at: At,
    echo: Echo,
    /// The name of the tool's only argument, if that is a string: a model may write it without any
    /// JSON.
    only: Option<String>,
    /// A reusable buffer for the echo's output.
    out: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Start,
    Object,
    /// Within the only argument.
    Text,
    /// The text is not an object.
    Nothing,
    /// The object is complete: text after it is ignored.
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

    /// Ends the arguments with the message.
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
