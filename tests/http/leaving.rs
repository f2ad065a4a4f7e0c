//! Clients that leave at any moment: while they send, wait or read. None of their slots, pages,
//! tasks or tickets may remain.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kilotok_testkit::Random;
use serde_json::{Value, json};

use super::server::{Server, Setup, head, until};

const CLIENTS: usize = 1000;
/// Number of concurrent clients: more than there are slots.
const AT_ONCE: usize = 24;

#[test]
fn a_thousand_clients_that_leave_leave_nothing_behind() {
    let server = Server::start(Setup::steady());
    // This creates everything that is created once.
    let short = json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 5});
    server.post("/v1/chat/completions", &short).good();
    let fewest = Cell::new(usize::MAX);
    let looks = Cell::new(0);
    until("the end of its connection", || {
        fewest.set(owners(&server).min(fewest.get()));
        looks.set(looks.get() + 1);
        looks.get() == 100
    });
    let next = AtomicUsize::new(1);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > CLIENTS {
                        return;
                    }
                    come_and_go(&server, &mut Random::new(seed as u64));
                }
            });
        }
    });
    until("the end of everything", || {
        let load = server.service.admission.load();
        let idle = (load.held, load.running) == (0, 0) && load.usage == 0.0;
        idle && owners(&server) <= fewest.get()
    });
    // Only cached prefixes are left. The next request is served like the first one.
    let answer = server.post("/v1/chat/completions", &short).good();
    assert_eq!(answer["usage"]["completion_tokens"], 5);
    for gauge in
        ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"]
    {
        assert_eq!(server.metric(gauge), 0.0, "{gauge}");
    }
    // Nearly all clients would have received 1,500 tokens, some several times.
    let tokens = server.metric("vllm:generation_tokens_total");
    assert!(tokens < 500.0 * CLIENTS as f64, "{tokens} tokens were made for clients that left");
}

/// Number of tasks and of references to the service. A connection has one of each.
fn owners(server: &Server) -> usize {
    server.task_count() + Arc::strong_count(&server.service)
}

/// A request for a long reply.
fn ask(dice: &mut Random) -> (&'static str, Value) {
    let words = "x".repeat(dice.below(200));
    let mut request = json!({"max_tokens": 1500, "ignore_eos": true, "seed": 5});
    request["stream"] = json!(dice.percent(60));
    let path = dice.pick(&[
        "/v1/chat/completions",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
    ]);
    match path {
        "/v1/completions" => request["prompt"] = json!([words, "b"]),
        "/v1/responses" => request = json!({"input": words, "stream": dice.percent(60)}),
        _ => request["messages"] = json!([{"role": "user", "content": words}]),
    }
    if path == "/v1/chat/completions" {
        if dice.percent(25) {
            request["n"] = json!(3);
        }
        if dice.percent(25) {
            request["structured_outputs"] = json!({"regex": "[a-z]{1000}"});
        }
    }
    (path, request)
}

fn come_and_go(server: &Server, dice: &mut Random) {
    let (path, request) = ask(dice);
    let body = request.to_string();
    let head = head("POST", path, &[], body.len());
    match dice.below(6) {
        // Leaves before the whole head or body is sent.
        0 => drop(server.send(&head[..dice.below(head.len())], &[])),
        1 => drop(server.send(&head, &body.as_bytes()[..dice.below(body.len())])),
        // Leaves at once.
        2 => drop(server.send(&head, body.as_bytes())),
        // Closes only its sending half; such a client may still read.
        3 => {
            let mut open = server.send(&head, body.as_bytes());
            open.sent();
            open.read(dice.below(400));
        }
        // Leaves somewhere within the answer.
        _ => {
            let mut open = server.send(&head, body.as_bytes());
            open.read(dice.below(4000));
        }
    }
}
