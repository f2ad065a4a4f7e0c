//! Arguments that are written verbatim, not as JSON: turns their schema into a terminal of Lark.

use std::{iter, slice};

use llguidance::regex_to_lark;
use regex_syntax::hir::{Dot, Hir, HirKind, Look, Repetition};
use serde_json::Value;

use super::{lark, patterns, schema};

/// Deepest nesting of an argument's options.
const DEPTH_MAX: usize = 4;
/// Largest terminal. Options within options multiply, because a reference can name them many times.
const TERMINAL_BYTES_MAX: usize = 1 << 20;

/// The terminal for a text that matches `schema`, a prepared part of `whole`; `None` if any text
/// matches. The caller excludes the closing `tag` from the text. The error names a demand that
/// cannot be followed.
pub(super) fn asked(whole: &Value, schema: &Value, tag: &str) -> Result<Option<String>, String> {
    let besides = &patterns::without(tag);
    TerminalBuilder { whole, tag, besides, bytes_left: TERMINAL_BYTES_MAX }.any_kind(schema, 0)
}

/// Whether a string may match; if so, the value is written verbatim.
pub(super) fn may_be_text(whole: &Value, schema: &Value, depth: usize) -> bool {
    let (schema, _) = schema::resolve(whole, schema, "");
    if depth > DEPTH_MAX {
        return true;
    }
    let may_be = |one: &Value| may_be_text(whole, one, depth + 1);
    let mut options = ["anyOf", "oneOf"].iter().filter_map(|name| list(schema, name));
    kinds(schema).is_none_or(|kinds| kinds.contains(&"string"))
        && values(schema).is_none_or(|values| values.iter().any(Value::is_string))
        && options.all(|list| list.iter().any(may_be))
        && list(schema, "allOf").is_none_or(|list| list.iter().all(may_be))
}

struct TerminalBuilder<'a> {
    whole: &'a Value,
    tag: &'a str,
    /// The pattern that excludes the tag, which every string schema has been given.
    besides: &'a str,
    bytes_left: usize,
}

impl TerminalBuilder<'_> {
    /// A value of any type that the schema accepts.
    fn any_kind(&mut self, schema: &Value, depth: usize) -> Result<Option<String>, String> {
        let (schema, _) = schema::resolve(self.whole, schema, "");
        if depth > DEPTH_MAX || self.bytes_left == 0 {
            return Err(too_much());
        }
        if let Some(values) = values(schema) {
            let texts = values.iter().map(|value| match value {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            });
            let texts = texts.filter(|text| !text.contains(self.tag));
            let literals: Vec<String> = texts.map(|text| lark::literal(&text)).collect();
            if literals.is_empty() {
                return Err("a list without a value that can be written".to_owned());
            }
            return Ok(Some(self.counted(union(literals))?));
        }
        let Some(kinds) = kinds(schema) else { return self.string(schema, depth) };
        let mut options = Vec::new();
        for kind in kinds {
            options.push(match kind {
                "string" => match self.string(schema, depth)? {
                    Some(text) => text,
                    None => return Ok(None),
                },
                "null" => "\"null\"".to_owned(),
                "boolean" => "(\"true\" | \"false\")".to_owned(),
                "integer" => INTEGER.to_owned(),
                "number" => NUMBER.to_owned(),
                _ => return Err(format!("{kind}s beside such strings")),
            });
        }
        Ok(Some(union(options)))
    }

    fn string(&mut self, schema: &Value, depth: usize) -> Result<Option<String>, String> {
        let mut all = Vec::new();
        let length = |name: &str| schema.get(name).and_then(Value::as_u64);
        let (least, most) = (length("minLength").unwrap_or(0), length("maxLength"));
        if least > 0 || most.is_some() {
            let most = most.map_or(String::new(), |most| most.to_string());
            all.push(format!("/(?s:.{{{least},{most}}})/"));
        }
        let pattern = schema.get("pattern").and_then(Value::as_str);
        if let Some(pattern) = pattern.filter(|pattern| *pattern != self.besides) {
            all.push(self.counted(format!("/{}/", found_in_all(pattern)?))?);
        }
        for one in list(schema, "allOf").into_iter().flatten() {
            all.extend(self.any_kind(one, depth + 1)?);
        }
        for name in ["anyOf", "oneOf"] {
            if let Some(options) = list(schema, name) {
                all.extend(self.any_of(options, depth + 1)?);
            }
        }
        Ok((!all.is_empty()).then(|| format!("({})", all.join(" & "))))
    }

    fn any_of(&mut self, options: &[Value], depth: usize) -> Result<Option<String>, String> {
        let options = options.iter().map(|one| self.any_kind(one, depth));
        let options: Vec<_> = options.collect();
        // If one option accepts any text, the other options no longer matter.
        if options.contains(&Ok(None)) {
            return Ok(None);
        }
        let options: Option<Vec<String>> = options.into_iter().collect::<Result<_, _>>()?;
        Ok(options.map(union))
    }

    fn counted(&mut self, text: String) -> Result<String, String> {
        let left = self.bytes_left.checked_sub(text.len());
        self.bytes_left = left.unwrap_or(0);
        left.map(|_| text).ok_or_else(too_much)
    }
}

