//! The size of a JSON text in values, counted on its bytes before it is parsed: a text of megabytes
//! may become values of gigabytes. Whether it is JSON is not checked here.

use axum::http::StatusCode;
use memchr::memchr2;

use crate::error::ApiError;

/// Objects, lists, fields and strings of one request. A conversation of 16,384 messages has half as
/// many, with parts and calls.
const PARTS_MAX: usize = 1 << 19;

/// Of each part, measured: a `serde_json` object with one field takes 500 bytes for its three
/// parts, and schemas and variables are there up to three times, as template and grammar want them.
const PART_BYTES: usize = 512;
/// Of a number in a list of a request's own field, such as a token, if that field takes any JSON;
/// and of what would be a number if a string's text was JSON, as arguments of calls are.
const NUMBER_BYTES: usize = 80;
/// A text is there as it came, as a string, in the prompt, and as tokens.
const TEXT_COPIES: usize = 4;
/// Work on a part is worth that on so many bytes of text.
const PART_WORK: usize = 8;

/// See the file's head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct JsonSize {
    bytes: usize,
    parts: usize,
    /// Values in lists that no object of the request holds.
    numbers: usize,
    /// What separates values, within strings.
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

    /// An error if there are more values than a request may have.
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

    /// Bytes that the text and the values made of it may take at once.
    pub(crate) fn memory(&self) -> usize {
        let numbers = (self.numbers + self.hidden) * NUMBER_BYTES;
        self.bytes * TEXT_COPIES + self.parts * PART_BYTES + numbers
    }

    /// The work of converting it, as a number of bytes of text.
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
        // An object, a field, its name.
        assert_eq!(of(r#"{"a": 1}"#), (3, 0, 0));
        assert_eq!(of(r#"{"a": [1, 2, 3]}"#), (4, 2, 0));
        assert_eq!(of(r#"{"a": [[1, 2], [3]]}"#), (6, 2, 0));
        // A template's variables are values, however plain.
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

    /// What was seen to take gigabytes.
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
