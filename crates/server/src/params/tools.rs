//! Which tools the model may call, and whether it must call one. Each API reads its own fields into
//! a [`ToolList`].

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use kilotok_text::{TextGrammar, Tool};
use serde_json::{Value, json};

use super::ranges::at_most;
use crate::error::ApiError;
use crate::left_out::{LeftOut, What};
use crate::wire::tools::{CustomFormat, GrammarFormat};

/// Most tools of one request.
const TOOLS_MAX: usize = 512;
/// The parsers of replies read no longer names.
const NAME_CHARS_MAX: usize = 256;

/// Whether the model may or must call tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallMode {
    Never,
    Allowed,
    /// At least one of the tools that may be called must be.
    Required,
}

/// The tools of a request.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    /// All tools that the prompt shows.
    list: Vec<Tool>,
    /// Indices into `list` of the tools that may be called.
    callable: Vec<usize>,
    pub(crate) calls: CallMode,
    /// Whether one reply may have several calls.
    pub(crate) parallel: bool,
    pub(crate) names: ToolNames,
    /// Everything that is left out of the prompt, including parts of the conversation.
    pub(crate) left_out: LeftOut,
}

impl Tools {
    #[cfg(test)]
    pub(crate) fn all(list: Vec<Tool>) -> Self {
        let callable = (0..list.len()).collect();
        let (names, left_out) = (ToolNames::default(), LeftOut::default());
        Self { list, callable, calls: CallMode::Allowed, parallel: true, names, left_out }
    }

    /// Whether the reply is searched for calls.
    pub(crate) fn may_call(&self) -> bool {
        self.calls != CallMode::Never
    }

    /// The tools that may be called.
    pub(crate) fn callable(&self) -> Vec<Tool> {
        self.callable.iter().map(|index| self.list[*index].clone()).collect()
    }

    /// The tools of which one must be called, if one must be.
    pub(crate) fn required(&self) -> Option<Vec<Tool>> {
        (self.calls == CallMode::Required).then(|| self.callable())
    }

    /// The tools that the prompt shows. They include tools that this request may not call, so that
    /// the beginning of the prompt stays the same and is found in the prefix cache. If no calls are
    /// allowed at all, the prompt shows none.
    pub(crate) fn shown(&self) -> Vec<Tool> {
        if self.may_call() { self.list.clone() } else { Vec::new() }
    }
}

/// Names of tools in namespaces. Models do not know namespaces, so the model's name for a tool
/// begins with the namespace.
#[derive(Clone, Debug, Default)]
pub(crate) struct ToolNames {
    /// The client's namespace and name, by the model's name; below, the reverse.
    of_client: BTreeMap<String, (String, String)>,
    of_model: BTreeMap<(String, String), String>,
}

impl ToolNames {
    fn add(&mut self, namespace: String, name: String, of_model: String) {
        self.of_client.insert(of_model.clone(), (namespace.clone(), name.clone()));
        self.of_model.entry((namespace, name)).or_insert(of_model);
    }

    /// The namespace, if any, and the name that the client uses.
    pub(crate) fn of_client(&self, of_model: &str) -> (Option<String>, String) {
        match self.of_client.get(of_model).cloned() {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, of_model.to_owned()),
        }
    }

    /// The name that the model uses, even for a tool that the request no longer has.
    pub(crate) fn of_model(&self, namespace: Option<String>, name: String) -> String {
        let Some(namespace) = namespace.filter(|namespace| !namespace.is_empty()) else {
            return name;
        };
        let key = (namespace, name);
        self.of_model.get(&key).cloned().unwrap_or_else(|| joined(&key.0, &key.1))
    }
}

/// The name as Codex writes it for APIs without namespaces.
fn joined(namespace: &str, name: &str) -> String {
    format!("{}__{}", namespace.trim_end_matches('_'), name.trim_start_matches('_'))
}

/// Which calls the request allows.
#[derive(Debug)]
pub(crate) enum CallChoice {
    No,
    May,
    Must,
    /// This tool must be called.
    Named(Named),
    /// Only these tools may be called; if `must`, one of them must be.
    Allowed {
        tools: Vec<Named>,
        must: bool,
    },
}

/// A tool, as the request's choice names it.
#[derive(Debug)]
pub(crate) struct Named {
    /// OpenAI's name for the tool's type.
    pub(crate) kind: String,
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
}

/// OpenAI's types of tools that this server offers.
pub(crate) const FUNCTION: &str = "function";
pub(crate) const CUSTOM: &str = "custom";
pub(crate) const NAMESPACE: &str = "namespace";

/// A tool, with the client's name for it.
struct OfferedTool {
    namespace: Option<String>,
    name: String,
    tool: Tool,
}

impl OfferedTool {
    fn kind(&self) -> &'static str {
        if self.tool.takes_text() { CUSTOM } else { FUNCTION }
    }
}

