//! Follows a reply's text as its reader will, to find where a call begins in free text.

use std::sync::Arc;

use kilotok_abi::TokenId;

use super::vocabulary::Vocabulary;
use crate::detokenizer::Detokenizer;
use crate::formats::Style;
use crate::reply::events::Events;
use crate::reply::reader::Reader;
use crate::reply::tags::Tag;
use crate::{ReasoningStart, Tool};

/// Where a reply is in its own text.
#[derive(Clone)]
pub(super) struct Listener {
    detokenizer: Detokenizer,
    reader: Reader,
    tools: Arc<[Tool]>,
}

impl Listener {
    pub(super) fn new(
        style: Style,
        reasoning: ReasoningStart,
        tools: &Arc<[Tool]>,
        parallel: bool,
    ) -> Self {
        let reader = Reader::new(style, reasoning, Some(Arc::clone(tools)), parallel, false);
        Self { detokenizer: Detokenizer::default(), reader, tools: Arc::clone(tools) }
    }

    /// One token more. The text of a call that begins within it, up to the token's end.
    pub(super) fn push(&mut self, token: TokenId, vocabulary: &Vocabulary) -> Option<String> {
        let mut decoded = String::new();
        // Readers do not see other special tokens either.
        if !vocabulary.trie().is_special_token(token) || vocabulary.is_tag(token) {
            self.detokenizer.push(vocabulary.text_bytes(token), &mut decoded);
        }
        let (mut events, mut begun) = (Events::default(), None::<String>);
        for character in decoded.chars() {
            self.reader.push(character, &mut events);
            let now = self.reader.take_begun();
            match &mut begun {
                Some(text) => text.push(character),
                None => begun = now,
            }
        }
        begun
    }

    /// The text of a call that may be beginning, and the tokens that would begin it, if there are
    /// any.
    pub(super) fn opening(&self, vocabulary: &Vocabulary) -> Option<(String, Vec<TokenId>)> {
        let text = self.reader.opening()?;
        let after_tag = text.strip_prefix(Tag::Call.text());
        let mut tokens = match after_tag.map(|rest| rest.trim_matches([' ', '\n', '\t', '\r'])) {
            Some("") => vocabulary.call_starts().to_vec(),
            _ => self.completing(&text, vocabulary),
        };
        tokens.retain(|&token| self.clone().push(token, vocabulary).is_some());
        (!tokens.is_empty()).then_some((text, tokens))
    }

    /// Tokens that complete the tag with which a text ends.
    fn completing(&self, text: &str, vocabulary: &Vocabulary) -> Vec<TokenId> {
        let tag = text.rfind('<').map_or("", |at| &text[at..]);
        let rest_of = |whole: &str| whole.strip_prefix(tag).map(|rest| vocabulary.beginning(rest));
        let function = Tag::Function.text();
        let mut tokens: Vec<TokenId> = Vec::new();
        tokens.extend(rest_of(Tag::Call.text()).into_iter().flatten());
        tokens.extend(rest_of(function).into_iter().flatten());
        if tag.len() >= function.len() {
            for tool in &*self.tools {
                tokens.extend(rest_of(&format!("{function}{}>", tool.name)).into_iter().flatten());
            }
        }
        tokens
    }
}
