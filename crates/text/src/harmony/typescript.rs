//! Tools in the form that gpt-oss was trained on: functions of a TypeScript namespace, with
//! descriptions as comments. This module knows JSON schemas but no tokens.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::{Map, Value};

use crate::Tool;

/// Largest indentation. Types that are nested deeper become `any`: otherwise a small schema could
/// make a large prompt.
const INDENT_MAX: usize = 128;

/// The section of the prompt that declares these tools.
pub(super) fn tools(tools: &[Tool]) -> String {
    let mut out = "# Tools\n\n## functions\n\nnamespace functions {\n\n".to_owned();
    for tool in tools {
        for line in tool.description.iter().flat_map(|description| description.lines()) {
            write(&mut out, format_args!("// {line}\n"));
        }
        let name = &tool.name;
        if tool.parameters.is_null() {
            write(&mut out, format_args!("type {name} = () => any;\n\n"));
        } else {
            let argument = type_of(&tool.parameters, "");
            write(&mut out, format_args!("type {name} = (_: {argument}) => any;\n\n"));
        }
    }
    out + "} // namespace functions"
}

/// Writing to a string cannot fail.
fn write(out: &mut String, text: std::fmt::Arguments<'_>) {
    let _ = out.write_fmt(text);
}

/// A schema as a type. Schemas without such a form become `any`.
fn type_of(schema: &Value, indent: &str) -> String {
    if indent.len() > INDENT_MAX {
        return "any".to_owned();
    }
    if let Some(variants) = schema["oneOf"].as_array() {
        return lines_of(variants, indent);
    }
    if let Some(variants) = schema["anyOf"].as_array() {
        return alternatives(variants.iter().map(|variant| type_of(variant, indent)));
    }
    match &schema["type"] {
        Value::Array(names) if !names.is_empty() => {
            alternatives(names.iter().filter_map(Value::as_str).map(|name| match name {
                "integer" => "number".to_owned(),
                other => other.to_owned(),
            }))
        }
        Value::String(name) => match name.as_str() {
            "object" => object(schema, indent),
            "string" => choices(schema).unwrap_or_else(|| "string".to_owned()),
            "number" | "integer" => "number".to_owned(),
            "boolean" => "boolean".to_owned(),
            "array" => match schema.get("items") {
                Some(items) => type_of(items, indent) + "[]",
                None => "Array<any>".to_owned(),
            },
            _ => "any".to_owned(),
        },
        _ => "any".to_owned(),
    }
}

fn alternatives(types: impl Iterator<Item = String>) -> String {
    types.collect::<Vec<_>>().join(" | ")
}

/// The allowed strings.
fn choices(schema: &Value) -> Option<String> {
    let texts = schema["enum"].as_array()?.iter().filter_map(Value::as_str);
    let texts: Vec<String> = texts.map(|text| format!("\"{text}\"")).collect();
    (!texts.is_empty()).then(|| texts.join(" | "))
}

fn nullable(schema: &Value, written: String) -> String {
    if schema["nullable"] == true && !written.contains("null") {
        written + " | null"
    } else {
        written
    }
}

/// Alternatives, one per line.
fn lines_of(variants: &[Value], indent: &str) -> String {
    let mut out = String::new();
    for variant in variants {
        let written = nullable(variant, type_of(variant, &format!("{indent}   ")));
        write(&mut out, format_args!("\n{indent} | {written}{}", comment(variant, true)));
    }
    out
}

/// The comment after an alternative.
fn comment(variant: &Value, described: bool) -> String {
    let description = variant["description"].as_str().filter(|_| described).map(str::to_owned);
    let default = default_of(variant).map(|default| format!("default: {default}"));
    let parts: Vec<String> = description.into_iter().chain(default).collect();
    if parts.is_empty() { String::new() } else { format!(" // {}", parts.join(" ")) }
}

/// The default value. It is quoted if it is a string, but not if it is one of a choice.
fn default_of(schema: &Value) -> Option<String> {
    let is_choice = schema["enum"].as_array().is_some_and(|choices| !choices.is_empty());
    Some(match schema.get("default")? {
        Value::String(text) if is_choice => text.clone(),
        Value::String(text) => format!("\"{text}\""),
        other => other.to_string(),
    })
}

fn object(schema: &Value, indent: &str) -> String {
    let mut out = String::new();
    if let Some(description) = schema["description"].as_str() {
        write(&mut out, format_args!("{indent}// {description}\n"));
    }
    out.push_str("{\n");
    let required = schema["required"].as_array().into_iter().flatten();
    let required: BTreeSet<&str> = required.filter_map(Value::as_str).collect();
    let none = Map::new();
    for (name, property) in schema["properties"].as_object().unwrap_or(&none) {
        let mark = if required.contains(name.as_str()) { "" } else { "?" };
        property_of(&format!("{name}{mark}"), property, indent, &mut out);
    }
    out + indent + "}"
}

fn property_of(name: &str, property: &Value, indent: &str, out: &mut String) {
    if let Some(title) = property["title"].as_str() {
        write(out, format_args!("{indent}// {title}\n{indent}//\n"));
    }
    let description = property["description"].as_str();
    let variants = property["oneOf"].as_array();
    if let (Some(description), None) = (description, variants) {
        write(out, format_args!("{indent}// {description}\n"));
    }
    let examples = property["examples"].as_array().filter(|examples| !examples.is_empty());
    if let Some(examples) = examples {
        write(out, format_args!("{indent}// Examples:\n"));
        for example in examples.iter().filter_map(Value::as_str) {
            write(out, format_args!("{indent}// - \"{example}\"\n"));
        }
    }
    if let Some(variants) = variants {
        return alternatives_of(name, property, variants, indent, out);
    }
    let written = nullable(property, type_of(property, &format!("{indent}    ")));
    write(out, format_args!("{indent}{name}: {written},"));
    if let Some(default) = default_of(property) {
        write(out, format_args!(" // default: {default}"));
    }
    out.push('\n');
}

/// A property with several types: one per line. A description is written unless it is the first
/// one's.
fn alternatives_of(
    name: &str,
    property: &Value,
    variants: &[Value],
    indent: &str,
    out: &mut String,
) {
    let description = property["description"].as_str();
    let first = variants.first().and_then(|variant| variant["description"].as_str());
    let above = description.filter(|_| description != first);
    if let Some(description) = above {
        write(out, format_args!("{indent}// {description}\n"));
    }
    if let Some(default) = default_of(property) {
        write(out, format_args!("{indent}// default: {default}\n"));
    }
    write(out, format_args!("{indent}{name}:\n"));
    for (index, variant) in variants.iter().enumerate() {
        let written = nullable(variant, type_of(variant, &format!("{indent}   ")));
        let said = index == 0 && above.is_some() || variant["description"].as_str() == description;
        write(out, format_args!("{indent} | {written}{}\n", comment(variant, !said)));
    }
    write(out, format_args!("{indent},\n"));
}
