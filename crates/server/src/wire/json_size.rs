//! The number of values in a JSON text, counted on its bytes before it is parsed: a text of
//! megabytes may become values of gigabytes. The text is not checked for being JSON.

use axum::http::StatusCode;
use memchr::memchr2;

use crate::error::ApiError;

/// Most parts (objects, lists, fields and strings) of one request. A conversation of 16,384
/// messages with content parts and calls has half as many.
const PARTS_MAX: usize = 1 << 19;

/// Bytes of memory per part, measured: a `serde_json` object with one field takes 500 bytes for its
/// three parts, and schemas and variables exist up to three times, in the forms of template and
/// grammar.
const PART_BYTES: usize = 512;
/// Bytes of memory per number in a list that no inner object holds, such as a token, because the
/// field may take any JSON. It also covers the numbers in a string whose text may be JSON, such as
/// the arguments of a call.
const NUMBER_BYTES: usize = 80;
/// A text exists four times: as received, as a string, in the prompt, and as tokens.
const TEXT_COPIES: usize = 4;
/// Converting a part takes as long as converting this many bytes of text.
const PART_WORK: usize = 8;

/// See the file's head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct JsonSize {
    bytes: usize,
    parts: usize,
    /// Values in lists that only the request's outermost object holds.
    numbers: usize,
    /// Separators of values within strings, whose text may be JSON.
    hidden: usize,
}

impl JsonSize {
    pub(crate) fn of(json: &[u8]) -> Self {
        let mut size = Self { bytes: json.len(), ..Self::default() };
        let mut open_objects = 0_usize;
        let mut rest = json;
        while let Some((&byte, after)) = rest.split_first() {
            rest = after;
            match byte {
                b'"' => {
                    size.parts += 1;
                    let (string, after) = string(rest);
                    size.hidden += separators(string);
                    rest = after;
                }
                b'{' => {
                    size.parts += 1;
                    open_objects += 1;
                }
                b'}' => open_objects = open_objects.saturating_sub(1),
                b'[' | b':' => size.parts += 1,
                b',' if open_objects > 1 => size.parts += 1,
                b',' => size.numbers += 1,
                _ => {}
            }
        }
        size
    }

    /// Fails if there are more values than a request may have.
    pub(crate) fn check(&self) -> Result<(), ApiError> {
        if self.parts <= PARTS_MAX {
            return Ok(());
        }
        let message = format!(
            "the body has {} objects, arrays, fields and strings, at most {PARTS_MAX} are possible",
            self.parts
        );
        Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message))
    }

    /// Bytes that the text and the values made from it may take at the same time.
    pub(crate) fn memory(&self) -> usize {
        let numbers = (self.numbers + self.hidden) * NUMBER_BYTES;
        self.bytes * TEXT_COPIES + self.parts * PART_BYTES + numbers
    }

    /// The work of converting it, in bytes of text that would take as long.
    pub(crate) fn work(&self) -> usize {
        self.bytes + self.parts * PART_WORK
    }
}

/// The inside of a string, and what follows it.
fn string(text: &[u8]) -> (&[u8], &[u8]) {
    let mut from = 0;
    while let Some(at) = memchr2(b'"', b'\\', &text[from..]) {
        let at = from + at;
        if text[at] == b'"' {
            return (&text[..at], &text[at + 1..]);
        }
        from = (at + 2).min(text.len());
    }
    (text, &[])
}

fn separators(text: &[u8]) -> usize {
    text.iter().filter(|byte| matches!(byte, b',' | b':' | b'[' | b'{')).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> (usize, usize, usize) {
        let size = JsonSize::of(text.as_bytes());
        (size.parts, size.numbers, size.hidden)
    }

    #[test]
    fn values_are_counted_where_they_are() {
        assert_eq!(of(""), (0, 0, 0));
        assert_eq!(of("{}"), (1, 0, 0));
        // An object, a field, and its name.
        assert_eq!(of(r#"{"a": 1}"#), (3, 0, 0));
        assert_eq!(of(r#"{"a": [1, 2, 3]}"#), (4, 2, 0));
        assert_eq!(of(r#"{"a": [[1, 2], [3]]}"#), (6, 2, 0));
        // Variables of a template count as values, even plain numbers.
        assert_eq!(of(r#"{"a": {"b": [1, 2, 3]}}"#), (9, 0, 0));
        assert_eq!(of(r#"{"a": "x", "b": "y"}"#), (7, 1, 0));
    }

    #[test]
    fn strings_end_where_json_says() {
        for text in [r#"{"a": "{[,:"}"#, r#"{"a": "\"{[,:"}"#, r#"{"a": "\\\"{[,:"}"#] {
            assert_eq!(of(text), (4, 0, 4), "{text}");
        }
        assert_eq!(of(r#"{"a": "\\", "b": 1}"#), (6, 1, 0));
        for open in [r#"""#, r#""\"#, r#""\""#, r#""abc"#] {
            assert_eq!(of(open).0, 1, "{open}");
        }
    }

    /// Texts that were seen to take gigabytes.
    #[test]
    fn texts_that_become_large_are_known_before() {
        let fields = format!("{{{}\"a\":0}}", r#""z":0,"#.repeat(PARTS_MAX));
        assert_eq!(JsonSize::of(fields.as_bytes()).check().unwrap_err().status.as_u16(), 413);
        let variables = format!(r#"{{"v":{{"a":[0{}]}}}}"#, ",0".repeat(PARTS_MAX));
        assert!(JsonSize::of(variables.as_bytes()).check().is_err());
        let arguments = format!(r#"{{"v":"[0{}]"}}"#, ",0".repeat(1 << 20));
        assert!(JsonSize::of(arguments.as_bytes()).memory() > 80 << 20);
    }

    #[test]
    fn conversations_and_prompts_have_room() {
        let message = r#",{"role":"user","content":[{"type":"text","text":"hello, you"}]}"#;
        let messages = format!(r#"{{"messages":[{{}}{}]}}"#, message.repeat(16_384));
        let size = JsonSize::of(messages.as_bytes());
        size.check().unwrap();
        assert!(size.memory() < 200 << 20, "{size:?}");
        let tokens = format!(r#"{{"prompt":[1{}]}}"#, ",12345".repeat(1 << 20));
        let size = JsonSize::of(tokens.as_bytes());
        size.check().unwrap();
        assert!(size.memory() < 128 << 20, "{size:?}");
    }
}
