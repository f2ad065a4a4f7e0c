//! The checkpoint's tokenizer: text to tokens by the `tokenizers` crate, tokens to bytes by a
//! table made once. It knows byte-level tokenizers only: there a token is some bytes wherever it
//! stands, which text that comes token by token, and grammars, rely on.

use kilotok_abi::TokenId;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::{Model as _, Normalizer as _, OffsetType, PreTokenizedString, PreTokenizer as _};

/// Largest vocabulary: sixteen times the largest known. A wrong id must not take all memory.
const VOCAB_MAX: usize = 1 << 22;

type Problem = Box<dyn std::error::Error + Send + Sync>;

pub(crate) struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The bytes of all tokens, end to end.
    bytes: Vec<u8>,
    /// Where each token's bytes start, and a last entry where they all end.
    starts: Vec<u32>,
    /// By token.
    kinds: Vec<Kind>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The id has no token.
    Absent,
    Ordinary,
    Special,
}

impl Tokenizer {
    /// From the bytes of a tokenizer.json.
    pub(crate) fn read(file: &[u8]) -> Result<Self, Problem> {
        let mut inner = tokenizers::Tokenizer::from_bytes(file)?;
        // Some files carry these over from training; neither belongs into serving.
        inner.with_truncation(None)?;
        inner.with_padding(None);
        if !inner.get_decoder().is_some_and(is_byte_level) {
            return Err("its decoder is not ByteLevel, the only kind that is supported".into());
        }
        let vocab = inner.get_vocab(true);
        let count = vocab.values().max().map_or(0, |&last| last as usize + 1);
        if count > VOCAB_MAX {
            return Err(format!("token {} is above the limit of {VOCAB_MAX}", count - 1).into());
        }
        let (mut bytes, mut starts) = (Vec::new(), vec![0]);
        let mut kinds = vec![Kind::Absent; count];
        for (id, kind) in (0..).zip(&mut kinds) {
            if let Some(token) = inner.id_to_token(id) {
                bytes.extend(token_bytes(&token));
                let special = inner.get_added_vocabulary().is_special_token(&token);
                *kind = if special { Kind::Special } else { Kind::Ordinary };
            }
            starts.push(u32::try_from(bytes.len())?);
        }
        Ok(Self { inner, bytes, starts, kinds })
    }

    pub(crate) fn encode(&self, text: &str) -> Result<Vec<TokenId>, Problem> {
        Ok(self.inner.encode_fast(text, false)?.get_ids().to_vec())
    }

    /// What the tokenizer would make of the text had it no added tokens.
    pub(crate) fn encode_plain(&self, text: &str) -> Result<Vec<TokenId>, Problem> {
        let mut pieces = PreTokenizedString::from(text);
        if let Some(normalizer) = self.inner.get_normalizer() {
            pieces.normalize(|piece| normalizer.normalize(piece))?;
        }
        if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        let model = self.inner.get_model();
        pieces.tokenize(|piece| model.tokenize(piece.get()))?;
        Ok(pieces.into_encoding(None, 0, OffsetType::None)?.get_ids().to_vec())
    }

    /// The text of tokens; bytes that are no UTF-8 become U+FFFD.
    pub(crate) fn decode(&self, tokens: &[TokenId], skip_special: bool) -> String {
        let shown = tokens.iter().filter(|&&token| !(skip_special && self.is_special(token)));
        let bytes: Vec<u8> =
            shown.filter_map(|&token| self.bytes(token)).flatten().copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub(crate) fn bytes(&self, token: TokenId) -> Option<&[u8]> {
        let index = token as usize;
        if self.kinds.get(index).is_none_or(|&kind| kind == Kind::Absent) {
            return None;
        }
        Some(&self.bytes[self.starts[index] as usize..self.starts[index + 1] as usize])
    }

    pub(crate) fn is_special(&self, token: TokenId) -> bool {
        self.kinds.get(token as usize) == Some(&Kind::Special)
    }

    pub(crate) fn id(&self, text: &str) -> Option<TokenId> {
        self.inner.token_to_id(text)
    }

    pub(crate) fn count(&self) -> usize {
        self.kinds.len()
    }

    /// Texts of the special tokens.
    pub(crate) fn specials(&self) -> Vec<String> {
        let special = (0..).zip(&self.kinds).filter(|(_, kind)| **kind == Kind::Special);
        special.filter_map(|(id, _)| self.inner.id_to_token(id)).collect()
    }
}

fn is_byte_level(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteLevel(_) => true,
        DecoderWrapper::Sequence(sequence) => {
            let decoders = sequence.get_decoders();
            decoders.len() == 1 && decoders.iter().all(is_byte_level)
        }
        _ => false,
    }
}

/// What a token of a byte-level vocabulary stands for: the bytes that its characters name, or, if
/// one of them names none, its own text. The same rule holds for added tokens.
fn token_bytes(token: &str) -> Vec<u8> {
    let named: Option<Vec<u8>> = token.chars().map(named_byte).collect();
    named.unwrap_or_else(|| token.as_bytes().to_vec())
}

/// The byte that a character names. Printable ones of Latin-1 name themselves, and the characters
/// from U+0100 on name the bytes left over, in order.
fn named_byte(character: char) -> Option<u8> {
    match u32::from(character) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}
