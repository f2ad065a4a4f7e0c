//! Tools of OpenAI's Responses API, some of them in namespaces.

use super::wire::{ResponsesChoice, ResponsesTool, ToolChoice};
use crate::error::ApiError;
use crate::params::tools::{
    CUSTOM, CallChoice, FUNCTION, NAMESPACE, Named, ToolList, Tools, check_name, custom, function,
    must, named_choice,
};
use crate::wire::content::NameOr;

pub(crate) fn tools(
    tools: Option<Vec<ResponsesTool>>,
    choice: Option<ToolChoice>,
    parallel: Option<bool>,
) -> Result<Tools, ApiError> {
    let mut offers = ToolList::default();
    for (index, tool) in tools.unwrap_or_default().into_iter().enumerate() {
        let param = format!("tools[{index}]");
        if tool.kind == NAMESPACE {
            open(tool, &param, &mut offers)?;
        } else {
            offer(tool, &param, None, &mut offers)?;
        }
    }
    offers.resolve(choice.map(choice_of).transpose()?, parallel)
}

/// Reads the tools inside a namespace. The first of them gets the namespace's description.
fn open(namespace: ResponsesTool, param: &str, offers: &mut ToolList) -> Result<(), ApiError> {
    let name = namespace.name.unwrap_or_default();
    check_name(param, &name)?;
    let mut about = namespace.description.filter(|text| !text.is_empty());
    for (index, mut tool) in namespace.tools.into_iter().flatten().enumerate() {
        if [FUNCTION, CUSTOM].contains(&tool.kind.as_str())
            && let Some(about) = about.take()
        {
            let own = tool.description.unwrap_or_default();
            tool.description = Some(format!("{own}\n\nAll tools of {name}: {about}"));
        }
        offer(tool, &format!("{param}.tools[{index}]"), Some(&name), offers)?;
    }
    Ok(())
}

fn offer(
    tool: ResponsesTool,
    param: &str,
    namespace: Option<&str>,
    offers: &mut ToolList,
) -> Result<(), ApiError> {
    let ResponsesTool { kind, name, description, parameters, strict, format, .. } = tool;
    let tool = match kind.as_str() {
        FUNCTION => function(param, name.unwrap_or_default(), description, parameters, strict)?,
        CUSTOM => custom(param, name.unwrap_or_default(), description, format)?,
        _ => {
            offers.leave_out(kind, name);
            return Ok(());
        }
    };
    offers.add(param, namespace, tool)
}

fn choice_of(choice: ToolChoice) -> Result<CallChoice, ApiError> {
    let ResponsesChoice { kind, name, namespace, mode, tools } = match choice {
        NameOr::Name(name) => return named_choice(&name),
        NameOr::Object(choice) => choice,
    };
    if kind != "allowed_tools" {
        return Ok(CallChoice::Named(named(kind, namespace, name)));
    }
    let tools = tools.unwrap_or_default().into_iter();
    let tools = tools.map(|tool| named(tool.kind, tool.namespace, tool.name)).collect();
    Ok(CallChoice::Allowed { tools, must: must(mode.as_deref())? })
}

fn named(kind: String, namespace: Option<String>, name: Option<String>) -> Named {
    Named { kind, namespace, name: name.unwrap_or_default() }
}
