//! Items of the Responses API as messages of the chat template. Reasoning and calls become part of
//! the adjacent assistant message; an action of another service becomes a call and its result.

use std::collections::BTreeSet;

use kilotok_text::{Message, ToolCall};
use serde_json::{Value, json};

use super::wire::{InputItem, ResponsesTool};
use crate::error::ApiError;
use crate::left_out::{LeftOut, What};
use crate::params::content::{left_out_part, lines, part_text, role_of, text_of};
use crate::params::tools::{ToolNames, past_arguments};
use crate::wire::content::{OneOrMany, Part};

/// The beginning of an `encrypted_content` that this server wrote: its reasoning follows as plain
/// text.
const OWN_REASONING: &str = "reasoning_text:";

/// Roles of a message; calls and their results are items of their own.
const ROLES: [&str; 4] = ["user", "assistant", "system", "developer"];

/// The `encrypted_content` of a reasoning item, for clients that send back this field only.
pub(crate) fn encrypted_content(reasoning: &str) -> String {
    format!("{OWN_REASONING}{reasoning}")
}

/// The type of an item that is no part of a conversation, but offers more tools.
const MORE_TOOLS: &str = "additional_tools";

/// The tools of a request: its own, then those in items. For some models Codex sends all tools in
/// items.
pub(crate) fn all_tools(
    own: Option<Vec<ResponsesTool>>,
    items: &mut [InputItem],
) -> Result<Vec<ResponsesTool>, ApiError> {
    let mut tools = own.unwrap_or_default();
    for (index, item) in items.iter_mut().enumerate() {
        if item.kind.as_deref() != Some(MORE_TOOLS) {
            continue;
        }
        let more = serde_json::from_value(item.tools.take().unwrap_or_else(|| json!([])));
        let more: Vec<ResponsesTool> = more.map_err(|error| {
            let param = format!("input[{index}].tools");
            ApiError::bad(&param, format!("{param}: {error}"))
        })?;
        tools.extend(more);
    }
    Ok(tools)
}

/// The conversation as messages. `names` are those of the request's tools.
pub(crate) fn messages(
    instructions: Option<String>,
    items: Vec<InputItem>,
    names: &ToolNames,
    left_out: &mut LeftOut,
) -> Result<Vec<Message>, ApiError> {
    let mut history = History::default();
    if let Some(content) = instructions.filter(|text| !text.is_empty()) {
        history.messages.push(Message { role: "system".into(), content, ..Message::default() });
    }
    check_references(&items)?;
    for (index, item) in items.into_iter().enumerate() {
        history.add(item, &format!("input[{index}]"), names, left_out)?;
    }
    history.messages.append(&mut history.results);
    if history.messages.is_empty() {
        return Err(ApiError::bad("input", "input: there must be at least one message"));
    }
    Ok(history.messages)
}

/// The type of an item that refers to an earlier item.
const REFERENCE: &str = "item_reference";

/// Nothing is stored, so an item can only refer to an item of the same request, which is in the
/// conversation already. Any other reference is an error: the model would miss what it said.
fn check_references(items: &[InputItem]) -> Result<(), ApiError> {
    let is_reference = |item: &InputItem| item.kind.as_deref() == Some(REFERENCE);
    let whole = items.iter().filter(|item| !is_reference(item));
    let known: BTreeSet<&str> = whole.filter_map(|item| item.id.as_deref()).collect();
    let references = items.iter().enumerate().filter(|(_, item)| is_reference(item));
    for (index, item) in references {
        let id = item.id.as_deref().unwrap_or_default();
        if !known.contains(id) {
            let message = format!(
                "input[{index}]: there is no item {id:?}, nothing is stored here; set \
                 `store: false`, with which clients send whole items"
            );
            return Err(ApiError::bad(format!("input[{index}].id"), message));
        }
    }
    Ok(())
}

#[derive(Default)]
struct History {
    messages: Vec<Message>,
    /// Reasoning that goes into the assistant's next message.
    reasoning: Option<String>,
    /// Results of calls that came together with them. They follow all calls of the message.
    results: Vec<Message>,
}

