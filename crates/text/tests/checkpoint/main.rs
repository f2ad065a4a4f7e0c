//! The text half of a checkpoint through the public interface: which files count, prompts and
//! tokens as transformers makes them, special tokens in conversations, and grammars.

#![expect(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

mod controls;
mod grammars;
mod opening;
mod parity;

use std::fs;
use std::path::{Path, PathBuf};

use kilotok_text::{Conversation, Message, Text, TextError};

fn fixture(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/text/fixtures")).join(path)
}

fn open(model: &str) -> Text {
    Text::open(&fixture(model)).unwrap()
}

/// The fixture `mimo`, with these files in place of its own; an empty one is absent.
fn with_files(files: &[(&str, &str)]) -> Result<Text, TextError> {
    Text::from_files(&|name| match files.iter().find(|(file, _)| *file == name) {
        Some((_, "")) => None,
        Some((_, text)) => Some(text.as_bytes().to_vec()),
        None => fs::read(fixture("mimo").join(name)).ok(),
    })
}

fn message(role: &str, content: &str) -> Message {
    Message { role: role.to_owned(), content: content.to_owned(), ..Message::default() }
}

fn user(content: &str) -> Conversation {
    Conversation {
        messages: vec![message("user", content)],
        add_generation_prompt: true,
        ..Conversation::default()
    }
}
