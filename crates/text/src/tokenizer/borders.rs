//! Where a long text can be cut so that the pieces have the same tokens as the whole text. A border
//! lies between two characters that are never adjacent within a match of the pre-tokenizer's
//! patterns, and of which the first is always part of a match. Patterns that are not understood
//! have no borders.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use regex_syntax::hir::{Class, ClassUnicode, ClassUnicodeRange, Hir, HirKind};
use serde_json::Value;

/// The pattern of GPT-2, which `ByteLevel` means by `use_regex`.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// The only look-ahead that is understood: it follows only spaces, and there is no border after a
/// space.
const SPACES_AHEAD: &str = r"\s+(?!\S)";

const ASCII: usize = 128;

/// See the file's head.
#[derive(Default)]
pub(super) struct Borders {
    /// The patterns that split a text, one after the other.
    patterns: Vec<Pattern>,
    /// Pairs of characters that are adjacent within an added token.
    within_tokens: BTreeSet<(char, char)>,
    ascii: OnceLock<Vec<bool>>,
}

/// The alternatives of a pattern.
struct Pattern(Vec<Vec<Part>>);

/// A part of an alternative, reduced to the characters that it may match.
struct Part {
    characters: ClassUnicode,
    /// Whether it may match more than one character.
    repeats: bool,
    /// Whether it may match none.
    optional: bool,
    /// Whether every single one of its characters is a match.
    single: bool,
}

impl Borders {
    /// Of a `tokenizer.json`.
    pub(super) fn read(tokenizer: &Value) -> Self {
        Self::understood(tokenizer).unwrap_or_default()
    }

    fn understood(tokenizer: &Value) -> Option<Self> {
        let normalizer = &tokenizer["normalizer"];
        // NFC combines a character with the marks after it, and keeps marks at the beginning of a
        // piece.
        if !normalizer.is_null() && normalizer["type"] != "NFC" {
            return None;
        }
        let mut within_tokens = BTreeSet::new();
        for token in tokenizer["added_tokens"].as_array().into_iter().flatten() {
            if ["single_word", "lstrip", "rstrip"].iter().any(|flag| token[flag] == true) {
                return None;
            }
            let content = token["content"].as_str()?;
            within_tokens.extend(content.chars().zip(content.chars().skip(1)));
        }
        let patterns = patterns(&tokenizer["pre_tokenizer"])?;
        Some(Self { patterns, within_tokens, ascii: OnceLock::new() })
    }

    /// The last border with at most `target` bytes before it, or, if there is none, the first
    /// border after that.
    pub(super) fn near(&self, text: &str, target: usize) -> Option<usize> {
        let (before, after) = text.split_at(text.floor_char_boundary(target));
        let mut next = after.chars().next()?;
        for (at, character) in before.char_indices().rev() {
            if self.between(character, next) {
                return Some(at + character.len_utf8());
            }
            next = character;
        }
        let pairs = after.char_indices().zip(after.chars().skip(1));
        for ((at, character), next) in pairs {
            if self.between(character, next) {
                return Some(before.len() + at + character.len_utf8());
            }
        }
        None
    }

    /// Whether there is a border between two characters.
    fn between(&self, before: char, after: char) -> bool {
        if self.patterns.is_empty() {
            return false;
        }
        if before.is_ascii() && after.is_ascii() {
            let table = self.ascii.get_or_init(|| {
                let characters = || (0..ASCII as u8).map(char::from);
                let pairs = characters().flat_map(|a| characters().map(move |b| (a, b)));
                pairs.map(|(a, b)| self.separate(a, b)).collect()
            });
            return table[before as usize * ASCII + after as usize];
        }
        // Normalization keeps these characters, or changes a letter into a letter.
        (after.is_ascii() || is_ideograph(after))
            && (is_ideograph(before) || before.is_ascii() || before.is_alphabetic())
            && self.separate(before, after)
            && (before.is_ascii() || self.separate('a', after))
    }

    fn separate(&self, before: char, after: char) -> bool {
        !before.is_whitespace()
            && !self.within_tokens.contains(&(before, after))
            && self.patterns.iter().all(|pattern| pattern.separates(before, after))
            && self.patterns.iter().any(|pattern| pattern.covers(before))
    }
}

/// Common ideographs, which no normal form changes.
fn is_ideograph(character: char) -> bool {
    matches!(character, '\u{3001}' | '\u{3002}' | '\u{4e00}'..='\u{9fff}')
}

