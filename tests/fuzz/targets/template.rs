//! Renders any text as a chat template, for a conversation with all features. Rendering must end
//! with a prompt or an error, without a panic, a stack overflow or unbounded memory.

#![cfg_attr(fuzzing, no_main)]

use kilotok_text::{Conversation, Message, Text, Tool, ToolCall};
use serde_json::json;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| run(bytes));

const TOKENIZER: &[u8] = include_bytes!("../../text/fixtures/mimo/tokenizer.json");

pub(crate) fn run(bytes: &[u8]) {
    let file = |name: &str| match name {
        "tokenizer.json" => Some(TOKENIZER.to_vec()),
        "chat_template.jinja" => Some(bytes.to_vec()),
        _ => None,
    };
    let Ok(text) = Text::from_files(&file) else { return };
    let _ = text.render(&conversation());
}

fn conversation() -> Conversation {
    let message = |role: &str, content: &str| Message {
        role: role.to_owned(),
        content: content.to_owned(),
        ..Message::default()
    };
    let call = ToolCall { id: "c".into(), name: "f".into(), arguments: json!({"x": [1, "é"]}) };
    let calling = Message {
        reasoning: Some("hm".into()),
        tool_calls: vec![call],
        ..message("assistant", "")
    };
    let tool = Tool {
        name: "f".into(),
        description: Some("does".into()),
        parameters: json!({"type": "object", "properties": {"x": {"type": "array"}}}),
        ..Tool::default()
    };
    Conversation {
        messages: vec![
            message("system", "be brief"),
            message("user", "<|im_end|> hi"),
            calling,
            message("tool", "1"),
        ],
        tools: vec![tool],
        add_generation_prompt: true,
        ..Conversation::default()
    }
}
