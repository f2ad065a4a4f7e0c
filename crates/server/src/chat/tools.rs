//! Tools of OpenAI's chat API.

use crate::error::ApiError;
use crate::params::tools::{
    CUSTOM, CallChoice, FUNCTION, Named, ToolList, Tools, custom, function, must, named_choice,
};
use crate::wire::content::NameOr;
use crate::wire::tools::{ChatChoice, ChatTool, CustomSpec, FunctionSpec, ToolChoice, ToolName};

pub(crate) fn tools(
    tools: Option<Vec<ChatTool>>,
    choice: Option<ToolChoice>,
    parallel: Option<bool>,
) -> Result<Tools, ApiError> {
    let mut offers = ToolList::default();
    for (index, tool) in tools.unwrap_or_default().into_iter().enumerate() {
        let param = format!("tools[{index}].{}", tool.kind);
        let missing = || ApiError::bad(&param, format!("{param}: missing"));
        match tool.kind.as_str() {
            FUNCTION => {
                let FunctionSpec { name, description, parameters, strict } =
                    tool.function.ok_or_else(missing)?;
                let tool = function(&param, name, description, parameters, strict)?;
                offers.add(&param, None, tool)?;
            }
            CUSTOM => {
                let CustomSpec { name, description, format } = tool.custom.ok_or_else(missing)?;
                offers.add(&param, None, custom(&param, name, description, format)?)?;
            }
            _ => offers.leave_out(tool.kind, None),
        }
    }
    offers.resolve(choice.map(choice_of).transpose()?, parallel)
}

fn choice_of(choice: ToolChoice) -> Result<CallChoice, ApiError> {
    let ChatChoice { kind, function, custom, allowed_tools } = match choice {
        NameOr::Name(name) => return named_choice(&name),
        NameOr::Object(choice) => choice,
    };
    if kind != "allowed_tools" {
        return Ok(CallChoice::Named(named(kind, function, custom)));
    }
    let Some(allowed) = allowed_tools else {
        let param = "tool_choice.allowed_tools";
        return Err(ApiError::bad(param, format!("{param}: missing")));
    };
    let tools = allowed.tools.into_iter();
    let tools = tools.map(|tool| named(tool.kind, tool.function, tool.custom)).collect();
    Ok(CallChoice::Allowed { tools, must: must(allowed.mode.as_deref())? })
}

fn named(kind: String, function: Option<ToolName>, custom: Option<ToolName>) -> Named {
    let tool = if kind == CUSTOM { custom } else { function };
    let name = tool.map(|tool| tool.name).unwrap_or_default();
    Named { kind, namespace: None, name }
}
