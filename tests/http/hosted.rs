//! Tools and items that only the services of OpenAI and Anthropic can handle, in requests that are
//! otherwise valid: they are left out and counted, or refused if the request has nothing else.

use kilotok_testkit::with_fields;
use serde_json::{Value, json};

use super::server::Server;

const CHAT: &str = "/v1/chat/completions";
const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";

fn ask(path: &str, more: &Value) -> Value {
    let messages = json!([{"role": "user", "content": "say:hi"}]);
    let request = match path {
        RESPONSES => json!({"model": "toy", "input": "say:hi", "temperature": 0}),
        _ => json!({"model": "toy", "messages": messages, "max_tokens": 99, "temperature": 0}),
    };
    with_fields(request, more)
}

/// The text of a reply.
fn text(path: &str, answer: &Value) -> Value {
    match path {
        CHAT => answer["choices"][0]["message"]["content"].clone(),
        RESPONSES => answer["output"][0]["content"][0]["text"].clone(),
        _ => answer["content"][0]["text"].clone(),
    }
}

#[track_caller]
fn says(server: &Server, path: &str, more: &Value, expected: &str) -> Value {
    let answer = server.post(path, &ask(path, more)).good();
    let told = text(path, &answer);
    // The engine also repeats the text that a template writes after a tool's result.
    let told = told.as_str().unwrap().trim_end().trim_end_matches("\n</tool_response>");
    assert_eq!(told, expected, "{more}");
    answer
}

#[track_caller]
fn refused(server: &Server, path: &str, more: &Value) -> String {
    let answer = server.post(path, &ask(path, more));
    assert_eq!(answer.status, 400, "{more}: {}", answer.text());
    answer.json()["error"]["message"].as_str().unwrap().to_owned()
}

fn left_out(server: &Server, what: &str, kind: &str) -> Option<u64> {
    let (what, kind) = (format!("what=\"{what}\""), format!("type=\"{kind}\""));
    let metrics = server.get("/metrics");
    let mut lines =
        metrics.text().lines().filter(|line| line.starts_with("kilotok:left_out_total"));
    let line = lines.find(|line| line.contains(&what) && line.contains(&kind))?;
    line.rsplit(' ').next().unwrap().parse().ok()
}

#[test]
fn hosted_tools_are_left_out_and_counted() {
    let server = Server::new();
    for (path, tool, counted) in [
        (RESPONSES, json!({"type": "web_search"}), "web_search"),
        (RESPONSES, json!({"type": "local_shell"}), "local_shell"),
        (RESPONSES, json!({"type": "image_generation"}), "image_generation"),
        (RESPONSES, json!({"type": "tool_search"}), "tool_search"),
        (RESPONSES, json!({"type": "mcp"}), "mcp"),
        (RESPONSES, json!({"type": "file_search", "vector_store_ids": ["v"]}), "file_search"),
        (RESPONSES, json!({"type": "code_interpreter"}), "code_interpreter"),
        (RESPONSES, json!({"type": "computer_use_preview"}), "computer_use_preview"),
        (CHAT, json!({"type": "web_search_preview_2025_03_11"}), "web_search_preview"),
        (MESSAGES, json!({"type": "web_fetch_20250910", "name": "web_fetch"}), "web_fetch"),
        (MESSAGES, json!({"type": "bash_20250124", "name": "bash"}), "bash"),
        (MESSAGES, json!({"type": "mcp_toolset", "mcp_server_name": "m"}), "mcp_toolset"),
        (RESPONSES, json!({"type": "from_the_future"}), "other"),
    ] {
        let plain = says(&server, path, &json!({}), "hi");
        let answer = says(&server, path, &json!({"tools": [tool]}), "hi");
        let tokens = |answer: &Value| {
            let usage = &answer["usage"];
            let input = usage["input_tokens"].as_u64().or(usage["prompt_tokens"].as_u64()).unwrap();
            input + usage["cache_read_input_tokens"].as_u64().unwrap_or_default()
        };
        assert_eq!(tokens(&answer), tokens(&plain), "the prompt has no word of {tool}");
        if path == RESPONSES {
            assert_eq!(answer["tools"], json!([]));
        }
        assert_eq!(left_out(&server, "tool", counted), Some(1), "{tool}");
        for choice in [json!("required"), json!({"type": tool["type"]})] {
            if path == RESPONSES {
                let request = json!({"tools": [tool], "tool_choice": choice});
                let message = refused(&server, path, &request);
                assert!(message.contains(tool["type"].as_str().unwrap()), "{message}");
            }
        }
    }
    let search = json!([{"type": "web_search_20250305", "name": "web_search", "max_uses": 8}]);
    says(&server, MESSAGES, &json!({"tools": search}), "hi");
    assert_eq!(left_out(&server, "tool", "web_search"), Some(2));
    for choice in [json!({"type": "any"}), json!({"type": "tool", "name": "web_search"})] {
        let message = refused(&server, MESSAGES, &json!({"tools": search, "tool_choice": choice}));
        assert!(message.contains("web_search"), "{message}");
    }
}

