//! Constraints of a reply: calls within free text, forced calls that are cut off, white space in
//! JSON, and the parts of a schema that are not enforced.

use kilotok_testkit::{DraftAccuracy, with_fields};
use serde_json::{Value, json};

use super::server::{Server, Setup};

const CHAT: &str = "/v1/chat/completions";
const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";

fn schema() -> Value {
    json!({"type": "object", "properties": {
        "city": {"type": "string", "maxLength": 9}, "unit": {"type": "string", "enum": ["c", "f"]},
    }, "required": ["city", "unit"], "additionalProperties": false})
}

/// A request of this API to repeat a text, with one tool.
fn ask(path: &str, text: &str, strict: bool, more: &Value) -> Value {
    let (name, text) = ("get_weather", format!("say:{text}"));
    let mut request = match path {
        CHAT => json!({"messages": [{"role": "user", "content": text}], "tools": [
            {"type": "function", "function":
                {"name": name, "parameters": schema(), "strict": strict}}]}),
        RESPONSES => json!({"input": text, "tools": [
            {"type": "function", "name": name, "parameters": schema(), "strict": strict}]}),
        _ => json!({"messages": [{"role": "user", "content": text}], "max_tokens": 300, "tools": [
            {"name": name, "input_schema": schema(), "strict": strict}]}),
    };
    request["temperature"] = json!(0);
    with_fields(request, more)
}

/// The text of a reply, and the names and arguments of its calls, with or without a stream.
#[derive(Debug, Default, PartialEq)]
struct Heard {
    text: String,
    calls: Vec<(String, String)>,
    end: String,
}

fn whole(path: &str, answer: &Value) -> Heard {
    let mut heard = Heard::default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match path {
        CHAT => {
            let choice = &answer["choices"][0];
            heard.end = text(&choice["finish_reason"]);
            heard.text = text(&choice["message"]["content"]);
            for call in choice["message"]["tool_calls"].as_array().into_iter().flatten() {
                let function = &call["function"];
                heard.calls.push((text(&function["name"]), text(&function["arguments"])));
            }
        }
        RESPONSES => {
            heard.end = text(&answer["incomplete_details"]["reason"]);
            for item in answer["output"].as_array().unwrap() {
                match item["type"].as_str().unwrap() {
                    "function_call" => {
                        heard.calls.push((text(&item["name"]), text(&item["arguments"])));
                    }
                    "message" => heard.text += &text(&item["content"][0]["text"]),
                    _ => {}
                }
            }
        }
        _ => {
            heard.end = text(&answer["stop_reason"]);
            for part in answer["content"].as_array().unwrap() {
                match part["type"].as_str().unwrap() {
                    "tool_use" => {
                        heard.calls.push((text(&part["name"]), part["input"].to_string()));
                    }
                    _ => heard.text += &text(&part["text"]),
                }
            }
        }
    }
    heard
}

fn streamed(path: &str, events: &[Value]) -> Heard {
    let mut heard = Heard::default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for event in events {
        match path {
            CHAT => {
                let choice = &event["choices"][0];
                heard.end += &text(&choice["finish_reason"]);
                heard.text += &text(&choice["delta"]["content"]);
                for call in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
                    let function = &call["function"];
                    if function["name"].is_string() {
                        heard.calls.push((text(&function["name"]), String::new()));
                    }
                    heard.calls.last_mut().unwrap().1 += &text(&function["arguments"]);
                }
            }
            RESPONSES => {
                if let Some(response) = event.get("response")
                    && event["type"] != "response.created"
                    && event["type"] != "response.in_progress"
                {
                    return whole(path, response);
                }
            }
            _ => match event["type"].as_str().unwrap_or_default() {
                "content_block_start" if event["content_block"]["type"] == "tool_use" => {
                    heard.calls.push((text(&event["content_block"]["name"]), String::new()));
                }
                "content_block_delta" => {
                    heard.text += &text(&event["delta"]["text"]);
                    if let Some(call) = heard.calls.last_mut() {
                        call.1 += &text(&event["delta"]["partial_json"]);
                    }
                }
                "message_delta" => heard.end = text(&event["delta"]["stop_reason"]),
                _ => {}
            },
        }
    }
    heard
}

