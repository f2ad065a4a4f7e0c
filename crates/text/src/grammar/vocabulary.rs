//! The vocabulary in llguidance's form: a trie of bytes in which special tokens begin with a byte
//! that no text contains. This module knows no grammar and no state.

use std::sync::Arc;

use kilotok_abi::TokenId;
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};

use crate::harmony::FormatTokens;
use crate::reply::tags::Tag;
use crate::{Text, TextError};

/// Tokens that formats and templates write. Some checkpoints do not mark them as special, although
/// each is a single token that is never the tokenization of text.
const MARKUP: &[&str] = &["<think>", "</think>", "<tool_call>", "</tool_call>"];
/// Most newlines that models are trained to write between reasoning and answer.
const GAP_NEWLINES_MAX: usize = 2;

/// A token, as grammars see it.
#[derive(Clone)]
pub(crate) struct Word {
    pub(crate) bytes: Vec<u8>,
    /// Whether it matches no text, so that only a grammar that names the token accepts it.
    pub(crate) special: bool,
}

pub(super) struct Vocabulary {
    pub(super) env: TokEnv,
    /// Words of 32 bits in a mask. Masks cover the engine's vocabulary, including its padding.
    word_count: usize,
    pub(super) end_tokens: Vec<TokenId>,
    think: Option<TokenId>,
    pub(super) end_think: Marker,
    /// If the template puts newlines after reasoning: the tokens that are only newlines, and their
    /// number of newlines.
    gap: Vec<(TokenId, usize)>,
    /// Tokens of text, sorted by their bytes.
    texts: Vec<TokenId>,
    /// Special tokens that are tags in replies.
    tags: Vec<TokenId>,
    /// Tokens that may begin a call after `<tool_call>`, including white space.
    call_starts: Vec<TokenId>,
    /// Set if replies are in the form of messages.
    pub(super) format_tokens: Option<FormatTokens>,
}

/// A piece of markup: a token of this vocabulary, or text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Marker {
    Token(TokenId),
    Text(&'static str),
}

impl Vocabulary {
    pub(super) fn of(text: &Text, size: u32, end_tokens: &[TokenId]) -> Result<Self, TextError> {
        let count = text.vocab_count().min(size as usize);
        let words = (0..count as TokenId).map(|token| {
            let bytes = text.token_bytes(token).unwrap_or_default().to_vec();
            let special = text.is_special(token) || is_markup(text, token, &bytes);
            Word { bytes, special }
        });
        let new = Self::new(words.collect(), size, end_tokens, text.format().style().padded);
        let new = new.map(|new| Self { format_tokens: text.format_tokens(), ..new });
        new.map_err(|reason| TextError::File { file: "tokenizer.json", reason })
    }

    /// `padded`: after reasoning, newlines that are not part of the answer may precede it.
    pub(super) fn new(
        mut words: Vec<Word>,
        size: u32,
        end_tokens: &[TokenId],
        padded: bool,
    ) -> Result<Self, String> {
        if end_tokens.is_empty() {
            return Err("grammars need an end token, and the model has none".to_owned());
        }
        for &end in end_tokens {
            let word = words.get_mut(end as usize).filter(|word| !word.bytes.is_empty());
            let Some(word) = word else {
                return Err(format!("end token {end} is not in the tokenizer's vocabulary"));
            };
            word.special = true;
        }
        let gap = if padded { newlines(&words) } else { Vec::new() };
        let of_text = |word: &Word| !word.special && !word.bytes.is_empty();
        let tokens = (0..).zip(&words);
        let texts = tokens.clone().filter(|(_, word)| of_text(word));
        let mut texts: Vec<TokenId> = texts.map(|(token, _)| token).collect();
        texts.sort_by_key(|&token| &words[token as usize].bytes);
        let starts = |word: &Word| {
            let rest = word.bytes.trim_ascii_start();
            rest.starts_with(b"{") || rest.starts_with(Tag::Function.text().as_bytes())
        };
        let call_starts = tokens.clone().filter(|(_, word)| of_text(word) && starts(word));
        let call_starts = call_starts.map(|(token, _)| token).collect();
        let is_tag = |word: &Word| Tag::ALL.iter().any(|tag| tag.text().as_bytes() == word.bytes);
        let tags = tokens.filter(|(_, word)| word.special && is_tag(word));
        let tags = tags.map(|(token, _)| token).collect();
        let bytes: Vec<Vec<u8>> = words.into_iter().map(marked).collect();
        let info = TokRxInfo::new(bytes.len() as u32, end_tokens[0]);
        let trie = TokTrie::from(&info, &bytes).with_eos_tokens(end_tokens);
        let think = trie.get_special_token("<think>");
        let end_think = find(&trie, "</think>");
        Ok(Self {
            // Tokenization is not forced to be canonical, so a mask has every token that the
            // grammar accepts. Drafts are judged by the same rule.
            env: Arc::new(ApproximateTokEnv::new(trie)),
            word_count: (size as usize).div_ceil(32),
            end_tokens: end_tokens.to_vec(),
            think,
            end_think,
            gap,
            texts,
            tags,
            call_starts,
            format_tokens: None,
        })
    }

