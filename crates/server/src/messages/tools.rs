//! Tools of Anthropic's API.

use super::wire::{MessagesChoice, MessagesTool};
use crate::error::ApiError;
use crate::params::tools::{CallChoice, FUNCTION, Named, ToolList, Tools, function};

pub(crate) fn tools(
    tools: Option<Vec<MessagesTool>>,
    choice: Option<MessagesChoice>,
) -> Result<Tools, ApiError> {
    let mut offers = ToolList::default();
    for (index, tool) in tools.unwrap_or_default().into_iter().enumerate() {
        let param = format!("tools[{index}]");
        let MessagesTool { name, kind, description, input_schema, strict, .. } = tool;
        match kind {
            // This includes tools that clients run, such as `bash_20250124`: they come without a
            // schema, and only Anthropic's models know their arguments.
            Some(kind) if kind != "custom" => offers.leave_out(kind, name),
            _ => {
                let name = name.unwrap_or_default();
                let tool = function(&param, name, description, input_schema, strict)?;
                offers.add(&param, None, tool)?;
            }
        }
    }
    let Some(choice) = choice else { return offers.resolve(None, None) };
    let named = |name| Named { kind: FUNCTION.to_owned(), namespace: None, name };
    let usage = match (choice.kind.as_str(), choice.name) {
        ("auto", _) => CallChoice::May,
        ("any", _) => CallChoice::Must,
        ("none", _) => CallChoice::No,
        ("tool", Some(name)) => CallChoice::Named(named(name)),
        (other, _) => {
            let message = format!(
                "tool_choice.type: {other:?}, it must be auto, any, none, or tool with a name"
            );
            return Err(ApiError::bad("tool_choice.type", message));
        }
    };
    let parallel = choice.disable_parallel_tool_use.map(|disabled| !disabled);
    offers.resolve(Some(usage), parallel)
}
