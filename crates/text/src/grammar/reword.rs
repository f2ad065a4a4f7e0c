//! Rewrites the keywords of one object of a JSON schema: removes those without effect, replaces
//! those that others can express, and changes numbers and strings that llguidance does not accept.

use std::borrow::Cow;

use serde_json::{Map, Number, Value, json};

use super::GrammarError;
use super::multiples::is_whole;

/// Many readers of JSON cannot represent larger integers exactly.
const EXACT_MAX: i64 = (1 << 53) - 1;
/// Numbers that are smaller, in absolute value, are parsed as integers if they are integers.
const ROUNDED_MIN: f64 = 9_223_372_036_854_775_808.0;

/// The keywords, with those that a grammar cannot follow replaced by equivalent ones if there are
/// any.
pub(super) fn reworded(keywords: &Map<String, Value>) -> Cow<'_, Map<String, Value>> {
    let has = |name: &&str| keywords.contains_key(*name);
    let rest = keywords.get("additionalProperties").unwrap_or(&Value::Bool(true));
    if let Some(names) = keywords.get("propertyNames") {
        let free = !["properties", "patternProperties"].iter().any(has);
        if let Some((keyword, entries)) = named(names, rest).filter(|_| free) {
            let mut keywords = keywords.clone();
            keywords.remove("propertyNames");
            keywords.insert(keyword.to_owned(), entries);
            keywords.insert("additionalProperties".to_owned(), Value::Bool(false));
            return Cow::Owned(keywords);
        }
    }
    if let Some(rest) = keywords.get("unevaluatedProperties") {
        // Without subschemas, the evaluated properties are the schema's own.
        if !["allOf", "anyOf", "oneOf", "$ref", "if", "additionalProperties"].iter().any(has) {
            let mut keywords = keywords.clone();
            keywords.remove("unevaluatedProperties");
            keywords.insert("additionalProperties".to_owned(), rest.clone());
            return Cow::Owned(keywords);
        }
    }
    Cow::Borrowed(keywords)
}

/// Property names that are listed, or match a pattern, as properties with `rest` as their schema.
fn named(names: &Value, rest: &Value) -> Option<(&'static str, Value)> {
    let mut keys = names.as_object()?.iter().filter(|(key, _)| *key != "type" && *key != "title");
    let (Some((key, value)), None) = (keys.next(), keys.next()) else { return None };
    match (key.as_str(), value) {
        ("enum", Value::Array(names)) => {
            let names: Option<Vec<&str>> = names.iter().map(Value::as_str).collect();
            let entries = names?.into_iter().map(|name| (name.to_owned(), rest.clone()));
            Some(("properties", entries.collect::<Map<_, _>>().into()))
        }
        ("pattern", Value::String(pattern)) => {
            Some(("patternProperties", json!({ pattern: rest })))
        }
        _ => None,
    }
}

/// Whether a keyword that a grammar cannot follow requires nothing.
pub(super) fn is_idle(name: &str, keywords: &Map<String, Value>) -> bool {
    let value = &keywords[name];
    match name {
        "uniqueItems" | "not" => *value == false,
        "if" => !keywords.contains_key("then") && !keywords.contains_key("else"),
        "then" | "else" => !keywords.contains_key("if"),
        "contains" => false,
        "minContains" | "maxContains" => !keywords.contains_key("contains"),
        "unevaluatedProperties" | "unevaluatedItems" => *value == true,
        "propertyNames" => *value == true || *value == json!({ "type": "string" }),
        _ => value.as_object().is_some_and(Map::is_empty),
    }
}

pub(super) fn invalid(path: &str, what: &str) -> GrammarError {
    GrammarError::Invalid(format!("the JSON schema is wrong at {path}: {what}"))
}

/// Appends the members of a list to an existing list.
pub(super) fn append(out: &mut Map<String, Value>, name: &str, list: Value) {
    match (out.get_mut(name), list) {
        (Some(Value::Array(old)), Value::Array(new)) => old.extend(new),
        (_, list) => drop(out.insert(name.to_owned(), list)),
    }
}

