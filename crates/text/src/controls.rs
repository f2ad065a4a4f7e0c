//! Keeps users from writing special tokens. A rendered prompt does not show which text came from
//! the template, so the input is marked: before rendering, the characters that special tokens
//! contain are replaced by stand-ins in all strings of the conversation. Text of a special token
//! that contains a stand-in is then not tokenized as one. All other stand-ins are replaced back.

use aho_corasick::AhoCorasick;
use serde_json::Value;

/// Characters that most special tokens contain, and that templates do not search for in their
/// input.
const KEYS: [char; 3] = ['|', '｜', '▁'];

/// Stand-ins: symbols (ancient Greek musical notation) that belong to no alphabet, are not white
/// space, are changed by no filter, and hardly ever occur in text.
const STAND_INS: std::ops::RangeInclusive<char> = '\u{1d200}'..='\u{1d241}';

/// The texts of a model's special tokens.
pub(crate) struct Controls {
    texts: Vec<String>,
    /// Characters that are marked wherever they occur in a conversation.
    keys: Vec<char>,
    /// Finds special tokens without such a character. Where one occurs in a string of the
    /// conversation, its first character is marked.
    whole: Option<AhoCorasick>,
    all: AhoCorasick,
}

/// Stand-ins, each with the character that it stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Marks(Vec<(char, char)>);

impl Controls {
    /// # Errors
    /// There are too many special tokens to look for.
    pub(crate) fn new(texts: Vec<String>) -> Result<Self, String> {
        let mut texts = texts;
        texts.retain(|text| !text.is_empty());
        let is_markup =
            |text: &str| !text.starts_with(|c: char| c.is_alphanumeric() || c.is_whitespace());
        let whole = texts.iter().filter(|text| !text.contains(KEYS) && is_markup(text));
        let whole: Vec<_> = whole.collect();
        let mut keys = KEYS.to_vec();
        keys.retain(|key| texts.iter().any(|text| text.contains(*key)));
        let finder = |texts: &[&String]| AhoCorasick::new(texts).map_err(|error| error.to_string());
        let all = finder(&texts.iter().collect::<Vec<_>>())?;
        let whole = if whole.is_empty() { None } else { Some(finder(&whole)?) };
        Ok(Self { texts, keys, whole, all })
    }

    /// Stand-ins for all characters that must be marked in these values.
    ///
    /// # Errors
    /// The values contain every possible stand-in.
    pub(crate) fn marks<'v>(
        &self,
        values: impl Iterator<Item = &'v Value>,
    ) -> Result<Marks, String> {
        let (mut marked, mut taken) = (Vec::new(), Vec::new());
        for value in values {
            visit(value, &mut |text| {
                let found = self.keys.iter().copied().filter(|&key| text.contains(key));
                let looks = self.whole.iter().flat_map(|whole| whole.find_overlapping_iter(text));
                let first = looks.filter_map(|found| text[found.start()..].chars().next());
                for character in found.chain(first) {
                    if !marked.contains(&character) {
                        marked.push(character);
                    }
                }
                if !text.is_ascii() {
                    let stand_ins = text.chars().filter(|other| STAND_INS.contains(other));
                    for character in stand_ins {
                        if !taken.contains(&character) {
                            taken.push(character);
                        }
                    }
                }
            });
        }
        let free: Vec<char> = STAND_INS.filter(|other| !taken.contains(other)).collect();
        if free.len() < marked.len() {
            return Err("the conversation contains every symbol of ancient Greek musical \
                        notation (U+1D200 to U+1D241): leave one out"
                .to_owned());
        }
        Ok(Marks(free.into_iter().zip(marked).collect()))
    }

    /// Puts the stand-ins into all strings of a value, including keys of objects.
    pub(crate) fn mark(&self, value: &mut Value, marks: &Marks) {
        match value {
            Value::String(text) => {
                if let Some(marked) = self.marked(text, marks) {
                    *text = marked;
                }
            }
            Value::Array(values) => values.iter_mut().for_each(|value| self.mark(value, marks)),
            Value::Object(fields) => {
                if fields.keys().any(|name| self.marked(name, marks).is_some()) {
                    let renamed = std::mem::take(fields).into_iter();
                    let renamed = renamed
                        .map(|(name, value)| (self.marked(&name, marks).unwrap_or(name), value));
                    *fields = renamed.collect();
                }
                fields.values_mut().for_each(|value| self.mark(value, marks));
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// The text with stand-ins; `None` if it needs none.
    fn marked(&self, text: &str, marks: &Marks) -> Option<String> {
        let mut starts: Vec<usize> = self
            .whole
            .iter()
            .flat_map(|whole| whole.find_overlapping_iter(text))
            .map(|found| found.start())
            .collect();
        if starts.is_empty() && !text.contains(self.keys.as_slice()) {
            return None;
        }
        starts.sort_unstable();
        let marked = text.char_indices().map(|(at, character)| {
            let is_marked = self.keys.contains(&character) || starts.binary_search(&at).is_ok();
            if is_marked { marks.stand_in(character) } else { character }
        });
        Some(marked.collect())
    }

    /// The prompt as people read it. If text of the conversation looks like special tokens, also
    /// the prompt with stand-ins in that text alone.
    pub(crate) fn tell_apart(
        &self,
        written: String,
        marks: Marks,
    ) -> (String, Option<(String, Marks)>) {
        if !marks.are_in(&written) {
            return (written, None);
        }
        let prompt = marks.undo(&written);
        let mut looks_special = vec![false; prompt.len()];
        for found in self.all.find_overlapping_iter(&prompt) {
            looks_special[found.range()].fill(true);
        }
        let mut any = false;
        let characters = prompt.char_indices().zip(written.chars());
        let text = characters.map(|((at, original), standing)| {
            let kept = original != standing && looks_special[at];
            any |= kept;
            if kept { standing } else { original }
        });
        let text: String = text.collect();
        let marked = any.then_some((text, marks));
        (prompt, marked)
    }

    /// Where the last special token of a text ends.
    pub(crate) fn last_end(&self, text: &str) -> usize {
        let ends = self.texts.iter().filter_map(|turn| Some(text.rfind(turn)? + turn.len()));
        ends.max().unwrap_or(0)
    }
}

/// No stand-ins.
pub(crate) static NO_MARKS: Marks = Marks(Vec::new());

impl Marks {
    pub(crate) fn are_in(&self, text: &str) -> bool {
        self.0.iter().any(|(mark, _)| text.contains(*mark))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (char, char)> {
        self.0.iter().copied()
    }

    /// The text as it was before it was marked.
    pub(crate) fn undo(&self, text: &str) -> String {
        let original = |mark| self.0.iter().find(|(each, _)| *each == mark);
        text.chars().map(|each| original(each).map_or(each, |(_, original)| *original)).collect()
    }

    fn stand_in(&self, character: char) -> char {
        let mark = self.0.iter().find(|(_, original)| *original == character);
        mark.map_or(character, |(mark, _)| *mark)
    }
}

/// Visits every string of a value, including keys of objects.
fn visit(value: &Value, see: &mut impl FnMut(&str)) {
    match value {
        Value::String(text) => see(text),
        Value::Array(values) => values.iter().for_each(|value| visit(value, see)),
        Value::Object(fields) => {
            for (name, value) in fields {
                see(name);
                visit(value, see);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
