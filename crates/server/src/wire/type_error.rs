//! The error of a body that does not have the type of its request. It names the field, and quotes
//! the field's schema: the range of a number, or what to send instead of a field that is not
//! implemented.

use axum::http::StatusCode;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::unsupported::NOT_IMPLEMENTED;
use crate::error::ApiError;

/// Serde's and JSON's names for types of values.
const KINDS: [(&str, &str); 2] = [
    ("invalid type: sequence,", "invalid type: array,"),
    ("invalid type: map,", "invalid type: object,"),
];

/// How `serde_json`'s error begins for a number that no f64 holds, such as 1e999.
const TOO_LARGE: &str = "number out of range";

/// The error of the field `path` of a request `T`.
pub(super) fn type_error<T: ToSchema>(error: &serde_json::Error, path: &str) -> ApiError {
    let text = error.to_string();
    if text.starts_with(TOO_LARGE) {
        let text = format!("{path}: the number is too large to be read");
        return ApiError::bad(path, text).with_code("invalid_json");
    }
    if !error.is_data() {
        let message = format!("the body is not JSON: {text}");
        return ApiError::new(StatusCode::BAD_REQUEST, message).with_code("invalid_json");
    }
    // The field's name is enough to find it; line and column are for errors in the JSON itself.
    let position = format!(" at line {} column {}", error.line(), error.column());
    let mut text = text.strip_suffix(&position).unwrap_or(&text).to_owned();
    for (kind, json) in KINDS {
        if let Some(rest) = text.strip_prefix(kind) {
            text = format!("{json}{rest}");
        }
    }
    let named = |start| Some(text.strip_prefix(start)?.split('`').next()?.to_owned());
    let param = match (path, named("missing field `"), named("duplicate field `")) {
        (".", Some(field), _) | (".", _, Some(field)) => field,
        (".", None, None) => {
            let text = format!("the body must be a JSON object of this request: {text}");
            return ApiError::new(StatusCode::BAD_REQUEST, text);
        }
        (path, Some(field), _) => format!("{path}.{field}"),
        (path, None, _) => path.to_owned(),
    };
    if text.contains(NOT_IMPLEMENTED) {
        let advice = schema_of::<T>(&param)
            .and_then(|schema| Some(schema["description"].as_str()?.to_owned()));
        let advice = advice.map(|advice| format!(". {advice}")).unwrap_or_default();
        let message = format!("{param}: {text}{advice}");
        return ApiError::bad(&param, message).with_code("unsupported_parameter");
    }
    if text.ends_with("expected an integer") || text.ends_with("expected a number") {
        text.extend(schema_of::<T>(&param).and_then(|schema| range(&schema)));
    }
    ApiError::bad(&param, format!("{param}: {text}"))
}

/// The range of numbers that a schema allows.
fn range(schema: &Value) -> Option<String> {
    let low = match (&schema["minimum"], &schema["exclusiveMinimum"]) {
        (Value::Number(least), _) => format!(" of at least {least}"),
        (_, Value::Number(below)) => format!(" above {below}"),
        _ => return None,
    };
    let high = schema["maximum"].as_f64().map(|most| format!(" and at most {most}"));
    Some(low + &high.unwrap_or_default())
}

/// The schema of a field such as `messages[0].name` in a request `T`.
fn schema_of<T: ToSchema>(path: &str) -> Option<Value> {
    let mut referred = Vec::new();
    T::schemas(&mut referred);
    let mut schema = json!(T::schema());
    for step in path.split(['.', '[']) {
        // The schema of an optional field is the field's own schema or null.
        let reference =
            schema["oneOf"].as_array().and_then(|parts| parts.last()).unwrap_or(&schema);
        if let Some(name) = reference["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
            schema = json!(referred.iter().find(|(known, _)| known == name)?.1);
        }
        let inner = if step.ends_with(']') {
            &mut schema["items"]
        } else {
            &mut schema["properties"][step]
        };
        schema = inner.take();
    }
    Some(schema)
}
