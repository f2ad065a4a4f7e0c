//! The constraint of a reply: JSON, a schema, a regular expression, a grammar, or a choice. Several
//! fields can set one, but only one of them may.

use kilotok_text::Constraint;
use serde_json::{Value, json};

use super::ranges::at_most;
use crate::error::ApiError;
use crate::wire::generation::ConstraintFields;
use crate::wire::tools::{NamedSchema, ResponseFormat, StructuredOutputs};

/// Most entries of a choice.
const CHOICES_MAX: usize = 1024;

/// A constraint, and the name of the field that sets it.
pub(crate) type FieldConstraint = (Constraint, &'static str);

pub(crate) fn constraint(fields: ConstraintFields) -> Result<Option<FieldConstraint>, ApiError> {
    let mut found = Vec::new();
    if let Some(format) = fields.response_format {
        found.extend(of_format(format)?.map(|format| (format, "response_format")));
    }
    if let Some(outputs) = fields.structured_outputs {
        found.push((of_outputs(outputs)?, "structured_outputs"));
    }
    found.extend(fields.regex.map(|regex| (Constraint::Regex(regex), "regex")));
    found.extend(fields.ebnf.map(|ebnf| (Constraint::Lark(ebnf), "ebnf")));
    // Clients of llama.cpp and Ollama send an empty grammar for none.
    let grammar = fields.grammar.filter(|grammar| !grammar.trim().is_empty());
    found.extend(grammar.map(|grammar| (Constraint::Lark(grammar), "grammar")));
    if let Some(schema) = fields.json_schema.filter(|schema| *schema != "") {
        found.push((schema_of("json_schema", schema, false)?, "json_schema"));
    }
    match fields.format {
        None => {}
        Some(Value::String(name)) if name.is_empty() => {}
        Some(Value::String(name)) if name == "json" => {
            found.push((Constraint::JsonObject, "format"));
        }
        Some(Value::String(_)) => {
            let message = "format: it must be \"json\" or a JSON schema";
            return Err(ApiError::bad("format", message));
        }
        Some(schema) => found.push((schema_of("format", schema, false)?, "format")),
    }
    if found.len() > 1 {
        let message =
            format!("{} and {} both shape the reply, only one may", found[0].1, found[1].1);
        return Err(ApiError::bad(found[1].1, message));
    }
    Ok(found.pop())
}

fn of_format(format: ResponseFormat) -> Result<Option<Constraint>, ApiError> {
    let ResponseFormat { kind, json_schema, schema } = format;
    match (kind.as_str(), json_schema, schema) {
        ("text", _, _) => Ok(None),
        ("json_object", _, Some(schema)) => {
            schema_of("response_format.schema", schema, false).map(Some)
        }
        ("json_object", _, None) => Ok(Some(Constraint::JsonObject)),
        ("json_schema", Some(NamedSchema { schema: Some(schema), strict, .. }), _) => {
            let strict = strict.unwrap_or_default();
            schema_of("response_format.json_schema.schema", schema, strict).map(Some)
        }
        ("json_schema", _, _) => {
            let param = "response_format.json_schema.schema";
            Err(ApiError::bad(param, format!("{param}: missing")))
        }
        ("structural_tag" | "grammar", _, _) => {
            Err(ApiError::not_implemented("response_format.type", &kind))
        }
        _ => Err(ApiError::bad(
            "response_format.type",
            format!("response_format.type: {kind:?}, it must be text, json_object or json_schema"),
        )),
    }
}

/// A JSON schema is an object or a boolean; some clients send it as a string.
pub(crate) fn schema_of(param: &str, schema: Value, strict: bool) -> Result<Constraint, ApiError> {
    let schema = match schema {
        Value::String(text) => serde_json::from_str(&text).map_err(|error| {
            ApiError::bad(param, format!("{param}: the string is not JSON: {error}"))
        })?,
        other => other,
    };
    if schema.is_object() || schema.is_boolean() {
        return Ok(Constraint::JsonSchema { schema, strict });
    }
    Err(ApiError::bad(param, format!("{param}: it must be a JSON schema, an object")))
}

fn of_outputs(outputs: StructuredOutputs) -> Result<Constraint, ApiError> {
    let StructuredOutputs { json, regex, choice, grammar, json_object, .. } = outputs;
    let space = match (outputs.disable_any_whitespace, outputs.whitespace_pattern) {
        (Some(true), _) => Some(String::new()),
        (_, pattern) => pattern,
    };
    let mut found = Vec::new();
    if let Some(schema) = json {
        found.push(schema_of("structured_outputs.json", schema, false)?);
    }
    found.extend(regex.map(Constraint::Regex));
    if let Some(choices) = choice {
        at_most("structured_outputs.choice", &choices, CHOICES_MAX)?;
        if choices.is_empty() {
            let param = "structured_outputs.choice";
            return Err(ApiError::bad(param, format!("{param}: there is nothing to choose from")));
        }
        found.push(Constraint::Choice(choices));
    }
    found.extend(grammar.map(Constraint::Lark));
    if json_object == Some(true) {
        found.push(Constraint::JsonObject);
    }
    match (found.pop(), found.len()) {
        (Some(only), 0) => spaced(only, space),
        (_, _) => Err(ApiError::bad(
            "structured_outputs",
            "structured_outputs: exactly one of json, regex, choice, grammar and json_object",
        )),
    }
}

/// Lets JSON have the white space of the client's pattern, if there is one.
fn spaced(constraint: Constraint, space: Option<String>) -> Result<Constraint, ApiError> {
    match (constraint, space) {
        (constraint, None) => Ok(constraint),
        (Constraint::JsonObject, Some(space)) => {
            Ok(Constraint::SpacedJson { schema: json!({ "type": "object" }), space })
        }
        (Constraint::JsonSchema { schema, .. }, Some(space)) => {
            Ok(Constraint::SpacedJson { schema, space })
        }
        _ => {
            let param = "structured_outputs.whitespace_pattern";
            let message = format!("{param}: it is about JSON, and must be beside json");
            Err(ApiError::bad(param, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(
        format: &Value,
        outputs: &Value,
        regex: Option<&str>,
    ) -> Result<Option<FieldConstraint>, ApiError> {
        constraint(ConstraintFields {
            response_format: serde_json::from_value(format.clone()).unwrap(),
            structured_outputs: serde_json::from_value(outputs.clone()).unwrap(),
            regex: regex.map(str::to_owned),
            ..ConstraintFields::default()
        })
    }

    #[test]
    fn shapes_are_understood() {
        let none = json!(null);
        assert!(of(&none, &none, None).unwrap().is_none());
        assert!(of(&json!({"type": "text"}), &none, None).unwrap().is_none());
        let found = |format: Value, outputs: Value| of(&format, &outputs, None).unwrap().unwrap().0;
        let schema = json!({"type": "object"});
        for (shape, expected) in [
            (found(json!({"type": "json_object"}), none.clone()), Constraint::JsonObject),
            (
                found(
                    json!({"type": "json_schema",
                           "json_schema": {"schema": schema, "strict": true}}),
                    none.clone(),
                ),
                Constraint::JsonSchema { schema: schema.clone(), strict: true },
            ),
            (
                found(none.clone(), json!({"json": "{\"type\": \"object\"}"})),
                Constraint::JsonSchema { schema: schema.clone(), strict: false },
            ),
            (
                found(none.clone(), json!({"choice": ["a", "b"]})),
                Constraint::Choice(vec!["a".into(), "b".into()]),
            ),
            (found(none.clone(), json!({"regex": "a+"})), Constraint::Regex("a+".into())),
        ] {
            assert_eq!(format!("{shape:?}"), format!("{expected:?}"));
        }
    }

    #[test]
    fn one_shape_at_a_time() {
        let format = json!({"type": "json_object"});
        let error = of(&format, &json!(null), Some("a+")).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("regex"));
        for outputs in [json!({}), json!({"regex": "a", "json_object": true})] {
            let error = of(&json!(null), &outputs, None).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("structured_outputs"));
        }
    }

    #[test]
    fn shapes_without_meaning_are_refused() {
        for (format, param) in [
            (json!({"type": "xml"}), "response_format.type"),
            (json!({"type": "structural_tag"}), "response_format.type"),
            (json!({"type": "json_schema"}), "response_format.json_schema.schema"),
            (
                json!({"type": "json_schema", "json_schema": {"schema": [1]}}),
                "response_format.json_schema.schema",
            ),
        ] {
            let error = of(&format, &json!(null), None).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param));
        }
    }
}
