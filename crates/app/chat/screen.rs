//! Display of a reply in a terminal: text as it arrives, with reasoning dimmed, and below it a
//! status line with the speed. A pipe gets only the text.

use std::io::{self, Write};

use super::speed::Speed;

const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";
/// Makes room for a line below the cursor without moving the cursor; then saves the cursor's
/// position.
const LINE_BELOW: &str = "\x1bD\x1b[A\x1b7\x1b[B\r";
const BACK: &str = "\x1b8";
/// Clears from the cursor to the end of the screen.
const CLEAR_BELOW: &str = "\x1b[J";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Nothing,
    Thought,
    Text,
}

/// See the module's documentation.
#[expect(clippy::struct_excessive_bools, reason = "each is a thing of its own")]
pub(super) struct Screen {
    terminal: bool,
    colours: bool,
    thoughts: bool,
    part: Part,
    /// Whether a status line is shown.
    status: bool,
}

impl Screen {
    pub(super) fn new(terminal: bool, colours: bool, thoughts: bool) -> Self {
        let colours = terminal && colours;
        Self { terminal, colours, thoughts, part: Part::Nothing, status: false }
    }

    /// Shows a message of the program on its own line.
    pub(super) fn note(&mut self, text: &str) {
        let text = if self.colours { format!("{DIM}{text}{PLAIN}\n") } else { format!("{text}\n") };
        put(&mut io::stderr(), &text);
    }

    pub(super) fn thought(&mut self, text: &str) {
        if self.terminal && self.thoughts && !text.is_empty() {
            self.enter(Part::Thought);
            self.write(text);
        }
    }

    pub(super) fn text(&mut self, text: &str) {
        if !text.is_empty() {
            self.enter(Part::Text);
            self.write(text);
        }
    }

    fn enter(&mut self, part: Part) {
        if self.part == part {
            return;
        }
        let mut change = String::new();
        if self.status {
            change.push_str(CLEAR_BELOW);
            self.status = false;
        }
        if self.part != Part::Nothing {
            change.push_str("\n\n");
        }
        if self.colours {
            change.push_str(if part == Part::Thought { DIM } else { PLAIN });
        }
        put(&mut io::stdout(), &change);
        self.part = part;
    }

    fn write(&mut self, text: &str) {
        let text = if self.terminal { harmless(text) } else { text.to_owned() };
        let clear = if self.status { CLEAR_BELOW } else { "" };
        self.status = false;
        put(&mut io::stdout(), &format!("{clear}{text}"));
    }

    /// Shows the speed below the text.
    pub(super) fn status(&mut self, speed: &Speed) {
        if !self.terminal || speed.is_empty() {
            return;
        }
        self.status = true;
        let dim = if self.colours { DIM } else { "" };
        let plain = match (self.colours, self.part) {
            (false, _) | (_, Part::Thought) => "",
            _ => PLAIN,
        };
        // A line that wraps would move the text above it. This one is short enough.
        let line = format!("{LINE_BELOW}\x1b[2K{dim}[{speed}]{plain}{BACK}");
        put(&mut io::stdout(), &line);
    }

    /// Ends the display of a reply.
    pub(super) fn end(&mut self, speed: &Speed) {
        let clear = if self.status { CLEAR_BELOW } else { "" };
        let plain = if self.colours { PLAIN } else { "" };
        put(&mut io::stdout(), &format!("{clear}{plain}\n"));
        self.status = false;
        self.part = Part::Nothing;
        if self.terminal && !speed.is_empty() {
            self.note(&format!("[{speed}]\n"));
        }
    }
}

/// The model's text without terminal control sequences.
fn harmless(text: &str) -> String {
    text.chars().filter(|char| !char.is_control() || ['\n', '\t'].contains(char)).collect()
}

/// Writes text. A failure is ignored, since it means that the terminal is gone.
fn put(stream: &mut impl Write, text: &str) {
    let _ = stream.write_all(text.as_bytes());
    let _ = stream.flush();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_cannot_command_the_terminal() {
        assert_eq!(harmless("a\x1b[2J\tb\r\n\u{9b}31m\u{7}é"), "a[2J\tb\n31mé");
    }
}
