//! Messages of OpenAI's chat API as messages of the chat template: text only. Old and new field
//! names are read.

use kilotok_text::{Conversation, Message, ToolCall};
use serde_json::{Map, Value};

use super::wire::ChatMessage;
use crate::error::ApiError;
use crate::left_out::LeftOut;
use crate::params::content::{left_out_part, lines, part_text, role_of, text_of};
use crate::params::ranges::at_most;
use crate::params::tools::past_arguments;
use crate::wire::content::{OneOrMany, Part};
use crate::wire::tools::PastCall;

/// Most messages of one conversation.
const MESSAGES_MAX: usize = 16_384;
/// OpenAI's roles of a message. Its older name of `tool` is `function`.
const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];

/// How a conversation ends, besides its messages.
#[derive(Default)]
pub(crate) struct ConversationEnd {
    pub(crate) add_generation_prompt: Option<bool>,
    pub(crate) continue_final_message: Option<bool>,
}

pub(crate) fn conversation(
    messages: Vec<ChatMessage>,
    variables: Map<String, Value>,
    end: &ConversationEnd,
    left_out: &mut LeftOut,
) -> Result<Conversation, ApiError> {
    at_most("messages", &messages, MESSAGES_MAX)?;
    if messages.is_empty() {
        return Err(ApiError::bad("messages", "messages: there must be at least one"));
    }
    let continue_final_message = end.continue_final_message.unwrap_or_default();
    if continue_final_message && end.add_generation_prompt == Some(true) {
        let param = "continue_final_message";
        let message = format!(
            "{param}: the last message cannot go on where a new one is to begin; set \
                     add_generation_prompt to false"
        );
        return Err(ApiError::bad(param, message));
    }
    let messages = messages.into_iter().enumerate();
    let messages = messages.map(|(index, each)| message(index, each, left_out));
    Ok(Conversation {
        messages: messages.collect::<Result<_, _>>()?,
        variables,
        add_generation_prompt: end.add_generation_prompt.unwrap_or(!continue_final_message),
        continue_final_message,
        ..Conversation::default()
    })
}

fn message(
    index: usize,
    message: ChatMessage,
    left_out: &mut LeftOut,
) -> Result<Message, ApiError> {
    let param = format!("messages[{index}]");
    let calls = message.tool_calls.into_iter().flatten().enumerate();
    let calls =
        calls.map(|(number, call)| past_call(call, &format!("{param}.tool_calls[{number}]")));
    let tool_calls = calls.collect::<Result<_, _>>()?;
    let content = match message.content {
        Some(parts) if message.role == "tool" => {
            result_of(&parts, &format!("{param}.content"), left_out)?
        }
        Some(parts) => text_of(&parts, &format!("{param}.content"))?,
        None => message.refusal.unwrap_or_default(),
    };
    Ok(Message {
        role: role_of(&param, &message.role, &ROLES)?,
        content,
        reasoning: message.reasoning.or(message.reasoning_content),
        tool_calls,
        tool_call_id: message.tool_call_id,
        name: message.name,
    })
}

fn past_call(call: PastCall, param: &str) -> Result<ToolCall, ApiError> {
    let PastCall { id, kind, function, custom } = call;
    let id = id.unwrap_or_default();
    match (kind.as_deref(), function, custom) {
        (None | Some("function"), Some(call), _) => {
            Ok(ToolCall { id, name: call.name, arguments: past_arguments(call.arguments) })
        }
        (None | Some("custom"), _, Some(call)) => {
            Ok(ToolCall::of_text(id, call.name, &call.input.unwrap_or_default()))
        }
        (None | Some("function"), _, _) => {
            let param = format!("{param}.function");
            Err(ApiError::bad(&param, format!("{param}: missing")))
        }
        (Some("custom"), _, _) => {
            let param = format!("{param}.custom");
            Err(ApiError::bad(&param, format!("{param}: missing")))
        }
        (Some(other), _, _) => Err(ApiError::not_implemented(format!("{param}.type"), other)),
    }
}

