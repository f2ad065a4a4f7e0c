//! Python's methods of strings, lists and dicts that minijinja lacks or implements differently.

use minijinja::value::{Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::meter;

pub(super) fn call(
    state: &mut State,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    charge(state, value, method, arguments)?;
    if let Some(text) = value.as_str()
        && let Some(result) = of_string(text, method, arguments)?
    {
        return Ok(result);
    }
    if value.kind() == ValueKind::Seq && method == "index" {
        let (wanted,): (&Value,) = from_args(arguments)?;
        for (index, item) in value.try_iter()?.checked().enumerate() {
            if item? == *wanted {
                return Ok(index.into());
            }
        }
        return Err(Error::new(ErrorKind::InvalidOperation, "the list has no such item"));
    }
    unknown_method_callback(state, value, method, arguments)
}

/// Charges for the input and output of a method, before it runs.
fn charge(
    state: &mut State,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<(), Error> {
    for argument in arguments {
        meter::weigh(state, argument)?;
    }
    let argument = |index: usize| arguments.get(index).and_then(Value::as_str);
    let Some(text) = value.as_str() else {
        return match method {
            // These methods compare values.
            "count" | "index" => meter::weigh(state, value),
            _ => meter::charge(state, value.len().unwrap_or(0) as u64 * meter::VALUE_BYTES),
        };
    };
    meter::charge(state, text.len() as u64)?;
    let parts = match (method, argument(0)) {
        ("replace", from) => {
            let (from, to) = (from.unwrap_or_default(), argument(1).unwrap_or_default());
            return meter::charge_replace(state, text, from, to);
        }
        ("join", _) => {
            let items = arguments.first().unwrap_or(&Value::UNDEFINED);
            return meter::charge_join(state, items, Some(value));
        }
        ("format", _) => return meter::charge_format(state, value),
        ("split" | "rsplit", Some(separator)) => text.matches(separator).count(),
        ("split" | "rsplit", None) => text.split_whitespace().count(),
        ("splitlines", _) => text.matches(ends_line).count(),
        _ => 0,
    };
    meter::charge(state, parts as u64 * meter::VALUE_BYTES)
}

fn of_string(text: &str, method: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    let result = match method {
        "strip" | "lstrip" | "rstrip" => {
            let (characters,): (Option<&str>,) = from_args(arguments)?;
            let (left, right) = (method != "rstrip", method != "lstrip");
            strip(text, characters, left, right).into()
        }
        "isspace" => (!text.is_empty() && text.chars().all(is_space)).into(),
        "split" | "rsplit" => {
            let (separator, splits): (Option<&str>, Option<i64>) = from_args(arguments)?;
            let splits = splits.and_then(|splits| usize::try_from(splits).ok());
            match (separator, method) {
                (Some(""), _) => {
                    return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
                }
                (Some(separator), "split") => list(split(text, separator, splits)),
                (Some(separator), _) => list(rsplit(text, separator, splits)),
                (None, "split") => list(split_at_spaces(text, splits)),
                (None, _) => list(rsplit_at_spaces(text, splits)),
            }
        }
        "splitlines" => {
            let (keep,): (Option<bool>,) = from_args(arguments)?;
            list(lines(text, keep.unwrap_or(false)))
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(arguments)?;
            let last = method == "rpartition";
            let found = if last { text.rsplit_once(separator) } else { text.split_once(separator) };
            let parts = match found {
                Some((before, after)) => [before, separator, after],
                None if last => ["", "", text],
                None => [text, "", ""],
            };
            Value::from(Tuple::from(parts.map(Value::from)))
        }
        "index" => {
            let (wanted,): (&str,) = from_args(arguments)?;
            let missing = || Error::new(ErrorKind::InvalidOperation, "substring not found");
            let at = text.find(wanted).ok_or_else(missing)?;
            text[..at].chars().count().into()
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(arguments)?;
            text.strip_prefix(prefix).unwrap_or(text).into()
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(arguments)?;
            text.strip_suffix(suffix).unwrap_or(text).into()
        }
        _ => return Ok(None),
    };
    Ok(Some(result))
}

fn list(parts: Vec<&str>) -> Value {
    parts.into_iter().collect()
}

pub(super) fn strip<'t>(
    text: &'t str,
    characters: Option<&str>,
    left: bool,
    right: bool,
) -> &'t str {
    let goes = |c: char| characters.map_or_else(|| is_space(c), |all| all.contains(c));
    let text = if left { text.trim_start_matches(goes) } else { text };
    if right { text.trim_end_matches(goes) } else { text }
}

/// Whether Python treats the character as white space: Unicode's, and ASCII's separators.
fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\x1c'..='\x1f').contains(&character)
}

fn split<'t>(text: &'t str, separator: &str, splits: Option<usize>) -> Vec<&'t str> {
    match splits {
        Some(splits) => text.splitn(splits + 1, separator).collect(),
        None => text.split(separator).collect(),
    }
}

fn rsplit<'t>(text: &'t str, separator: &str, splits: Option<usize>) -> Vec<&'t str> {
    let mut parts: Vec<&str> = match splits {
        Some(splits) => text.rsplitn(splits + 1, separator).collect(),
        None => text.rsplit(separator).collect(),
    };
    parts.reverse();
    parts
}

fn split_at_spaces(text: &str, splits: Option<usize>) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        if splits == Some(parts.len()) {
            parts.push(rest);
            break;
        }
        let end = rest.find(is_space).unwrap_or(rest.len());
        let (part, after) = rest.split_at(end);
        parts.push(part);
        rest = after.trim_start_matches(is_space);
    }
    parts
}

fn rsplit_at_spaces(text: &str, splits: Option<usize>) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_end_matches(is_space);
    while !rest.is_empty() {
        if splits == Some(parts.len()) {
            parts.push(rest);
            break;
        }
        let part = rest.rsplit(is_space).next().unwrap_or(rest);
        parts.push(part);
        rest = rest[..rest.len() - part.len()].trim_end_matches(is_space);
    }
    parts.reverse();
    parts
}

fn lines(text: &str, keep: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(end) = rest.find(ends_line) {
        let width = match rest[end..].chars().next() {
            Some('\r') if rest[end..].starts_with("\r\n") => 2,
            other => other.map_or(1, char::len_utf8),
        };
        lines.push(&rest[..if keep { end + width } else { end }]);
        rest = &rest[end + width..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

fn ends_line(character: char) -> bool {
    matches!(
        character,
        '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}'
    )
}