impl History {
    fn add(
        &mut self,
        item: InputItem,
        param: &str,
        names: &ToolNames,
        left_out: &mut LeftOut,
    ) -> Result<(), ApiError> {
        match item.kind.as_deref() {
            Some("reasoning") => self.think(item, param, left_out)?,
            Some("function_call") => {
                let arguments = past_arguments(item.arguments);
                let name = names.of_model(item.namespace, item.name.unwrap_or_default());
                let id = item.call_id.or(item.id).unwrap_or_default();
                self.call(ToolCall { id, name, arguments });
            }
            Some("custom_tool_call") => {
                let name = names.of_model(item.namespace, item.name.unwrap_or_default());
                let id = item.call_id.or(item.id).unwrap_or_default();
                self.call(ToolCall::of_text(id, name, &item.input.unwrap_or_default()));
            }
            None | Some("message") => self.say(item, param)?,
            Some(MORE_TOOLS | REFERENCE) => {}
            Some(kind) if answers(kind, &item) => {
                let came = item.output.or(item.tools).or(item.status.map(Value::String));
                let content =
                    result_of(came.unwrap_or_default(), &format!("{param}.output"), left_out)?;
                let message = result(item.call_id.or(item.id), content);
                self.push(message);
            }
            Some(kind) => {
                let kind = kind.to_owned();
                self.foreign(&kind, item, param, names, left_out)?;
            }
        }
        Ok(())
    }

    /// Appends a message, after the results that are kept.
    fn push(&mut self, message: Message) {
        self.messages.append(&mut self.results);
        self.messages.push(message);
    }

    fn call(&mut self, call: ToolCall) {
        self.assistant().tool_calls.push(call);
    }

    /// The assistant's message under assembly.
    fn assistant(&mut self) -> &mut Message {
        let reasoning = self.reasoning.take();
        let goes_on = self.messages.last().is_some_and(|last| last.role == "assistant");
        if !goes_on || reasoning.is_some() {
            self.push(Message { role: "assistant".into(), reasoning, ..Message::default() });
        }
        let last = self.messages.len() - 1;
        &mut self.messages[last]
    }

    fn think(
        &mut self,
        item: InputItem,
        param: &str,
        left_out: &mut LeftOut,
    ) -> Result<(), ApiError> {
        let content = item.content.map(|parts| parts.0).filter(|parts| !parts.is_empty());
        let parts = OneOrMany(content.or(item.summary).unwrap_or_default());
        let mut text = text_of(&parts, &format!("{param}.content"))?;
        if text.is_empty()
            && let Some(kept) = item.encrypted_content
        {
            match kept.strip_prefix(OWN_REASONING) {
                Some(own) => own.clone_into(&mut text),
                None => left_out.add(What::Item, "reasoning"),
            }
        }
        if !text.is_empty() {
            self.reasoning.get_or_insert_default().push_str(&text);
        }
        Ok(())
    }

    fn say(&mut self, item: InputItem, param: &str) -> Result<(), ApiError> {
        let content = text_of(&item.content.unwrap_or_default(), &format!("{param}.content"))?;
        match item.role.as_deref() {
            Some("assistant") => {
                self.messages.append(&mut self.results);
                self.assistant().content.push_str(&content);
            }
            Some(role) => {
                let role = role_of(param, role, &ROLES)?;
                self.push(Message { role, content, ..Message::default() });
            }
            None => {
                let param = format!("{param}.role");
                return Err(ApiError::bad(&param, format!("{param}: missing")));
            }
        }
        Ok(())
    }

    /// A call that another service made, or left to the client. If it has no `call_id`, no other
    /// item can hold its result.
    fn foreign(
        &mut self,
        kind: &str,
        mut item: InputItem,
        param: &str,
        names: &ToolNames,
        left_out: &mut LeftOut,
    ) -> Result<(), ApiError> {
        let tool = kind.strip_suffix("_call");
        let Some((tool, mut arguments)) = tool.zip(asked(&mut item)) else {
            left_out.add(What::Item, kind);
            return Ok(());
        };
        let sources = arguments.as_object_mut().and_then(|action| action.remove("sources"));
        let name = names.of_model(item.server_label, item.name.unwrap_or_else(|| tool.to_owned()));
        let alone = item.call_id.is_none();
        let id = item.call_id.or(item.id).unwrap_or_default();
        self.call(ToolCall { id: id.clone(), name, arguments });
        if alone {
            let found = item.results.or(item.outputs).or(item.output).or(item.error).or(sources);
            let came = found.or(item.status.map(Value::String)).unwrap_or_default();
            let content = result_of(came, param, left_out)?;
            self.results.push(result(Some(id), content));
        }
        Ok(())
    }
}

