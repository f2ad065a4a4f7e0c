//! Requests that are refused in the form of OpenAI and Anthropic, with messages that say what to do
//! instead.

use std::io::{self, Write};
use std::sync::Mutex;

use kilotok_server::ServerConfig;
use serde_json::{Value, json};

use super::server::{Answer, Server, Setup, head};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";

/// The required fields of each API.
fn least(path: &str) -> Value {
    match path {
        COMPLETIONS => json!({"prompt": "say:hi\n", "max_tokens": 4}),
        RESPONSES => json!({"input": "say:hi"}),
        _ => json!({"messages": [{"role": "user", "content": "say:hi"}], "max_tokens": 4}),
    }
}

fn with(path: &str, field: &str, value: Value) -> Value {
    let mut request = least(path);
    request[field] = value;
    request
}

#[track_caller]
fn message(answer: &Answer, status: u16) -> String {
    assert_eq!(answer.status, status, "{}", answer.text());
    answer.json()["error"]["message"].as_str().unwrap().to_owned()
}

#[test]
fn a_refused_field_names_what_stands_in_for_it() {
    let server = Server::new();
    let function = json!({"name": "f", "arguments": "{}"});
    let past = json!([{"role": "assistant", "function_call": function}]);
    for (path, field, value, instead) in [
        (CHAT, "guided_json", json!({"type": "object"}), "structured_outputs.json"),
        (CHAT, "guided_regex", json!("a+"), "structured_outputs.regex"),
        (CHAT, "guided_choice", json!(["a", "b"]), "structured_outputs.choice"),
        (COMPLETIONS, "guided_grammar", json!("start: \"a\""), "structured_outputs.grammar"),
        (CHAT, "functions", json!([{"name": "f"}]), "`tools`"),
        (CHAT, "function_call", json!("auto"), "`tool_choice`"),
        (CHAT, "messages", past, "`tool_calls`"),
        (CHAT, "best_of", json!(2), "`n`"),
        (CHAT, "max_output_tokens", json!(5), "`max_completion_tokens`"),
        (COMPLETIONS, "max_completion_tokens", json!(5), "`max_tokens`"),
        (COMPLETIONS, "top_logprobs", json!(5), "`logprobs`"),
        (RESPONSES, "max_tokens", json!(5), "`max_output_tokens`"),
        (RESPONSES, "max_completion_tokens", json!(5), "`max_output_tokens`"),
        (RESPONSES, "response_format", json!({"type": "json_object"}), "`text.format`"),
        (RESPONSES, "format", json!("json"), "`text.format`"),
        (RESPONSES, "json_schema", json!({"type": "object"}), "`text.format`"),
        (RESPONSES, "grammar", json!("root ::= \"a\""), "type `custom`"),
        (MESSAGES, "stop", json!(["a"]), "`stop_sequences`"),
        (MESSAGES, "format", json!("json"), "`output_config.format`"),
        (MESSAGES, "json_schema", json!({"type": "object"}), "`output_config.format`"),
        (MESSAGES, "grammar", json!("root ::= \"a\""), "`/v1/chat/completions`"),
        (MESSAGES, "response_format", json!({"type": "text"}), "`output_config.format`"),
    ] {
        let message = message(&server.post(path, &with(path, field, value)), 400);
        assert!(message.starts_with(field), "{path} {field}: {message}");
        assert!(message.contains(instead), "{path} {field}: {message}");
        assert!(!message.contains("column"), "{path} {field}: {message}");
    }
}