    pub(super) fn trie(&self) -> &TokTrie {
        self.env.tok_trie()
    }

    pub(super) fn count(&self) -> usize {
        self.trie().vocab_size()
    }

    pub(super) fn is_end(&self, token: TokenId) -> bool {
        self.end_tokens.contains(&token)
    }

    /// The token that opens reasoning.
    pub(super) fn think(&self) -> Option<TokenId> {
        self.think
    }

    pub(super) fn marker(&self, text: &'static str) -> Marker {
        find(self.trie(), text)
    }

    pub(super) fn is_tag(&self, token: TokenId) -> bool {
        self.tags.contains(&token)
    }

    /// The text of a token, special or not.
    pub(super) fn text_bytes(&self, token: TokenId) -> &[u8] {
        let bytes = self.trie().token(token);
        bytes.strip_prefix(&[TokTrie::SPECIAL_TOKEN_MARKER]).unwrap_or(bytes)
    }

    /// Tokens of text that begin with these bytes.
    pub(super) fn beginning(&self, with: &str) -> &[TokenId] {
        let with = with.as_bytes();
        let start = self.texts.partition_point(|&token| self.trie().token(token) < with);
        let rest = &self.texts[start..];
        &rest[..rest.partition_point(|&token| self.trie().token(token).starts_with(with))]
    }

    pub(super) fn call_starts(&self) -> &[TokenId] {
        &self.call_starts
    }

    /// The tokens of a text without markup, except that it may begin with a call's tag.
    pub(super) fn tokens(&self, text: &str) -> Vec<TokenId> {
        let call = Tag::Call.text();
        match (text.strip_prefix(call), self.marker(call)) {
            (Some(rest), Marker::Token(token)) => {
                let mut tokens = vec![token];
                tokens.extend(self.trie().greedy_tokenize(rest.as_bytes()));
                tokens
            }
            _ => self.trie().greedy_tokenize(text.as_bytes()),
        }
    }

    /// Newline tokens that may follow `used` newlines between reasoning and answer.
    pub(super) fn gap(&self, used: usize) -> impl Iterator<Item = (TokenId, usize)> {
        let fits = move |&(_, count): &(TokenId, usize)| used + count <= GAP_NEWLINES_MAX;
        self.gap.iter().copied().filter(fits)
    }

    /// A mask in the engine's form. Ids without a token are not allowed.
    pub(super) fn mask(&self, allowed: &SimpleVob) -> Vec<u32> {
        let mut mask = vec![0; self.word_count];
        let count = self.count();
        for (word, bits) in mask.iter_mut().zip(allowed.as_slice()).take(count.div_ceil(32)) {
            *word = *bits;
        }
        if !count.is_multiple_of(32) {
            mask[count / 32] &= (1 << (count % 32)) - 1;
        }
        mask
    }

    /// Every token that exists.
    pub(super) fn everything(&self) -> Vec<u32> {
        let mut all = self.trie().alloc_token_set();
        all.set_all(true);
        self.mask(&all)
    }
}

fn find(trie: &TokTrie, text: &'static str) -> Marker {
    trie.get_special_token(text).map_or(Marker::Text(text), Marker::Token)
}

/// Whether the token is markup that its checkpoint does not mark as special: a tag that the
/// tokenizer would not produce from the tag's text.
fn is_markup(text: &Text, token: TokenId, bytes: &[u8]) -> bool {
    let tag = bytes.len() > 2 && bytes.starts_with(b"<") && bytes.ends_with(b">");
    let Some(name) = std::str::from_utf8(bytes).ok().filter(|_| tag) else { return false };
    MARKUP.contains(&name) || text.encode_plain(name).is_ok_and(|tokens| tokens != [token])
}

/// A token in the trie's form. UTF-8 never contains the marker, so a text token that contains it is
/// of no use.
fn marked(word: Word) -> Vec<u8> {
    let Word { mut bytes, special } = word;
    if special && !bytes.is_empty() {
        bytes.insert(0, TokTrie::SPECIAL_TOKEN_MARKER);
    } else if bytes.contains(&TokTrie::SPECIAL_TOKEN_MARKER) {
        bytes.clear();
    }
    bytes
}

fn newlines(words: &[Word]) -> Vec<(TokenId, usize)> {
    let is_gap = |word: &Word| {
        let count = word.bytes.len();
        (1..=GAP_NEWLINES_MAX).contains(&count) && word.bytes.iter().all(|&byte| byte == b'\n')
    };
    let gaps = (0..).zip(words).filter(|(_, word)| is_gap(word));
    gaps.map(|(token, word)| (token, word.bytes.len())).collect()
}