/// The tools of a request, while they are read.
#[derive(Default)]
pub(crate) struct ToolList {
    list: Vec<OfferedTool>,
    /// Types and names of tools that the model is not offered.
    hosted: Vec<(String, Option<String>)>,
}

impl ToolList {
    /// Adds a tool under the name that the model uses.
    pub(crate) fn add(
        &mut self,
        param: &str,
        namespace: Option<&str>,
        tool: Tool,
    ) -> Result<(), ApiError> {
        let name = tool.name.clone();
        let shown = namespace.map_or_else(|| name.clone(), |namespace| joined(namespace, &name));
        check_name(param, &shown)?;
        let tool = Tool { name: shown, ..tool };
        self.list.push(OfferedTool { namespace: namespace.map(str::to_owned), name, tool });
        Ok(())
    }

    /// Notes a tool that only its vendor's service can run, or whose type is unknown.
    pub(crate) fn leave_out(&mut self, kind: String, name: Option<String>) {
        self.hosted.push((kind, name));
    }

    fn find(&self, named: &Named) -> Option<usize> {
        let among = |fits: &dyn Fn(&OfferedTool) -> bool| {
            self.list.iter().position(|offer| offer.kind() == named.kind && fits(offer))
        };
        among(&|offer| offer.namespace == named.namespace && offer.name == named.name)
            .or_else(|| among(&|offer| offer.tool.name == named.name))
            // Some clients have no field for the namespace in a choice.
            .or_else(|| among(&|offer| named.namespace.is_none() && offer.name == named.name))
    }

    /// Sets the model's names of tools in namespaces; a name that another tool has too gets a
    /// suffix.
    fn settle_names(&mut self) -> ToolNames {
        let (mut names, mut taken) = (ToolNames::default(), BTreeSet::new());
        let plain = self.list.iter().filter(|offer| offer.namespace.is_none());
        taken.extend(plain.map(|offer| offer.tool.name.clone()));
        for OfferedTool { namespace, name, tool } in &mut self.list {
            let Some(namespace) = namespace else { continue };
            while !taken.insert(tool.name.clone()) {
                tool.name.push('_');
            }
            names.add(namespace.clone(), name.clone(), tool.name.clone());
        }
        names
    }

    pub(crate) fn resolve(
        mut self,
        choice: Option<CallChoice>,
        parallel: Option<bool>,
    ) -> Result<Tools, ApiError> {
        at_most("tools", &self.list, TOOLS_MAX)?;
        let names = self.settle_names();
        let (calls, callable) = self.callable(choice.unwrap_or(CallChoice::May))?;
        let calls = match calls {
            CallMode::Required if callable.is_empty() => return Err(self.nothing_to_call()),
            CallMode::Allowed if callable.is_empty() => CallMode::Never,
            calls => calls,
        };
        let mut left_out = LeftOut::default();
        for (kind, _) in &self.hosted {
            left_out.add(What::Tool, kind);
        }
        let list = self.list.into_iter().map(|offer| offer.tool).collect();
        Ok(Tools { list, callable, calls, parallel: parallel.unwrap_or(true), names, left_out })
    }

    fn callable(&self, choice: CallChoice) -> Result<(CallMode, Vec<usize>), ApiError> {
        let all = || (0..self.list.len()).collect();
        Ok(match choice {
            CallChoice::No => (CallMode::Never, Vec::new()),
            CallChoice::May => (CallMode::Allowed, all()),
            CallChoice::Must => (CallMode::Required, all()),
            CallChoice::Named(named) => {
                let found = self.find(&named).ok_or_else(|| self.not_found(&named))?;
                (CallMode::Required, vec![found])
            }
            CallChoice::Allowed { tools, must } => {
                at_most("tool_choice.tools", &tools, TOOLS_MAX)?;
                let mut callable = BTreeSet::new();
                for named in &tools {
                    // The list may also name tools that were left out.
                    if is_offered(&named.kind) {
                        let found = self.find(named).ok_or_else(|| self.not_found(named))?;
                        callable.insert(found);
                    }
                }
                let calls = if must { CallMode::Required } else { CallMode::Allowed };
                (calls, callable.into_iter().collect())
            }
        })
    }

    fn not_found(&self, named: &Named) -> ApiError {
        let Named { kind, name, .. } = named;
        let hosted = self.hosted.iter().find(|(_, hosted)| hosted.as_ref() == Some(name));
        let hosted = hosted.map(|(kind, _)| kind);
        let message = match hosted.or(Some(kind).filter(|kind| !is_offered(kind))) {
            Some(kind) => format!(
                "tool_choice: a tool of type {kind:?} runs at its vendor's service, this server \
                 has none to call; choose a function, or auto"
            ),
            None => format!("tool_choice: there is no {kind} tool {name:?}"),
        };
        ApiError::bad("tool_choice", message)
    }