#[test]
fn a_value_of_the_wrong_kind_hears_what_the_field_may_be() {
    let server = Server::new();
    for (path, field, value, says) in [
        (CHAT, "max_tokens", json!("5"), "string \"5\", expected an integer of at least 1"),
        (COMPLETIONS, "max_tokens", json!("5"), "string \"5\", expected an integer of at least 0"),
        (MESSAGES, "max_tokens", json!("5"), "string \"5\", expected an integer of at least 1"),
        (RESPONSES, "max_output_tokens", json!([1]), "expected an integer of at least 1"),
        (CHAT, "max_tokens", json!(1e300), "expected an integer of at least 1"),
        (CHAT, "top_logprobs", json!("3"), "an integer of at least 0 and at most 20"),
        (COMPLETIONS, "logprobs", json!(true), "an integer of at least 0 and at most 20"),
        (CHAT, "temperature", json!("hot"), "expected a number of at least 0 and at most 2"),
        (CHAT, "top_p", json!("1"), "expected a number above 0 and at most 1"),
        (CHAT, "seed", json!("1"), "expected an integer"),
        (CHAT, "logit_bias", json!({"1": "x"}), "expected a number"),
    ] {
        let message = message(&server.post(path, &with(path, field, value)), 400);
        assert!(message.starts_with(field), "{path} {field}: {message}");
        assert!(message.contains(says), "{path} {field}: {message}");
        assert!(!message.contains("9223372036854775808"), "{path} {field}: {message}");
        assert!(!message.contains("column"), "{path} {field}: {message}");
    }
    let answer = server.post(CHAT, &with(CHAT, "max_tokens", json!(0)));
    let told = message(&answer, 400);
    assert_eq!(told, "max_tokens: 0 is out of range, it must be at least 1");
    // Only for invalid JSON does the error give a position.
    let answer = server.post_bytes(CHAT, b"{\"messages\": [}", &[]);
    assert!(message(&answer, 400).contains("line 1 column 15"));
    let answer = server.post_bytes(CHAT, b"{\"n\": 1, \"n\": 2, \"messages\": []}", &[]);
    assert_eq!(message(&answer, 400), "n: duplicate field `n`");
}

#[test]
fn each_api_has_its_roles() {
    let server = Server::new();
    let chat = |role: &str| {
        let messages = json!([{"role": role, "content": "say:a"}]);
        server.post(CHAT, &with(CHAT, "messages", messages))
    };
    for role in ["system", "developer", "user", "assistant", "tool", "function"] {
        assert_eq!(chat(role).status, 200, "{role}");
    }
    let answer = chat("alien");
    assert_eq!(answer.json()["error"]["param"], "messages[0].role");
    assert!(message(&answer, 400).contains("\"alien\", it must be one of system, developer"));
    let input = json!([{"role": "alien", "content": "a"}]);
    let answer = server.post(RESPONSES, &with(RESPONSES, "input", input));
    assert!(message(&answer, 400).contains("input[0].role"));
    let messages = json!([{"role": "alien", "content": "a"}]);
    let answer = server.post(MESSAGES, &with(MESSAGES, "messages", messages));
    assert!(message(&answer, 400).contains("messages[0].role"));
}

#[test]
fn an_empty_stop_string_is_refused() {
    let server = Server::new();
    for (path, field, stop) in [
        (CHAT, "stop", json!("")),
        (CHAT, "stop", json!(["", ""])),
        (COMPLETIONS, "stop", json!(["a", ""])),
        (MESSAGES, "stop_sequences", json!([""])),
    ] {
        let message = message(&server.post(path, &with(path, field, stop.clone())), 400);
        assert!(message.starts_with(&format!("{field}[")), "{path} {stop}: {message}");
    }
    for stop in [json!(null), json!([]), json!("x")] {
        assert_eq!(server.post(CHAT, &with(CHAT, "stop", stop)).status, 200);
    }
}

#[test]
fn only_a_stream_has_options() {
    let server = Server::new();
    for path in [CHAT, COMPLETIONS, RESPONSES] {
        for options in [json!({"include_usage": true}), json!({})] {
            let mut request = with(path, "stream_options", options);
            for stream in [json!(null), json!(false)] {
                request["stream"] = stream;
                let message = message(&server.post(path, &request), 400);
                assert!(message.starts_with("stream_options: only a stream"), "{path}: {message}");
            }
            request["stream"] = json!(true);
            assert_eq!(server.post(path, &request).status, 200, "{path}");
        }
    }
}

