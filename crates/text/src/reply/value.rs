//! Converts the value of an XML parameter to JSON. Text is verbatim: entities such as `&lt;` stay
//! as they are, because models write them only when they mean them. Strings are streamed; other
//! values are written once they are complete.

use serde_json::Value as Json;

use super::events::Events;
use super::literal;
use super::schema::Kinds;

/// Longest text, including spaces, that is taken for a number or constant if it may also be a
/// string.
const SCALAR_MAX: usize = 400;

#[expect(clippy::struct_excessive_bools, reason = "four facts that do not exclude each other")]
#[derive(Clone)]
pub(super) struct Value {
    kinds: Kinds,
    /// Whether the first and the last newline are markup.
    padded: bool,
    begun: bool,
    /// A newline that is held back because it may be the last.
    newline: bool,
    /// Text for which it is undecided whether it is a string.
    text: String,
    is_string: bool,
}

impl Value {
    pub(super) fn new(kinds: Kinds, padded: bool) -> Self {
        let text = String::new();
        Self { kinds, padded, begun: false, newline: false, text, is_string: false }
    }

    pub(super) fn push(&mut self, character: char, events: &mut Events) {
        let first = !std::mem::replace(&mut self.begun, true);
        if self.padded && character == '\n' {
            if !first && std::mem::replace(&mut self.newline, true) {
                self.take('\n', events);
            }
            return;
        }
        if std::mem::replace(&mut self.newline, false) {
            self.take('\n', events);
        }
        self.take(character, events);
    }

    pub(super) fn push_all(&mut self, text: &str, events: &mut Events) {
        text.chars().for_each(|character| self.push(character, events));
    }

    pub(super) fn finish(&mut self, events: &mut Events) {
        if self.is_string {
            events.arguments("\"");
        } else {
            events.arguments(&convert(self.kinds, &self.text));
        }
    }

    fn take(&mut self, character: char, events: &mut Events) {
        if self.is_string {
            return events.string(character);
        }
        self.text.push(character);
        let others = self.kinds.without(Kinds::STRING);
        if self.kinds.has(Kinds::STRING) && !may_become(others, &self.text) {
            self.is_string = true;
            events.arguments("\"");
            self.text.chars().for_each(|character| events.string(character));
        }
    }
}

/// Whether a value that begins like this may be of one of these kinds.
fn may_become(kinds: Kinds, begun: &str) -> bool {
    // No value begins with more white space than that, and trimming all of it each time would be
    // quadratic.
    let start = begun[..begun.floor_char_boundary(SCALAR_MAX)].trim_start();
    if kinds.has(Kinds::OBJECT) && start.starts_with('{')
        || kinds.has(Kinds::ARRAY) && start.starts_with('[')
    {
        return true;
    }
    if kinds.is_empty() || begun.len() > SCALAR_MAX {
        return false;
    }
    let text = start.trim_end();
    let begins = |word: &str| {
        let word = word.as_bytes().get(..text.len());
        word.is_some_and(|word| word.eq_ignore_ascii_case(text.as_bytes()))
    };
    text.is_empty()
        || kinds.has(Kinds::NULL) && begins("null")
        || kinds.has(Kinds::BOOLEAN) && (begins("true") || begins("false"))
        || kinds.has(Kinds::INTEGER | Kinds::NUMBER)
            && text.bytes().all(|byte| b"+-.0123456789eE".contains(&byte))
}

/// A complete value as JSON: of the first kind that fits, else a string.
fn convert(kinds: Kinds, text: &str) -> String {
    let trimmed = text.trim();
    let or_string = kinds.has(Kinds::STRING);
    if kinds.has(Kinds::NULL) && (trimmed == "null" || (trimmed == "None" && !or_string)) {
        return "null".to_owned();
    }
    if kinds.has(Kinds::BOOLEAN)
        && let Some(word) = ["true", "false"].iter().find(|w| w.eq_ignore_ascii_case(trimmed))
    {
        return (*word).to_owned();
    }
    if kinds.has(Kinds::INTEGER | Kinds::NUMBER)
        && let Some(number) = number(trimmed, kinds.has(Kinds::NUMBER))
    {
        return number;
    }
    if kinds.has(Kinds::OBJECT | Kinds::ARRAY)
        && let Some(json) = structure(trimmed, kinds)
    {
        return json;
    }
    // A value of an unexpected kind is still more useful than its text.
    match serde_json::from_str::<Json>(trimmed) {
        Ok(_) if !or_string => trimmed.to_owned(),
        _ => quoted(text),
    }
}

