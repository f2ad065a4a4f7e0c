//! Tools and constrained answers: replies that must be JSON, a choice or a call, and calls that the
//! model makes.

use kilotok_testkit::{DraftAccuracy, with_fields};
use serde_json::{Value, json};

use super::server::{Server, Setup};

const PATH: &str = "/v1/chat/completions";

/// Two functions, of which the model calls each once in [`CALLS`].
pub(crate) fn tools() -> Value {
    let add = json!({"type": "object", "properties": {
        "a": {"type": "integer"}, "b": {"type": "integer"},
    }, "required": ["a", "b"], "additionalProperties": false});
    json!([
        {"type": "function", "function": {"name": "add", "description": "adds", "parameters": add}},
        {"type": "function", "function": {"name": "now"}},
    ])
}

/// Calls, written as the model writes them in the format of the fixtures.
pub(crate) const CALLS: &str = "Let me see.<tool_call>\n<function=add>\n\
    <parameter=a>3</parameter>\n<parameter=b>4</parameter>\n</function>\n</tool_call>\
    <tool_call>\n<function=now>\n</function>\n</tool_call>";

fn ask(text: &str, more: &Value) -> Value {
    let request = json!({
        "messages": [{"role": "user", "content": format!("say:{text}")}],
        "temperature": 0, "tools": tools(),
    });
    with_fields(request, more)
}

fn calls(message: &Value) -> Vec<(String, Value)> {
    let calls = message["tool_calls"].as_array().unwrap().iter();
    let call = |call: &Value| {
        assert_eq!(call["type"], "function");
        assert!(call["id"].as_str().unwrap().starts_with("call_"));
        let function = &call["function"];
        let arguments = serde_json::from_str(function["arguments"].as_str().unwrap()).unwrap();
        (function["name"].as_str().unwrap().to_owned(), arguments)
    };
    calls.map(call).collect()
}

#[test]
fn calls_are_told_apart_from_text() {
    let server = Server::new();
    let answer = server.post(PATH, &ask(CALLS, &json!({}))).good();
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["content"], "Let me see.");
    let expected = [("add".to_owned(), json!({"a": 3, "b": 4})), ("now".to_owned(), json!({}))];
    assert_eq!(calls(&choice["message"]), expected);
    // Calls that the request does not allow are not sent to the client.
    let answer = server.post(PATH, &ask(CALLS, &json!({"tool_choice": "none"}))).good();
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert!(answer["choices"][0]["message"].get("tool_calls").is_none());
    let one = server.post(PATH, &ask(CALLS, &json!({"parallel_tool_calls": false}))).good();
    assert_eq!(calls(&one["choices"][0]["message"]), expected[..1]);
    assert_eq!(one["choices"][0]["finish_reason"], "tool_calls");
}

#[test]
fn streamed_calls_add_up() {
    let server = Server::new();
    let events = server.post(PATH, &ask(CALLS, &json!({"stream": true}))).events();
    let mut heard: Vec<(String, String, String)> = Vec::new();
    for chunk in &events[..events.len() - 1] {
        let delta = &chunk["choices"][0]["delta"];
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let index = call["index"].as_u64().unwrap() as usize;
            let function = &call["function"];
            if index == heard.len() {
                let id = call["id"].as_str().unwrap().to_owned();
                let name = function["name"].as_str().unwrap().to_owned();
                heard.push((id, name, String::new()));
            } else {
                assert!(call["id"].is_null() && function["name"].is_null(), "{call}");
            }
            heard[index].2 += function["arguments"].as_str().unwrap();
        }
    }
    let finish = &events[events.len() - 2]["choices"][0]["finish_reason"];
    assert_eq!(finish, "tool_calls");
    let parsed: Vec<Value> =
        heard.iter().map(|call| serde_json::from_str(&call.2).unwrap()).collect();
    assert_eq!(parsed, [json!({"a": 3, "b": 4}), json!({})]);
    assert_eq!((heard[0].1.as_str(), heard[1].1.as_str()), ("add", "now"));
    assert_ne!(heard[0].0, heard[1].0);
}

/// Unconstrained, the engine would reply with other text; its drafter proposes forbidden tokens.
#[test]
fn required_calls_are_made() {
    for skill in [DraftAccuracy::Percent(80), DraftAccuracy::Always(u32::from(b'!'))] {
        let server = Server::start(Setup { skill, ..Setup::default() });
        for seed in 0..4 {
            let named = json!({"type": "function", "function": {"name": "add"}});
            for choice in [json!("required"), named] {
                let named = choice.is_object();
                let more = json!({"tool_choice": choice, "temperature": 1, "seed": seed,
                    "max_tokens": 400, "logit_bias": {"34": 5, "47": 9, "60": 9, "125": 9},
                    "parallel_tool_calls": false});
                let answer = server.post(PATH, &ask("no call", &more)).good();
                let choice = &answer["choices"][0];
                if choice["finish_reason"] == "length" {
                    continue;
                }
                assert_eq!(choice["finish_reason"], "tool_calls", "{choice}");
                let calls = calls(&choice["message"]);
                assert_eq!(calls.len(), 1);
                if named || calls[0].0 == "add" {
                    assert!(calls[0].1["a"].is_i64() && calls[0].1["b"].is_i64(), "{calls:?}");
                }
            }
        }
    }
}

