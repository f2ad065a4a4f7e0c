//! Messages of OpenAI's chat API as the chat template takes them: text only, old and new names of
//! fields alike.

use kilotok_text::{Conversation, Message, ToolCall};
use serde_json::{Map, Value};

use super::ranges::at_most;
use super::tools::past_arguments;
use crate::error::ApiError;
use crate::wire::chat::ChatMessage;
use crate::wire::content::{OneOrMany, Part};

/// More are not a conversation.
const MESSAGES_MAX: usize = 16_384;

/// What of a conversation is not in its messages.
#[derive(Default)]
pub(crate) struct Ending {
    pub(crate) add_generation_prompt: Option<bool>,
    pub(crate) continue_final_message: Option<bool>,
}

pub(crate) fn conversation(
    messages: Vec<ChatMessage>,
    variables: Map<String, Value>,
    ending: &Ending,
) -> Result<Conversation, ApiError> {
    at_most("messages", &messages, MESSAGES_MAX)?;
    if messages.is_empty() {
        return Err(ApiError::bad("messages", "messages: there must be at least one"));
    }
    let continue_final_message = ending.continue_final_message.unwrap_or_default();
    if continue_final_message && ending.add_generation_prompt == Some(true) {
        let param = "continue_final_message";
        let message = format!(
            "{param}: the last message cannot go on where a new one is to begin; set \
                     add_generation_prompt to false"
        );
        return Err(ApiError::bad(param, message));
    }
    let messages = messages.into_iter().enumerate();
    Ok(Conversation {
        messages: messages.map(|(index, each)| message(index, each)).collect::<Result<_, _>>()?,
        variables,
        add_generation_prompt: ending.add_generation_prompt.unwrap_or(!continue_final_message),
        continue_final_message,
        ..Conversation::default()
    })
}

fn message(index: usize, message: ChatMessage) -> Result<Message, ApiError> {
    let param = format!("messages[{index}]");
    let mut calls = Vec::new();
    for (number, call) in message.tool_calls.into_iter().flatten().enumerate() {
        if call.kind.as_deref().is_some_and(|kind| kind != "function") {
            let param = format!("{param}.tool_calls[{number}].type");
            return Err(ApiError::not_implemented(param, &call.kind.unwrap_or_default()));
        }
        calls.push(ToolCall {
            id: call.id.unwrap_or_default(),
            name: call.function.name,
            arguments: past_arguments(call.function.arguments),
        });
    }
    let content = match message.content {
        Some(content) => text_of(&content, &format!("{param}.content"))?,
        None => message.refusal.unwrap_or_default(),
    };
    Ok(Message {
        // OpenAI's newer name; templates know the older one.
        role: if message.role == "developer" { "system".into() } else { message.role },
        content,
        reasoning: message.reasoning.or(message.reasoning_content),
        tool_calls: calls,
        tool_call_id: message.tool_call_id,
        name: message.name,
    })
}

/// The text of all parts, a line each.
pub(crate) fn text_of(parts: &OneOrMany<Part>, param: &str) -> Result<String, ApiError> {
    let mut text = String::new();
    for (index, part) in parts.0.iter().enumerate() {
        let said = match part.kind.as_str() {
            "text" | "input_text" | "output_text" | "reasoning_text" | "summary_text" => &part.text,
            "refusal" => &part.refusal,
            other => {
                let param = format!("{param}[{index}].type");
                let message = format!("{param}: {other:?}, but this model reads text only");
                return Err(ApiError::bad(param, message).with_code("unsupported_parameter"));
            }
        };
        let Some(said) = said else {
            let param = format!("{param}[{index}].text");
            return Err(ApiError::bad(&param, format!("{param}: missing")));
        };
        if index > 0 {
            text.push('\n');
        }
        text.push_str(said);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(messages: &Value) -> Result<Vec<Message>, ApiError> {
        let messages = serde_json::from_value(messages.clone()).unwrap();
        conversation(messages, Map::new(), &Ending::default()).map(|talk| talk.messages)
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
        ]))
        .unwrap();
        assert_eq!((messages[0].role.as_str(), messages[0].content.as_str()), ("system", "be"));
        assert_eq!(messages[1].content, "a\nb");
        assert_eq!(messages[2].reasoning.as_deref(), Some("hm"));
        assert_eq!(messages[2].tool_calls[0].arguments, json!({"x": 1}));
        assert_eq!(messages[3].tool_call_id.as_deref(), Some("1"));
        assert_eq!(messages[4].reasoning.as_deref(), Some("new"));
        assert_eq!(messages[4].content, "no");
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
    }

    #[test]
    fn a_conversation_ends_in_one_way() {
        let message = || vec![ChatMessage { role: "user".into(), ..ChatMessage::default() }];
        let of = |add, go_on| {
            let ending = Ending { add_generation_prompt: add, continue_final_message: go_on };
            conversation(message(), Map::new(), &ending)
        };
        assert!(of(None, None).unwrap().add_generation_prompt);
        assert!(!of(Some(false), None).unwrap().add_generation_prompt);
        assert!(!of(None, Some(true)).unwrap().add_generation_prompt);
        assert!(of(Some(true), Some(true)).is_err());
    }
}