fn result(tool_call_id: Option<String>, content: String) -> Message {
    Message { role: "tool".into(), content, tool_call_id, ..Message::default() }
}

/// Whether an item is the result of a call.
fn answers(kind: &str, item: &InputItem) -> bool {
    let named = item.call_id.is_some() || item.id.is_some();
    kind == "function_call_output" || kind.ends_with("_output") && named
}

/// The arguments of a call. Each type has its own field for them.
fn asked(item: &mut InputItem) -> Option<Value> {
    let lists = [("queries", item.queries.take()), ("actions", item.actions.take())];
    let lists = lists.into_iter().find_map(|(name, list)| Some(json!({ name: list? })));
    let whole = item.action.take().or(item.operation.take()).or(lists);
    let whole = whole.or(item.code.take().map(|code| json!({ "code": code })));
    let mut asked = past_arguments(Some(whole.or(item.arguments.take())?));
    if let Value::Object(fields) = &mut asked {
        fields.retain(|_, value| !value.is_null());
    }
    Some(asked)
}

/// The text of a call's result.
fn result_of(came: Value, param: &str, left_out: &mut LeftOut) -> Result<String, ApiError> {
    match came {
        Value::Null => Ok(String::new()),
        Value::Array(parts) => lines(
            parts
                .into_iter()
                .enumerate()
                .map(|(index, part)| part_of_result(part, &format!("{param}[{index}]"), left_out)),
        ),
        other => part_of_result(other, param, left_out),
    }
}

