//! A streaming JSON writer: reads a JSON value character by character and writes it again. At any
//! time, the output can be completed to valid JSON, so a key or a comma is written only together
//! with what follows it.
//!
//! Separators become `, ` and `: `, and strings are escaped where they must be. Line ends and stray
//! backslashes in strings, trailing commas and Python's constants are corrected.

use super::value::escape;

/// How deep values may be nested. Readers of JSON have such limits too, often 128.
const DEPTH_MAX: usize = 100;
/// Longest number or word.
const WORD_MAX: usize = 400;

#[derive(Clone, Debug)]
pub(super) struct Echo {
    open: Vec<Bracket>,
    at: At,
    /// A comma was read, or is missing: it is written before the next item.
    comma: bool,
    /// A key that is written with its value.
    key: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bracket {
    Object,
    Array,
}

#[derive(Clone, Debug)]
enum At {
    Value,
    /// A key, or the end of the object.
    Key,
    Colon,
    /// A comma, or the end of the innermost bracket.
    After,
    String {
        is_key: bool,
        escape: Escape,
    },
    Word(String),
}

/// The position within an escape sequence.
#[derive(Clone, Debug)]
pub(super) enum Escape {
    No,
    Begun,
    /// Digits of `\u`; `high` is the first half of a surrogate pair.
    Code {
        digits: String,
        high: Option<u16>,
    },
    /// After the first half of a surrogate pair; a backslash may follow.
    Half(u16),
    HalfBegun(u16),
}

/// The result of reading a character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    More,
    /// The value is complete.
    Complete,
    /// The value was complete before this character, which is not part of it.
    CompleteBefore,
    /// The text is not JSON. Nothing was written for this character.
    Broken,
}

impl Default for Echo {
    fn default() -> Self {
        Self { open: Vec::new(), at: At::Value, comma: false, key: None }
    }
}

impl Echo {
    pub(super) fn is_in_string(&self) -> bool {
        matches!(self.at, At::String { .. })
    }

    pub(super) fn push(&mut self, character: char, out: &mut String) -> Taken {
        if let At::String { .. } = self.at {
            return self.in_string(character, out);
        }
        if let At::Word(word) = &mut self.at {
            if character.is_ascii_alphanumeric() || "+-.".contains(character) {
                word.push(character);
                return if word.len() > WORD_MAX { Taken::Broken } else { Taken::More };
            }
            let Some(word) = constant(word) else { return Taken::Broken };
            out.push_str(&word);
            self.at = At::After;
            if self.open.is_empty() {
                return Taken::CompleteBefore;
            }
        }
        if matches!(character, ' ' | '\n' | '\t' | '\r') {
            return Taken::More;
        }
        match (&self.at, character) {
            (At::Value, '"') => self.begin(Some('"'), out, At::string(false)),
            (At::Value, '{' | '[') => return self.open(character, out),
            (At::Value, 'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '+' | '.') => {
                // It is written when it is complete, after everything that precedes it.
                self.at = At::Word(character.to_string());
                return self.before_word(out);
            }
            (At::Key, '"') => {
                self.key = Some(String::new());
                self.at = At::string(true);
            }
            (At::Colon, ':') => self.at = At::Value,
            (At::After, ',') => {
                self.comma = true;
                self.at = match self.open.last() {
                    Some(Bracket::Array) => At::Value,
                    _ => At::Key,
                };
            }
            (At::After | At::Key, '}') => return self.shut(Bracket::Object, out),
            (At::After | At::Value, ']') => return self.shut(Bracket::Array, out),
            _ => return Taken::Broken,
        }
        Taken::More
    }

    /// Completes the value as it is.
    pub(super) fn close(&mut self, out: &mut String) {
        match std::mem::replace(&mut self.at, At::After) {
            At::String { is_key: false, escape } => {
                if let Escape::Half(_) | Escape::HalfBegun(_) | Escape::Code { high: Some(_), .. } =
                    escape
                {
                    out.push(char::REPLACEMENT_CHARACTER);
                }
                out.push('"');
            }
            At::Word(word) => out.push_str(&completed(&word)),
            At::Value if self.open.is_empty() => out.push_str("null"),
            _ => {}
        }
        while let Some(bracket) = self.open.pop() {
            out.push(bracket.end());
        }
    }

