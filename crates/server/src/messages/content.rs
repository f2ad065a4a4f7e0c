//! Messages of Anthropic's API as messages of the chat template. One message may become several,
//! because each result of a call becomes a message of its own.

use kilotok_text::{Message, ToolCall};
use serde_json::Value;

use super::wire::{DocumentSource, InputMessage, InputPart, InputParts, PartContent};
use crate::error::ApiError;
use crate::left_out::{LeftOut, What};
use crate::params::content::{left_out_part, lines};
use crate::params::ranges::at_most;
use crate::params::tools::past_arguments;
use crate::wire::content::NameOr;

/// Most messages of one conversation.
const MESSAGES_MAX: usize = 16_384;

/// The line that Claude Code puts before its system prompt. It changes with every request, so a
/// prompt that began with it would find no prefix in the cache.
const BILLING: &str = "x-anthropic-billing-header";

pub(crate) fn messages(
    system: Option<InputParts>,
    messages: Vec<InputMessage>,
    left_out: &mut LeftOut,
) -> Result<Vec<Message>, ApiError> {
    at_most("messages", &messages, MESSAGES_MAX)?;
    if messages.is_empty() {
        return Err(ApiError::bad("messages", "messages: there must be at least one"));
    }
    let mut out = Vec::new();
    if let Some(system) = system {
        let mut parts = system.0;
        parts.retain(|part| !part.text.as_deref().unwrap_or_default().starts_with(BILLING));
        let content = texts(parts, "system")?;
        if !content.is_empty() {
            out.push(Message { role: "system".into(), content, ..Message::default() });
        }
    }
    for (index, message) in messages.into_iter().enumerate() {
        add(message, &format!("messages[{index}]"), &mut out, left_out)?;
    }
    Ok(out)
}

/// A message under assembly.
struct MessageBuilder {
    role: String,
    lines: Vec<String>,
    reasoning: Option<String>,
    tool_calls: Vec<ToolCall>,
}

impl MessageBuilder {
    fn of(role: String) -> Self {
        Self { role, lines: Vec::new(), reasoning: None, tool_calls: Vec::new() }
    }

    fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.reasoning.is_none() && self.tool_calls.is_empty()
    }

    fn finish(self) -> Message {
        let Self { role, lines, reasoning, tool_calls } = self;
        let content = lines.join("\n");
        Message { role, content, reasoning, tool_calls, ..Message::default() }
    }
}

fn add(
    message: InputMessage,
    param: &str,
    out: &mut Vec<Message>,
    left_out: &mut LeftOut,
) -> Result<(), ApiError> {
    let role = message.role;
    if !["user", "assistant", "system"].contains(&role.as_str()) {
        let param = format!("{param}.role");
        let text = format!("{param}: {role:?}, it must be user or assistant");
        return Err(ApiError::bad(param, text));
    }
    let mut builder = MessageBuilder::of(role.clone());
    let mut answered = false;
    for (index, part) in message.content.0.into_iter().enumerate() {
        let param = format!("{param}.content[{index}]");
        match part.kind.as_str() {
            "thinking" => {
                let reasoning = builder.reasoning.get_or_insert_default();
                reasoning.push_str(&part.thinking.unwrap_or_default());
            }
            // Only Anthropic can read the former, and only it has the file that the latter names.
            "redacted_thinking" | "container_upload" => left_out.add(What::Part, &part.kind),
            "tool_use" | "server_tool_use" | "mcp_tool_use" => builder.tool_calls.push(ToolCall {
                id: part.id.unwrap_or_default(),
                name: part.name.unwrap_or_default(),
                arguments: past_arguments(part.input),
            }),
            kind if kind.ends_with("tool_result") => {
                // Results of tools that Anthropic's servers run are inside the assistant's message.
                if kind != "tool_result" && !builder.is_empty() {
                    let begun = std::mem::replace(&mut builder, MessageBuilder::of(role.clone()));
                    out.push(begun.finish());
                }
                out.push(result(part, &param, left_out)?);
                answered = true;
            }
            _ => builder.lines.push(text(part, &param)?),
        }
    }
    if !(answered && builder.is_empty()) {
        out.push(builder.finish());
    }
    Ok(())
}