/// The text of a tool's result. A client does not choose what its tools answer, and sends the
/// answer again with every request, so a part that is not text is replaced by a note for the model.
fn result_of(
    parts: &OneOrMany<Part>,
    param: &str,
    left_out: &mut LeftOut,
) -> Result<String, ApiError> {
    let parts = parts.0.iter().enumerate();
    lines(parts.map(|(index, part)| {
        let text = part_text(part, &format!("{param}[{index}]"))?;
        Ok(text.unwrap_or_else(|| left_out_part(&part.kind, left_out)))
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(messages: &Value) -> Result<Vec<Message>, ApiError> {
        let messages = serde_json::from_value(messages.clone()).unwrap();
        let mut left_out = LeftOut::default();
        conversation(messages, Map::new(), &ConversationEnd::default(), &mut left_out)
            .map(|conversation| conversation.messages)
    }

    #[test]
    fn messages_are_taken_in_all_their_forms() {
        let messages = of(&json!([
            {"role": "developer", "content": "be"},
            {"role": "user", "content": [
                {"type": "text", "text": "a"}, {"type": "text", "text": "b"},
            ]},
            {"role": "assistant", "content": null, "reasoning_content": "hm", "tool_calls": [
                {"id": "1", "type": "function",
                 "function": {"name": "f", "arguments": "{\"x\": 1}"}},
            ]},
            {"role": "tool", "tool_call_id": "1", "content": "2"},
            {"role": "assistant", "reasoning": "new", "reasoning_content": "old", "refusal": "no"},
            {"role": "function", "name": "f", "content": "3"},
        ]))
        .unwrap();
        assert_eq!((messages[0].role.as_str(), messages[0].content.as_str()), ("system", "be"));
        assert_eq!(messages[1].content, "a\nb");
        assert_eq!(messages[2].reasoning.as_deref(), Some("hm"));
        assert_eq!(messages[2].tool_calls[0].arguments, json!({"x": 1}));
        assert_eq!(messages[3].tool_call_id.as_deref(), Some("1"));
        assert_eq!(messages[4].reasoning.as_deref(), Some("new"));
        assert_eq!(messages[4].content, "no");
        assert_eq!(messages[5].role, "tool");
    }

    #[test]
    fn calls_of_the_past_are_of_functions_or_custom_tools() {
        let messages = of(&json!([
            {"role": "assistant", "tool_calls": [
                {"id": "1", "type": "custom", "custom": {"name": "note", "input": "a\nb"}},
                {"id": "2", "function": {"name": "f"}},
            ]},
            {"role": "tool", "tool_call_id": "1", "content": [
                {"type": "text", "text": "see"}, {"type": "image_url"},
            ]},
        ]))
        .unwrap();
        assert_eq!(messages[0].tool_calls[0].arguments, json!({"input": "a\nb"}));
        assert_eq!(messages[0].tool_calls[1].arguments, json!({}));
        let expected = "see\n[image_url left out: this model reads text only]";
        assert_eq!(messages[1].content, expected);
        for (call, place) in [
            (json!({"type": "function"}), "function"),
            (json!({"type": "custom", "function": {"name": "f"}}), "custom"),
            (json!({"type": "other"}), "type"),
        ] {
            let error = of(&json!([{"role": "assistant", "tool_calls": [call]}])).unwrap_err();
            assert_eq!(error.param.unwrap(), format!("messages[0].tool_calls[0].{place}"));
        }
    }

    #[test]
    fn what_is_no_text_is_refused_by_its_place() {
        let image = json!([
            {"role": "user", "content": "a"},
            {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "image_url"}]},
        ]);
        assert_eq!(of(&image).unwrap_err().param.unwrap(), "messages[1].content[1].type");
        let empty = json!([{"role": "user", "content": [{"type": "text"}]}]);
        assert_eq!(of(&empty).unwrap_err().param.unwrap(), "messages[0].content[0].text");
        assert_eq!(of(&json!([])).unwrap_err().param.unwrap(), "messages");
        for role in ["alien", "", "User", "system\nuser"] {
            let error = of(&json!([{"role": role, "content": "a"}])).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("messages[0].role"), "{role:?}");
            assert!(error.message.contains("system, developer, user"), "{}", error.message);
        }
    }

    #[test]
    fn a_conversation_ends_in_one_way() {
        let message = || vec![ChatMessage { role: "user".into(), ..ChatMessage::default() }];
        let of = |add, go_on| {
            let end = ConversationEnd { add_generation_prompt: add, continue_final_message: go_on };
            conversation(message(), Map::new(), &end, &mut LeftOut::default())
        };
        assert!(of(None, None).unwrap().add_generation_prompt);
        assert!(!of(Some(false), None).unwrap().add_generation_prompt);
        assert!(!of(None, Some(true)).unwrap().add_generation_prompt);
        assert!(of(Some(true), Some(true)).is_err());
    }
}
