//! Turns texts into tokens of small vocabularies, and parses them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use kilotok_text::{Event, Format, Reply, ReplyOptions, Text, TokenId};
use serde_json::Value;

const TOKENIZER: &str = "tokenizer.json";

fn file(name: &str) -> Option<Vec<u8>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/text/fixtures/mimo");
    std::fs::read(PathBuf::from(folder).join(name)).ok()
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

pub(crate) struct SimulatedModel {
    pub(crate) text: Arc<Text>,
    /// Tokens of more than one byte.
    pieces: BTreeMap<Vec<u8>, TokenId>,
}

impl SimulatedModel {
    /// The vocabulary of the fixture `mimo`: 256 bytes, special tokens and tags.
    pub(crate) fn of_bytes(format: Format) -> Self {
        Self::with_pieces(format, &[])
    }

    /// The same vocabulary, in which the tags are special tokens.
    pub(crate) fn of_special_tags(format: Format) -> Self {
        let read = |name: &str| {
            let text = String::from_utf8(file(name)?).unwrap();
            Some(text.replace("\"special\":false", "\"special\":true").into_bytes())
        };
        let text = Arc::new(Text::from_files(&read).unwrap().with_format(format).unwrap());
        Self { text, pieces: BTreeMap::new() }
    }

    /// The vocabulary of bytes, with further tokens for these pieces. Special tokens and tags come
    /// after them.
    pub(crate) fn with_pieces(format: Format, wanted: &[&[u8]]) -> Self {
        let mut tokenizer: Value = serde_json::from_slice(&file(TOKENIZER).unwrap()).unwrap();
        let added = tokenizer["added_tokens"].as_array().unwrap().iter();
        let added: Vec<String> = added.map(|token| text_of(&token["content"])).collect();
        let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        let names: Vec<String> = vocab.keys().cloned().collect();
        let mut pieces = BTreeMap::new();
        for piece in wanted.iter().filter(|piece| piece.len() > 1) {
            let is_added = added.iter().any(|added| added.as_bytes() == *piece);
            if !is_added && !pieces.contains_key(*piece) {
                let id = vocab.len() as TokenId;
                pieces.insert(piece.to_vec(), id);
                // A byte is written with the name of the token that has its number.
                let name = piece.iter().map(|&byte| names[byte as usize].as_str());
                vocab.insert(name.collect(), id.into());
            }
        }
        let tokenizer = serde_json::to_vec(&tokenizer).unwrap();
        let read =
            |name: &str| if name == TOKENIZER { Some(tokenizer.clone()) } else { file(name) };
        let text = Arc::new(Text::from_files(&read).unwrap().with_format(format).unwrap());
        pieces.extend(
            added.iter().map(|added| (added.clone().into(), text.token_id(added).unwrap())),
        );
        Self { text, pieces }
    }

    /// The token of one of the pieces.
    pub(crate) fn piece(&self, piece: &[u8]) -> TokenId {
        match piece {
            [byte] => TokenId::from(*byte),
            _ => self.pieces[piece],
        }
    }

    /// Tokens of a text: single tokens for tags, bytes for everything else.
    pub(crate) fn marked(&self, text: &str) -> Vec<TokenId> {
        self.text.encode(text).unwrap()
    }

    /// All events of a reply with these tokens.
    pub(crate) fn events(&self, options: ReplyOptions, tokens: &[TokenId]) -> Vec<Event> {
        let mut reply = Reply::new(self.text.clone(), options);
        for &token in tokens {
            reply.push(token);
        }
        reply.finish();
        reply.take()
    }
}

/// One token per byte, even for tags.
pub(crate) fn spelled(text: &str) -> Vec<TokenId> {
    text.bytes().map(TokenId::from).collect()
}

/// Joins adjacent events of the same kind.
pub(crate) fn joined(events: Vec<Event>) -> Vec<Event> {
    let mut out: Vec<Event> = Vec::new();
    for event in events {
        match (out.last_mut(), event) {
            (Some(Event::Reasoning(text)), Event::Reasoning(more))
            | (Some(Event::Content(text)), Event::Content(more))
            | (Some(Event::Arguments { text, .. }), Event::Arguments { text: more, .. }) => {
                text.push_str(&more);
            }
            (_, event) => out.push(event),
        }
    }
    out
}
