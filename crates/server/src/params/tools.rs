//! Which tools the model may call, and whether it must.

use kilotok_text::{Tool, ToolInput};
use serde_json::{Value, json};

use super::ranges::at_most;
use crate::error::ApiError;
use crate::wire::content::NameOr;
use crate::wire::tools::{ChatTool, FunctionSpec, NamedChoice};

/// More fill no prompt with anything useful.
const TOOLS_MAX: usize = 512;
const NAME_CHARS_MAX: usize = 256;

/// Whether the model calls tools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    No,
    May,
    /// At least one, whichever.
    Must,
    /// This one.
    Named(String),
}

/// What the model may call.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    pub(crate) list: Vec<Tool>,
    pub(crate) usage: Use,
    /// Several calls in one reply.
    pub(crate) parallel: bool,
}

impl Tools {
    /// Without tools there is nothing to call, with one that is named it must be there.
    pub(crate) fn new(
        list: Vec<Tool>,
        usage: Option<Use>,
        parallel: Option<bool>,
    ) -> Result<Self, ApiError> {
        at_most("tools", &list, TOOLS_MAX)?;
        let fault = |message: String| Err(ApiError::bad("tool_choice", message));
        let usage = match usage {
            Some(Use::Must | Use::Named(_)) if list.is_empty() => {
                return fault("tool_choice: a call is required, but there are no tools".into());
            }
            Some(Use::Named(name)) if !list.iter().any(|tool| tool.name == name) => {
                return fault(format!("tool_choice: there is no tool {name:?}"));
            }
            None | Some(Use::May) if list.is_empty() => Use::No,
            usage => usage.unwrap_or(Use::May),
        };
        Ok(Self { list, usage, parallel: parallel.unwrap_or(true) })
    }

    /// Whether calls are looked for in the reply.
    pub(crate) fn may_call(&self) -> bool {
        self.usage != Use::No
    }

    /// The tools one of which must be called.
    pub(crate) fn required(&self) -> Option<Vec<Tool>> {
        match &self.usage {
            Use::No | Use::May => None,
            Use::Must => Some(self.list.clone()),
            Use::Named(name) => {
                let named = self.list.iter().filter(|tool| tool.name == *name);
                Some(named.cloned().collect())
            }
        }
    }

    /// What the prompt shows. Of tools that must not be called the model does not hear.
    pub(crate) fn shown(&self) -> Vec<Tool> {
        if self.may_call() { self.list.clone() } else { Vec::new() }
    }
}

/// OpenAI's chat API.
pub(crate) fn chat_tools(
    tools: Option<Vec<ChatTool>>,
    choice: Option<NameOr<NamedChoice>>,
    parallel: Option<bool>,
) -> Result<Tools, ApiError> {
    let mut list = Vec::new();
    for (index, tool) in tools.unwrap_or_default().into_iter().enumerate() {
        let name = format!("tools[{index}]");
        only_functions(&name, &tool.kind)?;
        let missing = || {
            let name = format!("{name}.function");
            ApiError::bad(&name, format!("{name}: missing"))
        };
        let FunctionSpec { name: called, description, parameters, strict } =
            tool.function.ok_or_else(missing)?;
        let strict = strict.unwrap_or_default();
        list.push(tool_of(&format!("{name}.function"), called, description, parameters, strict)?);
    }
    let named = |NamedChoice { kind, function }| (kind, function.map(|function| function.name));
    Tools::new(list, usage_of(choice, named)?, parallel)
}

/// Tools of other types run on the servers of those who offer them.
pub(crate) fn only_functions(param: &str, kind: &str) -> Result<(), ApiError> {
    if kind == "function" {
        return Ok(());
    }
    let what = format!("a tool of type {kind:?}");
    Err(ApiError::not_implemented(format!("{param}.type"), &what))
}

/// `none`, `auto`, `required`, or a choice of which `named` knows the type and the function's name.
pub(crate) fn usage_of<T>(
    choice: Option<NameOr<T>>,
    named: impl FnOnce(T) -> (String, Option<String>),
) -> Result<Option<Use>, ApiError> {
    let usage = match choice {
        None => return Ok(None),
        Some(NameOr::Name(name)) => match name.as_str() {
            "none" => Use::No,
            "auto" => Use::May,
            "required" => Use::Must,
            other => {
                let message = format!(
                    "tool_choice: {other:?}, it must be none, auto, required or a function"
                );
                return Err(ApiError::bad("tool_choice", message));
            }
        },
        Some(NameOr::Object(choice)) => match named(choice) {
            (kind, Some(name)) if kind == "function" => Use::Named(name),
            (kind, _) => {
                let what = format!("a choice of type {kind:?}");
                return Err(ApiError::not_implemented("tool_choice", &what));
            }
        },
    };
    Ok(Some(usage))
}

