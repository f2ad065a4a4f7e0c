//! The text of a reply outside calls: reasoning and answer, and which of them whitespace belongs
//! to. In formats that pad them with newlines, those newlines are markup; in others, only
//! whitespace that stands alone before a tag is.

use super::events::Events;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Reasoning,
    Answer,
}

#[expect(clippy::struct_excessive_bools, reason = "four facts that do not exclude each other")]
#[derive(Clone, Debug)]
pub(super) struct Speech {
    part: Part,
    padded: bool,
    /// Whether the part has had any text but whitespace.
    begun: bool,
    /// Whitespace that is held back until the next character or tag tells whether it is text.
    space: String,
    after_call: bool,
    answered: bool,
}

impl Speech {
    pub(super) fn new(part: Part, padded: bool) -> Self {
        Self {
            part,
            padded,
            begun: false,
            space: String::new(),
            after_call: false,
            answered: false,
        }
    }

    pub(super) fn part(&self) -> Part {
        self.part
    }

    /// Whether the part has had no text yet.
    pub(super) fn is_fresh(&self) -> bool {
        !self.begun
    }

    pub(super) fn follows_call(&self) -> bool {
        self.after_call && !self.begun
    }

    pub(super) fn say(&mut self, character: char, events: &mut Events) {
        let is_space = matches!(character, ' ' | '\n' | '\t' | '\r');
        if is_space && (!self.begun || (self.padded && character == '\n')) {
            self.space.push(character);
            return;
        }
        if !self.begun {
            self.drop_leading();
            self.begun = true;
        }
        for space in std::mem::take(&mut self.space).chars() {
            self.emit(space, events);
        }
        self.emit(character, events);
    }

    /// Ends the current part at a tag; another part begins.
    pub(super) fn turn_to(&mut self, part: Part) {
        self.part = part;
        self.begun = false;
        self.space.clear();
    }

    pub(super) fn turn_to_call(&mut self) {
        self.turn_to(Part::Answer);
        self.after_call = true;
    }

    /// Ends the text with the reply.
    pub(super) fn finish(&mut self, events: &mut Events) {
        if !self.begun {
            if self.after_call || self.part == Part::Reasoning {
                self.space.clear();
            }
            self.drop_leading();
        }
        for space in std::mem::take(&mut self.space).chars() {
            self.emit(space, events);
        }
    }

    fn drop_leading(&mut self) {
        if self.after_call {
            // The whitespace separates the text before the call from the text after it.
            if !self.answered {
                self.space.clear();
            }
        } else if self.padded {
            let kept = self.space.trim_start_matches('\n').len();
            self.space.drain(..self.space.len() - kept);
        }
    }

    fn emit(&mut self, character: char, events: &mut Events) {
        match self.part {
            Part::Reasoning => events.reasoning(character),
            Part::Answer => {
                self.answered = true;
                events.content(character);
            }
        }
    }
}
