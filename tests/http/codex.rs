//! The requests that Codex sends, and the replies that it expects: tools in namespaces, tools that
//! take text, and a history of their calls. The engine repeats the text after `say:`, whether it is
//! a call or plain text.

use serde_json::{Value, json};

use super::server::Server;

const RESPONSES: &str = "/v1/responses";
const CHAT: &str = "/v1/chat/completions";

/// A call as the model writes it.
fn call(name: &str, argument: &str, value: &str) -> String {
    format!(
        "<tool_call>\n<function={name}>\n<parameter={argument}>{value}</parameter>\n</function>\n\
         </tool_call>"
    )
}

fn function(name: &str, argument: &str) -> Value {
    let properties = json!({argument: {"type": "string"}});
    let parameters = json!({"type": "object", "properties": properties, "required": [argument]});
    json!({"type": "function", "name": name, "strict": false, "parameters": parameters})
}

/// The fields of a request from Codex 0.169.
#[expect(clippy::needless_pass_by_value, reason = "calls are easier to read")]
fn turn(input: Value) -> Value {
    json!({
        "model": "toy",
        "instructions": "You are a coding agent.",
        "input": input,
        "tools": [
            function("exec_command", "cmd"),
            {"type": "namespace", "name": "multi_agent_v1", "description": "Agents.", "tools": [
                function("close_agent", "target"),
                function("exec_command", "target"),
            ]},
            {"type": "custom", "name": "apply_patch", "description": "Edits files.", "format":
                {"type": "grammar", "syntax": "lark", "definition": "start: /(?s:.)+/"}},
            {"type": "web_search", "external_web_access": true},
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": true,
        "reasoning": {"summary": "auto"},
        "store": false,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "k",
        "client_metadata": {"x-codex-turn-metadata": "{}"},
        "temperature": 0,
    })
}

fn user(text: &str) -> Value {
    json!({"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]})
}

/// The reply's text after a tool's result, without the text that a template writes after the
/// result.
fn said(answer: &Value) -> &str {
    answer["output"][0]["content"][0]["text"].as_str().unwrap().lines().next().unwrap()
}

/// The items of a reply, which must be the same with and without a stream; and the events of the
/// stream.
#[track_caller]
fn items(server: &Server, mut request: Value) -> (Vec<Value>, Vec<(String, Value)>) {
    let unnamed = |output: &Value| {
        let mut items = output.as_array().unwrap().clone();
        for item in &mut items {
            let item = item.as_object_mut().unwrap();
            item.remove("id");
            item.remove("call_id");
        }
        items
    };
    let whole = unnamed(&server.post(RESPONSES, &request).good()["output"]);
    request["stream"] = json!(true);
    let events = server.post(RESPONSES, &request).named_events();
    let streamed = unnamed(&events.last().unwrap().1["response"]["output"]);
    assert_eq!(whole, streamed);
    (whole, events)
}

#[test]
fn calls_in_a_namespace_name_it() {
    let server = Server::new();
    let told = ["multi_agent_v1__close_agent", "multi_agent_v1__exec_command", "exec_command"];
    let told = told.map(|name| call(name, "target", "a")).join("\n");
    let (items, events) = items(&server, turn(json!([user(&format!("say:{told}"))])));
    let names: Vec<_> = items.iter().map(|item| (&item["name"], &item["namespace"])).collect();
    let namespace = json!("multi_agent_v1");
    assert_eq!(
        names,
        [
            (&json!("close_agent"), &namespace),
            (&json!("exec_command"), &namespace),
            (&json!("exec_command"), &Value::Null),
        ]
    );
    assert!(items.iter().all(|item| item["type"] == "function_call"));
    // Codex acts on this event.
    let done = events.iter().filter(|(name, _)| name == "response.output_item.done");
    let done: Vec<_> = done.map(|(_, data)| &data["item"]["namespace"]).collect();
    assert_eq!(done, [&namespace, &namespace, &Value::Null]);
}

#[test]
fn tools_that_come_as_an_item_are_offered() {
    let server = Server::new();
    let told = format!("say:{}", call("functions__exec", "input", "text(1);"));
    let more = json!({"type": "additional_tools", "id": "at_1", "role": "developer", "tools": [
        {"type": "namespace", "name": "functions", "description": "", "tools": [
            {"type": "custom", "name": "exec", "description": "Runs a script."},
        ]},
    ]});
    let mut request = turn(json!([more, user(&told)]));
    request.as_object_mut().unwrap().remove("tools");
    let (items, _) = items(&server, request.clone());
    let expected = json!({"type": "custom_tool_call", "status": "completed", "name": "exec",
        "namespace": "functions", "input": "text(1);"});
    assert_eq!(items, [expected]);
    request["input"][0]["tools"] = json!(3);
    let answer = server.post(RESPONSES, &request);
    assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!("input[0].tools")));
}

#[test]
fn a_conversation_goes_on_with_the_calls_of_codex() {
    let server = Server::new();
    let first = json!([
        user("Delete it, and say: nothing."),
        {"type": "function_call", "status": "completed", "id": "fc_1", "call_id": "c1",
         "name": "close_agent", "namespace": "multi_agent_v1", "arguments": "{\"target\":\"x\"}"},
        {"type": "function_call_output", "id": "fco_1", "call_id": "c1", "output": "say:one"},
    ]);
    let answer = server.post(RESPONSES, &turn(first.clone())).good();
    assert_eq!(said(&answer), "one");
    let mut second = first.as_array().unwrap().clone();
    second.extend([
        answer["output"][0].clone(),
        json!({"type": "custom_tool_call", "id": "ct_1", "status": "completed", "call_id": "c2",
               "name": "apply_patch", "input": "*** Begin Patch\n*** End Patch\n"}),
        json!({"type": "custom_tool_call_output", "call_id": "c2", "output": "say:two"}),
    ]);
    let answer = server.post(RESPONSES, &turn(json!(second))).good();
    assert_eq!(said(&answer), "two");
    let usage = &answer["usage"];
    let cached = usage["input_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert!(cached > usage["input_tokens"].as_u64().unwrap() / 2, "{usage}");
}

/// The result of `view_image`, and how it appears to a model that reads text only.
#[test]
fn an_image_in_a_result_does_not_end_the_conversation() {
    let server = Server::new();
    let image = json!({"type": "input_image", "image_url": "data:image/png;base64,AAAA"});
    let text = json!({"type": "input_text", "text": "say:seen"});
    let input = json!([
        user("Look."),
        {"type": "function_call", "call_id": "c", "name": "view_image", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [image, text]},
    ]);
    let answer = server.post(RESPONSES, &turn(input)).good();
    assert_eq!(said(&answer), "seen");
}

#[test]
fn custom_tools_are_called_with_a_text() {
    let server = Server::new();
    let patch = "*** Begin Patch\n+say \"hi\"\n*** End Patch";
    let told = format!("say:{}", call("apply_patch", "input", patch));
    let (items, events) = items(&server, turn(json!([user(&told)])));
    let expected = json!({"type": "custom_tool_call", "status": "completed", "name": "apply_patch",
                          "input": patch});
    assert_eq!(items, [expected]);
    let of = |kind: &str| {
        let named = events.iter().filter(|(name, _)| name == kind);
        named.map(|(_, data)| data.clone()).collect::<Vec<_>>()
    };
    let deltas = of("response.custom_tool_call_input.delta");
    let joined: String = deltas.iter().map(|data| data["delta"].as_str().unwrap()).collect();
    assert_eq!(joined, patch);
    let done = of("response.custom_tool_call_input.done");
    assert_eq!((done.len(), &done[0]["input"]), (1, &json!(patch)));
    assert_eq!(done[0]["item_id"], of("response.output_item.done")[0]["item"]["id"]);
    assert!(of("response.function_call_arguments.done").is_empty());
}

#[test]
fn custom_tools_of_chat_are_called_with_a_text() {
    let server = Server::new();
    let told = format!("say:{}", call("note", "input", "a \"b\""));
    let mut request = json!({
        "model": "toy", "temperature": 0, "messages": [{"role": "user", "content": told}],
        "tools": [{"type": "custom", "custom": {"name": "note", "description": "x"}}],
    });
    let choice = server.post(CHAT, &request).good()["choices"][0].take();
    assert_eq!(choice["finish_reason"], "tool_calls");
    let told = &choice["message"]["tool_calls"][0];
    assert_eq!(told["type"], "custom");
    assert_eq!(told["custom"], json!({"name": "note", "input": "a \"b\""}));
    request["messages"] = json!([
        request["messages"][0],
        choice["message"],
        {"role": "tool", "tool_call_id": told["id"], "content": "say:noted"},
    ]);
    let answer = server.post(CHAT, &request).good();
    let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(content.starts_with("noted"), "{content}");
    request["messages"] = json!([request["messages"][0]]);
    request["stream"] = json!(true);
    let (mut kinds, mut input) = (Vec::new(), String::new());
    for event in server.post(CHAT, &request).events() {
        let call = &event["choices"][0]["delta"]["tool_calls"][0];
        kinds.extend(call["type"].as_str().map(str::to_owned));
        input += call["custom"]["input"].as_str().unwrap_or_default();
        assert!(call["function"].is_null(), "{call}");
    }
    assert_eq!((kinds, input.as_str()), (vec!["custom".to_owned()], "a \"b\""));
}

#[test]
fn reasoning_comes_back_in_the_field_that_was_asked_for() {
    let server = Server::new();
    let request = turn(json!([user("say:<think>hm</think>So.")]));
    let (items, _) = items(&server, request.clone());
    assert_eq!(items[0]["content"][0]["text"], "hm");
    assert!(items[0]["encrypted_content"].as_str().unwrap().contains("hm"));
    let mut plain = request;
    plain["include"] = json!([]);
    let answer = server.post(RESPONSES, &plain).good();
    assert_eq!(answer["output"][0].get("encrypted_content"), None);
}
