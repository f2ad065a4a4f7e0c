//! `/v1/messages`: events, tools, reasoning, errors.

use kilotok_testkit::with_fields;
use serde_json::{Value, json};

use super::server::Server;

const PATH: &str = "/v1/messages";

fn ask(text: &str, more: &Value) -> Value {
    let request = json!({
        "model": "toy", "max_tokens": 200, "temperature": 0,
        "messages": [{"role": "user", "content": format!("say:{text}")}],
    });
    with_fields(request, more)
}

fn all() -> (String, Value) {
    let told = "<think>hm</think>So.<tool_call>\n<function=add>\n<parameter=a>3</parameter>\n\
        </function>\n</tool_call>";
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    let more = json!({
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "tools": [{"name": "add", "input_schema": schema}],
    });
    (told.to_owned(), more)
}

#[test]
fn a_reply_has_parts() {
    let server = Server::new();
    let (told, more) = all();
    let answer = server.post(PATH, &ask(&told, &more)).good();
    assert_eq!((&answer["type"], &answer["role"]), (&json!("message"), &json!("assistant")));
    assert!(answer["id"].as_str().unwrap().starts_with("msg_"));
    assert_eq!(answer["stop_reason"], "tool_use");
    let parts = answer["content"].as_array().unwrap();
    assert_eq!(parts[0], json!({"type": "thinking", "thinking": "hm", "signature": ""}));
    assert_eq!(parts[1], json!({"type": "text", "text": "So."}));
    assert_eq!((&parts[2]["type"], &parts[2]["name"]), (&json!("tool_use"), &json!("add")));
    assert_eq!(parts[2]["input"], json!({"a": 3}));
    assert!(answer["usage"]["output_tokens"].as_u64().unwrap() > 10);
    // Reasoning that the request did not ask for is not sent.
    let answer = server.post(PATH, &ask("plain", &json!({}))).good();
    assert_eq!(answer["content"], json!([{"type": "text", "text": "plain"}]));
    assert_eq!(answer["stop_reason"], "end_turn");
    let answer = server.post(PATH, &ask("one two", &json!({"stop_sequences": [" t"]}))).good();
    let stop = (&answer["stop_reason"], &answer["stop_sequence"]);
    assert_eq!(stop, (&json!("stop_sequence"), &json!(" t")));
    let answer = server.post(PATH, &ask("one two", &json!({"max_tokens": 3}))).good();
    assert_eq!(answer["stop_reason"], "max_tokens");
}

#[test]
fn a_stream_opens_and_closes_its_parts() {
    let server = Server::new();
    let (told, mut more) = all();
    more["stream"] = json!(true);
    let events = server.post(PATH, &ask(&told, &more)).named_events();
    assert!(events.iter().all(|(name, data)| data["type"] == name.as_str()));
    let mut parts: Vec<(String, String)> = Vec::new();
    let mut open = false;
    for (name, data) in &events {
        match name.as_str() {
            "content_block_start" => {
                assert!(!open && data["index"] == parts.len());
                let kind = data["content_block"]["type"].as_str().unwrap();
                parts.push((kind.to_owned(), String::new()));
                open = true;
            }
            "content_block_delta" => {
                assert!(open && data["index"] == parts.len() - 1);
                let delta = &data["delta"];
                for field in ["text", "thinking", "partial_json"] {
                    parts.last_mut().unwrap().1 += delta[field].as_str().unwrap_or_default();
                }
            }
            "content_block_stop" => open = false,
            _ => {}
        }
    }
    let expected = [("thinking", "hm"), ("text", "So."), ("tool_use", "{\"a\": 3}")];
    assert_eq!(parts.len(), expected.len());
    for ((kind, text), (expected_kind, expected)) in parts.iter().zip(expected) {
        assert_eq!(kind, expected_kind);
        let same = |text: &str| text.replace(' ', "");
        assert_eq!(same(text), same(expected));
    }
    assert_eq!(events[0].0, "message_start");
    assert_eq!(events[events.len() - 1].0, "message_stop");
    let (name, delta) = &events[events.len() - 2];
    assert_eq!(name, "message_delta");
    assert_eq!(delta["delta"]["stop_reason"], "tool_use");
    assert!(delta["usage"]["output_tokens"].as_u64().unwrap() > 10);
}

#[test]
fn tokens_are_counted_and_billing_is_not_read() {
    let server = Server::new();
    let count = |system: Value| {
        let request = json!({
            "messages": [{"role": "user", "content": "hi"}], "system": system,
        });
        server.post("/v1/messages/count_tokens", &request).good()["input_tokens"].clone()
    };
    let text = |text: &str| json!({"type": "text", "text": text});
    let plain = count(json!([text("be brief")]));
    assert_eq!(plain, count(json!("be brief")));
    let header = text("x-anthropic-billing-header: cc_version=2.1; cch=00f3a;");
    assert_eq!(plain, count(json!([header, text("be brief")])));
    let answer = server.post(PATH, &ask("x", &json!({"system": "be brief"}))).good();
    let used = answer["usage"]["input_tokens"].as_u64().unwrap();
    assert!(used > plain.as_u64().unwrap());
}

#[test]
fn errors_have_anthropics_form() {
    let server = Server::new();
    for (request, status, kind) in [
        (ask("x", &json!({"model": "other"})), 404, "not_found_error"),
        (ask("x", &json!({"max_tokens": 0})), 400, "invalid_request_error"),
        (json!({"messages": []}), 400, "invalid_request_error"),
        (ask("x", &json!({"container": "c"})), 400, "invalid_request_error"),
    ] {
        let answer = server.post(PATH, &request);
        assert_eq!(answer.status, status, "{}", answer.text());
        let body = answer.json();
        assert_eq!((&body["type"], &body["error"]["type"]), (&json!("error"), &json!(kind)));
        assert!(!body["error"]["message"].as_str().unwrap().is_empty());
        assert_eq!(body["request_id"].as_str(), answer.header("x-request-id"));
    }
}