/// A tool whose name can stand in a prompt.
pub(crate) fn tool_of(
    param: &str,
    name: String,
    description: Option<String>,
    parameters: Option<Value>,
    strict: bool,
) -> Result<Tool, ApiError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.:/".contains(c);
    if name.is_empty() || name.len() > NAME_CHARS_MAX || !name.chars().all(plain) {
        let message = format!(
            "{param}.name: {name:?}, it must have 1 to {NAME_CHARS_MAX} letters, digits or \
             \"_-.:/\""
        );
        return Err(ApiError::bad(format!("{param}.name"), message));
    }
    let parameters = match parameters {
        None | Some(Value::Null) => json!({"type": "object", "properties": {}}),
        Some(Value::Object(schema)) => Value::Object(schema),
        Some(_) => {
            let message = format!("{param}.parameters: it must be a JSON schema, an object");
            return Err(ApiError::bad(format!("{param}.parameters"), message));
        }
    };
    Ok(Tool { name, description, parameters, strict, input: ToolInput::Json })
}

/// The arguments of an earlier call, as an object where they are one: models sometimes write
/// broken ones, and the conversation goes on.
pub(crate) fn past_arguments(arguments: Option<Value>) -> Value {
    match arguments {
        None | Some(Value::Null) => json!({}),
        Some(Value::String(text)) if text.trim().is_empty() => json!({}),
        Some(Value::String(text)) => match serde_json::from_str(&text) {
            Ok(Value::Object(object)) => Value::Object(object),
            _ => json!({ "arguments": text }),
        },
        Some(Value::Object(object)) => Value::Object(object),
        Some(other) => json!({ "arguments": other }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(tools: &Value, choice: &Value) -> Result<Tools, ApiError> {
        let tools = serde_json::from_value(tools.clone()).unwrap();
        chat_tools(tools, serde_json::from_value(choice.clone()).unwrap(), None)
    }

    fn two() -> Value {
        json!([
            {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}},
            {"type": "function", "function": {"name": "sub"}},
        ])
    }

    #[test]
    fn choices_fall_into_place() {
        for (choice, usage, shown, required) in [
            (json!(null), Use::May, 2, None),
            (json!("auto"), Use::May, 2, None),
            (json!("none"), Use::No, 0, None),
            (json!("required"), Use::Must, 2, Some(2)),
            (
                json!({"type": "function", "function": {"name": "sub"}}),
                Use::Named("sub".into()),
                2,
                Some(1),
            ),
        ] {
            let tools = parse(&two(), &choice).unwrap();
            assert_eq!(tools.usage, usage);
            assert_eq!(tools.shown().len(), shown);
            assert_eq!(tools.required().map(|tools| tools.len()), required);
        }
        assert!(!parse(&json!(null), &json!("auto")).unwrap().may_call());
        assert!(parse(&json!(null), &json!("none")).is_ok());
    }

    #[test]
    fn senseless_choices_are_refused() {
        for choice in [
            json!("some"),
            json!({"type": "custom", "custom": {"name": "add"}}),
            json!({"type": "function", "function": {"name": "mul"}}),
        ] {
            let error = parse(&two(), &choice).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("tool_choice"), "{choice}");
        }
        assert!(parse(&json!([]), &json!("required")).is_err());
    }

    #[test]
    fn tools_are_checked() {
        for (tool, param) in [
            (json!({"type": "web_search"}), "tools[0].type"),
            (json!({"type": "function"}), "tools[0].function"),
            (json!({"type": "function", "function": {"name": "a b"}}), "tools[0].function.name"),
            (json!({"type": "function", "function": {"name": "<x>"}}), "tools[0].function.name"),
            (
                json!({"type": "function", "function": {"name": "a", "parameters": 3}}),
                "tools[0].function.parameters",
            ),
        ] {
            let error = parse(&json!([tool]), &json!(null)).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param));
        }
    }

    #[test]
    fn broken_arguments_of_the_past_break_nothing() {
        for (given, taken) in [
            (json!("{\"a\": 1}"), json!({"a": 1})),
            (json!({"a": 1}), json!({"a": 1})),
            (json!(""), json!({})),
            (json!("{\"a\": "), json!({"arguments": "{\"a\": "})),
            (json!("[1]"), json!({"arguments": "[1]"})),
        ] {
            assert_eq!(past_arguments(Some(given)), taken);
        }
        assert_eq!(past_arguments(None), json!({}));
    }
}
