//! Failures while replies run: clients that leave, aborts, full queues, engines that fail, and
//! shutdown. Steps are released one by one, so that nothing depends on speed.

use std::time::Duration;

use kilotok_generation::AdmissionOptions;
use kilotok_sched::Limits;
use kilotok_server::ServerConfig;
use kilotok_testkit::with_fields;
use serde_json::{Value, json};

use super::server::{Brake, Open, Server, Setup, until};

const CHAT: &str = "/v1/chat/completions";

fn endless(more: &Value) -> Value {
    let request = json!({
        "messages": [{"role": "user", "content": "anything"}],
        "max_tokens": 1500, "ignore_eos": true, "stream": true,
    });
    with_fields(request, more)
}

fn braked(setup: Setup) -> (Server, Brake) {
    let brake = Brake::default();
    (Server::start(Setup { brake: Some(brake.clone()), ..setup }), brake)
}

/// A streamed reply whose first token has arrived. A fast engine generates all tokens that are
/// released before the test continues, so every reply releases its own share.
fn begun(server: &Server, brake: &Brake, request: &Value) -> Open {
    let mut open = server.begin(CHAT, request);
    // Enough for a prompt and the first tokens.
    brake.release(400);
    open.read_until("\"content\":\"\"");
    open
}

/// Lets steps through until nothing runs.
fn until_idle(server: &Server, brake: &Brake) {
    for _ in 0..10_000 {
        if server.get("/load").good()["server_load"] == 0 {
            return;
        }
        brake.release(1);
    }
    panic!("something still runs");
}

#[test]
fn a_client_that_leaves_frees_its_place() {
    let (server, brake) = braked(Setup::default());
    for n in [1, 3] {
        let open = begun(&server, &brake, &endless(&json!({"n": n})));
        assert_eq!(server.get("/load").good()["server_load"], n);
        drop(open);
        until_idle(&server, &brake);
    }
    // A client that waits for a complete reply can leave as well.
    let mut request = endless(&json!({}));
    request["stream"] = json!(false);
    let open = server.begin(CHAT, &request);
    until("it is asked", || server.get("/load").good()["server_load"] != 0);
    drop(open);
    until_idle(&server, &brake);
    let tokens = server.metric("vllm:generation_tokens_total");
    assert!(tokens < 1500.0, "{tokens} tokens were made for clients that left");
}

/// A server cannot tell whether such a client has closed its socket or would still read.
#[test]
fn a_client_that_closes_its_sending_half_has_left() {
    let (server, brake) = braked(Setup::default());
    for stream in [true, false] {
        let open = server.begin(CHAT, &endless(&json!({"stream": stream})));
        until("it is asked", || server.get("/load").good()["server_load"] != 0);
        open.sent();
        until_idle(&server, &brake);
        let answer = open.rest();
        assert!(!answer.contains("[DONE]") && !answer.contains("finish_reason\":\"length"));
    }
}

#[test]
fn replies_are_aborted_by_id() {
    let (server, brake) = braked(Setup::default());
    let named = |id: &str| endless(&json!({"request_id": id}));
    let open = begun(&server, &brake, &named("mine"));
    let abort = |ids: Value| server.post("/abort_requests", &ids).good()["aborted"].clone();
    assert_eq!(abort(json!({"request_ids": ["other"]})), 0);
    assert_eq!(abort(json!({"request_ids": ["mine"]})), 1);
    let events = open.answer().events();
    let finish = &events[events.len() - 2]["choices"][0]["finish_reason"];
    assert_eq!((finish, events.last().unwrap()), (&json!("abort"), &json!("[DONE]")));
    until_idle(&server, &brake);
    let open = begun(&server, &brake, &named("again"));
    assert_eq!(abort(json!({"rid": "chatcmpl-again"})), 1);
    assert_eq!(server.post("/abort_requests", &json!({})).status, 400);
    until_idle(&server, &brake);
    assert!(open.rest().contains("\"finish_reason\":\"abort\""));
}

/// `max_tokens` is Anthropic's only stop reason for an incomplete reply.
#[test]
fn an_aborted_message_does_not_claim_to_be_complete() {
    let (server, brake) = braked(Setup::default());
    let request = json!({
        "messages": [{"role": "user", "content": format!("say:{}", "x".repeat(500))}],
        "max_tokens": 1000, "stream": true,
    });
    let mut open = server.begin("/v1/messages", &request);
    brake.release(20);
    open.read_until("text_delta");
    assert_eq!(server.post("/abort_requests", &json!({"abort_all": true})).good()["aborted"], 1);
    let events = open.answer().named_events();
    until_idle(&server, &brake);
    let [.., (_, delta), (last, _)] = &events[..] else { panic!("{events:?}") };
    assert_eq!(
        (&delta["delta"]["stop_reason"], last.as_str()),
        (&json!("max_tokens"), "message_stop")
    );
}