/// The result of a call to a tool of the client or of Anthropic's servers.
fn result(part: InputPart, param: &str, left_out: &mut LeftOut) -> Result<Message, ApiError> {
    let param = format!("{param}.content");
    let content = match part.content {
        None => String::new(),
        Some(PartContent::Object(fields)) => {
            let mut answer = Value::Object(fields);
            readable(&mut answer);
            answer.to_string()
        }
        Some(PartContent::Parts(parts)) => lines(parts.0.into_iter().enumerate().map(
            // A client does not choose what its tools answer, and sends the answer with every
            // request.
            |(index, part)| match part.kind.as_str() {
                "image" => Ok(left_out_part("image", left_out)),
                _ if is_unread(&part) => Ok(left_out_part("document", left_out)),
                _ => text(part, &format!("{param}[{index}]")),
            },
        ))?,
    };
    let tool_call_id = part.tool_use_id;
    Ok(Message { role: "tool".into(), content, tool_call_id, ..Message::default() })
}

/// Whether this is a document that is not text.
fn is_unread(part: &InputPart) -> bool {
    let Some(NameOr::Object(source)) = &part.source else { return false };
    part.kind == "document" && !["text", "content"].contains(&source.kind.as_str())
}

/// Removes from the answer of an Anthropic tool the contents of files and everything that only
/// Anthropic can read.
fn readable(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let is_file = fields.get("type").is_some_and(|kind| kind == "base64");
            let opaque = |name: &str| name.starts_with("encrypted") || (is_file && name == "data");
            fields.retain(|name, _| !opaque(name));
            fields.values_mut().for_each(readable);
        }
        Value::Array(list) => list.iter_mut().for_each(readable),
        _ => {}
    }
}

fn texts(parts: Vec<InputPart>, param: &str) -> Result<String, ApiError> {
    let parts = parts.into_iter().enumerate();
    lines(parts.map(|(index, part)| text(part, &format!("{param}[{index}]"))))
}

fn text(part: InputPart, param: &str) -> Result<String, ApiError> {
    let missing = |field: &str| {
        let param = format!("{param}.{field}");
        ApiError::bad(&param, format!("{param}: missing"))
    };
    match part.kind.as_str() {
        "text" => part.text.ok_or_else(|| missing("text")),
        "tool_reference" => part.tool_name.ok_or_else(|| missing("tool_name")),
        "web_search_result" => Ok(joined([part.title, part.url])),
        "compaction" | "search_result" => {
            let text = match part.content {
                Some(PartContent::Parts(parts)) => texts(parts.0, &format!("{param}.content"))?,
                None | Some(PartContent::Object(_)) => String::new(),
            };
            let source = match part.source {
                Some(NameOr::Name(source)) => Some(source),
                _ => None,
            };
            Ok(joined([part.title, source, Some(text)]))
        }
        "document" => {
            let Some(NameOr::Object(source)) = part.source else { return Err(missing("source")) };
            let text = document(source, &format!("{param}.source"))?;
            Ok(joined([part.title, part.context, Some(text)]))
        }
        other => {
            let message = format!("{param}.type: {other:?}, but this model reads text only");
            Err(ApiError::bad(format!("{param}.type"), message))
        }
    }
}

fn document(source: DocumentSource, param: &str) -> Result<String, ApiError> {
    match (source.kind.as_str(), source.data, source.content) {
        ("text", Some(text), _) => Ok(text),
        ("content", _, Some(parts)) => texts(parts.0, &format!("{param}.content")),
        (field @ ("text" | "content"), _, _) => {
            let field = if field == "text" { "data" } else { field };
            let param = format!("{param}.{field}");
            Err(ApiError::bad(&param, format!("{param}: missing")))
        }
        (other, _, _) => {
            let param = format!("{param}.type");
            let message = format!(
                "{param}: {other:?}, but this model reads text only; send the document's text as \
                 a source of type \"text\""
            );
            Err(ApiError::bad(param, message))
        }
    }
}

