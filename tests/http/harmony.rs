//! A model that writes harmony, through all three APIs of conversations.

use std::path::Path;

use kilotok_engine::Caps;
use kilotok_testkit::{Script, ScriptedEngine, with_fields};
use kilotok_text::Text;
use serde_json::{Value, json};

use super::server::{Server, Setup};

const START: u32 = 200_006;

fn text() -> Text {
    Text::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/text/fixtures/harmony")).unwrap()
}

/// A server whose model always gives this reply.
fn server(reply: &str) -> Server {
    let text = text();
    let (reply, role) = (text.encode(reply).unwrap(), text.encode("assistant").unwrap());
    let script: Script = Box::new(move |tokens| {
        // The prompt ends with the first message of the assistant, which has just begun.
        let turn = [&[START], role.as_slice()].concat();
        let at = tokens.windows(turn.len()).position(|window| window == turn)?;
        reply.get(tokens.len() - at - turn.len()).copied()
    });
    let setup = Setup::default();
    let caps = Caps { vocab_size: 201_088, ..setup.caps };
    let engine = ScriptedEngine::new(caps, setup.skill).with_script(script);
    Server::of(Box::new(engine), text, setup.limits, setup.options, setup.config)
}

fn weather() -> Value {
    json!({
        "type": "object",
        "properties": { "location": {"type": "string"} },
        "required": ["location"],
        "additionalProperties": false,
    })
}

fn chat(more: &Value) -> Value {
    let request = json!({
        "messages": [{"role": "user", "content": "What is the weather in São Paulo?"}],
        "temperature": 0,
    });
    with_fields(request, more)
}

fn chat_tools(strict: bool) -> Value {
    let function = json!({"name": "get_weather", "parameters": weather(), "strict": strict});
    json!({"tools": [{"type": "function", "function": function}]})
}

const CHAT: &str = "/v1/chat/completions";
const ANSWER: &str = "<|channel|>analysis<|message|>Let me think.<|end|><|start|>assistant\
                      <|channel|>final<|message|>Hi, 世界!<|return|>";
const CALL: &str = "<|channel|>analysis<|message|>Let me think.<|end|><|start|>assistant\
                    <|channel|>commentary<|message|>I will look.<|end|><|start|>assistant\
                    <|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>\
                    {\"location\":\"Bern\"}<|call|>";

#[test]
fn channels_are_reasoning_and_content() {
    let server = server(ANSWER);
    let answer = server.post(CHAT, &chat(&json!({}))).good();
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["reasoning"], "Let me think.");
    assert_eq!(choice["message"]["content"], "Hi, 世界!");
    assert_eq!(choice["finish_reason"], "stop");
    let mut streamed = [String::new(), String::new()];
    let events = server.post(CHAT, &chat(&json!({"stream": true}))).events();
    for event in &events[..events.len() - 1] {
        for (text, name) in streamed.iter_mut().zip(["reasoning", "content"]) {
            text.push_str(event["choices"][0]["delta"][name].as_str().unwrap_or_default());
        }
    }
    assert_eq!(streamed, ["Let me think.", "Hi, 世界!"]);

    let answer = server.post(CHAT, &chat(&json!({"separate_reasoning": false}))).good();
    assert_eq!(answer["choices"][0]["message"]["content"], "Let me think.Hi, 世界!");

    let request = json!({"input": "Hi there", "temperature": 0});
    let answer = server.post("/v1/responses", &request).good();
    assert_eq!(answer["output"][0]["content"][0]["text"], "Let me think.");
    assert_eq!(answer["output"][1]["content"][0]["text"], "Hi, 世界!");

    let request = json!({
        "messages": [{"role": "user", "content": "Hi there"}], "max_tokens": 100,
        "temperature": 0, "thinking": {"type": "enabled", "budget_tokens": 50},
    });
    let answer = server.post("/v1/messages", &request).good();
    assert_eq!(answer["content"][0]["thinking"], "Let me think.");
    assert_eq!(answer["content"][1]["text"], "Hi, 世界!");
    assert_eq!(answer["stop_reason"], "end_turn");
}

#[test]
fn commentary_is_calls() {
    let server = server(CALL);
    let arguments = json!({"location": "Bern"});
    for strict in [false, true] {
        let answer = server.post(CHAT, &chat(&chat_tools(strict))).good();
        let choice = &answer["choices"][0];
        assert_eq!(choice["message"]["reasoning"], "Let me think.");
        assert_eq!(choice["message"]["content"], "I will look.");
        let call = &choice["message"]["tool_calls"][0]["function"];
        assert_eq!(call["name"], "get_weather");
        let text = call["arguments"].as_str().unwrap();
        assert_eq!(serde_json::from_str::<Value>(text).unwrap(), arguments);
        assert_eq!(choice["finish_reason"], "tool_calls");
    }
    let request = json!({
        "input": "Hi there", "temperature": 0,
        "tools": [{"type": "function", "name": "get_weather", "parameters": weather()}],
    });
    let answer = server.post("/v1/responses", &request).good();
    assert_eq!(answer["output"][2]["type"], "function_call");
    assert_eq!(answer["output"][2]["name"], "get_weather");

    let request = json!({
        "messages": [{"role": "user", "content": "Hi there"}], "max_tokens": 100,
        "temperature": 0, "tools": [{"name": "get_weather", "input_schema": weather()}],
    });
    let answer = server.post("/v1/messages", &request).good();
    assert_eq!(answer["content"][0]["text"], "I will look.");
    assert_eq!(answer["content"][1]["input"], arguments);
    assert_eq!(answer["stop_reason"], "tool_use");
}

#[test]
fn constraints_begin_in_their_channel() {
    let said = server("<|channel|>analysis<|message|>Let me think.<|end|>");
    let format = json!({"type": "json_schema", "json_schema": {
        "name": "place", "strict": true, "schema": {"enum": ["Bern"]},
    }});
    let more = json!({"response_format": format, "max_tokens": 60});
    let answer = said.post(CHAT, &chat(&more)).good();
    let message = &answer["choices"][0]["message"];
    assert!(message["reasoning"].as_str().unwrap().starts_with("Let me think."), "{message}");
    // Without a script, the model may reason for any length.
    let content = message["content"].as_str().unwrap_or_default();
    assert!(["", "\"Bern\""].contains(&content), "{message}");

    let answered = server(&ANSWER.replace("Hi, 世界!", "\"Bern\""));
    let answer = answered.post(CHAT, &chat(&json!({"response_format": format}))).good();
    assert_eq!(answer["choices"][0]["message"]["content"], "\"Bern\"");
}

#[test]
fn effort_is_told_to_the_model() {
    let server = server(ANSWER);
    for (effort, level) in [("none", "low"), ("medium", "medium"), ("max", "high")] {
        let request = chat(&json!({"reasoning_effort": effort}));
        let prompt = server.post("/v1/chat/completions/render", &request).good();
        let prompt = prompt["prompt"].as_str().unwrap();
        assert!(prompt.contains(&format!("Reasoning: {level}\n")), "{prompt}");
        assert!(prompt.ends_with("<|start|>assistant"), "{prompt}");
    }
}
