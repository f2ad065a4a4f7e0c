//! Harmony: prompts equal those of OpenAI's package, token by token, and replies are parsed as the
//! package parses them, or, where it refuses them, as they were meant. The fixture and the script
//! that writes it are in `tests/text/`.

#![expect(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

mod grammars;
mod prompts;
mod replies;

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use kilotok_text::{Event, Parse, ReasoningStart, Reply, ReplyOptions, Text, TokenId, Tool};
use proptest::prelude::ProptestConfig;
use serde_json::Value;

const END: TokenId = 200_007;
const CALL: TokenId = 200_012;
const RETURN: TokenId = 200_002;
/// The ids of the format's tokens, including reserved ones.
const SPECIAL: std::ops::Range<TokenId> = 199_998..200_019;

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/text/fixtures/harmony"))
}

static TEXT: LazyLock<Arc<Text>> = LazyLock::new(|| Arc::new(Text::open(&folder()).unwrap()));
static TABLE: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_slice(&fs::read(folder().join("expected.json")).unwrap()).unwrap()
});

fn text_of(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn tool(value: &Value) -> Tool {
    Tool {
        name: text_of(&value["name"]).unwrap(),
        description: text_of(&value["description"]),
        parameters: value["parameters"].clone(),
        ..Tool::default()
    }
}

fn tools() -> Vec<Tool> {
    TABLE["tools"].as_array().unwrap().iter().map(tool).collect()
}
fn tokens(value: &Value) -> Vec<TokenId> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as TokenId).collect()
}

fn options() -> ReplyOptions {
    ReplyOptions {
        parse: Parse::ReasoningAndCalls,
        tools: tools(),
        reasoning: ReasoningStart::Maybe,
        skip_special: true,
        parallel_calls: true,
        ..ReplyOptions::default()
    }
}

fn events(options: ReplyOptions, tokens: &[TokenId]) -> Vec<Event> {
    let mut reply = Reply::new(Arc::clone(&TEXT), options);
    for &token in tokens {
        drop(reply.push(token));
    }
    reply.finish();
    reply.take()
}

/// Events in short form: the kind and the text; for a call, its name and arguments.
fn short(events: &[Event]) -> Vec<(String, String)> {
    let mut out: Vec<(String, String)> = Vec::new();
    for event in events {
        match event {
            Event::Reasoning(text) => out.push(("R".to_owned(), text.clone())),
            Event::Content(text) => out.push(("C".to_owned(), text.clone())),
            Event::Call { name, .. } => out.push((name.clone(), String::new())),
            Event::Arguments { text, .. } => out.last_mut().unwrap().1.push_str(text),
        }
    }
    out
}

/// The tokens of a reply.
fn reply_tokens(text: &str) -> Vec<TokenId> {
    TEXT.encode(text).unwrap()
}

const CALLED: &str = "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>";

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}
