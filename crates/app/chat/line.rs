//! Input of the user: messages, which may have several lines, and commands.

use std::path::PathBuf;

use anyhow::Result;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Completer, Helper, Highlighter, Hinter};
use serde_json::Value;

/// Opens and closes a message of several lines.
const QUOTES: &str = "\"\"\"";

pub(super) const HELP: &str = "\
/help                  this list
/exit                  ends the chat, as Ctrl-D does
/clear                 starts a new conversation
/retry                 takes the last reply back and asks again
/system TEXT           what the model is told before the conversation; nothing removes it
/temperature NUMBER    0 always takes the likeliest token
/set NAME VALUE        any field of the request, such as top_p, max_tokens, seed; without a value
                       it is the server's again; without a name all that are set are shown
A line that ends with \\ goes on, and so does everything between \"\"\" and \"\"\".
Ctrl-C stops a reply.";

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Command {
    Help,
    Exit,
    Clear,
    Retry,
    System(String),
    Show,
    /// A field of the request; without a value it is left out.
    Set(String, Option<Value>),
    Unknown(String),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Input {
    Message(String),
    Command(Command),
    End,
}

/// Reads lines, with history.
pub(super) struct Editor {
    editor: rustyline::Editor<Lines, FileHistory>,
    history: Option<PathBuf>,
}

impl Editor {
    pub(super) fn new(history: Option<PathBuf>) -> Result<Self> {
        let mut editor = rustyline::Editor::new()?;
        editor.set_helper(Some(Lines));
        if let Some(path) = &history {
            // The file does not exist the first time.
            let _ = editor.load_history(path);
        }
        Ok(Self { editor, history })
    }

    pub(super) fn read(&mut self) -> Result<Input> {
        loop {
            let line = match self.editor.readline("> ") {
                Ok(line) => line,
                Err(ReadlineError::Interrupted) => continue,
                Err(ReadlineError::Eof) => return Ok(Input::End),
                Err(error) => return Err(error.into()),
            };
            if let Some(input) = understand(&line) {
                self.remember(&line);
                return Ok(input);
            }
        }
    }

    fn remember(&mut self, line: &str) {
        let _ = self.editor.add_history_entry(line);
        if let Some(path) = &self.history {
            // Failing to save the history is no reason to stop.
            let _ = path.parent().map(std::fs::create_dir_all);
            let _ = self.editor.save_history(path);
        }
    }
}

#[derive(Completer, Helper, Highlighter, Hinter)]
struct Lines;

impl Validator for Lines {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let open = goes_on(context.input());
        Ok(if open { ValidationResult::Incomplete } else { ValidationResult::Valid(None) })
    }
}

fn goes_on(text: &str) -> bool {
    text.matches(QUOTES).count() % 2 == 1 || text.ends_with('\\')
}

/// `None` for an empty line.
fn understand(line: &str) -> Option<Input> {
    let text = line.trim();
    if text.is_empty() {
        return None;
    }
    let Some(command) = text.strip_prefix('/') else {
        let text = text.replace("\\\n", "\n");
        let quoted = text.strip_prefix(QUOTES).and_then(|text| text.strip_suffix(QUOTES));
        return Some(Input::Message(quoted.unwrap_or(&text).trim().to_owned()));
    };
    let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
    Some(Input::Command(parse(name, rest.trim())))
}

fn parse(name: &str, rest: &str) -> Command {
    match name {
        "help" | "?" => Command::Help,
        "exit" | "quit" | "bye" => Command::Exit,
        "clear" | "new" => Command::Clear,
        "retry" => Command::Retry,
        "system" => Command::System(rest.to_owned()),
        "temperature" => Command::Set(name.to_owned(), value(rest)),
        "set" if rest.is_empty() => Command::Show,
        "set" => {
            let (field, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            Command::Set(field.to_owned(), value(rest.trim()))
        }
        other => Command::Unknown(format!("/{other}")),
    }
}

/// A value in JSON, or else a string.
fn value(text: &str) -> Option<Value> {
    let value = || serde_json::from_str(text).unwrap_or_else(|_| text.into());
    (!text.is_empty()).then(value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_are_messages_or_commands() {
        let message = |text: &str| Some(Input::Message(text.into()));
        let command = |command| Some(Input::Command(command));
        for (line, expected) in [
            ("  ", None),
            (" hi ", message("hi")),
            ("a\\\nb", message("a\nb")),
            ("\"\"\"a\n\n/b\"\"\"", message("a\n\n/b")),
            ("/help", command(Command::Help)),
            ("/system be brief", command(Command::System("be brief".into()))),
            ("/system", command(Command::System(String::new()))),
            ("/set", command(Command::Show)),
            ("/temperature 0.5", command(Command::Set("temperature".into(), Some(json!(0.5))))),
            ("/set stop [\"a\"]", command(Command::Set("stop".into(), Some(json!(["a"]))))),
            ("/set user me", command(Command::Set("user".into(), Some(json!("me"))))),
            ("/set seed", command(Command::Set("seed".into(), None))),
            ("/nonsense", command(Command::Unknown("/nonsense".into()))),
        ] {
            assert_eq!(understand(line), expected, "{line}");
        }
    }

    #[test]
    fn open_quotes_and_backslashes_go_on() {
        for open in ["\"\"\"a", "a\\", "\"\"\"a\"\"\" \"\"\""] {
            assert!(goes_on(open), "{open}");
        }
        for closed in ["a", "\"\"\"a\nb\"\"\"", "a \\ b"] {
            assert!(!goes_on(closed), "{closed}");
        }
    }
}
