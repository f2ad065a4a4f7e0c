//! `/v1/responses`: items, events, and the requests that a server without memory refuses.

use kilotok_testkit::with_fields;
use serde_json::{Value, json};

use super::server::Server;

const PATH: &str = "/v1/responses";

fn ask(text: &str, more: &Value) -> Value {
    let request = json!({"model": "toy", "input": format!("say:{text}"), "temperature": 0});
    with_fields(request, more)
}

const TOLD: &str = "<think>hm</think>So.<tool_call>\n<function=add>\n<parameter=a>3</parameter>\n\
    </function>\n</tool_call>";

fn tools() -> Value {
    let parameters = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    json!({"tools": [{"type": "function", "name": "add", "parameters": parameters}]})
}

#[test]
fn a_reply_has_items() {
    let server = Server::new();
    let answer = server.post(PATH, &ask(TOLD, &tools())).good();
    assert_eq!((&answer["object"], &answer["status"]), (&json!("response"), &json!("completed")));
    assert!(answer["id"].as_str().unwrap().starts_with("resp_"));
    let output = answer["output"].as_array().unwrap();
    let kinds: Vec<_> = output.iter().map(|item| item["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["reasoning", "message", "function_call"]);
    assert_eq!(output[0]["content"][0], json!({"type": "reasoning_text", "text": "hm"}));
    assert_eq!(output[1]["content"][0]["text"], "So.");
    assert_eq!(output[1]["content"][0]["annotations"], json!([]));
    let arguments: Value = serde_json::from_str(output[2]["arguments"].as_str().unwrap()).unwrap();
    assert_eq!(arguments, json!({"a": 3}));
    assert!(output.iter().all(|item| item["status"] == "completed"));
    assert_eq!(answer["usage"]["output_tokens_details"]["reasoning_tokens"], 3);
    let answer = server.post(PATH, &ask("abcdef", &json!({"max_output_tokens": 3}))).good();
    assert_eq!(answer["status"], "incomplete");
    assert_eq!(answer["incomplete_details"]["reason"], "max_output_tokens");
}

#[test]
fn a_stream_ends_with_what_it_told() {
    let server = Server::new();
    let mut more = tools();
    more["stream"] = json!(true);
    more["include"] = json!(["message.output_text.logprobs"]);
    let events = server.post(PATH, &ask(TOLD, &more)).named_events();
    for (index, (name, data)) in events.iter().enumerate() {
        assert_eq!(data["type"], name.as_str());
        assert_eq!(data["sequence_number"], index);
    }
    let names: Vec<_> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names[..2], ["response.created", "response.in_progress"]);
    assert_eq!(names[names.len() - 1], "response.completed");
    let count = |wanted: &str| names.iter().filter(|name| **name == wanted).count();
    assert_eq!(count("response.output_item.added"), 3);
    assert_eq!(count("response.output_item.done"), 3);
    assert_eq!(count("response.content_part.done"), 2);
    let joined = |kind: &str| {
        let deltas = events.iter().filter(|(name, _)| name == kind);
        deltas.map(|(_, data)| data["delta"].as_str().unwrap()).collect::<String>()
    };
    assert_eq!(joined("response.reasoning_text.delta"), "hm");
    assert_eq!(joined("response.output_text.delta"), "So.");
    let done = events.iter().find(|(name, _)| name == "response.function_call_arguments.done");
    let done = &done.unwrap().1;
    assert_eq!(
        joined("response.function_call_arguments.delta"),
        done["arguments"].as_str().unwrap()
    );
    let response = &events[events.len() - 1].1["response"];
    let output = response["output"].as_array().unwrap();
    assert_eq!(output.len(), 3);
    let logprobs = output[1]["content"][0]["logprobs"].as_array().unwrap();
    let text: String = logprobs.iter().map(|token| token["token"].as_str().unwrap()).collect();
    assert!(text.starts_with("So."), "{text}");
    for (index, item) in output.iter().enumerate() {
        let done = events.iter().find(|(name, data)| {
            name == "response.output_item.done" && data["output_index"] == index
        });
        assert_eq!(&done.unwrap().1["item"], item);
    }
}

/// This includes tokens that produce no text by themselves: parts of a character, and text that may
/// become a tag.
#[test]
fn every_token_of_a_text_has_its_log_probability() {
    let server = Server::new();
    let spelt = |logprobs: &Value| {
        let tokens = logprobs.as_array().unwrap().iter();
        let bytes = tokens.flat_map(|token| token["bytes"].as_array().unwrap());
        bytes.map(|byte| byte.as_u64().unwrap() as u8).collect::<Vec<_>>()
    };
    for (told, text) in [
        ("🦜".repeat(20), "🦜".repeat(20)),
        ("a<b <to <tool".repeat(9), "a<b <to <tool".repeat(9)),
        (format!("<think>hm</think>{}", "<ü".repeat(20)), "<ü".repeat(20)),
    ] {
        let mut request = ask(&told, &tools());
        request["include"] = json!(["message.output_text.logprobs"]);
        let whole = server.post(PATH, &request).good();
        request["stream"] = json!(true);
        let events = server.post(PATH, &request).named_events();
        let (_, last) = events.last().unwrap();
        for answer in [&whole, &last["response"]] {
            let output = answer["output"].as_array().unwrap();
            let part = &output[output.len() - 1]["content"][0];
            assert_eq!(part["text"], text);
            assert_eq!(spelt(&part["logprobs"]), text.as_bytes(), "{text}");
        }
        let deltas = events.iter().filter(|(name, _)| name == "response.output_text.delta");
        let deltas: Vec<_> = deltas.flat_map(|(_, data)| spelt(&data["logprobs"])).collect();
        assert_eq!(deltas, text.as_bytes(), "{text}");
    }
}

#[test]
fn conversations_come_whole() {
    let server = Server::new();
    let input = json!([
        {"role": "user", "content": "what is 3 + 4?"},
        {"type": "reasoning", "summary": [],
         "content": [{"type": "reasoning_text", "text": "add"}]},
        {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{\"a\": 3}"},
        {"type": "function_call_output", "call_id": "c", "output": "say:seven"},
        {"role": "user", "content": "say:seven"},
    ]);
    let mut request = tools();
    request["input"] = input;
    request["instructions"] = json!("be brief");
    request["text"] = json!({"format": {"type": "text"}});
    request["store"] = json!(false);
    let answer = server.post(PATH, &request).good();
    assert_eq!(answer["output"][0]["content"][0]["text"], "seven");
    assert_eq!(answer["instructions"], "be brief");
    for (field, value) in [
        ("previous_response_id", json!("resp_1")),
        ("background", json!(true)),
        ("conversation", json!("conv")),
        ("prompt", json!({"id": "pmpt_1"})),
    ] {
        let answer = server.post(PATH, &ask("x", &json!({field: value})));
        assert_eq!(answer.status, 400, "{field}");
        let error = &answer.json()["error"];
        assert_eq!(error["param"], field);
        assert!(error["message"].as_str().unwrap().contains("send"), "{error}");
    }
}

#[test]
fn replies_can_have_a_schema() {
    let server = Server::new();
    let schema = json!({"type": "object", "properties": {"yes": {"type": "boolean"}},
        "required": ["yes"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "name": "n", "schema": schema, "strict": true});
    let more = json!({"text": {"format": format}, "reasoning": {"effort": "none"}, "seed": 1});
    let answer = server.post(PATH, &ask("no", &more)).good();
    let text = answer["output"][0]["content"][0]["text"].as_str().unwrap();
    let value: Value = serde_json::from_str(text).unwrap();
    assert!(value["yes"].is_boolean(), "{text}");
    assert_eq!(answer["text"]["format"]["name"], "n");
}
