//! The checkpoint's tokenizer: text to tokens with the `tokenizers` crate, tokens to bytes with a
//! table. Only byte-level tokenizers are supported: a token has the same bytes wherever it stands,
//! on which the detokenizer and grammars rely.

mod borders;
mod growth;

use std::cell::Cell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread::{self, ScopedJoinHandle};

use kilotok_abi::TokenId;
use serde_json::Value;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::{Model as _, Normalizer as _, OffsetType, PreTokenizedString, PreTokenizer as _};

use crate::controls::Marks;
use crate::{Keep, TextError, Wanted};
use borders::Borders;

/// Largest vocabulary, sixteen times the largest known: a wrong id must not take all memory.
const VOCAB_MAX: usize = 1 << 22;

/// A longer text is cut into pieces, at places where that changes no token. Encoding takes some 0.4
/// us per byte, so for a piece of this size a hundred times as long as starting a thread.
const PIECE_BYTES: usize = 1 << 14;

/// Bytes of a text that are encoded at a time, by several threads. Encoding needs some 230 times as
/// much memory, and can only be cancelled between batches.
const BATCH_BYTES: usize = 1 << 16;

/// A batch has about this many pieces. Half of the cores are left to other requests.
const THREADS_MAX: usize = 4;
const CORES_PER_THREAD: usize = 2;

/// Longest piece without a place to cut it; words, numbers and runs of spaces are shorter. Encoding
/// it takes 230 MiB, which are not in the memory budget of requests; few texts are encoded at once.
const PIECE_BYTES_MAX: usize = 1 << 20;

/// How many times shorter composing characters (NFC) can make a text.
const COMPOSED_MAX: usize = 3;

type Problem = Box<dyn std::error::Error + Send + Sync>;

pub(crate) struct Tokenizer {
    inner: tokenizers::Tokenizer,
    borders: Borders,
    /// Number of threads that encode a long text.
    threads: usize,
    /// Most bytes of text for which one token can stand, if that is known.
    longest: Option<usize>,
    /// The bytes of all tokens, concatenated.
    bytes: Vec<u8>,
    /// Where each token's bytes start, and as the last entry, where they all end.
    starts: Vec<u32>,
    /// Indexed by token.
    kinds: Vec<Kind>,
}

/// How special tokens within a text are treated.
#[derive(Clone, Copy)]
pub(crate) enum Specials<'m> {
    /// As tokens, except those with a marked character.
    Recognized(&'m Marks),
    /// Text like any other.
    Spelled,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The id has no token.
    Absent,
    Ordinary,
    Special,
}

impl Tokenizer {
    /// Reads the bytes of a tokenizer.json.
    pub(crate) fn read(file: &[u8]) -> Result<Self, Problem> {
        let source: Value = serde_json::from_slice(file)?;
        growth::check(&source["normalizer"])?;
        // For some files that are not tokenizers, the crate panics instead of returning an error.
        let read = catch_unwind(|| tokenizers::Tokenizer::from_bytes(file));
        let mut inner = read.map_err(|_| "a part of it is of a form that is not known")??;
        // Settings from training that some files still have, and that must not affect serving.
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
        let borders = Borders::read(&source);
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let threads = (cores / CORES_PER_THREAD).clamp(1, THREADS_MAX);
        let longest = longest(&source, &starts, &bytes);
        Ok(Self { inner, borders, threads, longest, bytes, starts, kinds })
    }

    /// Encodes a text. `specials` determines how special tokens in it are treated.
    ///
    /// # Errors
    /// [`TextError::TooLong`], [`TextError::Cancelled`], or that the tokenizer fails on the text.
    pub(crate) fn encode(
        &self,
        text: &str,
        specials: Specials<'_>,
        wanted: &Wanted,
    ) -> Result<Vec<TokenId>, TextError> {
        let too_long = || Err(TextError::TooLong { token_max: wanted.token_max });
        if wanted.keep == Keep::All && self.exceeds(text, wanted.token_max) {
            return too_long();
        }
        let (mut rest, mut lists, mut count) = (text, Vec::new(), 0);
        while !rest.is_empty() && count <= wanted.token_max {
            if (wanted.cancelled)() {
                return Err(TextError::Cancelled);
            }
            let (pieces, after) = self.batch(rest, wanted.keep)?;
            for tokens in self.encode_batch(&pieces, specials) {
                let tokens = tokens?;
                count += tokens.len();
                lists.push(tokens);
            }
            rest = after;
        }
        if wanted.keep == Keep::Last {
            lists.reverse();
        }
        let mut tokens = lists.concat();
        if tokens.len() > wanted.token_max {
            match wanted.keep {
                Keep::All => return too_long(),
                Keep::First => tokens.truncate(wanted.token_max),
                Keep::Last => drop(tokens.drain(..tokens.len() - wanted.token_max)),
            }
        }
        Ok(tokens)
    }

