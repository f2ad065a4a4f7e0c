//! Lark text in llguidance's dialect: pieces of it, and checks of a user's grammar.

use std::fmt::Write;

use llguidance::api::TopLevelGrammar;
use serde_json::Value;

use super::schema::{self, Prepared};
use super::{GrammarError, REGEX_BYTES_MAX, Source, bounded};

/// Most intersections and complements. Each one may double the work, and fuel does not count it.
const INTERSECTIONS_MAX: usize = 8;

/// A text as a string of Lark.
pub(super) fn literal(text: &str) -> String {
    let mut out = String::from('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => out.extend(['\\', character]),
            ..' ' | '\u{7f}' => {
                // Writing to a string cannot fail.
                let _ = write!(out, "\\u{:04x}", u32::from(character));
            }
            _ => out.push(character),
        }
    }
    out.push('"');
    out
}

/// A user's grammar. JSON schemas in it are prepared like all others.
pub(super) fn prepare(lark: &str) -> Result<Source, GrammarError> {
    // Special tokens are recognised by bytes that are not valid text.
    if lark.contains("allow_invalid_utf8") {
        let text = "the grammar sets allow_invalid_utf8, but a reply is text";
        return Err(GrammarError::Invalid(text.to_owned()));
    }
    let mut out = String::new();
    let (mut intersections, mut remainders) = (0, 0);
    let mut rest = lark;
    while let Some(next) = rest.chars().next() {
        let mut length = match next {
            '"' => quoted(rest, '"'),
            // Lark has no division, so this begins a regular expression.
            '/' if !rest.starts_with("//") => quoted(rest, '/'),
            '/' | '#' => rest.find('\n').unwrap_or(rest.len()),
            _ => next.len_utf8(),
        };
        let repeats = rest[length..].trim_start().starts_with(|c: char| c.is_ascii_digit());
        if next == '/' {
            bounded(&rest[..length], REGEX_BYTES_MAX, "a regular expression of the grammar")?;
        }
        if next == '@' {
            let text = "the grammar refers to another one by `@`, but it is the only one";
            return Err(GrammarError::Invalid(text.to_owned()));
        }
        if next == '&' || (next == '~' && !repeats) {
            intersections += 1;
        }
        let sets = rest
            .strip_prefix("temperature")
            .is_some_and(|after| after.trim_start().starts_with('='));
        if sets && !out.ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            let text = "the grammar sets a temperature; the request's own is used throughout";
            return Err(GrammarError::Invalid(text.to_owned()));
        }
        out.push_str(&rest[..length]);
        if let Some(json) = rest.strip_prefix("%json") {
            let (prepared, end) = embedded(json)?;
            out.push_str("json ");
            out.push_str(&prepared.schema.to_string());
            remainders = prepared.remainders.max(remainders);
            length = rest.len() - json.len() + end;
        }
        rest = &rest[length..];
    }
    if intersections > INTERSECTIONS_MAX {
        return Err(GrammarError::TooLarge(format!(
            "the grammar has {intersections} `&` and `~`, at most {INTERSECTIONS_MAX}"
        )));
    }
    Ok(Source { remainders, ..Source::from(TopLevelGrammar::from_lark(out)) })
}

/// Prepares the schema after `%json`; returns it and its length.
fn embedded(text: &str) -> Result<(Prepared, usize), GrammarError> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let value = values.next().and_then(Result::ok).ok_or_else(|| {
        GrammarError::Invalid("the grammar has a `%json` without JSON after it".to_owned())
    })?;
    let prepared = schema::prepare(&value, true, None)?;
    Ok((prepared, values.byte_offset()))
}

/// Length of the text from a quote to the next quote that is not escaped.
pub(super) fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if c == quote && !escaped {
            return at + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    text.len()
}
