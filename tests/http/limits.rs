//! Limits that the operator sets for a request, and defaults for fields that a request does not
//! set.

use std::io::{Read, Write};
use std::net::TcpStream;

use kilotok_server::ServerConfig;
use serde_json::{Value, json};

use super::server::{Server, Setup, head};

const CHAT: &str = "/v1/chat/completions";

fn server() -> Server {
    let config = ServerConfig {
        n_max: 2,
        stop_max: 1,
        token_max_default: Some(3),
        ..Setup::default().config
    };
    Server::with(config)
}

fn ask(field: &str, value: Value) -> Value {
    let mut request = json!({"messages": [{"role": "user", "content": "say:a long reply"}]});
    request[field] = value;
    request
}

#[test]
fn one_request_may_ask_for_no_more() {
    let server = server();
    for (field, fits, beyond) in
        [("n", json!(2), json!(3)), ("stop", json!(["x"]), json!(["x", "y"]))]
    {
        server.post(CHAT, &ask(field, fits)).good();
        let answer = server.post(CHAT, &ask(field, beyond));
        assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!(field)));
    }
    let prompts = json!({"prompt": ["a", "b", "c"], "max_tokens": 1});
    let answer = server.post("/v1/completions", &prompts);
    assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!("prompt")));
}

#[test]
fn a_request_that_does_not_say_gets_the_default() {
    let server = server();
    let length = |field: &str, value: Value| {
        let mut answer = server.post(CHAT, &ask(field, value)).good();
        (answer["usage"]["completion_tokens"].take(), answer["choices"][0]["finish_reason"].take())
    };
    assert_eq!(length("max_tokens", Value::Null), (json!(3), json!("length")));
    assert_eq!(length("max_completion_tokens", json!(5)), (json!(5), json!("length")));
    let plain = json!({"prompt": "say:a long reply\n"});
    let answer = server.post("/v1/completions", &plain).good();
    assert_eq!(answer["usage"]["completion_tokens"], 3);
}

/// Clients that read only after writing everything must get the error, however much they wrote.
#[test]
fn a_body_that_is_far_too_large_is_answered() {
    let config = ServerConfig { body_max: 1000, ..Setup::default().config };
    let server = Server::with(config);
    // More than the buffers of both ends can hold.
    let body = vec![b' '; 32 << 20];
    let head = head("POST", CHAT, &[], body.len());
    let mut socket = TcpStream::connect(server.address).unwrap();
    socket.write_all(&head).unwrap();
    socket.write_all(&body).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    server.post(CHAT, &json!({"messages": [{"role": "user", "content": "say:a"}]})).good();
}

#[test]
fn there_is_one_tier() {
    let server = server();
    for path in [CHAT, "/v1/messages"] {
        let mut request = ask("max_tokens", json!(2));
        request["service_tier"] = json!("auto");
        server.post(path, &request).good();
        request["service_tier"] = json!("priority");
        let answer = server.post(path, &request);
        assert!(answer.status == 400 && answer.text().contains("service_tier"), "{path}");
    }
}
