//! Tests of grammars, with vocabularies that are built here: of bytes only, and of pieces as in
//! BPE.

mod calls;
mod hostile;
mod languages;
mod masks;
mod multiples;
mod schemas;
mod text;

use super::vocabulary::{Vocabulary, Word};
use super::{Constraint, Grammar, GrammarError, Grammars};
use crate::{ReasoningStart, TokenId};

const ENDS: [TokenId; 2] = [256, 257];
const THINK: TokenId = 258;
const END_THINK: TokenId = 259;
const CALL: TokenId = 260;
const END_CALL: TokenId = 261;
const OTHER: TokenId = 262;
const MARKS: [&str; 7] =
    ["<|end|>", "<|stop|>", "<think>", "</think>", "<tool_call>", "</tool_call>", "<|other|>"];

/// The tests' random generator: xorshift64*.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

struct Model {
    words: Vec<Word>,
    grammars: Grammars,
}

impl Model {
    /// A vocabulary of every byte, the markup, and these pieces, padded as engines do.
    fn with(pieces: &[Vec<u8>], marks: bool) -> Self {
        let mut words: Vec<Word> =
            (0..=255).map(|byte| Word { bytes: vec![byte], special: false }).collect();
        for (index, mark) in MARKS.iter().enumerate() {
            let bytes =
                if marks || index < 2 || index == 6 { mark.as_bytes().to_vec() } else { vec![] };
            words.push(Word { bytes, special: true });
        }
        words.extend(pieces.iter().map(|bytes| Word { bytes: bytes.clone(), special: false }));
        let size = words.len() as u32 + 37;
        let vocabulary = Vocabulary::new(words.clone(), size, &ENDS, true).unwrap();
        Self { words, grammars: Grammars::over(vocabulary).unwrap() }
    }

    fn bytes() -> Self {
        Self::with(&[], true)
    }

    fn pieces() -> Self {
        Self::with(&pieces(), true)
    }

    fn compile(&self, constraint: &Constraint) -> Result<Grammar, GrammarError> {
        self.grammars.compile(constraint, ReasoningStart::Never, &|| false)
    }

    fn text(&self, tokens: &[TokenId]) -> String {
        let bytes = tokens.iter().flat_map(|&token| self.words[token as usize].bytes.clone());
        String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned()
    }

    /// Tokenizes a text by longest match, including markup.
    fn encode(&self, text: &str) -> Vec<TokenId> {
        let mut rest = text.as_bytes();
        let mut tokens = Vec::new();
        while !rest.is_empty() {
            let fits = |token: &usize| {
                let bytes = &self.words[*token].bytes;
                !bytes.is_empty() && rest.starts_with(bytes)
            };
            let best = (0..self.words.len()).filter(fits);
            let best = best.max_by_key(|&token| self.words[token].bytes.len()).unwrap();
            tokens.push(best as TokenId);
            rest = &rest[self.words[best].bytes.len()..];
        }
        tokens
    }

    /// Whether the grammar accepts the text, and allows the reply to end after it.
    fn takes(&self, grammar: &Grammar, text: &str) -> bool {
        let mut grammar = grammar.clone();
        grammar.accept(&self.encode(text)).is_ok() && grammar.accept(&ENDS[1..]).is_ok()
    }
}

/// Fragments as in BPE, separated by bars.
const FRAGMENTS: &str = concat!(
    "{\"|\":|\": |\": \"|\",|\", \"|\"}|\"},|}}|},|[]|{}|[{|}]|],|[[|]]|true|false|null|, |: |",
    "\n|\n\n|  |    |\n  |\n    |\\n|\\\"|\\\\|</|>\n|=\"|name|value|kind|type|id| the| of|a|e|",
    "th|the|ing|-|--|://|http|.com|\u{e9}|\u{4e16}|\u{1f44b}|",
    "<parameter=|</parameter>|function|</function>|<function=",
);

/// Fragments, digits, parts of characters, and pieces unlike any of these.
fn pieces() -> Vec<Vec<u8>> {
    let mut pieces: Vec<Vec<u8>> =
        FRAGMENTS.split('|').map(|text| text.as_bytes().to_vec()).collect();
    pieces.extend((0..1000).map(|number: u32| format!("{number:03}").into_bytes()));
    pieces.extend((0..100).map(|number: u32| number.to_string().into_bytes()));
    for text in ["\u{4e16}", "\u{1f44b}", "\u{e9}\u{e8}", "\u{2603}x"] {
        let bytes = text.as_bytes();
        pieces.extend((2..bytes.len()).map(|end| bytes[..end].to_vec()));
        pieces.extend((1..bytes.len() - 1).map(|start| bytes[start..].to_vec()));
    }
    let mut dice = Dice::new(7);
    for _ in 0..600 {
        let letters = b"abcdefghijklmnopqrstuvwxyzABC\"{}[]:, \n0123456789\\-.eE/";
        pieces.push((0..2 + dice.below(3)).map(|_| dice.pick(letters)).collect());
    }
    pieces
}

fn allowed(mask: &[u32], token: TokenId) -> bool {
    mask.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
}