    /// Whether the number of bytes alone shows that a text has more tokens than `token_max`.
    fn exceeds(&self, text: &str, token_max: usize) -> bool {
        let Some(longest) = self.longest else { return false };
        let bytes_max = token_max.saturating_mul(longest);
        let over = |factor| text.len() > bytes_max.saturating_mul(factor);
        over(COMPOSED_MAX) || (over(1) && text.is_ascii())
    }

    /// Pieces of a text from the wanted end on, in that order, and the rest of the text.
    fn batch<'t>(&self, text: &'t str, keep: Keep) -> Result<(Vec<&'t str>, &'t str), TextError> {
        let (piece, mut rest) = self.cut(text, keep)?;
        let mut pieces = vec![piece];
        // If cutting the next piece fails, the error is returned by a later call, if the piece is
        // needed at all.
        while !rest.is_empty()
            && let Ok((piece, after)) = self.cut(rest, keep)
            && text.len() - after.len() <= BATCH_BYTES
        {
            pieces.push(piece);
            rest = after;
        }
        Ok((pieces, rest))
    }

    /// The tokens of each piece. There is at least one piece. If no thread can be started, this one
    /// encodes all pieces.
    fn encode_batch(
        &self,
        pieces: &[&str],
        specials: Specials<'_>,
    ) -> Vec<Result<Vec<TokenId>, TextError>> {
        let encode = |pieces: &[&str]| -> Vec<_> {
            pieces.iter().map(|piece| guarded(|| self.encode_piece(piece, specials))).collect()
        };
        let (first, others) = pieces.split_at(pieces.len().div_ceil(self.threads));
        let share = first.len();
        thread::scope(|scope| {
            let start = |pieces| {
                let started = thread::Builder::new().spawn_scoped(scope, move || encode(pieces));
                (pieces, started)
            };
            let others: Vec<_> = others.chunks(share).map(start).collect();
            let join = |(pieces, started): (_, io::Result<ScopedJoinHandle<'_, _>>)| match started {
                Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
                Err(_) => encode(pieces),
            };
            let first = encode(first);
            first.into_iter().chain(others.into_iter().flat_map(join)).collect()
        })
    }

    /// A piece from the wanted end of the text, and the rest.
    fn cut<'t>(&self, text: &'t str, keep: Keep) -> Result<(&'t str, &'t str), TextError> {
        let (piece, rest) = if text.len() <= PIECE_BYTES {
            (text, "")
        } else if keep == Keep::Last {
            let border = self.borders.near(text, text.len() - PIECE_BYTES).unwrap_or(0);
            let (rest, piece) = text.split_at(border);
            (piece, rest)
        } else {
            text.split_at(self.borders.near(text, PIECE_BYTES).unwrap_or(text.len()))
        };
        if piece.len() > PIECE_BYTES_MAX {
            let reason = format!(
                "a stretch of {} bytes has no place where it can be cut, such as a space after \
                 a word; at most {PIECE_BYTES_MAX} are possible",
                piece.len()
            );
            return Err(TextError::Encode(reason));
        }
        Ok((piece, rest))
    }

    fn encode_piece(&self, text: &str, specials: Specials<'_>) -> Result<Vec<TokenId>, Problem> {
        let Specials::Recognized(marks) = specials else { return self.encode_spelled(text) };
        if !marks.are_in(text) {
            return Ok(self.inner.encode_fast(text, false)?.get_ids().to_vec());
        }
        let added = self.inner.get_added_vocabulary();
        let mut pieces = added.extract_and_normalize(self.inner.get_normalizer(), text);
        pieces.normalize(|piece| {
            for (mark, original) in marks.iter() {
                piece.replace(mark, original.encode_utf8(&mut [0; 4]))?;
            }
            Ok(())
        })?;
        self.encode_words(pieces)
    }

    /// The tokens of the text without any added tokens.
    ///
    /// # Errors
    /// The text is too long, or the tokenizer fails on it.
    pub(crate) fn encode_plain(&self, text: &str) -> Result<Vec<TokenId>, TextError> {
        if text.len() > PIECE_BYTES_MAX {
            let reason = format!("{} bytes, at most {PIECE_BYTES_MAX} are possible", text.len());
            return Err(TextError::Encode(reason));
        }
        guarded(|| self.encode_spelled(text))
    }

    fn encode_spelled(&self, text: &str) -> Result<Vec<TokenId>, Problem> {
        let mut pieces = PreTokenizedString::from(text);
        if let Some(normalizer) = self.inner.get_normalizer() {
            pieces.normalize(|piece| normalizer.normalize(piece))?;
        }
        self.encode_words(pieces)
    }

    fn encode_words(&self, mut pieces: PreTokenizedString) -> Result<Vec<TokenId>, Problem> {
        if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        let model = self.inner.get_model();
        pieces.tokenize(|piece| model.tokenize(piece.get()))?;
        Ok(pieces.into_encoding(None, 0, OffsetType::None)?.get_ids().to_vec())
    }

    /// The text of tokens; bytes that are not UTF-8 become U+FFFD.
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

    /// The texts of the special tokens.
    pub(crate) fn specials(&self) -> Vec<String> {
        let special = (0..).zip(&self.kinds).filter(|(_, kind)| **kind == Kind::Special);
        special.filter_map(|(id, _)| self.inner.id_to_token(id)).collect()
    }
}

