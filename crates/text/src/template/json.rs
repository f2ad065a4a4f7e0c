//! `tojson` as in transformers, which is Python's `json.dumps`, reproduced to the character: one
//! more space in a tool's schema would produce other tokens than the model was trained on.

use std::fmt::Write as _;

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// Most characters of one level of indentation.
const INDENT_MAX: usize = 100;

/// Deepest nesting of a value. Schemas are a dozen levels deep, and this writes by recursion.
const DEPTH_MAX: usize = 200;

struct Style {
    ensure_ascii: bool,
    /// The indentation of one level; if absent, everything is on one line.
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
    /// Stand-ins that replace ASCII characters.
    stand_ins: String,
}

#[expect(clippy::needless_pass_by_value, reason = "what minijinja hands to a filter")]
pub(super) fn tojson(
    state: &State,
    value: &Value,
    positional: Rest<Value>,
    named: Kwargs,
) -> Result<String, Error> {
    let mut style = Style::read(&positional.0, &named)?;
    if style.ensure_ascii {
        let stand_ins = state.lookup(super::STAND_INS);
        style.stand_ins = stand_ins.map_or(String::new(), |text| text.to_string());
    }
    named.assert_all_used()?;
    let mut out = String::new();
    style.write(value, 0, &mut out)?;
    Ok(out)
}

impl Style {
    fn read(positional: &[Value], named: &Kwargs) -> Result<Self, Error> {
        let argument = |index: usize, name| {
            let value = positional.get(index).cloned();
            value.or_else(|| named.get::<Option<Value>>(name).ok().flatten())
        };
        let flag = |value: Option<Value>| value.is_some_and(|value| value.is_true());
        let indent = argument(1, "indent").filter(|value| !value.is_none());
        let indent = match indent {
            None => None,
            Some(value) => match value.as_str() {
                Some(text) => Some(text.to_owned()),
                None => Some(" ".repeat(usize::try_from(value.clone())?.min(INDENT_MAX + 1))),
            },
        };
        if indent.as_ref().is_some_and(|indent| indent.len() > INDENT_MAX) {
            return Err(refusal(&format!("indent is at most {INDENT_MAX}")));
        }
        let item_separator = if indent.is_some() { "," } else { ", " };
        let mut separators = [item_separator.to_owned(), ": ".to_owned()];
        if let Some(given) = argument(2, "separators").filter(|value| !value.is_none()) {
            for (separator, given) in separators.iter_mut().zip(given.try_iter()?.checked()) {
                given?.as_str().unwrap_or_default().clone_into(separator);
            }
        }
        let [item_separator, key_separator] = separators;
        let ensure_ascii = flag(argument(0, "ensure_ascii"));
        let sort_keys = flag(argument(3, "sort_keys"));
        let stand_ins = String::new();
        Ok(Self { ensure_ascii, indent, item_separator, key_separator, sort_keys, stand_ins })
    }

    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            return Err(refusal("value is nested too deep"));
        }
        if out.len() > super::PROMPT_BYTES_MAX {
            return Err(refusal(&format!("more than {} bytes", super::PROMPT_BYTES_MAX)));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)),
            ValueKind::String => self.write_string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
                self.write_items("[]", &items, depth, out, |style, item, out| {
                    style.write(item, depth + 1, out)
                })?;
            }
            ValueKind::Map => {
                let mut entries = Vec::new();
                for key in value.try_iter()?.checked() {
                    let key = key?;
                    entries.push((name(&key)?, value.get_item(&key)?));
                }
                if self.sort_keys {
                    entries.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.write_items("{}", &entries, depth, out, |style, (key, value), out| {
                    style.write_string(key, out);
                    out.push_str(&style.key_separator);
                    style.write(value, depth + 1, out)
                })?;
            }
            kind => return Err(refusal(&format!("{kind} is not JSON"))),
        }
        Ok(())
    }

    fn write_items<T>(
        &self,
        brackets: &str,
        items: &[T],
        depth: usize,
        out: &mut String,
        write: impl Fn(&Self, &T, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (open, close) = brackets.split_at(1);
        out.push_str(open);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                out.push_str(&self.item_separator);
            }
            self.write_line(depth + 1, out);
            write(self, item, out)?;
        }
        if !items.is_empty() {
            self.write_line(depth, out);
        }
        out.push_str(close);
        Ok(())
    }

    fn write_line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    }

    fn write_string(&self, text: &str, out: &mut String) {
        out.push('"');
        for character in text.chars() {
            match character {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                '\0'..' ' => escape(character, out),
                '\u{7f}'.. if self.ensure_ascii && !self.stand_ins.contains(character) => {
                    escape(character, out);
                }
                _ => out.push(character),
            }
        }
        out.push('"');
    }
}

fn escape(character: char, out: &mut String) {
    if character == '\u{7f}' {
        out.push(character);
        return;
    }
    for unit in character.encode_utf16(&mut [0; 2]) {
        let _ = write!(out, "\\u{unit:04x}");
    }
}

/// A key as JSON writes it.
fn name(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::Number => Ok(number(key)),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::None => Ok("null".to_owned()),
        kind => Err(refusal(&format!("{kind} is no key in JSON"))),
    }
}

fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => match python_float(float).as_str() {
            "nan" => "NaN".to_owned(),
            "inf" => "Infinity".to_owned(),
            "-inf" => "-Infinity".to_owned(),
            finite => finite.to_owned(),
        },
        _ => value.to_string(),
    }
}

/// Python's `repr` of a float: the shortest digits that read back the same, with an exponent below
/// -4 and from 16 on.
pub(super) fn python_float(value: f64) -> String {
    if !value.is_finite() {
        return if value.is_nan() {
            "nan"
        } else if value > 0.0 {
            "inf"
        } else {
            "-inf"
        }
        .to_owned();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..16).contains(&exponent) {
        return format!("{value:?}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

fn refusal(reason: &str) -> Error {
    Error::new(ErrorKind::BadSerialization, format!("tojson: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_read_as_pythons() {
        for (value, expected) in [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (123_456_789_012_345_680.0, "1.2345678901234568e+17"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1e300, "1e+300"),
            (0.1 + 0.2, "0.30000000000000004"),
            (f64::NAN, "nan"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(python_float(value), expected);
        }
    }
}