/// The texts that are not empty, one per line.
fn joined<const COUNT: usize>(parts: [Option<String>; COUNT]) -> String {
    let parts = parts.into_iter().flatten().filter(|text| !text.is_empty());
    parts.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(request: Value) -> Result<(Vec<Message>, LeftOut), ApiError> {
        let mut left_out = LeftOut::default();
        let messages = messages(None, serde_json::from_value(request).unwrap(), &mut left_out)?;
        Ok((messages, left_out))
    }

    fn user(part: &Value) -> Result<String, ApiError> {
        let (mut messages, _) = of(json!([{"role": "user", "content": [part]}]))?;
        Ok(messages.remove(0).content)
    }

    #[test]
    fn documents_are_their_text() {
        let text = json!({"type": "text", "media_type": "text/plain", "data": "abc"});
        for (part, expected) in [
            (json!({"type": "document", "source": text}), "abc"),
            (
                json!({"type": "document", "source": text, "title": "t", "context": "c",
                       "citations": {"enabled": true}, "cache_control": {"type": "ephemeral"}}),
                "t\nc\nabc",
            ),
            (json!({"type": "document", "source": {"type": "content", "content": "abc"}}), "abc"),
            (
                json!({"type": "document", "source": {"type": "content", "content":
                    [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}}),
                "a\nb",
            ),
            (
                json!({"type": "search_result", "source": "u", "title": "t",
                       "content": [{"type": "text", "text": "a"}]}),
                "t\nu\na",
            ),
            (json!({"type": "tool_reference", "tool_name": "f"}), "f"),
            (json!({"type": "compaction", "content": "so far"}), "so far"),
        ] {
            assert_eq!(user(&part).unwrap(), expected, "{part}");
            let result = json!({"type": "tool_result", "tool_use_id": "1", "content": [part]});
            assert_eq!(user(&result).unwrap(), expected, "{part}");
        }
    }

    #[test]
    fn what_is_no_text_is_refused_by_name() {
        for (part, place) in [
            (json!({"type": "image"}), "type"),
            (json!({"type": "document"}), "source"),
            (json!({"type": "document", "source": {"type": "base64"}}), "source.type"),
            (json!({"type": "document", "source": {"type": "url", "url": "u"}}), "source.type"),
            (json!({"type": "document", "source": {"type": "text"}}), "source.data"),
            (json!({"type": "document", "source": {"type": "content"}}), "source.content"),
            (
                json!({"type": "document",
                       "source": {"type": "content", "content": [{"type": "image"}]}}),
                "source.content[0].type",
            ),
            (json!({"type": "tool_reference"}), "tool_name"),
        ] {
            let error = user(&part).unwrap_err();
            assert_eq!(error.param.unwrap(), format!("messages[0].content[0].{place}"));
        }
    }

    #[test]
    fn a_result_tells_what_of_it_cannot_be_read() {
        let parts = json!([
            {"type": "text", "text": "see"},
            {"type": "image", "source": {"type": "base64", "data": "AAAA"}},
            {"type": "document", "source": {"type": "base64", "data": "AAAA"}},
        ]);
        let result = json!({"type": "tool_result", "tool_use_id": "1", "content": parts});
        let expected = "see\n[image left out: this model reads text only]\n\
            [document left out: this model reads text only]";
        assert_eq!(user(&result).unwrap(), expected);
    }

    #[test]
    fn tools_of_the_server_answer_within_a_message() {
        let (messages, left_out) = of(json!([
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": [
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "I look."},
                {"type": "server_tool_use", "id": "1", "name": "web_search",
                 "input": {"query": "q"}},
                {"type": "web_search_tool_result", "tool_use_id": "1", "content": [
                    {"type": "web_search_result", "title": "t", "url": "u",
                     "encrypted_content": "x"},
                ]},
                {"type": "server_tool_use", "id": "2", "name": "code_execution",
                 "input": {"code": "1"}},
                {"type": "code_execution_tool_result", "tool_use_id": "2", "content":
                    {"type": "code_execution_result", "stdout": "1", "encrypted_stdout": "x"}},
                {"type": "text", "text": "So."},
            ]},
        ]))
        .unwrap();
        let roles: Vec<_> = messages.iter().map(|message| message.role.as_str()).collect();
        assert_eq!(roles, ["user", "assistant", "tool", "assistant", "tool", "assistant"]);
        assert_eq!(messages[1].content, "I look.");
        assert_eq!(messages[1].tool_calls[0].arguments, json!({"query": "q"}));
        assert_eq!(messages[2].content, "t\nu");
        assert_eq!(messages[4].content, r#"{"type":"code_execution_result","stdout":"1"}"#);
        assert_eq!(messages[5].content, "So.");
        let mut expected = LeftOut::default();
        expected.add(What::Part, "redacted_thinking");
        assert_eq!(format!("{left_out:?}"), format!("{expected:?}"));
    }
}
