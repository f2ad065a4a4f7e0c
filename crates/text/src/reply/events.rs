//! Collects the events of a reply; adjacent events of the same kind are joined.

use super::Event;
use super::text_input::TextInput;
use super::value::escape;

#[derive(Debug, Default)]
pub(crate) struct Events {
    gathered: Vec<Event>,
    call_count: u32,
    /// Set if the last call's tool takes text.
    text_input: Option<TextInput>,
}

impl Events {
    pub(crate) fn take(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.gathered)
    }

    pub(super) fn call_count(&self) -> u32 {
        self.call_count
    }

    pub(super) fn content(&mut self, character: char) {
        match self.gathered.last_mut() {
            Some(Event::Content(text)) => text.push(character),
            _ => self.gathered.push(Event::Content(character.to_string())),
        }
    }

    pub(super) fn reasoning(&mut self, character: char) {
        match self.gathered.last_mut() {
            Some(Event::Reasoning(text)) => text.push(character),
            _ => self.gathered.push(Event::Reasoning(character.to_string())),
        }
    }

    pub(super) fn call(&mut self, name: String, takes_text: bool) {
        self.gathered.push(Event::Call { index: self.call_count, name, takes_text });
        self.call_count += 1;
        self.text_input = takes_text.then(TextInput::default);
    }

    /// Adds to the JSON of the last call's arguments.
    pub(super) fn arguments(&mut self, more: &str) {
        if let Some(input) = &mut self.text_input {
            let mut text = String::new();
            more.chars().for_each(|character| input.push(character, &mut text));
            self.more(&text);
        } else {
            self.more(more);
        }
    }

    /// Adds a character of a string within the arguments.
    pub(super) fn string(&mut self, character: char) {
        if let (Some(Event::Arguments { text, .. }), None) =
            (self.gathered.last_mut(), &self.text_input)
        {
            escape(character, text);
        } else {
            let mut text = String::new();
            escape(character, &mut text);
            self.arguments(&text);
        }
    }

    fn more(&mut self, more: &str) {
        if more.is_empty() {
            return;
        }
        if let Some(Event::Arguments { text, .. }) = self.gathered.last_mut() {
            text.push_str(more);
        } else {
            let index = self.call_count.saturating_sub(1);
            self.gathered.push(Event::Arguments { index, text: more.to_owned() });
        }
    }
}