    /// Writes what precedes an item: a comma, a key.
    fn begin(&mut self, character: Option<char>, out: &mut String, at: At) {
        if std::mem::take(&mut self.comma) {
            out.push_str(", ");
        }
        if let Some(key) = self.key.take() {
            out.push('"');
            key.chars().for_each(|character| escape(character, out));
            out.push_str("\": ");
        }
        out.extend(character);
        self.at = at;
    }

    fn before_word(&mut self, out: &mut String) -> Taken {
        let at = std::mem::replace(&mut self.at, At::Value);
        self.begin(None, out, at);
        Taken::More
    }

    fn open(&mut self, character: char, out: &mut String) -> Taken {
        if self.open.len() == DEPTH_MAX {
            return Taken::Broken;
        }
        let (bracket, at) = match character {
            '{' => (Bracket::Object, At::Key),
            _ => (Bracket::Array, At::Value),
        };
        self.begin(Some(character), out, at);
        self.open.push(bracket);
        Taken::More
    }

    fn shut(&mut self, bracket: Bracket, out: &mut String) -> Taken {
        if self.open.last() != Some(&bracket) {
            return Taken::Broken;
        }
        self.open.pop();
        out.push(bracket.end());
        self.at = At::After;
        if self.open.is_empty() { Taken::Complete } else { Taken::More }
    }

    fn in_string(&mut self, character: char, out: &mut String) -> Taken {
        if let At::String { is_key: false, escape: Escape::No } = self.at
            && !matches!(character, '"' | '\\')
        {
            escape(character, out);
            return Taken::More;
        }
        let At::String { is_key, escape: state } = std::mem::replace(&mut self.at, At::After)
        else {
            return Taken::Broken;
        };
        let mut text = String::new();
        let next = state.step(character, &mut text);
        match &mut self.key {
            Some(key) if is_key => key.push_str(&text),
            _ => text.chars().for_each(|character| escape(character, out)),
        }
        match next {
            Some(escape) => self.at = At::String { is_key, escape },
            None if is_key => self.at = At::Colon,
            None => {
                out.push('"');
                if self.open.is_empty() {
                    return Taken::Complete;
                }
            }
        }
        Taken::More
    }
}

impl At {
    fn string(is_key: bool) -> Self {
        Self::String { is_key, escape: Escape::No }
    }
}

impl Bracket {
    fn end(self) -> char {
        match self {
            Self::Object => '}',
            Self::Array => ']',
        }
    }
}

impl Escape {
    /// Decodes a character of a string; `None` at its end.
    pub(super) fn step(self, character: char, text: &mut String) -> Option<Self> {
        match self {
            Self::No | Self::Half(_) => {
                if character == '\\' {
                    return Some(match self {
                        Self::Half(high) => Self::HalfBegun(high),
                        _ => Self::Begun,
                    });
                }
                if let Self::Half(_) = self {
                    text.push(char::REPLACEMENT_CHARACTER);
                }
                if character == '"' {
                    return None;
                }
                text.push(character);
            }
            Self::Begun | Self::HalfBegun(_) => {
                let high = match self {
                    Self::HalfBegun(high) => Some(high),
                    _ => None,
                };
                if character == 'u' {
                    return Some(Self::Code { digits: String::new(), high });
                }
                if high.is_some() {
                    text.push(char::REPLACEMENT_CHARACTER);
                }
                match character {
                    '"' | '\\' | '/' => text.push(character),
                    'n' => text.push('\n'),
                    't' => text.push('\t'),
                    'r' => text.push('\r'),
                    'b' => text.push('\u{8}'),
                    'f' => text.push('\u{c}'),
                    // Not JSON: the model meant the backslash literally.
                    _ => text.extend(['\\', character]),
                }
            }
            Self::Code { digits, high } => return Self::code(digits, high, character, text),
        }
        Some(Self::No)
    }

    fn code(
        mut digits: String,
        high: Option<u16>,
        character: char,
        text: &mut String,
    ) -> Option<Self> {
        if !character.is_ascii_hexdigit() {
            if high.is_some() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
            text.push_str("\\u");
            text.push_str(&digits);
            return Self::No.step(character, text);
        }
        digits.push(character);
        if digits.len() < 4 {
            return Some(Self::Code { digits, high });
        }
        let unit = u16::from_str_radix(&digits, 16).unwrap_or_default();
        let units = high.into_iter().chain([unit]);
        let mut decoded = char::decode_utf16(units).peekable();
        while let Some(next) = decoded.next() {
            match next {
                Ok(character) => text.push(character),
                // A first half of a pair at the end may still get its second half.
                Err(_) if decoded.peek().is_none() && (0xd800..0xdc00).contains(&unit) => {
                    return Some(Self::Half(unit));
                }
                Err(_) => text.push(char::REPLACEMENT_CHARACTER),
            }
        }
        Some(Self::No)
    }
}