/// Adds a pattern. A string must match all patterns.
pub(super) fn add_pattern(out: &mut Map<String, Value>, pattern: &str) {
    if out.contains_key("pattern") {
        append(out, "allOf", json!([{ "pattern": pattern }]));
    } else {
        out.insert("pattern".to_owned(), pattern.into());
    }
}

/// Whether a schema accepts strings by type, without listing them.
pub(super) fn is_string(keywords: &Map<String, Value>) -> bool {
    let listed = keywords.contains_key("enum") || keywords.contains_key("const");
    let named = match keywords.get("type") {
        Some(Value::Array(names)) => names.iter().any(|name| name == "string"),
        name => name.is_some_and(|name| name == "string"),
    };
    named && !listed
}

/// Multiples of an integer are integers, and integers cost a third of other numbers to check.
pub(super) fn narrow_multiples(out: &mut Map<String, Value>) {
    let whole = out.get("multipleOf").and_then(Value::as_f64).is_some_and(is_whole);
    if !whole || out.contains_key("enum") || out.contains_key("const") {
        return;
    }
    match out.get_mut("type") {
        Some(Value::Array(names)) if names.contains(&"number".into()) => {
            names.retain(|name| name != "number" && name != "integer");
            names.push("integer".into());
        }
        Some(name) if name == "number" => *name = "integer".into(),
        _ => {}
    }
}

/// Adds bounds: only where every integer is exact can a multiple be checked.
pub(super) fn bound_multiples(out: &mut Map<String, Value>) {
    if !out.contains_key("multipleOf") {
        return;
    }
    for (key, other, end) in
        [("minimum", "exclusiveMinimum", -EXACT_MAX), ("maximum", "exclusiveMaximum", EXACT_MAX)]
    {
        if !out.contains_key(key) && !out.contains_key(other) {
            out.insert(key.to_owned(), end.into());
        }
    }
}

/// A length as an integer, in any spelling; `None` if every possible reply satisfies it.
pub(super) fn length(name: &str, value: &Value, path: &str) -> Result<Option<u64>, GrammarError> {
    let whole = |number: &f64| *number >= 0.0 && number.fract() == 0.0;
    // A cast of a float saturates at the limits of the integer.
    let length = value.as_u64().or(value.as_f64().filter(whole).map(|number| number as u64));
    match length {
        None => Err(invalid(path, "it must be a whole number, 0 or more")),
        Some(length) if u32::try_from(length).is_ok() => Ok(Some(length)),
        Some(_) if name.starts_with("max") => Ok(None),
        Some(_) => Err(invalid(path, "no reply can be that long")),
    }
}

/// Whether llguidance, which calculates in f64, represents the number exactly. An integer that is
/// already an f64 was rounded when it was parsed.
pub(super) fn is_exact(number: &Number) -> bool {
    match number.as_i128() {
        Some(integer) => (integer as f64) as i128 == integer,
        None => number.as_f64().is_some_and(|number| number.abs() < ROUNDED_MIN),
    }
}

/// Refuses values that llguidance cannot reproduce exactly.
pub(super) fn literal(value: &Value, path: &str) -> Result<(), GrammarError> {
    match value {
        Value::Number(number) if !is_exact(number) => {
            Err(invalid(path, &format!("the number {number} is too large to be exact")))
        }
        Value::String(text) => {
            let control = |c: char| c.is_ascii_control() && !"\n\r\t\u{8}\u{c}".contains(c);
            match text.chars().find(|&c| control(c)) {
                Some(c) => {
                    Err(invalid(path, &format!("the control character {c:?} is not supported")))
                }
                None => Ok(()),
            }
        }
        Value::Array(items) => items.iter().try_for_each(|item| literal(item, path)),
        Value::Object(entries) => entries.values().try_for_each(|value| literal(value, path)),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

/// Whether parts of the schema have identifiers of their own.
pub(super) fn names_itself(schema: &Value) -> bool {
    match schema {
        Value::Object(entries) => {
            entries.contains_key("$id")
                || entries.contains_key("id")
                || entries.values().any(names_itself)
        }
        Value::Array(items) => items.iter().any(names_itself),
        _ => false,
    }
}