    fn nothing_to_call(&self) -> ApiError {
        let kinds: BTreeSet<_> = self.hosted.iter().map(|(kind, _)| kind.as_str()).collect();
        let message = if kinds.is_empty() {
            "tool_choice: a call is required, but there are no tools".to_owned()
        } else {
            format!(
                "tool_choice: a call is required, but there is nothing to call: tools of types \
                 {kinds:?} run at their vendor's service, this server has none; add a function"
            )
        };
        ApiError::bad("tool_choice", message)
    }
}

/// Whether the model is offered tools of this type.
pub(crate) fn is_offered(kind: &str) -> bool {
    [FUNCTION, CUSTOM, NAMESPACE].contains(&kind)
}

/// Checks that a name can be written in a prompt.
pub(crate) fn check_name(param: &str, name: &str) -> Result<(), ApiError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.:/".contains(c);
    if !name.is_empty() && name.len() <= NAME_CHARS_MAX && name.chars().all(plain) {
        return Ok(());
    }
    let message = format!(
        "{param}.name: {name:?}, it must have 1 to {NAME_CHARS_MAX} letters, digits or \"_-.:/\""
    );
    Err(ApiError::bad(format!("{param}.name"), message))
}

/// A tool that takes JSON arguments.
pub(crate) fn function(
    param: &str,
    name: String,
    description: Option<String>,
    parameters: Option<Value>,
    strict: Option<bool>,
) -> Result<Tool, ApiError> {
    check_name(param, &name)?;
    let parameters = match parameters {
        None | Some(Value::Null) => json!({"type": "object", "properties": {}}),
        Some(Value::Object(schema)) => Value::Object(schema),
        Some(_) => {
            let message = format!("{param}.parameters: it must be a JSON schema, an object");
            return Err(ApiError::bad(format!("{param}.parameters"), message));
        }
    };
    let strict = strict.unwrap_or_default();
    Ok(Tool { name, description, parameters, strict, ..Tool::default() })
}

/// A tool that takes text.
pub(crate) fn custom(
    param: &str,
    name: String,
    description: Option<String>,
    format: Option<CustomFormat>,
) -> Result<Tool, ApiError> {
    check_name(param, &name)?;
    let grammar = format.map(|format| grammar(&format!("{param}.format"), format)).transpose()?;
    Ok(Tool::of_text(name, description, grammar.flatten()))
}

fn grammar(param: &str, format: CustomFormat) -> Result<Option<TextGrammar>, ApiError> {
    let CustomFormat { kind, syntax, definition, grammar } = format;
    match kind.as_str() {
        "text" => return Ok(None),
        "grammar" => {}
        other => {
            let param = format!("{param}.type");
            let message = format!("{param}: {other:?}, it must be text or grammar");
            return Err(ApiError::bad(param, message));
        }
    }
    let inner = grammar.unwrap_or(GrammarFormat { syntax: None, definition: None });
    let (syntax, definition) = (syntax.or(inner.syntax), definition.or(inner.definition));
    match (syntax.as_deref(), definition) {
        (Some("lark"), Some(lark)) => Ok(Some(TextGrammar::Lark(lark))),
        (Some("regex"), Some(regex)) => Ok(Some(TextGrammar::Regex(regex))),
        (_, None) => Err(ApiError::bad(
            format!("{param}.definition"),
            format!("{param}.definition: missing"),
        )),
        (syntax, Some(_)) => {
            let param = format!("{param}.syntax");
            let syntax = syntax.unwrap_or_default();
            let message = format!("{param}: {syntax:?}, it must be lark or regex");
            Err(ApiError::bad(param, message))
        }
    }
}

/// `none`, `auto` or `required`.
pub(crate) fn named_choice(name: &str) -> Result<CallChoice, ApiError> {
    match name {
        "none" => Ok(CallChoice::No),
        "auto" => Ok(CallChoice::May),
        "required" => Ok(CallChoice::Must),
        other => {
            let message = format!(
                "tool_choice: {other:?}, it must be none, auto, required, a tool or allowed_tools"
            );
            Err(ApiError::bad("tool_choice", message))
        }
    }
}

/// Whether this mode of `allowed_tools` requires a call.
pub(crate) fn must(mode: Option<&str>) -> Result<bool, ApiError> {
    match mode {
        None | Some("auto") => Ok(false),
        Some("required") => Ok(true),
        Some(other) => {
            let message = format!(
                "tool_choice: the mode {other:?} of allowed_tools, it must be auto or required"
            );
            Err(ApiError::bad("tool_choice", message))
        }
    }
}

/// The arguments of an earlier call: as an object if they are one, else unchanged, because models
/// sometimes write broken JSON and the conversation must go on.
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