fn patterns(pre_tokenizer: &Value) -> Option<Vec<Pattern>> {
    let one = |source: &str| Some(vec![Pattern::parse(source)?]);
    match pre_tokenizer["type"].as_str()? {
        "Sequence" => {
            let stages = pre_tokenizer["pretokenizers"].as_array()?.iter().map(patterns);
            Some(stages.collect::<Option<Vec<_>>>()?.into_iter().flatten().collect())
        }
        // The space would be put before each piece.
        "ByteLevel" if pre_tokenizer["add_prefix_space"] == true => None,
        "ByteLevel" if pre_tokenizer["use_regex"] == false => Some(Vec::new()),
        "ByteLevel" => one(GPT2),
        "Digits" if pre_tokenizer["individual_digits"] == true => one(r"\p{N}"),
        "Digits" => one(r"\p{N}+"),
        "Split" => {
            let inverted = pre_tokenizer["invert"] == true;
            match (pre_tokenizer["behavior"].as_str()?, inverted) {
                ("Isolated", false) | ("Removed", true) => {}
                _ => return None,
            }
            let pattern = &pre_tokenizer["pattern"];
            match (pattern["Regex"].as_str(), pattern["String"].as_str()) {
                (Some(regex), _) => one(regex),
                (None, Some(text)) => one(&regex_syntax::escape(text)),
                (None, None) => None,
            }
        }
        _ => None,
    }
}

impl Pattern {
    fn parse(source: &str) -> Option<Self> {
        let hir = regex_syntax::parse(&source.replace(SPACES_AHEAD, r"\s+")).ok()?;
        let alternatives = match hir.kind() {
            HirKind::Alternation(alternatives) => alternatives.iter().map(parts).collect(),
            _ => parts(&hir).map(|parts| vec![parts]),
        };
        alternatives.map(Self)
    }

    /// Whether no match has these two characters side by side, and no match depends on what follows
    /// the first.
    fn separates(&self, before: char, after: char) -> bool {
        !self.0.iter().any(|parts| {
            parts.iter().enumerate().any(|(index, part)| {
                let first_next = if part.repeats { index } else { index + 1 };
                part.has(before) && parts[first_next..].iter().any(|part| part.has(after))
            })
        })
    }

    /// Whether the character is part of a match wherever it stands.
    fn covers(&self, character: char) -> bool {
        self.0.iter().any(|parts| {
            let mut needed = parts.iter().filter(|part| !part.optional);
            let alone = needed.next().is_some_and(|part| part.single && part.has(character));
            alone && needed.next().is_none()
        })
    }
}

impl Part {
    fn has(&self, character: char) -> bool {
        let ranges = self.characters.ranges();
        let found = ranges.partition_point(|range| range.end() < character);
        ranges.get(found).is_some_and(|range| range.start() <= character)
    }
}

fn parts(hir: &Hir) -> Option<Vec<Part>> {
    let one = |characters| Part { characters, repeats: false, optional: false, single: true };
    Some(match hir.kind() {
        HirKind::Empty => Vec::new(),
        HirKind::Literal(literal) => {
            let text = std::str::from_utf8(&literal.0).ok()?;
            let range = |character| ClassUnicodeRange::new(character, character);
            text.chars().map(|character| one(ClassUnicode::new([range(character)]))).collect()
        }
        HirKind::Class(Class::Unicode(characters)) => vec![one(characters.clone())],
        HirKind::Repetition(repetition) => {
            let all = parts(&repetition.sub)?;
            vec![Part {
                characters: union(&all),
                repeats: repetition.max != Some(1) || all.len() != 1 || all[0].repeats,
                optional: repetition.min == 0 || all.iter().all(|part| part.optional),
                single: repetition.min < 2 && all.len() == 1 && all[0].single,
            }]
        }
        HirKind::Capture(capture) => parts(&capture.sub)?,
        HirKind::Concat(all) => {
            let all = all.iter().map(parts).collect::<Option<Vec<_>>>()?;
            all.into_iter().flatten().collect()
        }
        HirKind::Alternation(branches) => {
            let branches = branches.iter().map(parts).collect::<Option<Vec<_>>>()?;
            let each_one = branches.iter().all(|parts| parts.len() == 1);
            let all: Vec<Part> = branches.into_iter().flatten().collect();
            vec![Part {
                characters: union(&all),
                repeats: !each_one || all.iter().any(|part| part.repeats),
                optional: all.iter().any(|part| part.optional),
                single: each_one && all.iter().all(|part| part.single),
            }]
        }
        HirKind::Class(Class::Bytes(_)) | HirKind::Look(_) => return None,
    })
}

