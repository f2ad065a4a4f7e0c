//! Objects and lists in Python's syntax, which models sometimes write instead of JSON.

use serde_json::{Map, Number, Value};

/// Deepest nesting of literals; they are read by recursion.
const DEPTH_MAX: usize = 64;

/// The value, if the whole text is one literal.
pub(super) fn read(text: &str) -> Option<Value> {
    let mut literal = Literal { rest: text.trim() };
    let value = literal.value(DEPTH_MAX)?;
    literal.rest.is_empty().then_some(value)
}

struct Literal<'t> {
    rest: &'t str,
}

impl Literal<'_> {
    fn value(&mut self, depth: usize) -> Option<Value> {
        let depth = depth.checked_sub(1)?;
        let value = match self.rest.chars().next()? {
            '{' => self.object(depth)?,
            '[' => self.list(']', depth)?,
            '(' => self.list(')', depth)?,
            '\'' | '"' => self.string()?.into(),
            _ => self.scalar()?,
        };
        self.skip_spaces();
        Some(value)
    }

    fn object(&mut self, depth: usize) -> Option<Value> {
        let mut entries = Map::new();
        self.next();
        while !self.closes('}') {
            let key = match self.value(depth)? {
                Value::String(key) => key,
                Value::Number(key) => key.to_string(),
                _ => return None,
            };
            if self.next() != Some(':') {
                return None;
            }
            self.skip_spaces();
            entries.insert(key, self.value(depth)?);
            self.comma_or('}')?;
        }
        Some(entries.into())
    }

    fn list(&mut self, end: char, depth: usize) -> Option<Value> {
        let mut items = Vec::new();
        self.next();
        while !self.closes(end) {
            items.push(self.value(depth)?);
            self.comma_or(end)?;
        }
        Some(items.into())
    }

    /// Takes the closing bracket, if it is next.
    fn closes(&mut self, end: char) -> bool {
        self.skip_spaces();
        let closes = self.rest.starts_with(end);
        if closes {
            self.next();
        }
        closes
    }

    /// Takes the comma between items. It is optional after the last one.
    fn comma_or(&mut self, end: char) -> Option<()> {
        if self.rest.starts_with(',') {
            self.next();
            return Some(());
        }
        self.rest.starts_with(end).then_some(())
    }

    fn string(&mut self) -> Option<String> {
        let quote = self.next()?;
        let mut text = String::new();
        loop {
            match self.next()? {
                end if end == quote => return Some(text),
                '\\' => match self.next()? {
                    'n' => text.push('\n'),
                    't' => text.push('\t'),
                    'r' => text.push('\r'),
                    'x' => text.push(self.code(2)?),
                    'u' => text.push(self.code(4)?),
                    'U' => text.push(self.code(8)?),
                    '\n' => {}
                    same @ ('\\' | '\'' | '"') => text.push(same),
                    other => text.extend(['\\', other]),
                },
                character => text.push(character),
            }
        }
    }

    fn code(&mut self, digits: usize) -> Option<char> {
        let code = u32::from_str_radix(self.rest.get(..digits)?, 16).ok()?;
        self.rest = &self.rest[digits..];
        char::from_u32(code)
    }

    fn scalar(&mut self) -> Option<Value> {
        let end = self.rest.find(|c: char| !c.is_alphanumeric() && !"+-._".contains(c));
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        match word {
            "None" | "null" => Some(Value::Null),
            "True" | "true" => Some(true.into()),
            "False" | "false" => Some(false.into()),
            _ => match word.parse::<i64>() {
                Ok(integer) => Some(integer.into()),
                Err(_) => Number::from_f64(word.parse().ok()?).map(Value::Number),
            },
        }
    }

    fn next(&mut self) -> Option<char> {
        let character = self.rest.chars().next()?;
        self.rest = &self.rest[character.len_utf8()..];
        Some(character)
    }

    fn skip_spaces(&mut self) {
        self.rest = self.rest.trim_start();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn literals_are_read() {
        for (text, expected) in [
            (
                "{'a': 1, \"b\": [None, True, False,], }",
                json!({ "a": 1, "b": [null, true, false] }),
            ),
            ("['it\\'s', 'a\\n\\u00e9\\x41', \"q\\d\"]", json!(["it's", "a\né\u{41}", "q\\d"])),
            ("(-1, 2.5, 1e3)", json!([-1, 2.5, 1000.0])),
            ("{1: {}}", json!({ "1": {} })),
            ("[]", json!([])),
        ] {
            assert_eq!(read(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_literal_is_none() {
        let deep = "[".repeat(100_000);
        for text in
            ["", "{", "{'a'}", "[1 2]", "['a]", "{'a': 1}}", "word", "[nan]", "'\\x4'", &deep]
        {
            assert_eq!(read(text), None, "{text:.20}");
        }
    }
}