/// A number or constant, as JSON writes it.
fn constant(word: &str) -> Option<String> {
    match word {
        "true" | "True" => return Some("true".to_owned()),
        "false" | "False" => return Some("false".to_owned()),
        "null" | "None" => return Some("null".to_owned()),
        _ => {}
    }
    if serde_json::from_str::<serde_json::Number>(word).is_ok() {
        return Some(word.to_owned());
    }
    let number: f64 = word.parse().ok().filter(|number: &f64| number.is_finite())?;
    serde_json::to_string(&number).ok()
}

/// The same for a word that is cut off.
fn completed(word: &str) -> String {
    let constants = ["true", "false", "null", "True", "False", "None"];
    let whole = constants.iter().find(|constant| constant.starts_with(word));
    let number = word.trim_end_matches(['e', 'E', '+', '-', '.']);
    let found = whole.and_then(|whole| constant(whole)).or_else(|| constant(number));
    found.unwrap_or_else(|| "null".to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;
    use serde_json::{Value, json};

    use super::*;

    const PARTS: [&str; 30] = [
        "{", "}", "[", "]", ":", ",", "\"", "\"a\"", "\"b\": ", "\\", "\\u00", "\\ud83d",
        "\\ude00", "e9", "1", "-", ".5", "e", "+3", "tru", "true", "None", "nul", " ", "\n", "é",
        "\\n", "x", "[[", "\u{1}",
    ];

    fn echoed(text: &str) -> (String, Option<Taken>) {
        let (mut echo, mut out) = (Echo::default(), String::new());
        for character in text.chars() {
            match echo.push(character, &mut out) {
                Taken::More => {}
                Taken::Broken => {
                    echo.close(&mut out);
                    return (out, Some(Taken::Broken));
                }
                taken => return (out, Some(taken)),
            }
        }
        echo.close(&mut out);
        (out, None)
    }

    #[test]
    fn what_is_nearly_json_becomes_json() {
        for (text, expected) in [
            (r#"{"a":[1,2,],}"#, r#"{"a": [1, 2]}"#),
            ("[\"a\nb\",True]", r#"["a\nb", true]"#),
            (r#"["\d\q\'"]"#, r#"["\\d\\q\\'"]"#),
            (r#"["\ud83d\ude00\ud83dx\ude00\u00zz"]"#, "[\"😀\u{fffd}x\u{fffd}\\\\u00zz\"]"),
            ("[.5,+1,1e2,007]", "[0.5, 1.0, 1e2, 7.0]"),
            (r#"{"a":1,"b"}"#, r#"{"a": 1}"#),
            (r#"{"a" 1}"#, "{}"),
            ("[1}", "[1]"),
            ("[nope", "[null]"),
        ] {
            assert_eq!(echoed(text).0, expected, "{text}");
        }
        assert_eq!(echoed("12 "), ("12".to_owned(), Some(Taken::CompleteBefore)));
        assert_eq!(echoed(&"[".repeat(5000)).1, Some(Taken::Broken));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn anything_can_be_closed(parts in prop::collection::vec(select(&PARTS[..]), 0..20)) {
            for start in ["", "{\"k\": [", "[{\"k\": \""] {
                let text = format!("{start}{}", parts.concat());
                let (out, _) = echoed(&text);
                prop_assert!(serde_json::from_str::<Value>(&out).is_ok(), "{} -> {}", text, out);
            }
        }

        #[test]
        fn json_stays_what_it_is(
            text in ".{0,10}",
            number in any::<f64>(),
            integer in any::<i64>(),
            pretty in any::<bool>(),
        ) {
            let value = json!([{ text.clone(): [text, null] }, number, integer, {}, []]);
            let json = if pretty { format!("{value:#}") } else { value.to_string() };
            let (out, taken) = echoed(&json);
            prop_assert_eq!(taken, Some(Taken::Complete));
            prop_assert_eq!(serde_json::from_str::<Value>(&out).unwrap(), value);
        }
    }
}