#[test]
fn a_completion_has_sixteen_tokens_unless_somebody_says() {
    let tokens = |config: ServerConfig, max_tokens: Option<Value>| {
        let server = Server::with(config);
        let mut request = json!({"prompt": "a", "ignore_eos": true});
        if let Some(max_tokens) = max_tokens {
            request["max_tokens"] = max_tokens;
        }
        let answer = server.post(COMPLETIONS, &request).good();
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
        answer["usage"]["completion_tokens"].as_u64().unwrap()
    };
    let usual = || Setup::default().config;
    assert_eq!(tokens(usual(), None), 16);
    assert_eq!(tokens(usual(), Some(json!(null))), 16);
    assert_eq!(tokens(usual(), Some(json!(20))), 20);
    let operator = || ServerConfig { token_max_default: Some(30), ..usual() };
    assert_eq!(tokens(operator(), None), 30);
    assert_eq!(tokens(operator(), Some(json!(20))), 20);
}

#[test]
fn the_least_length_fits_into_the_greatest() {
    let server = Server::new();
    let request = json!({"prompt": "a", "min_tokens": 20});
    let message = message(&server.post(COMPLETIONS, &request), 400);
    assert!(message.contains("20") && message.contains("16; raise max_tokens"), "{message}");
}

#[test]
fn a_path_that_is_nearly_right_is_mended() {
    let server = Server::new();
    for (asked, meant) in [
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completion", "/v1/chat/completions"),
        ("/v1/responses/resp_1", "not stored"),
    ] {
        let message = message(&server.post(asked, &json!({})), 404);
        assert!(message.contains(meant), "{asked}: {message}");
    }
    // Anthropic's clients get the error in their own form.
    let headers = [("anthropic-version", "2023-06-01")];
    let answer = server.post_bytes("/v1/v1/messages", b"{}", &headers);
    assert_eq!(answer.json()["type"], "error");
    assert!(message(&answer, 404).contains("ask /v1/messages"));
}

#[test]
fn a_method_that_is_wrong_is_mended() {
    let server = Server::new();
    let answer = server.get(CHAT);
    assert_eq!(answer.header("allow"), Some("POST"));
    let told = message(&answer, 405);
    assert!(told.contains("send POST, with a JSON object as its body"), "{told}");
    let answer = server.post("/v1/models", &json!({}));
    assert_eq!(answer.header("allow"), Some("GET,HEAD"));
    assert!(message(&answer, 405).ends_with("send GET"));
    let told = message(&server.post("/", &json!({})), 405);
    assert!(told.ends_with("send GET"), "{told}");
}

#[test]
fn a_page_of_another_site_hears_of_the_flag() {
    let ask = |server: &Server, origin: &str| {
        let headers = [("origin", origin), ("access-control-request-method", "POST")];
        server.send(&head("OPTIONS", CHAT, &headers, 0), &[]).answer()
    };
    let closed = Server::new();
    let answer = ask(&closed, "https://chat.example");
    assert_eq!(answer.json()["error"]["code"], "origin_not_allowed");
    let told = message(&answer, 403);
    assert!(told.contains("`--cors-origin https://chat.example`"), "{told}");
    assert!(message(&ask(&closed, "null"), 403).contains("`--cors-origin '*'`"));
    let origins = vec!["https://chat.example".to_owned()];
    let config = ServerConfig { cors_origins: origins, ..Setup::default().config };
    let open = Server::with(config);
    assert_eq!(ask(&open, "https://chat.example").status, 200);
    assert_eq!(ask(&open, "https://evil.example").status, 403);
}

/// The log's lines about refused pages, from all tests here.
static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOG.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_log_names_a_refused_page_once() {
    let lines = tracing_subscriber::fmt().with_env_filter("kilotok_server::routes::cors=warn");
    lines.with_writer(|| Log).with_ansi(false).init();
    let server = Server::new();
    for _ in 0..3 {
        let headers =
            [("origin", "https://logged.example"), ("access-control-request-method", "POST")];
        let answer = server.send(&head("OPTIONS", CHAT, &headers, 0), &[]).answer();
        assert_eq!(answer.status, 403);
    }
    let log = String::from_utf8(LOG.lock().unwrap().clone()).unwrap();
    assert_eq!(
        log.matches("`--cors-origin https://logged.example` lets it in").count(),
        1,
        "{log}"
    );
    assert!(log.contains("WARN"), "{log}");
}