fn number(text: &str, fractions: bool) -> Option<String> {
    let is_json = serde_json::from_str::<Json>(text).is_ok_and(|value| value.is_number());
    let is_integer = is_json && !text.contains(['.', 'e', 'E']);
    if is_integer || (is_json && fractions) {
        return Some(text.to_owned());
    }
    let value: f64 = text.parse().ok()?;
    let integral = value.fract() == 0.0 && value.abs() < 1e15;
    match (integral, fractions) {
        (true, _) => Some(format!("{value:.0}")),
        (false, true) if value.is_finite() => serde_json::to_string(&value).ok(),
        _ => None,
    }
}

/// An object or array, in JSON or as Python prints it.
fn structure(text: &str, kinds: Kinds) -> Option<String> {
    let fits = |value: &Json| {
        (value.is_object() && kinds.has(Kinds::OBJECT))
            || (value.is_array() && kinds.has(Kinds::ARRAY))
    };
    if serde_json::from_str(text).is_ok_and(|value| fits(&value)) {
        return Some(text.to_owned());
    }
    literal::read(text).filter(fits).map(|value| value.to_string())
}

fn quoted(text: &str) -> String {
    let mut out = "\"".to_owned();
    text.chars().for_each(|character| escape(character, &mut out));
    out + "\""
}

/// Writes a character of a JSON string.
pub(crate) fn escape(character: char, out: &mut String) {
    use std::fmt::Write as _;
    match character {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\0'..' ' => {
            let _ = write!(out, "\\u{:04x}", u32::from(character));
        }
        _ => out.push(character),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_becomes_the_kind_that_is_asked_for() {
        let integer_or_null = Kinds::INTEGER | Kinds::NULL;
        let text_or_number = Kinds::STRING | Kinds::NUMBER;
        for (kinds, text, expected) in [
            (Kinds::INTEGER, " 7\n", "7"),
            (Kinds::INTEGER, "7.0", "7"),
            (Kinds::INTEGER, "+7", "7"),
            (Kinds::INTEGER, "7.5", "7.5"),
            (Kinds::INTEGER, "seven", "\"seven\""),
            (Kinds::INTEGER, "123456789012345678901234567890", "123456789012345678901234567890"),
            (Kinds::NUMBER, ".5", "0.5"),
            (Kinds::NUMBER, "1e3", "1e3"),
            (Kinds::NUMBER, "nan", "\"nan\""),
            (Kinds::NUMBER, "1e999", "\"1e999\""),
            (integer_or_null, "None", "null"),
            (Kinds::BOOLEAN, "True", "true"),
            (Kinds::BOOLEAN, "0", "0"),
            (Kinds::STRING, " 7 ", "\" 7 \""),
            (Kinds::STRING, "null", "\"null\""),
            (text_or_number, "7", "7"),
            (text_or_number, "7a", "\"7a\""),
            (Kinds::OBJECT, "{\"a\": [1, 2]}", "{\"a\": [1, 2]}"),
            (Kinds::OBJECT, "{'a': True, 'b': None}", "{\"a\":true,\"b\":null}"),
            (Kinds::OBJECT, "[1]", "[1]"),
            (Kinds::ARRAY, "(1, 'x',)", "[1,\"x\"]"),
            (Kinds::ARRAY, "[1, 2", "\"[1, 2\""),
        ] {
            assert_eq!(convert(kinds, text), expected, "{kinds:?} {text:?}");
        }
    }

    #[test]
    fn a_string_is_given_out_as_soon_as_it_can_be_nothing_else() {
        let any = Kinds::STRING | Kinds::OBJECT | Kinds::NULL | Kinds::INTEGER | Kinds::BOOLEAN;
        for (text, open) in [
            ("", true),
            (" \n", true),
            ("nu", true),
            ("nul ", true),
            ("number", false),
            ("-12", true),
            ("12 o'clock", false),
            ("{\"a", true),
            ("[", false),
            ("tRu", true),
            ("trust", false),
        ] {
            assert_eq!(may_become(any.without(Kinds::STRING), text), open, "{text:?}");
        }
    }
}