#[test]
fn shapes_are_kept() {
    let server = Server::new();
    let schema = json!({"type": "object", "properties": {
        "kind": {"enum": ["a", "b"]}, "yes": {"type": "boolean"},
    }, "required": ["kind", "yes"], "additionalProperties": false});
    let text = |more: Value| {
        let request = json!({
            "messages": [{"role": "user", "content": "anything"}], "seed": 5, "max_tokens": 300,
            "chat_template_kwargs": {"enable_thinking": false},
        });
        let answer = server.post(PATH, &with_fields(request, &more)).good();
        assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{more} {answer}");
        answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    let named = json!({"name": "n", "strict": true, "schema": schema});
    for more in [
        json!({"response_format": {"type": "json_schema", "json_schema": named}}),
        json!({"structured_outputs": {"json": schema}}),
    ] {
        let value: Value = serde_json::from_str(&text(more)).unwrap();
        assert!(["a", "b"].contains(&value["kind"].as_str().unwrap()) && value["yes"].is_boolean());
    }
    let choice = text(json!({"structured_outputs": {"choice": ["left", "right"]}}));
    assert!(["left", "right"].contains(&choice.as_str()), "{choice}");
    let matched = text(json!({"regex": "[0-9]{3}-[xyz]"}));
    assert!(matched.len() == 5 && matched.as_bytes()[3] == b'-', "{matched}");
    let said = text(json!({"ebnf": "root ::= \"yes\" | \"no\""}));
    assert!(["yes", "no"].contains(&said.as_str()), "{said}");
}

/// The schema of answers beside tools.
fn note() -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "note", "strict": true, "schema": {
        "type": "object", "properties": {"note": {"type": "string", "maxLength": 20}},
        "required": ["note"], "additionalProperties": false,
    }}})
}

#[test]
fn replies_of_a_shape_may_be_calls_instead() {
    let call = CALLS.strip_prefix("Let me see.").unwrap();
    for skill in [DraftAccuracy::Percent(80), DraftAccuracy::Always(u32::from(b'!'))] {
        let server = Server::start(Setup { skill, ..Setup::default() });
        let reply = |text: &str, more: Value| {
            let mut request = ask(text, &more);
            request["response_format"] = note();
            server.post(PATH, &request).good()["choices"][0].take()
        };
        let called = reply(call, json!({}));
        assert_eq!(called["finish_reason"], "tool_calls");
        assert_eq!(called["message"]["content"], Value::Null);
        assert_eq!(calls(&called["message"]).len(), 2);
        let one = reply(call, json!({"parallel_tool_calls": false}));
        assert_eq!(calls(&one["message"]).len(), 1);
        // Text that looks like a call is not one.
        let json = r#"{"note": "<function=now>\n"}"#;
        let told = reply(json, json!({"tool_choice": "auto"}));
        assert_eq!(
            (&told["finish_reason"], &told["message"]["content"]),
            (&json!("stop"), &json!(json))
        );
        assert!(told["message"].get("tool_calls").is_none());
        let none = reply(
            call,
            json!({"tool_choice": "none", "max_tokens": 300,
            "chat_template_kwargs": {"enable_thinking": false}}),
        );
        let text = none["message"]["content"].as_str().unwrap();
        assert!(text.trim_start().starts_with('{'), "{none}");
        let must = reply(
            json,
            json!({"tool_choice": "required", "temperature": 1, "seed": 2,
            "logit_bias": {"34": 5, "47": 9, "60": 9, "125": 9}, "max_tokens": 400}),
        );
        assert!(must["message"].get("tool_calls").is_some(), "{must}");
    }
}

/// Unconstrained, the engine would write neither.
#[test]
fn prose_is_neither_a_shape_nor_a_call() {
    let server = Server::new();
    for seed in 0..8 {
        let more = json!({"temperature": 1, "seed": seed, "max_tokens": 400,
            "response_format": note(), "logit_bias": {"34": 5, "47": 9, "60": 9, "125": 9}});
        let answer = server.post(PATH, &ask(CALLS, &more)).good();
        let choice = &answer["choices"][0];
        match choice["finish_reason"].as_str().unwrap() {
            "stop" => {
                let text = choice["message"]["content"].as_str().unwrap();
                assert!(serde_json::from_str::<Value>(text).unwrap()["note"].is_string(), "{text}");
            }
            "tool_calls" => assert!(!calls(&choice["message"]).is_empty()),
            other => assert_eq!(other, "length"),
        }
    }
}

#[test]
fn responses_may_be_of_a_shape_or_call_too() {
    let server = Server::new();
    let format = note()["json_schema"].clone();
    let of = |text: &str| {
        let mut request = json!({
            "input": format!("say:{text}"), "temperature": 0,
            "tools": [{"type": "function", "name": "now"}], "text": {"format": format},
        });
        request["text"]["format"]["type"] = json!("json_schema");
        server.post("/v1/responses", &request).good()["output"][0].take()
    };
    let item = of("<tool_call>\n<function=now>\n</function>\n</tool_call>");
    assert_eq!((&item["type"], &item["name"]), (&json!("function_call"), &json!("now")));
    let item = of("{\"note\": \"hi\"}");
    assert_eq!(item["content"][0]["text"], "{\"note\": \"hi\"}");
}

#[test]
fn shapes_that_cannot_be_are_refused() {
    let server = Server::new();
    let schema = |schema: Value| json!({"type": "json_schema", "json_schema": {"schema": schema}});
    for (more, param) in [
        (json!({"regex": "(("}), "regex"),
        (json!({"ebnf": "root ::= nothing"}), "ebnf"),
        (json!({"structured_outputs": {}}), "structured_outputs"),
        (json!({"response_format": schema(json!({"$ref": "#/nowhere"}))}), "response_format"),
        (json!({"response_format": {"type": "structural_tag"}}), "response_format.type"),
        (json!({"regex": "a", "ebnf": "b"}), "ebnf"),
    ] {
        let request = json!({"messages": [{"role": "user", "content": "a"}]});
        let answer = server.post(PATH, &with_fields(request, &more));
        assert_eq!(answer.status, 400, "{more}: {}", answer.text());
        assert_eq!(answer.json()["error"]["param"], param, "{more}");
    }
}