fn union(parts: &[Part]) -> ClassUnicode {
    let mut characters = ClassUnicode::empty();
    for part in parts {
        characters.union(&part.characters);
    }
    characters
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use serde_json::json;
    use tokenizers::{
        OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _, PreTokenizerWrapper,
    };

    use super::*;

    /// Patterns of Qwen and MiMo, Llama 3, GPT-4o, and `DeepSeek`'s three.
    const REGEXES: [&[&str]; 4] = [
        &[concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )],
        &[concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )],
        &[concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )],
        &[
            r"\p{N}{1,3}",
            r"[一-龥぀-ゟ゠-ヿ]+",
            concat!(
                r"[!-/:-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
                r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ),
        ],
    ];

    fn tokenizers() -> Vec<Value> {
        let split = |regex: &&str| {
            json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated",
                    "invert": false })
        };
        let bytes = |regex: bool| {
            json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                    "use_regex": regex })
        };
        let mut all = vec![bytes(true)];
        for regexes in REGEXES {
            let stages: Vec<Value> = regexes.iter().map(split).chain([bytes(false)]).collect();
            all.push(json!({ "type": "Sequence", "pretokenizers": stages }));
        }
        let tokenizer = |stages: &Value| {
            json!({ "normalizer": { "type": "NFC" }, "pre_tokenizer": stages,
                    "added_tokens": [{ "content": "<|end_of|>" }] })
        };
        all.iter().map(tokenizer).collect()
    }

    fn words(stages: &PreTokenizerWrapper, text: &str) -> Vec<String> {
        let mut pieces = PreTokenizedString::from(text);
        stages.pre_tokenize(&mut pieces).unwrap();
        let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.into_iter().map(|(word, _, _)| word.to_owned()).collect()
    }

    /// Cuts at every border.
    fn cut(borders: &Borders, mut text: &str) -> Vec<String> {
        let mut pieces = Vec::new();
        while let Some(at) = borders.near(text, 1) {
            pieces.push(text[..at].to_owned());
            text = &text[at..];
        }
        pieces.push(text.to_owned());
        pieces
    }

    #[test]
    fn ordinary_text_has_borders() {
        for tokenizer in tokenizers() {
            let borders = Borders::read(&tokenizer);
            for text in ["ab cd ef", "x = f(y);\nz = 1;", "word\nword\n"] {
                assert!(cut(&borders, text).len() > 2, "{tokenizer}: {text}");
            }
            assert_eq!(cut(&borders, "aaaa").len(), 1);
            assert_eq!(cut(&borders, "    ").len(), 1);
            assert!(!cut(&borders, "a<|end_of|>b").contains(&"<|end".to_owned()));
        }
        // Counting of digits would restart with every piece.
        assert_eq!(cut(&Borders::read(&tokenizers()[2]), "123456").len(), 1);
        assert_eq!(cut(&Borders::read(&tokenizers()[1]), "123456").len(), 6);
        let unknown = json!({ "pre_tokenizer": { "type": "Metaspace" }, "added_tokens": [] });
        assert_eq!(cut(&Borders::read(&unknown), "a b c").len(), 1);
    }

    static READ: LazyLock<Vec<(Borders, PreTokenizerWrapper)>> = LazyLock::new(|| {
        let read = |tokenizer: &Value| {
            let stages = serde_json::from_value(tokenizer["pre_tokenizer"].clone()).unwrap();
            (Borders::read(tokenizer), stages)
        };
        tokenizers().iter().map(read).collect()
    });

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn pieces_have_the_words_of_the_whole(
            text in concat!(
                r"([a-c]|[A-C]|[0-9]| |\n|\r|\t|'s|[!-/]|[é世、。яא́]|\x{3000}",
                r"|\x{301}|\PC){0,24}",
            ),
        ) {
            for (borders, stages) in &*READ {
                let pieces = cut(borders, &text);
                let apart: Vec<_> = pieces.iter().flat_map(|piece| words(stages, piece)).collect();
                prop_assert_eq!(&apart, &words(stages, &text), "{:?}", pieces);
            }
        }
    }
}
