//! Many clients, some of them slow: no client waits for another one's reading, no running reply is
//! lost when the server stops, and health reports everything that a load balancer must know.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use kilotok_generation::{AdmissionOptions, Clock};
use kilotok_server::ServerConfig;
use kilotok_testkit::{Random, with_fields};
use serde_json::{Value, json};

use super::server::{Answer, Brake, Server, Setup, until};

const CHAT: &str = "/v1/chat/completions";

/// A reply of this many random tokens.
fn babble(tokens: usize, more: &Value) -> Value {
    let request = json!({
        "messages": [{"role": "user", "content": "anything"}],
        "max_tokens": tokens, "ignore_eos": true, "seed": 3,
    });
    with_fields(request, more)
}

#[test]
fn a_client_that_does_not_read_holds_up_nobody() {
    let server = Server::start(Setup::steady());
    // Some ten megabytes each, far more than sockets can hold.
    let more = json!({"stream": true, "n": 4, "logprobs": true, "top_logprobs": 8});
    let large = babble(1900, &more);
    let unread: Vec<_> = (0..3).map(|_| server.begin(CHAT, &large)).collect();
    let mut expected = None;
    for _ in 0..20 {
        let answer = server.post(CHAT, &babble(30, &json!({}))).good();
        let content = answer["choices"][0]["message"]["content"].clone();
        assert_eq!(*expected.get_or_insert(content.clone()), content);
    }
    // The engine has finished the replies of clients that do not read; their unread text is kept
    // for them.
    until("the end of all replies", || server.service.admission.load().held == 0);
    assert_eq!(server.service.admission.load().usage, 0.0);
    for open in unread {
        let events = open.answer().events();
        let (done, chunks) = events.split_last().unwrap();
        assert_eq!(done, "[DONE]");
        let choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
        let tokens = |choice: &Value| choice["logprobs"]["content"].as_array().map_or(0, Vec::len);
        assert_eq!(choices.map(tokens).sum::<usize>(), 4 * 1900);
    }
}

#[test]
fn stopping_under_load_loses_no_reply_that_was_let_in() {
    const CLIENTS: usize = 24;
    let mut server = Server::start(Setup::steady());
    let whole = AtomicUsize::new(0);
    let address = server.address;
    let clients = |server: &Server, seed: usize| {
        let mut dice = Random::new(seed as u64);
        loop {
            let (tokens, stream) = (1 + dice.below(200), dice.percent(50));
            let options = stream.then(|| json!({"include_usage": true}));
            let request = babble(tokens, &json!({"stream": stream, "stream_options": options}));
            match server.post_if_there(CHAT, &request) {
                // The server no longer accepts connections.
                None => return,
                Some(answer) if answer.status == 503 => {}
                Some(answer) => {
                    assert_eq!(token_count(&answer, stream), tokens as u64);
                    whole.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    };
    let stop = server.stop_later();
    std::thread::scope(|scope| {
        for seed in 0..CLIENTS {
            let server = &server;
            scope.spawn(move || clients(server, seed));
        }
        until("load", || whole.load(Ordering::Relaxed) > 2 * CLIENTS);
        assert!(server.service.admission.load().held > 0);
        drop(stop);
    });
    server.wait().unwrap();
    assert!(std::net::TcpStream::connect(address).is_err());
    let load = server.service.admission.load();
    assert_eq!((load.held, load.running), (0, 0));
}

/// The number of tokens in an answer, which must be complete.
fn token_count(answer: &Answer, stream: bool) -> u64 {
    if !stream {
        return answer.good()["usage"]["completion_tokens"].as_u64().unwrap();
    }
    let events = answer.events();
    let [.., last, usage, done] = &events[..] else { panic!("{events:?}") };
    assert_eq!(done, "[DONE]");
    assert_eq!(last["choices"][0]["finish_reason"], "length", "{last}");
    usage["usage"]["completion_tokens"].as_u64().unwrap()
}

#[test]
fn health_is_progress() {
    let (now, brake) = (Arc::new(AtomicU64::new(0)), Brake::default());
    let clock = Arc::clone(&now);
    let clock = Clock::new(move || clock.load(Ordering::SeqCst));
    let options = AdmissionOptions { clock, ..AdmissionOptions::default() };
    let server = Server::start(Setup { options, brake: Some(brake.clone()), ..Setup::default() });
    brake.release(100);
    let mut open = server.begin(CHAT, &babble(1500, &json!({"stream": true})));
    open.read_until("\"content\":\"\"");
    let statuses = || ["/health", "/ready", "/live"].map(|path| server.get(path).status);
    assert_eq!(statuses(), [200; 3]);
    // The clock advances by a minute without a step. A step may have ended after the clock was set,
    // so this is repeated.
    until("a stall", || {
        now.fetch_add(60_000_000, Ordering::SeqCst);
        statuses() == [503, 503, 200]
    });
    let health = server.get("/health").json();
    assert_eq!(health["status"], "stalled");
    let refused = server.post(CHAT, &babble(1, &json!({})));
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (503, &json!("engine_failed")));
    // The engine was only slow.
    brake.release(1_000_000);
    assert_eq!(open.answer().events().last().unwrap(), "[DONE]");
    assert_eq!(statuses(), [200; 3]);
}

#[test]
fn an_engine_that_failed_is_not_healthy() {
    // The server keeps reporting the failure for a while; here, until it is told to end.
    let config = ServerConfig { drain_delay: Duration::from_mins(2), ..Setup::default().config };
    let mut server = Server::start(Setup { config, fail_at: Some(0), ..Setup::default() });
    assert_eq!(server.post(CHAT, &babble(5, &json!({}))).status, 500);
    for path in ["/health", "/ready", "/live"] {
        assert_eq!(server.get(path).status, 503, "{path}");
    }
    let refused = server.post(CHAT, &babble(5, &json!({})));
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (503, &json!("engine_failed")));
    server.signal();
    server.wait().unwrap_err();
}