/// The reply without and with a stream.
fn both(server: &Server, path: &str, body: &Value) -> [Heard; 2] {
    let all = whole(path, &server.post(path, body).good());
    let mut body = body.clone();
    body["stream"] = json!(true);
    [all, streamed(path, &server.post(path, &body).events())]
}

/// The field that allows only one call.
fn one_call(path: &str) -> Value {
    match path {
        MESSAGES => json!({"tool_choice": {"type": "auto", "disable_parallel_tool_use": true}}),
        _ => json!({"parallel_tool_calls": false}),
    }
}

fn forced(path: &str, token_max: u32) -> Value {
    match path {
        CHAT => json!({"tool_choice": "required", "max_tokens": token_max}),
        RESPONSES => json!({"tool_choice": "required", "max_output_tokens": token_max.max(16)}),
        _ => json!({"tool_choice": {"type": "any"}, "max_tokens": token_max}),
    }
}

fn servers() -> impl Iterator<Item = Server> {
    let skills = [
        DraftAccuracy::Percent(100),
        DraftAccuracy::Percent(60),
        DraftAccuracy::Always(u32::from(b'<')),
    ];
    skills.into_iter().map(|skill| Server::start(Setup { skill, ..Setup::steady() }))
}

/// Unconstrained, the model would call an undeclared tool and leave an argument out, and its
/// drafter proposes that.
#[test]
fn calls_within_text_follow_the_schemas_of_strict_tools() {
    let wrong = "Let me see.<tool_call>\n<function=weather>\n<parameter=city>Rome</parameter>\n\
        <parameter=days>3</parameter>\n</function>\n</tool_call>";
    let mut replies: Vec<Vec<Heard>> = Vec::new();
    for server in servers() {
        let mut heard = Vec::new();
        for path in [CHAT, RESPONSES, MESSAGES] {
            for reply in both(&server, path, &ask(path, wrong, true, &one_call(path))) {
                assert_eq!(reply.text, "Let me see.", "{path} {reply:?}");
                let (name, arguments) = &reply.calls[0];
                assert_eq!(name, "get_weather");
                let arguments: Value = serde_json::from_str(arguments).unwrap();
                assert!(arguments["city"].is_string(), "{arguments}");
                assert!(arguments["unit"] == "c" || arguments["unit"] == "f", "{arguments}");
                assert_eq!(arguments.as_object().unwrap().len(), 2);
                heard.push(reply);
            }
        }
        replies.push(heard);
    }
    assert!(replies.iter().all(|heard| *heard == replies[0]), "{replies:?}");
}

#[test]
fn calls_name_declared_functions_and_are_otherwise_the_models_own() {
    let wrong = "<tool_call>\n<function=weather>\n";
    let right = "<tool_call>\n<function=get_weather>\n<parameter=town>Rome</parameter>\n\
        </function>\n</tool_call>";
    for server in servers() {
        for path in [CHAT, RESPONSES, MESSAGES] {
            for reply in both(&server, path, &ask(path, wrong, false, &json!({}))) {
                assert!(reply.calls.iter().all(|(name, _)| name == "get_weather"), "{reply:?}");
            }
            for reply in both(&server, path, &ask(path, right, false, &json!({}))) {
                let arguments: Value = serde_json::from_str(&reply.calls[0].1).unwrap();
                assert_eq!(arguments, json!({"town": "Rome"}));
            }
        }
    }
}

#[test]
fn text_is_what_it_would_be_without_tools() {
    let server = Server::new();
    let text = "if a < b then <tool_call> is `<function=f>`, {\"name\": 1}";
    for path in [CHAT, RESPONSES, MESSAGES] {
        for reply in both(&server, path, &ask(path, text, true, &json!({}))) {
            assert_eq!((reply.text.as_str(), reply.calls.len()), (text, 0), "{path}");
        }
    }
}