thread_local! {
    static PANIC_IS_EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic of this thread becomes an error of the request, so that it need not be logged.
pub fn panic_is_expected() -> bool {
    PANIC_IS_EXPECTED.get()
}

/// Turns a panic into an error: the regular expressions of the `tokenizers` crate panic where they
/// give up.
fn guarded(
    encode: impl FnOnce() -> Result<Vec<TokenId>, Problem>,
) -> Result<Vec<TokenId>, TextError> {
    let expected_before = PANIC_IS_EXPECTED.replace(true);
    let encoded = catch_unwind(AssertUnwindSafe(encode));
    PANIC_IS_EXPECTED.set(expected_before);
    let Ok(tokens) = encoded else {
        let reason = "its patterns give up on it; long runs of one character are a likely cause";
        return Err(TextError::Encode(reason.to_owned()));
    };
    tokens.map_err(|error| TextError::Encode(error.to_string()))
}

/// Bytes of the longest token; `None` if text can be left out or be changed to something shorter.
fn longest(source: &Value, starts: &[u32], bytes: &[u8]) -> Option<usize> {
    let normalizer = &source["normalizer"];
    let shrinks = !normalizer.is_null() && normalizer["type"] != "NFC";
    // Such tokens include the spaces around them, however many there are.
    let added = source["added_tokens"].as_array().into_iter().flatten();
    let strips = added.clone().any(|token| token["lstrip"] == true || token["rstrip"] == true);
    let lengths = || starts.windows(2).map(|ends| (ends[0] as usize, ends[1] as usize));
    let singles = lengths().filter(|(start, end)| end - start == 1);
    let singles: std::collections::BTreeSet<u8> = singles.map(|(start, _)| bytes[start]).collect();
    // Without a token for every byte, some bytes are left out.
    if shrinks || strips || singles.len() < 256 {
        return None;
    }
    // An added token is matched by its text, whatever bytes its characters could stand for.
    let texts = added.filter_map(|token| token["content"].as_str()).map(str::len);
    lengths().map(|(start, end)| end - start).chain(texts).max()
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

/// The bytes of a token in a byte-level vocabulary: those for which its characters stand, or, if a
/// character stands for none, the token's own text. The rule is the same for added tokens.
fn token_bytes(token: &str) -> Vec<u8> {
    let named: Option<Vec<u8>> = token.chars().map(named_byte).collect();
    named.unwrap_or_else(|| token.as_bytes().to_vec())
}

/// The byte for which a character stands. Printable characters of Latin-1 stand for themselves, and
/// the characters from U+0100 on for the remaining bytes, in order.
fn named_byte(character: char) -> Option<u8> {
    match u32::from(character) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controls::NO_MARKS;

    #[test]
    fn several_threads_give_the_tokens_of_one() {
        let file = include_bytes!("../../../tests/text/fixtures/mimo/tokenizer.json");
        let mut tokenizer = Tokenizer::read(file).unwrap();
        // Several batches, the last of which is not full.
        let words: Vec<String> = (0..30_000).map(|word| (word * word % 7919).to_string()).collect();
        let text = words.join(" ");
        let mut encode = |threads, keep| {
            tokenizer.threads = threads;
            let wanted = Wanted { keep, ..Wanted::default() };
            tokenizer.encode(&text, Specials::Recognized(&NO_MARKS), &wanted).unwrap()
        };
        let expected = encode(1, Keep::All);
        for threads in [2, 3, THREADS_MAX] {
            for keep in [Keep::All, Keep::Last] {
                assert_eq!(encode(threads, keep), expected, "{threads} threads");
            }
        }
    }
}