#[test]
fn what_hosted_tools_left_in_a_history_is_shown_if_it_is_text() {
    let server = Server::new();
    let input = json!([
        {"role": "user", "content": "hi"},
        {"type": "web_search_call", "id": "w", "status": "completed"},
        {"type": "local_shell_call", "call_id": "l", "status": "completed",
         "action": {"type": "exec", "command": ["ls"]}},
        {"type": "local_shell_call_output", "call_id": "l", "output": "say:seen"},
        {"type": "compaction", "encrypted_content": "x"},
        {"type": "from_the_future"},
        {"role": "user", "content": "go"},
    ]);
    says(&server, RESPONSES, &json!({"input": input}), "seen");
    for kind in ["web_search_call", "compaction", "other"] {
        assert_eq!(left_out(&server, "item", kind), Some(1), "{kind}");
    }
    refused(&server, RESPONSES, &json!({"input": [{"id": "msg_1"}]}));
    let reference = json!([{"type": "item_reference", "id": "msg_1"}]);
    let message = refused(&server, RESPONSES, &json!({"input": reference}));
    assert!(message.contains("`store: false`"), "{message}");
    let found = json!([{"type": "web_search_result", "title": "say:found", "url": ""}]);
    let messages = json!([
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [
            {"type": "server_tool_use", "id": "1", "name": "web_search", "input": {"query": "q"}},
            {"type": "web_search_tool_result", "tool_use_id": "1", "content": found},
            {"type": "text", "text": "Hm."},
        ]},
        {"role": "user", "content": "go"},
    ]);
    says(&server, MESSAGES, &json!({"messages": messages}), "found");
}

#[test]
fn nothing_is_stored_and_nothing_else_depends_on_it() {
    let server = Server::new();
    let include = json!(["web_search_call.action.sources", "reasoning.encrypted_content"]);
    says(&server, RESPONSES, &json!({"include": include, "max_tool_calls": 3}), "hi");
    let answer = says(&server, RESPONSES, &json!({"store": true}), "hi");
    assert_eq!(answer["store"], false);
    for field in ["previous_response_id", "conversation"] {
        let message = refused(&server, RESPONSES, &json!({field: "id_1"}));
        assert!(message.contains("nothing is stored") && message.contains("input"), "{message}");
        says(&server, RESPONSES, &json!({field: null}), "hi");
    }
    says(&server, RESPONSES, &json!({"background": false}), "hi");
}

