//! The text of a message's parts, and the message's role: shared by the chat and responses APIs.

use crate::error::ApiError;
use crate::left_out::{LeftOut, What};
use crate::wire::content::{OneOrMany, Part};

/// The role's name in templates. The role must be one that the API has.
pub(crate) fn role_of(param: &str, role: &str, known: &[&str]) -> Result<String, ApiError> {
    if !known.contains(&role) {
        let param = format!("{param}.role");
        let message = format!("{param}: {role:?}, it must be one of {}", known.join(", "));
        return Err(ApiError::bad(param, message));
    }
    let name = match role {
        "developer" => "system",
        "function" => "tool",
        name => name,
    };
    Ok(name.to_owned())
}

/// The text of all parts, one per line.
pub(crate) fn text_of(parts: &OneOrMany<Part>, param: &str) -> Result<String, ApiError> {
    let parts = parts.0.iter().enumerate();
    lines(parts.map(|(index, part)| {
        let param = format!("{param}[{index}]");
        part_text(part, &param)?.ok_or_else(|| {
            let message = format!("{param}.type: {:?}, but this model reads text only", part.kind);
            ApiError::bad(format!("{param}.type"), message).with_code("unsupported_parameter")
        })
    }))
}

/// The text that replaces a non-text part of a tool's result.
pub(crate) fn left_out_part(kind: &str, left_out: &mut LeftOut) -> String {
    left_out.add(What::Part, kind);
    format!("[{kind} left out: this model reads text only]")
}

/// The text of a part, if the part is text.
pub(crate) fn part_text(part: &Part, param: &str) -> Result<Option<String>, ApiError> {
    let text = match part.kind.as_str() {
        "text" | "input_text" | "output_text" | "reasoning_text" | "summary_text" => &part.text,
        "refusal" => &part.refusal,
        _ => return Ok(None),
    };
    let missing = || {
        let param = format!("{param}.text");
        ApiError::bad(&param, format!("{param}: missing"))
    };
    text.clone().map(Some).ok_or_else(missing)
}

pub(crate) fn lines(
    parts: impl Iterator<Item = Result<String, ApiError>>,
) -> Result<String, ApiError> {
    Ok(parts.collect::<Result<Vec<_>, _>>()?.join("\n"))
}
