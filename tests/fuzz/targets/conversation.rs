//! Reads any JSON as a conversation for the templates of three published formats and for the
//! renderer of harmony: messages, tools and variables of any kind. Rendering and encoding must end
//! with a prompt or an error.

#![cfg_attr(fuzzing, no_main)]

use std::path::Path;
use std::sync::LazyLock;

use kilotok_text::{Conversation, Message, Text, Tool, ToolCall};
use serde_json::Value;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| run(bytes));

/// The fuzzer's package is two folders deeper than that of the tests.
const FIXTURES: &str = if cfg!(fuzzing) {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../text/fixtures")
} else {
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/text/fixtures")
};

static TEXTS: LazyLock<Vec<Text>> = LazyLock::new(|| {
    let fixtures = Path::new(FIXTURES);
    let open = |model| Text::open(&fixtures.join(model)).expect("a good checkpoint");
    ["mimo", "qwen3_coder", "hermes", "harmony"].map(open).into()
});

pub(crate) fn run(bytes: &[u8]) {
    let Ok(Value::Object(fields)) = serde_json::from_slice(bytes) else { return };
    let list = |name: &str| fields.get(name).and_then(Value::as_array).into_iter().flatten();
    let flag = |name: &str| fields.get(name) == Some(&Value::Bool(true));
    let variables = fields.get("variables").and_then(Value::as_object);
    let conversation = Conversation {
        messages: list("messages").map(message).collect(),
        tools: list("tools").map(tool).collect(),
        variables: variables.cloned().unwrap_or_default(),
        add_generation_prompt: flag("add_generation_prompt"),
        continue_final_message: flag("continue_final_message"),
        now: Some(std::time::SystemTime::UNIX_EPOCH),
    };
    for text in TEXTS.iter() {
        if let Ok(rendered) = text.render(&conversation) {
            let _ = text.encode(&rendered.prompt);
        }
    }
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn message(value: &Value) -> Message {
    let calls = value["tool_calls"].as_array().into_iter().flatten();
    let call = |call: &Value| ToolCall {
        id: text_of(&call["id"]),
        name: text_of(&call["name"]),
        arguments: call["arguments"].clone(),
    };
    Message {
        role: text_of(&value["role"]),
        content: text_of(&value["content"]),
        reasoning: value["reasoning"].as_str().map(str::to_owned),
        tool_calls: calls.map(call).collect(),
        tool_call_id: value["tool_call_id"].as_str().map(str::to_owned),
        name: value["name"].as_str().map(str::to_owned),
    }
}

fn tool(value: &Value) -> Tool {
    Tool {
        name: text_of(&value["name"]),
        description: value["description"].as_str().map(str::to_owned),
        parameters: value["parameters"].clone(),
        ..Tool::default()
    }
}