#[test]
fn documents_are_read_as_text() {
    let server = Server::new();
    let with = |part: Value| {
        let text = json!({"type": "text", "text": "x"});
        json!({"messages": [{"role": "user", "content": [part, text]}]})
    };
    let source = json!({"type": "text", "media_type": "text/plain", "data": "say:abc"});
    let told = json!([{"type": "text", "text": "say:abc"}]);
    for part in [
        json!({"type": "document", "source": source, "title": "t", "context": "c",
               "cache_control": {"type": "ephemeral"}}),
        json!({"type": "document", "source": {"type": "content", "content": told}}),
        json!({"type": "search_result", "source": "u", "title": "t", "content": told}),
        json!({"type": "tool_reference", "tool_name": "say:abc"}),
    ] {
        says(&server, MESSAGES, &with(part), "abc\nx");
    }
    for source in [
        json!({"type": "base64", "media_type": "application/pdf", "data": "AAAA"}),
        json!({"type": "url", "url": "http://localhost"}),
    ] {
        let part = json!({"type": "document", "source": source});
        let message = refused(&server, MESSAGES, &with(part));
        assert!(message.starts_with("messages[0].content[0].source.type"), "{message}");
    }
}

#[test]
fn the_older_name_of_a_format_is_known() {
    let server = Server::new();
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer", "minimum": 0,
        "maximum": 9}}, "required": ["a"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "schema": schema});
    let of = |more: Value| {
        let mut request = ask(MESSAGES, &more);
        request["seed"] = json!(1);
        let told = text(MESSAGES, &server.post(MESSAGES, &request).good());
        serde_json::from_str::<Value>(told.as_str().unwrap()).unwrap()["a"].clone()
    };
    assert!(of(json!({"output_format": format})).is_u64());
    assert!(of(json!({"output_config": {"format": format}})).is_u64());
}

#[test]
fn only_allowed_tools_are_called_and_all_are_shown() {
    let server = Server::new();
    let call = |name: &str| {
        let call = format!("<tool_call>\n<function={name}>\n</function>\n</tool_call>");
        format!("say:{call}")
    };
    let named = |name: &str| json!({"type": "function", "function": {"name": name}});
    let chat = |told: &str, mode: &str, allowed: &[&str]| {
        let allowed: Vec<_> = allowed.iter().map(|name| named(name)).collect();
        let allowed = json!({"mode": mode, "tools": allowed});
        json!({"model": "toy", "temperature": 0, "max_tokens": 99,
               "messages": [{"role": "user", "content": told}],
               "tools": [named("add"), named("sub")],
               "tool_choice": {"type": "allowed_tools", "allowed_tools": allowed}})
    };
    let prompt = |request: &Value| {
        server.post("/v1/chat/completions/render", request).good()["prompt"].clone()
    };
    let auto = chat("say:hi", "auto", &["sub"]);
    assert_eq!(text(CHAT, &server.post(CHAT, &auto).good()), "hi");
    let mut all = auto.clone();
    all.as_object_mut().unwrap().remove("tool_choice");
    assert_eq!(prompt(&auto), prompt(&all));
    let calls = [("add", "auto"), ("sub", "auto"), ("add", "required"), ("sub", "required")];
    for (name, mode) in calls {
        let answer = server.post(CHAT, &chat(&call(name), mode, &["sub"])).good();
        let calls = &answer["choices"][0]["message"]["tool_calls"];
        assert_eq!(calls[0]["function"]["name"], "sub", "{name} {mode}");
        let flat = |name: &str| json!({"type": "function", "name": name});
        let request = json!({
            "input": call(name), "temperature": 0, "max_output_tokens": 99,
            "tools": [flat("add"), flat("sub"), {"type": "web_search"}],
            "tool_choice": {"type": "allowed_tools", "mode": mode,
                            "tools": [flat("sub"), {"type": "web_search"}]},
        });
        let answer = server.post(RESPONSES, &request).good();
        assert_eq!(answer["output"][0]["name"], "sub", "{name} {mode}");
    }
    let message = refused(&server, CHAT, &chat("say:hi", "auto", &["mul"]));
    assert!(message.contains("mul"), "{message}");
}