fn too_much() -> String {
    "a string with so many patterns or options".to_owned()
}

const INTEGER: &str = "/-?(0|[1-9][0-9]*)/";
/// The exponent is limited to two digits, which readers can represent.
const NUMBER: &str = "/-?(0|[1-9][0-9]*)(\\.[0-9]+)?([eE][+-]?[0-9]{1,2})?/";

fn union(options: impl IntoIterator<Item = String>) -> String {
    format!("({})", options.into_iter().collect::<Vec<_>>().join(" | "))
}

fn list<'a>(schema: &'a Value, name: &str) -> Option<&'a [Value]> {
    schema.get(name).and_then(Value::as_array).map(Vec::as_slice)
}

/// The types that a schema accepts, if it has a `type`.
fn kinds(schema: &Value) -> Option<Vec<&str>> {
    match schema.get("type")? {
        Value::Array(names) => Some(names.iter().filter_map(Value::as_str).collect()),
        name => Some(vec![name.as_str()?]),
    }
}

/// The only values that a schema accepts, if it lists them.
fn values(schema: &Value) -> Option<&[Value]> {
    schema.get("const").map(slice::from_ref).or(list(schema, "enum"))
}

/// A pattern of JSON Schema, which may match anywhere in a text, as one that matches the whole
/// text, for use between Lark's slashes.
fn found_in_all(pattern: &str) -> Result<String, String> {
    let hir = regex_syntax::parse(&regex_to_lark(pattern, "dw"));
    let all = hir.map(|hir| stretched(&hir, Edge::Open, Edge::Open)).ok();
    let all = all.filter(|all| all.properties().look_set().is_empty());
    let all = all.ok_or_else(|| format!("the pattern {pattern:?}"))?;
    Ok(regex_to_lark(&all.to_string(), ""))
}

/// The neighbour of a part of a pattern.
#[derive(Clone, Copy, PartialEq)]
enum Edge {
    /// Any text.
    Open,
    /// The end of the text, required by an anchor.
    Anchored,
    /// Another part.
    Part,
}

/// The pattern with any text at open edges, and without anchors at edges.
fn stretched(hir: &Hir, mut start: Edge, mut end: Edge) -> Hir {
    let mut parts = match hir.kind() {
        HirKind::Alternation(options) => {
            return Hir::alternation(
                options.iter().map(|one| stretched(one, start, end)).collect(),
            );
        }
        HirKind::Capture(capture) => return stretched(&capture.sub, start, end),
        HirKind::Concat(parts) => parts.as_slice(),
        _ => slice::from_ref(hir),
    };
    let is = |part: &Hir, look| matches!(part.kind(), HirKind::Look(it) if *it == look);
    while start != Edge::Part
        && let [first, rest @ ..] = parts
        && is(first, Look::Start)
    {
        (start, parts) = (Edge::Anchored, rest);
    }
    while end != Edge::Part
        && let [rest @ .., last] = parts
        && is(last, Look::End)
    {
        (end, parts) = (Edge::Anchored, rest);
    }
    match parts {
        [] => with_text(start, Hir::empty(), end),
        [part] if matches!(part.kind(), HirKind::Alternation(_) | HirKind::Capture(_)) => {
            stretched(part, start, end)
        }
        [part] => with_text(start, part.clone(), end),
        [first, middle @ .., last] => {
            let first = stretched(first, start, Edge::Part);
            let last = stretched(last, Edge::Part, end);
            let middle = middle.iter().cloned();
            Hir::concat(iter::once(first).chain(middle).chain([last]).collect())
        }
    }
}

fn with_text(start: Edge, part: Hir, end: Edge) -> Hir {
    let any = |edge| {
        let sub = Box::new(Hir::dot(Dot::AnyChar));
        let any = Repetition { min: 0, max: None, greedy: true, sub };
        if edge == Edge::Open { Hir::repetition(any) } else { Hir::empty() }
    };
    Hir::concat(vec![any(start), part, any(end)])
}