#[test]
fn a_full_queue_says_when_to_come_again() {
    let limits = Limits { running_max: 1, ..Limits::default() };
    let options = AdmissionOptions { waiting_max: 1, ..AdmissionOptions::default() };
    let (server, brake) = braked(Setup { limits, options, ..Setup::default() });
    let first = begun(&server, &brake, &endless(&json!({})));
    let second = server.begin(CHAT, &endless(&json!({"max_tokens": 5})));
    until("both are there", || server.get("/load").good()["server_load"] == 2);
    let refused = server.post(CHAT, &endless(&json!({})));
    assert_eq!(refused.status, 429, "{}", refused.text());
    assert!(refused.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!(refused.json()["error"]["type"], "rate_limit_error");
    drop((first, second));
    until_idle(&server, &brake);
}

#[test]
fn silence_is_filled() {
    let config = ServerConfig { keep_alive: Duration::from_millis(1), ..Setup::default().config };
    let brake = Brake::default();
    let setup = Setup { config, brake: Some(brake.clone()), ..Setup::default() };
    let server = Server::start(setup);
    let mut open = server.begin(CHAT, &endless(&json!({"max_tokens": 3})));
    // The status arrives before the reply does.
    open.read_until("200 OK");
    open.read_until(": keep-alive\n\n");
    brake.release(2000);
    let answer = open.answer();
    assert_eq!(answer.events().last().unwrap(), "[DONE]");
}

#[test]
fn a_failed_engine_is_an_error_and_ends_the_server() {
    let brake = Brake::default();
    // Enough for the first steps, with or without drafts, and for fewer than two hundred tokens.
    brake.release(100);
    let setup = Setup { brake: Some(brake.clone()), fail_at: Some(200), ..Setup::default() };
    let mut server = Server::start(setup);
    let mut open = server.begin(CHAT, &endless(&json!({})));
    open.read_until("\"content\":\"\"");
    brake.release(40_000);
    let events = open.answer().events();
    let [.., error, done] = &events[..] else { panic!("{events:?}") };
    assert_eq!(error["error"]["type"], "server_error");
    assert_eq!(error["error"]["code"], "engine_failed");
    assert_eq!(done, "[DONE]");
    let failed = server.wait().unwrap_err().to_string();
    assert!(failed.contains("engine failed"), "{failed}");
}

#[test]
fn a_failure_before_the_first_token_keeps_its_status() {
    let setup = Setup { fail_at: Some(0), ..Setup::default() };
    let server = Server::start(setup);
    let answer = server.post(CHAT, &endless(&json!({})));
    assert_eq!(answer.status, 500, "{}", answer.text());
    assert_eq!(answer.json()["error"]["code"], "engine_failed");
}

#[test]
fn shutting_down_loses_no_reply() {
    let (mut server, brake) = braked(Setup::default());
    let open = begun(&server, &brake, &endless(&json!({"max_tokens": 1500})));
    server.signal();
    // New requests are refused while the old one continues.
    loop {
        let answer = std::thread::scope(|scope| {
            let post = scope.spawn(|| server.post(CHAT, &endless(&json!({"max_tokens": 1}))));
            // A request that is still accepted needs only a few steps, however late it comes; the
            // old request needs far more to end.
            until("an answer", || {
                brake.release(1);
                post.is_finished()
            });
            post.join().unwrap()
        });
        if answer.status == 503 {
            assert!(answer.header("retry-after").is_some());
            break;
        }
    }
    assert_eq!(server.get("/ready").status, 503);
    assert_eq!(server.get("/live").status, 200);
    brake.release(100_000);
    let events = open.answer().events();
    let finish = &events[events.len() - 2]["choices"][0]["finish_reason"];
    assert_eq!((finish, events.last().unwrap()), (&json!("length"), &json!("[DONE]")));
    server.wait().unwrap();
}

#[test]
fn what_takes_too_long_to_shut_down_is_told_so() {
    let config =
        ServerConfig { shutdown_timeout: Duration::from_millis(1), ..Setup::default().config };
    let (mut server, brake) = braked(Setup { config, ..Setup::default() });
    let open = begun(&server, &brake, &endless(&json!({})));
    server.signal();
    let events = open.answer().events();
    let [.., error, done] = &events[..] else { panic!("{events:?}") };
    assert_eq!(error["error"]["code"], "shutting_down");
    assert_eq!(done, "[DONE]");
    brake.release(10_000);
    server.wait().unwrap();
}

#[test]
fn a_response_that_fails_before_it_begins_begins_all_the_same() {
    let config = ServerConfig {
        keep_alive: Duration::from_millis(1),
        shutdown_timeout: Duration::from_millis(1),
        ..Setup::default().config
    };
    let (mut server, brake) = braked(Setup { config, ..Setup::default() });
    let mut open = server.begin("/v1/responses", &json!({"input": "anything", "stream": true}));
    open.read_until(": keep-alive\n\n");
    server.signal();
    let events = open.answer().named_events();
    let names: Vec<_> = events.iter().map(|(name, _)| name.as_str()).collect();
    let expected = ["response.created", "response.in_progress", "error", "response.failed"];
    assert_eq!(names, expected);
    assert_eq!(events[0].1["response"]["status"], "in_progress");
    assert!((0..).zip(&events).all(|(index, (_, data))| data["sequence_number"] == index));
    brake.release(10_000);
    server.wait().unwrap();
}
