//! Follows a reply as its reader does, to find where a constrained part begins in free text.

use std::sync::Arc;

use kilotok_abi::TokenId;

use super::messages::MessageListener;
use super::vocabulary::Vocabulary;
use crate::detokenizer::Detokenizer;
use crate::formats::Style;
use crate::reply::events::Events;
use crate::reply::tagged::Tagged;
use crate::reply::tags::Tag;
use crate::{ReasoningStart, Tool};

/// There is a listener for tags and one for messages.
#[derive(Clone)]
pub(super) enum Listener {
    Tags(Box<TagListener>),
    Messages(MessageListener),
}

impl Listener {
    /// Adds a token. If a constrained part begins with it, returns the part's tokens so far.
    pub(super) fn push(&mut self, token: TokenId, vocabulary: &Vocabulary) -> Option<Vec<TokenId>> {
        match self {
            Self::Tags(tags) => tags.push(token, vocabulary).map(|text| vocabulary.tokens(&text)),
            Self::Messages(messages) => messages.push(token, vocabulary),
        }
    }

    /// The text of a call that may be about to begin, and the tokens with which it would begin, if
    /// there are any. A message needs none of this, since it begins with its own token.
    pub(super) fn opening(&self, vocabulary: &Vocabulary) -> Option<(String, Vec<TokenId>)> {
        match self {
            Self::Tags(tags) => tags.opening(vocabulary),
            Self::Messages(_) => None,
        }
    }
}

/// Follows the text of a reply whose calls are within tags.
#[derive(Clone)]
pub(super) struct TagListener {
    detokenizer: Detokenizer,
    reader: Tagged,
    tools: Arc<[Tool]>,
}

impl TagListener {
    pub(super) fn new(
        style: Style,
        reasoning: ReasoningStart,
        tools: &Arc<[Tool]>,
        parallel: bool,
    ) -> Self {
        let reader = Tagged::new(style, reasoning, Some(Arc::clone(tools)), parallel, false);
        Self { detokenizer: Detokenizer::default(), reader, tools: Arc::clone(tools) }
    }

    /// Adds a token. If a call begins within it, returns the call's text up to the token's end.
    fn push(&mut self, token: TokenId, vocabulary: &Vocabulary) -> Option<String> {
        let mut decoded = String::new();
        // The reader does not see other special tokens either.
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

    /// The text of a call that may be about to begin, and the tokens with which it would begin, if
    /// there are any.
    fn opening(&self, vocabulary: &Vocabulary) -> Option<(String, Vec<TokenId>)> {
        let text = self.reader.opening()?;
        let after_tag = text.strip_prefix(Tag::Call.text());
        let mut tokens = match after_tag.map(|rest| rest.trim_matches([' ', '\n', '\t', '\r'])) {
            Some("") => vocabulary.call_starts().to_vec(),
            _ => self.completing(&text, vocabulary),
        };
        tokens.retain(|&token| self.clone().push(token, vocabulary).is_some());
        (!tokens.is_empty()).then_some((text, tokens))
    }

    /// Tokens that complete the tag whose beginning ends the text.
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