#[test]
fn a_strict_schema_that_cannot_be_enforced_is_refused() {
    let server = Server::new();
    for path in [CHAT, RESPONSES, MESSAGES] {
        let mut request = ask(path, "hi", true, &json!({}));
        let tool = &mut request["tools"][0];
        let schema = json!({"type": "object", "not": {}});
        match path {
            CHAT => tool["function"]["parameters"] = schema,
            RESPONSES => tool["parameters"] = schema,
            _ => tool["input_schema"] = schema,
        }
        let answer = server.post(path, &request);
        assert_eq!(answer.status, 400, "{path}");
        assert!(answer.text().contains("#/not"), "{path} {}", answer.text());
    }
}

/// Wherever a forced call is cut off, none of its markup becomes content, and no argument has a
/// name that is not in the schema.
#[test]
fn forced_calls_that_are_cut_leak_nothing() {
    let server = Server::start(Setup { skill: DraftAccuracy::Percent(60), ..Setup::steady() });
    for path in [CHAT, RESPONSES, MESSAGES] {
        for token_max in 1..130 {
            let request = ask(path, "no call", token_max % 2 == 0, &forced(path, token_max));
            for (reply, streamed) in both(&server, path, &request).iter().zip([false, true]) {
                assert_eq!(reply.text, "", "{path} {token_max} {reply:?}");
                for (name, arguments) in &reply.calls {
                    assert_eq!(name, "get_weather");
                    if path == MESSAGES && !streamed {
                        let input: Value = serde_json::from_str(arguments).unwrap();
                        let known = |key: &String| ["city", "unit"].contains(&key.as_str());
                        assert!(input.as_object().unwrap().keys().all(known), "{input}");
                    }
                }
                let cut = ["length", "max_output_tokens", "max_tokens"].contains(&&*reply.end);
                let done = ["tool_calls", "tool_use", ""].contains(&&*reply.end);
                assert!(cut || (done && token_max > 60), "{path} {token_max} {reply:?}");
            }
        }
    }
}

/// A request with this format, in the API's own field.
fn shaped(format: &Value) -> Value {
    json!({"messages": [{"role": "user", "content": "say:hi"}], "temperature": 0, "max_tokens": 200,
           "response_format": format, "chat_template_kwargs": {"enable_thinking": false}})
}

fn of_schema(schema: &Value) -> Value {
    shaped(&json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}))
}

/// Unconstrained, the model would write spaces forever.
#[test]
fn no_reply_is_lost_to_white_space() {
    let server = Server::new();
    let bias = json!({"32": 90, "10": 90, "9": 90, "13": 90});
    let mut request = of_schema(&json!({"type": "array", "items": {"type": "boolean"},
                                        "minItems": 2, "maxItems": 2}));
    request["logit_bias"] = bias.clone();
    let answer = server.post(CHAT, &request).good();
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "stop", "{choice}");
    let content = choice["message"]["content"].as_str().unwrap();
    assert!(serde_json::from_str::<Vec<bool>>(content).is_ok(), "{content:?}");
    let outputs = |more: Value| {
        let mut request = shaped(&json!(null));
        let outputs = json!({"json": {"type": "array", "items": {"type": "boolean"}}});
        request["structured_outputs"] = with_fields(outputs, &more);
        request["logit_bias"] = bias.clone();
        server.post(CHAT, &request)
    };
    for more in [json!({"whitespace_pattern": ""}), json!({"disable_any_whitespace": true})] {
        let content = outputs(more).good()["choices"][0]["message"]["content"].clone();
        assert!(!content.as_str().unwrap().contains([' ', '\n', '\t', '\r']), "{content}");
    }
    assert_eq!(outputs(json!({"whitespace_pattern": "x"})).status, 400);
}