fn listed(mask: &[u32]) -> Vec<TokenId> {
    (0..mask.len() as u32 * 32).filter(|&token| allowed(mask, token)).collect()
}

fn json(schema: serde_json::Value) -> Constraint {
    Constraint::JsonSchema { schema, strict: true }
}

/// Generates a random reply: drafts of all kinds, some of which are accepted, and tokens that the
/// masks allow. After `patience` tokens it heads for the end.
fn walk(model: &Model, grammar: &mut Grammar, dice: &mut Dice, patience: usize) -> Vec<TokenId> {
    let mut reply: Vec<TokenId> = Vec::new();
    for step in 0.. {
        assert!(step < 20_000, "no end: {}", model.text(&reply));
        let drafts = drafts(model, grammar, dice, &reply);
        let masks = grammar.masks(&drafts).unwrap();
        assert!(masks.draft_count as usize <= drafts.len());
        assert_eq!(masks.masks.len(), masks.draft_count as usize + 1);
        for (mask, &draft) in masks.masks.iter().zip(&drafts).take(masks.draft_count as usize) {
            assert!(allowed(mask, draft));
        }
        if let Some(&illegal) = drafts.get(masks.draft_count as usize) {
            assert!(!allowed(masks.masks.last().unwrap(), illegal));
        }
        let hurry = reply.len() > patience;
        let kept = if hurry { 0 } else { dice.below(masks.draft_count as usize + 1) };
        let ended = drafts[..kept].iter().position(|draft| ENDS.contains(draft));
        let mut kept = ended.unwrap_or(kept);
        for (index, &draft) in drafts[..kept].iter().enumerate() {
            if overflows(model, &reply, draft) {
                kept = index;
                break;
            }
            reply.push(draft);
        }
        grammar.accept(&drafts[..kept]).unwrap();
        let token = choose(model, &masks.masks[kept], dice, &reply, hurry);
        grammar.accept(&[token]).unwrap();
        if ENDS.contains(&token) {
            return reply;
        }
        reply.push(token);
    }
    unreachable!()
}

/// Up to three drafts: likely next tokens, or random ones.
fn drafts(model: &Model, grammar: &Grammar, dice: &mut Dice, reply: &[TokenId]) -> Vec<TokenId> {
    let mut drafts = Vec::new();
    let mut ahead = (dice.below(3) == 0).then(|| grammar.clone());
    for _ in 0..dice.below(4) {
        let token = match &mut ahead {
            Some(ahead) if dice.below(4) > 0 => {
                let masks = ahead.masks(&[]).unwrap();
                let token = choose(model, &masks.masks[0], dice, reply, false);
                ahead.accept(&[token]).unwrap();
                token
            }
            _ => {
                ahead = None;
                dice.below(model.words.len() + 80) as TokenId
            }
        };
        drafts.push(token);
    }
    drafts
}

fn choose(model: &Model, mask: &[u32], dice: &mut Dice, reply: &[TokenId], hurry: bool) -> TokenId {
    let all = listed(mask);
    assert!(!all.is_empty());
    if hurry {
        let ends = b"}])\"";
        let end = all.iter().copied().find(|token| ENDS.contains(token));
        if let Some(token) =
            end.or_else(|| closing(model, reply, dice).filter(|token| all.contains(token)))
        {
            return token;
        }
        let close =
            ends.iter().map(|&byte| TokenId::from(byte)).filter(|token| all.contains(token));
        let close: Vec<TokenId> = close.collect();
        if !close.is_empty() {
            return dice.pick(&close);
        }
    }
    for _ in 0..200 {
        let token = dice.pick(&all);
        if !overflows(model, reply, token) {
            return token;
        }
    }
    all[0]
}

/// The next byte of a closing tag, mostly when one has begun. In some formats the tag is on its own
/// line.
fn closing(model: &Model, reply: &[TokenId], dice: &mut Dice) -> Option<TokenId> {
    let tag = "</parameter>";
    let text = model.text(&reply[reply.len().saturating_sub(tag.len())..]);
    let begun = (0..tag.len()).rev().find(|&length| text.ends_with(&tag[..length])).unwrap_or(0);
    let newline = begun == 0 && !text.ends_with('\n') && dice.below(2) == 0;
    let next = if newline { b'\n' } else { tag.as_bytes()[begun] };
    let goes_on = dice.below(10) < if begun == 0 { 4 } else { 9 };
    goes_on.then(|| TokenId::from(next))
}

/// Whether the token would make a number like 1e999. JSON allows it, but readers and models do not.
fn overflows(model: &Model, reply: &[TokenId], token: TokenId) -> bool {
    let before = model.text(&reply[reply.len().saturating_sub(6)..]);
    let text = before + &model.text(&[token]);
    let digits_after = |rest: &str| rest.trim_start_matches(['+', '-']).len();
    let mut parts = text
        .match_indices(['e', 'E'])
        .filter(|(at, _)| text[..*at].ends_with(|c: char| c.is_ascii_digit()));
    parts.any(|(at, _)| {
        let rest = &text[at + 1..];
        let end =
            rest.find(|c: char| !c.is_ascii_digit() && !"+-".contains(c)).unwrap_or(rest.len());
        digits_after(&rest[..end]) > 2
    })
}
