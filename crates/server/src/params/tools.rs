//! Which tools the model may call, and whether it must. Each API reads its own fields into
//! [`ToolList`].

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use kilotok_text::{TextGrammar, Tool};
use serde_json::{Value, json};

use super::ranges::at_most;
use crate::error::ApiError;
use crate::left_out::{LeftOut, What};
use crate::wire::tools::{CustomFormat, GrammarFormat};

/// Tools of one request.
const TOOLS_MAX: usize = 512;
/// The parsers of replies read no longer names.
const NAME_CHARS_MAX: usize = 256;

/// Whether the model may or must call tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallMode {
    Never,
    Allowed,
    /// At least one of those that may be called.
    Required,
}

/// The tools of a request.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    /// All that are in the prompt.
    list: Vec<Tool>,
    /// Which of the list may be called.
    callable: Vec<usize>,
    pub(crate) calls: CallMode,
    /// Several calls in one reply.
    pub(crate) parallel: bool,
    pub(crate) names: ToolNames,
    /// What is left out of the prompt, also of the conversation.
    pub(crate) left_out: LeftOut,
}

impl Tools {
    #[cfg(test)]
    pub(crate) fn all(list: Vec<Tool>) -> Self {
        let callable = (0..list.len()).collect();
        let (names, left_out) = (ToolNames::default(), LeftOut::default());
        Self { list, callable, calls: CallMode::Allowed, parallel: true, names, left_out }
    }

    /// Whether calls are looked for in the reply.
    pub(crate) fn may_call(&self) -> bool {
        self.calls != CallMode::Never
    }

    /// The tools that may be called.
    pub(crate) fn callable(&self) -> Vec<Tool> {
        self.callable.iter().map(|index| self.list[*index].clone()).collect()
    }

    /// The tools one of which must be called.
    pub(crate) fn required(&self) -> Option<Vec<Tool>> {
        (self.calls == CallMode::Required).then(|| self.callable())
    }

    /// The tools in the prompt. Tools that may not be called this time are among them, so that the
    /// prompt's beginning stays the same and is found in the cache. Where calls are not allowed at
    /// all there are none.
    pub(crate) fn shown(&self) -> Vec<Tool> {
        if self.may_call() { self.list.clone() } else { Vec::new() }
    }
}

/// The names of tools in namespaces. A model knows no namespaces: its name for such a tool begins
/// with the namespace.
#[derive(Clone, Debug, Default)]
pub(crate) struct ToolNames {
    /// Namespace and name of the client by the name that the model knows, and the reverse.
    of_client: BTreeMap<String, (String, String)>,
    of_model: BTreeMap<(String, String), String>,
}

impl ToolNames {
    fn add(&mut self, namespace: String, name: String, of_model: String) {
        self.of_client.insert(of_model.clone(), (namespace.clone(), name.clone()));
        self.of_model.entry((namespace, name)).or_insert(of_model);
    }

    /// The namespace, if any, and the name that the client knows.
    pub(crate) fn of_client(&self, of_model: &str) -> (Option<String>, String) {
        match self.of_client.get(of_model).cloned() {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, of_model.to_owned()),
        }
    }

    /// The name that the model knows, also of a tool that the request no longer has.
    pub(crate) fn of_model(&self, namespace: Option<String>, name: String) -> String {
        let Some(namespace) = namespace.filter(|namespace| !namespace.is_empty()) else {
            return name;
        };
        let key = (namespace, name);
        self.of_model.get(&key).cloned().unwrap_or_else(|| joined(&key.0, &key.1))
    }
}

/// The name as Codex writes it where there are no namespaces.
fn joined(namespace: &str, name: &str) -> String {
    format!("{}__{}", namespace.trim_end_matches('_'), name.trim_start_matches('_'))
}

/// What a request chooses of calls.
#[derive(Debug)]
pub(crate) enum CallChoice {
    No,
    May,
    Must,
    /// This one must be called.
    Named(Named),
    /// No others than these may be called, and one must be if `must`.
    Allowed {
        tools: Vec<Named>,
        must: bool,
    },
}

/// How a choice names a tool.
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

/// A tool, and the name that its client knows.
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

/// The tools of a request while they are read.
#[derive(Default)]
pub(crate) struct ToolList {
    list: Vec<OfferedTool>,
    /// Types and names of tools that are not offered.
    hosted: Vec<(String, Option<String>)>,
}

impl ToolList {
    /// The tool gets the name that the model knows.
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

    /// A tool that only its vendor's service can run, or of an unknown type.
    pub(crate) fn leave_out(&mut self, kind: String, name: Option<String>) {
        self.hosted.push((kind, name));
    }

    fn find(&self, named: &Named) -> Option<usize> {
        let among = |fits: &dyn Fn(&OfferedTool) -> bool| {
            self.list.iter().position(|offer| offer.kind() == named.kind && fits(offer))
        };
        among(&|offer| offer.namespace == named.namespace && offer.name == named.name)
            .or_else(|| among(&|offer| offer.tool.name == named.name))
            // A choice has no field for the namespace in some clients.
            .or_else(|| among(&|offer| named.namespace.is_none() && offer.name == named.name))
    }

    /// A name in a namespace that another tool has too gets a suffix.
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
                    // Tools that were left out may be listed here too.
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

/// Whether tools of a type are offered to the model.
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

/// A tool that takes JSON.
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

/// A tool that takes a text.
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

/// Whether `allowed_tools` of this mode must be called.
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