#[test]
fn what_is_not_enforced_is_told() {
    let server = Server::new();
    for (schema, keyword) in [
        (json!({"type": "string", "pattern": "^(?=a)a+$"}), "pattern"),
        (json!({"type": "boolean", "not": {"const": true}}), "`not`"),
        (
            json!({"type": "array", "items": {"type": "null"}, "maxItems": 2,
                "contains": {"type": "null"}}),
            "`contains`",
        ),
        (
            json!({"type": "array", "items": {"type": "null"}, "maxItems": 2,
                "uniqueItems": true}),
            "`uniqueItems`",
        ),
        (json!({"enum": [{}], "dependentRequired": {"a": ["b"]}}), "`dependentRequired`"),
        (json!({"enum": [1], "if": {"const": 1}, "then": {"const": 2}}), "`if`"),
    ] {
        let mut request = of_schema(&schema);
        let answer = server.post(CHAT, &request);
        let header = answer.header("x-kilotok-warning").unwrap().to_owned();
        assert!(header.contains(keyword), "{header}");
        let answer = answer.good();
        assert!(answer["warnings"][0].as_str().unwrap().contains(keyword), "{answer}");
        request["stream"] = json!(true);
        let events = server.post(CHAT, &request).events();
        let told = events.iter().filter(|event| event["warnings"].is_array());
        assert_eq!(told.count(), 1, "{events:?}");
        request["response_format"]["json_schema"]["strict"] = json!(true);
        assert_eq!(server.post(CHAT, &request).status, 400, "{schema}");
    }
    let metrics = server.get("/metrics");
    assert!(!metrics.text().contains("kilotok:unenforced_keywords_total 0"));
    let fine = server.post(CHAT, &of_schema(&json!({"type": "boolean"})));
    assert!(fine.header("x-kilotok-warning").is_none());
    assert!(fine.good().get("warnings").is_none());
    // The same in the other APIs, for a tool that must be called.
    for path in [RESPONSES, MESSAGES] {
        let mut request = ask(path, "hi", false, &forced(path, 20));
        let name = if path == RESPONSES { "parameters" } else { "input_schema" };
        request["tools"][0][name]["not"] = json!({});
        let answer = server.post(path, &request);
        assert!(answer.header("x-kilotok-warning").is_some_and(|told| told.contains("`not`")));
        assert!(answer.good()["warnings"][0].as_str().unwrap().contains("`not` at #/not"));
    }
}

#[test]
fn what_is_no_schema_is_refused_by_its_place() {
    let server = Server::new();
    for (schema, place) in [
        (json!({"type": "nonsense"}), "#/type"),
        (json!({"properties": {"a": {"type": ["string", "x"]}}}), "#/properties/a/type"),
    ] {
        let answer = server.post(CHAT, &of_schema(&schema));
        assert_eq!(answer.status, 400);
        assert!(answer.text().contains(place), "{}", answer.text());
    }
}

#[test]
fn other_servers_names_of_shapes_are_understood() {
    let server = Server::new();
    let reply = |fields: Value| server.post(CHAT, &with_fields(shaped(&json!(null)), &fields));
    let said = |fields: Value| {
        let answer = reply(fields).good();
        answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    let yes_or_no = said(json!({"grammar": "root ::= \"yes\" | \"no\""}));
    assert!(["yes", "no"].contains(&yes_or_no.as_str()), "{yes_or_no}");
    for field in ["json_schema", "format"] {
        let value: Value = serde_json::from_str(&said(json!({field: {"enum": [12]}}))).unwrap();
        assert_eq!(value, json!(12));
    }
    for fields in [json!({"format": "xml"}), json!({"format": "json", "grammar": "root ::= \"a\""})]
    {
        assert_eq!(reply(fields).status, 400);
    }
    assert_eq!(reply(json!({"format": "", "grammar": "", "max_tokens": 2})).status, 200);
}