fn part_of_result(part: Value, param: &str, left_out: &mut LeftOut) -> Result<String, ApiError> {
    let fields = match part {
        Value::String(text) => return Ok(text),
        Value::Object(fields) => fields,
        other => return Ok(other.to_string()),
    };
    let text = |name: &str| fields.get(name).and_then(Value::as_str).map(str::to_owned);
    let Some(kind) = text("type") else { return Ok(Value::Object(fields).to_string()) };
    let own = match kind.as_str() {
        "logs" => text("logs"),
        "url" => text("url"),
        "function" | "custom" | "namespace" => text("name"),
        _ => None,
    };
    if let Some(own) = own {
        return Ok(own);
    }
    let part = Part { kind, text: text("text"), refusal: text("refusal") };
    Ok(part_text(&part, param)?.unwrap_or_else(|| left_out_part(&part.kind, left_out)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(items: Value) -> Result<(Vec<Message>, LeftOut), ApiError> {
        let items = serde_json::from_value(items).unwrap();
        let mut left_out = LeftOut::default();
        let messages = messages(Some("first".into()), items, &ToolNames::default(), &mut left_out)?;
        Ok((messages, left_out))
    }

    fn roles(messages: &[Message]) -> Vec<&str> {
        messages.iter().map(|message| message.role.as_str()).collect()
    }

    #[test]
    fn items_become_messages() {
        let (messages, _) = of(json!([
            {"role": "developer", "content": "be"},
            {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [],
             "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "message", "role": "assistant",
             "content": [{"type": "output_text", "text": "let me see", "annotations": []}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{\"x\":1}"},
            {"type": "custom_tool_call", "call_id": "c2", "name": "g", "namespace": "n",
             "input": "a\nb"},
            {"type": "function_call_output", "call_id": "c1", "output": "1"},
            {"type": "custom_tool_call_output", "call_id": "c2",
             "output": [{"type": "input_text", "text": "2"}, {"type": "input_image"}]},
            {"role": "assistant", "content": "done"},
        ]))
        .unwrap();
        let expected = ["system", "system", "user", "assistant", "tool", "tool", "assistant"];
        assert_eq!(roles(&messages), expected);
        assert_eq!(messages[3].reasoning.as_deref(), Some("hm"));
        assert_eq!(messages[3].content, "let me see");
        assert_eq!(messages[3].tool_calls.len(), 2);
        assert_eq!(messages[3].tool_calls[1].name, "n__g");
        assert_eq!(messages[3].tool_calls[1].arguments, json!({"input": "a\nb"}));
        let image = "2\n[input_image left out: this model reads text only]";
        assert_eq!(messages[5].content, image);
        assert_eq!(messages[6].reasoning, None);
    }

    /// Reads an item that records an action of another service, as the call and result that the
    /// model sees.
    #[track_caller]
    fn is_shown(items: Value, name: &str, arguments: &Value, result: &str) {
        let (messages, _) = of(items).unwrap();
        assert_eq!(roles(&messages), ["system", "assistant", "tool"], "{name}");
        let call = &messages[1].tool_calls[0];
        assert_eq!((call.name.as_str(), &call.arguments), (name, arguments));
        assert_eq!(messages[2].tool_call_id.as_ref(), Some(&call.id), "{name}");
        assert_eq!(messages[2].content, result, "{name}");
    }

    /// The items come from OpenAI's reference and from Codex.
    #[test]
    fn calls_may_bring_their_results() {
        for (items, name, arguments, result) in [
            (
                json!([{"type": "web_search_call", "id": "w", "status": "completed", "action":
                    {"type": "search", "query": "q", "sources": [{"type": "url", "url": "u"}]}}]),
                "web_search",
                json!({"type": "search", "query": "q"}),
                "u",
            ),
            (
                json!([{"type": "file_search_call", "id": "f", "queries": ["q"], "results":
                    [{"filename": "a", "text": "b"}]}]),
                "file_search",
                json!({"queries": ["q"]}),
                r#"{"filename":"a","text":"b"}"#,
            ),
            (
                json!([{"type": "code_interpreter_call", "id": "c", "container_id": "x",
                    "code": "1", "outputs": [{"type": "logs", "logs": "2"}, {"type": "image"}]}]),
                "code_interpreter",
                json!({"code": "1"}),
                "2\n[image left out: this model reads text only]",
            ),
            (
                json!([{"type": "mcp_call", "id": "m", "server_label": "s", "name": "n",
                    "arguments": "{\"a\": 1}", "output": "o"}]),
                "s__n",
                json!({"a": 1}),
                "o",
            ),
        ] {
            is_shown(items, name, &arguments, result);
        }
    }

    #[test]
    fn calls_may_have_their_results_elsewhere() {
        for (items, name, arguments, result) in [
            (
                json!([
                    {"type": "local_shell_call", "call_id": "l", "status": "completed",
                     "action": {"type": "exec", "command": ["ls"], "env": null}},
                    {"type": "local_shell_call_output", "call_id": "l", "output": "a"},
                ]),
                "local_shell",
                json!({"type": "exec", "command": ["ls"]}),
                "a",
            ),
            (
                json!([
                    {"type": "shell_call", "call_id": "l", "action": {"commands": ["ls"]}},
                    {"type": "shell_call_output", "call_id": "l", "output":
                        [{"stdout": "a", "outcome": {"type": "exit", "exit_code": 0}}]},
                ]),
                "shell",
                json!({"commands": ["ls"]}),
                r#"{"stdout":"a","outcome":{"type":"exit","exit_code":0}}"#,
            ),
            (
                json!([
                    {"type": "apply_patch_call", "call_id": "l",
                     "operation": {"type": "delete_file", "path": "p"}},
                    {"type": "apply_patch_call_output", "call_id": "l", "status": "completed"},
                ]),
                "apply_patch",
                json!({"type": "delete_file", "path": "p"}),
                "completed",
            ),
            (
                json!([
                    {"type": "computer_call", "id": "a", "call_id": "l",
                     "action": {"type": "screenshot"}},
                    {"type": "computer_call_output", "call_id": "l",
                     "output": {"type": "computer_screenshot", "image_url": "data:"}},
                ]),
                "computer",
                json!({"type": "screenshot"}),
                "[computer_screenshot left out: this model reads text only]",
            ),
            (
                json!([
                    {"type": "tool_search_call", "call_id": "l", "execution": "client",
                     "arguments": {"query": "q"}},
                    {"type": "tool_search_output", "call_id": "l", "status": "completed",
                     "tools": [{"type": "namespace", "name": "n", "tools": []}]},
                ]),
                "tool_search",
                json!({"query": "q"}),
                "n",
            ),
        ] {
            is_shown(items, name, &arguments, result);
        }
    }

    #[test]
    fn what_has_no_text_is_left_out() {
        let (messages, left_out) = of(json!([
            {"role": "user", "content": "hi"},
            {"type": "web_search_call", "id": "w", "status": "completed"},
            {"type": "image_generation_call", "id": "i", "result": "base64"},
            {"type": "compaction", "encrypted_content": "x"},
            {"type": "reasoning", "summary": [], "encrypted_content": "x"},
            {"type": "from_the_future", "id": "f"},
            {"type": "from_the_future_output"},
        ]))
        .unwrap();
        assert_eq!(roles(&messages), ["system", "user"]);
        let mut expected = LeftOut::default();
        for kind in [
            "web_search_call",
            "image_generation_call",
            "compaction",
            "reasoning",
            "from_the_future",
            "from_the_future_output",
        ] {
            expected.add(What::Item, kind);
        }
        assert_eq!(format!("{left_out:?}"), format!("{expected:?}"));
    }

    #[test]
    fn references_are_to_items_of_the_request() {
        let said = json!({"id": "msg_1", "role": "assistant", "content": "hi"});
        let reference = json!({"type": "item_reference", "id": "msg_1"});
        for items in [json!([said, reference]), json!([reference, said])] {
            assert_eq!(roles(&of(items).unwrap().0), ["system", "assistant"]);
        }
        for items in [json!([reference]), json!([{"type": "item_reference"}, said])] {
            let error = of(items).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("input[0].id"));
            assert!(error.message.contains("`store: false`"), "{}", error.message);
        }
    }

    #[test]
    fn results_come_after_all_calls_of_their_message() {
        let (messages, _) = of(json!([
            {"type": "function_call", "call_id": "1", "name": "f"},
            {"type": "web_search_call", "id": "2", "action": {"query": "q"}, "status": "completed"},
            {"type": "function_call", "call_id": "3", "name": "f"},
            {"type": "function_call_output", "call_id": "1", "output": "a"},
            {"type": "function_call_output", "call_id": "3", "output": "b"},
        ]))
        .unwrap();
        assert_eq!(roles(&messages), ["system", "assistant", "tool", "tool", "tool"]);
        assert_eq!(messages[1].tool_calls.len(), 3);
        let ids: Vec<_> = messages[2..].iter().map(|each| each.tool_call_id.as_deref()).collect();
        assert_eq!(ids, [Some("2"), Some("1"), Some("3")]);
    }

    #[test]
    fn reasoning_comes_back_in_either_field() {
        for reasoning in [
            json!({"content": [{"type": "reasoning_text", "text": "hm"}],
                   "encrypted_content": encrypted_content("hm")}),
            json!({"summary": [], "encrypted_content": encrypted_content("hm")}),
        ] {
            let mut item = json!({"type": "reasoning"});
            item.as_object_mut().unwrap().extend(reasoning.as_object().unwrap().clone());
            let (messages, _) = of(json!([item, {"role": "assistant", "content": "a"}])).unwrap();
            assert_eq!(messages[1].reasoning.as_deref(), Some("hm"));
        }
    }

    #[test]
    fn what_is_no_item_is_refused_by_place() {
        let error = of(json!([{"id": "msg_1"}])).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("input[0].role"));
        let error = of(json!([{"role": "tool", "content": "a"}])).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("input[0].role"));
        let output = json!([{"type": "input_text"}]);
        let error = of(json!([{"type": "function_call_output", "output": output}])).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("input[0].output[0].text"));
        let names = ToolNames::default();
        assert!(messages(None, Vec::new(), &names, &mut LeftOut::default()).is_err());
    }
}
