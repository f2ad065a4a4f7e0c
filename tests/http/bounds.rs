//! Requests that could harm others: through the memory they take, the host name they use, or by
//! ending other clients' requests.

use kilotok_server::{Hosts, ServerConfig};
use serde_json::{Value, json};

use super::server::{Answer, Brake, Server, Setup, head, until};

const CHAT: &str = "/v1/chat/completions";

fn hi() -> Value {
    json!({"messages": [{"role": "user", "content": "say:hi"}]})
}

/// A request with these fields besides its own.
fn hi_and(more: &str) -> String {
    format!("{},{more}}}", hi().to_string().strip_suffix('}').unwrap())
}

fn held(server: &Server) -> u64 {
    server.get("/load").good()["request_bytes"].as_u64().unwrap()
}

#[test]
fn a_body_of_too_many_values_is_refused_before_they_are_built() {
    let server = Server::new();
    let many = 600_000;
    let tool = r#"{"type":"function","function":{"name":"f","parameters":{}}}"#;
    for body in [
        hi_and(&vec![r#""z":0"#; many].join(",")),
        hi_and(&format!(r#""chat_template_kwargs":{{"a":[0{}]}}"#, ",0".repeat(many))),
        hi_and(&format!(r#""tools":[{tool}{}]"#, format!(",{tool}").repeat(many / 10))),
    ] {
        let answer = server.post_bytes(CHAT, body.as_bytes(), &[]);
        let told = answer.text();
        assert!(answer.status == 413 && told.contains("at most 524288"), "{told}");
    }
    // Only some of the unknown fields are named in the log.
    let body = hi_and(&vec![r#""z":0"#; 10_000].join(","));
    assert_eq!(server.post_bytes(CHAT, body.as_bytes(), &[]).status, 200);
    let metrics = server.get("/metrics");
    assert!(metrics.text().contains("unknown_fields_total{"), "{}", metrics.text());
    assert_eq!(held(&server), 0);
}

/// Sends the head of a request and this many bytes of its body; the rest is not sent yet.
fn half_sent(server: &Server, length: usize, sent: usize) -> super::server::Open {
    server.send(&head("POST", CHAT, &[], length), &vec![b' '; sent])
}

#[test]
fn bodies_together_take_no_more_than_they_may() {
    let memory = 8 << 20;
    let server = Server::with(ServerConfig {
        request_memory: memory,
        body_max: 4 << 20,
        ..Setup::default().config
    });
    let holding: Vec<_> = (0..3).map(|_| half_sent(&server, 4 << 20, 700_000)).collect();
    until("what they sent", || held(&server) >= 3 * 700_000);
    assert!(held(&server) <= memory as u64);
    assert!(server.metric("kilotok:request_bytes{") > 0.0);
    // There is no room for another large request, but there is for a small one.
    let large = hi_and(&format!(r#""user":"{}""#, "x".repeat(1_200_000)));
    let answer = server.post_bytes(CHAT, large.as_bytes(), &[]);
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (503, &json!("memory_full")));
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert!(answer.text().contains("--request-memory"), "{}", answer.text());
    server.post(CHAT, &hi()).good();
    drop(holding);
    until("what they held", || held(&server) == 0);
    assert_eq!(server.post_bytes(CHAT, large.as_bytes(), &[]).status, 200);
    // For a request that could never be served, the client is not told to retry.
    let huge = hi_and(&format!(r#""user":"{}""#, "x".repeat(3 << 20)));
    let answer = server.post_bytes(CHAT, huge.as_bytes(), &[]);
    assert_eq!((answer.status, answer.header("retry-after")), (413, None));
    until("what they held", || held(&server) == 0);
}

/// Once the prompt is made, the body's memory is released, even while the reply runs.
#[test]
fn a_running_reply_holds_no_memory_of_requests() {
    let brake = Brake::default();
    let server = Server::start(Setup { brake: Some(brake.clone()), ..Setup::default() });
    let mut request = hi();
    for (field, value) in [
        ("stream", json!(true)),
        ("ignore_eos", json!(true)),
        ("max_tokens", json!(1500)),
        ("user", json!("x".repeat(100_000))),
    ] {
        request[field] = value;
    }
    let mut open = server.begin(CHAT, &request);
    brake.release(400);
    open.read_until("\"content\":\"\"");
    let load = server.get("/load").good();
    assert_eq!((&load["request_bytes"], &load["server_load"]), (&json!(0), &json!(1)));
    brake.release(5000);
}

#[test]
fn a_body_that_is_announced_too_large_is_refused_at_once() {
    let server = Server::with(ServerConfig { body_max: 1000, ..Setup::default().config });
    // No byte of the body is sent.
    let mut open = server.send(&head("POST", CHAT, &[], 1001), &[]);
    open.read_until("HTTP/1.1 413 ");
    open.read_until("larger than this server accepts");
}

#[test]
fn a_request_has_one_host() {
    let server = Server::new();
    let ask = |version: &str, hosts: &str| {
        let head = format!("GET /version HTTP/{version}\r\n{hosts}connection: close\r\n\r\n");
        server.send(head.as_bytes(), &[]).status_if_any()
    };
    assert_eq!(ask("1.1", "host: a\r\n"), Some(200));
    assert_eq!(ask("1.0", ""), Some(200));
    for hosts in ["", "host: a\r\nhost: a\r\n", "host: a\r\nhost: b\r\n"] {
        assert_eq!(ask("1.1", hosts), Some(400), "{hosts:?}");
    }
}

#[test]
fn other_names_are_not_answered() {
    let hosts = Hosts::Only(vec!["gpu1".into()]);
    let origins = vec!["*".to_owned()];
    let server =
        Server::with(ServerConfig { hosts, cors_origins: origins, ..Setup::default().config });
    let ask = |path: &str, host: &str| {
        let head = format!(
            "GET {path} HTTP/1.1\r\nhost: {host}\r\norigin: http://{host}\r\n\
             connection: close\r\n\r\n"
        );
        server.send(head.as_bytes(), &[]).answer()
    };
    for path in ["/", "/v1/models", "/metrics", "/health", "/load"] {
        assert_eq!(ask(path, "gpu1:8000").status, 200, "{path}");
        assert_eq!(ask(path, "localhost").status, 200, "{path}");
        let answer = ask(path, "evil.example");
        assert_eq!(answer.status, 403, "{path}");
        assert!(answer.text().contains("--allowed-hosts"), "{}", answer.text());
    }
}

#[test]
fn a_key_ends_only_what_it_asked_for() {
    let brake = Brake::default();
    let config =
        ServerConfig { api_keys: vec!["one".into(), "two".into()], ..Setup::default().config };
    let server = Server::start(Setup { brake: Some(brake.clone()), config, ..Setup::default() });
    let mut request = hi();
    request["stream"] = json!(true);
    request["ignore_eos"] = json!(true);
    let request = request.to_string();
    let begin = |key: &str| {
        let headers = [("x-api-key", key), ("x-request-id", "same")];
        let head = head("POST", CHAT, &headers, request.len());
        server.send(&head, request.as_bytes())
    };
    let opens = [begin("one"), begin("two")];
    until("both", || server.get("/load").good()["server_load"] == 2);
    let abort = |key: &str, what: Value| -> Answer {
        server.post_bytes("/abort_requests", what.to_string().as_bytes(), &[("x-api-key", key)])
    };
    for what in [json!({"request_ids": ["same"]}), json!({"abort_all": true})] {
        let count = i32::from(what["abort_all"] != true);
        assert_eq!(abort("one", what).good()["aborted"], count);
        brake.release(1);
    }
    assert_eq!(abort("two", json!({"request_ids": ["chatcmpl-0/same"]})).good()["aborted"], 0);
    assert_eq!(abort("two", json!({"abort_all": true})).good()["aborted"], 1);
    brake.release(1000);
    for open in opens {
        assert!(open.rest().contains("\"finish_reason\":\"abort\""));
    }
}

#[test]
fn priorities_are_the_operators_choice() {
    let ask = |server: &Server, priority: i64| {
        let mut request = hi();
        request["priority"] = json!(priority);
        server.post(CHAT, &request)
    };
    let server = Server::new();
    ask(&server, 0).good();
    let answer = ask(&server, -1);
    assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!("priority")));
    assert!(answer.text().contains("--allow-priority"), "{}", answer.text());
    let server = Server::with(ServerConfig { allow_priority: true, ..Setup::default().config });
    ask(&server, -1).good();
}

#[test]
fn a_request_that_is_not_ready_when_time_is_up_is_told() {
    let config =
        ServerConfig { shutdown_timeout: std::time::Duration::ZERO, ..Setup::default().config };
    let mut server = Server::with(config);
    let open = half_sent(&server, 100_000, 50_000);
    until("its bytes", || held(&server) > 0);
    server.signal();
    let answer = open.answer();
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("5")));
    server.wait().unwrap();
}

/// The data that an HTTP/2 client may send before it is read is not in the budget, so it must be
/// small.
#[test]
fn an_http2_connection_has_a_small_window() {
    let server = Server::new();
    let empty_settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let mut open = server.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &empty_settings);
    let mut frame = || {
        let head = open.bytes(9);
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        (head[3], open.bytes(length))
    };
    let (kind, settings) = frame();
    assert_eq!(kind, 4, "settings come first");
    let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
    let setting = |id: u8| {
        let found = settings.chunks(6).find(|setting| setting[..2] == [0, id]);
        found.map(|setting| number(&setting[2..]))
    };
    assert_eq!(setting(3), Some(128), "streams at once");
    assert_eq!(setting(4), Some(256 << 10), "the window of a stream");
    let grown = std::iter::repeat_with(frame).take(3).find(|(kind, _)| *kind == 8);
    let (_, increment) = grown.expect("the window of the connection is not the default");
    assert_eq!(65_535 + number(&increment), 256 << 10);
}
