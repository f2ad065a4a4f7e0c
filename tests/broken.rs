//! A GPU engine that breaks while a server runs on it: waiting clients get an error, probes report
//! that the server is not healthy, and the server ends with the reason. A broken GPU affects
//! everything that the process runs on it, so each test runs in its own process. Without a GPU
//! every test says so and passes.

#![expect(clippy::print_stdout, reason = "why tests were skipped")]
#![expect(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

#[path = "http/server.rs"]
#[expect(dead_code, reason = "more is asked of servers elsewhere")]
mod server;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kilotok_cuda::{CudaEngine, CudaOptions, Found, Sizes, TOKENS_MAX, Toolchain};
use kilotok_engine::{Caps, Engine, EngineError, StepId, StepOutput, StepPlan};
use kilotok_generation::AdmissionOptions;
use kilotok_model::Knobs;
use kilotok_sched::Limits;
use kilotok_server::ServerConfig;
use kilotok_testkit::Toy;
use kilotok_testkit::process::alone;
use kilotok_testkit::toy::Files;
use kilotok_text::Text;
use kilotok_weights::{Checkpoint, Quiet};
use serde_json::{Value, json};

use server::{Brake, Server};

const COMPLETIONS: &str = "/v1/completions";
/// Steps before the engine breaks: enough for a first token.
const STEPS: u64 = 3;
/// More steps than remain to be run when the engine has broken.
const MORE_STEPS: u64 = 10_000;

fn options(rank_count: usize) -> CudaOptions {
    let cache = Some(std::env::temp_dir().join("kilotok-test-kernels"));
    let toolchain = Toolchain { cache, prefixes: Vec::new() };
    let sizes = Sizes { rank_count, token_max: TOKENS_MAX, ..Sizes::default() };
    CudaOptions { sizes, toolchain, ..CudaOptions::default() }
}

/// An engine that runs a step when it is permitted to, and breaks when it is told to.
struct Breaks {
    inner: CudaEngine,
    how: fn(&mut CudaEngine),
    now: Arc<AtomicBool>,
    brake: Brake,
}

impl Engine for Breaks {
    fn caps(&self) -> &Caps {
        self.inner.caps()
    }

    fn submit(&mut self, plan: &StepPlan) -> Result<StepId, EngineError> {
        self.brake.wait();
        if self.now.swap(false, Ordering::Relaxed) {
            (self.how)(&mut self.inner);
        }
        self.inner.submit(plan)
    }

    fn wait(&mut self, step: StepId, out: &mut StepOutput) -> Result<(), EngineError> {
        self.inner.wait(step, out)
    }
}

/// Starts a server whose engine breaks once the flag is set. After a failure the server reports
/// that it is not healthy until it is told to end.
fn serve(rank_count: usize, how: fn(&mut CudaEngine), now: &Arc<AtomicBool>) -> (Server, Brake) {
    let folder = tempfile::tempdir().unwrap();
    Toy::pro_fp4().write(folder.path(), Files::One).unwrap();
    let toy = Checkpoint::open(folder.path(), &Knobs::default()).unwrap();
    let text = Text::dummy(folder.path(), toy.spec().vocab_size).unwrap();
    let inner = CudaEngine::start(toy.spec(), &toy, &options(rank_count), &Quiet, &|_| {});
    let inner = inner.unwrap_or_else(|error| panic!("{error}"));
    let brake = Brake::default();
    let engine = Breaks { inner, how, now: Arc::clone(now), brake: brake.clone() };
    let config = ServerConfig {
        served_names: vec!["toy".into()],
        drain_delay: Duration::from_mins(2),
        ..ServerConfig::default()
    };
    let (limits, options) = (Limits::default(), AdmissionOptions::default());
    (Server::of(Box::new(engine), text, limits, options, config), brake)
}

/// A request for a long reply, with a prompt of tokens.
fn request(stream: bool) -> Value {
    json!({"prompt": [1, 2, 3], "max_tokens": 100, "ignore_eos": true, "stream": stream})
}

/// Breaks an engine while it generates a reply. The server must end with an error that contains
/// these words.
fn breaks(rank_count: usize, how: fn(&mut CudaEngine), words: &str) {
    let now = Arc::new(AtomicBool::new(false));
    let (mut server, brake) = serve(rank_count, how, &now);
    brake.release(STEPS);
    let mut streamed = server.begin(COMPLETIONS, &request(true));
    streamed.read_until("\"text\":");
    let whole = server.begin(COMPLETIONS, &request(false));
    now.store(true, Ordering::Relaxed);
    brake.release(MORE_STEPS);

    let events = streamed.answer().events();
    let [.., error, done] = &events[..] else { panic!("{events:?}") };
    assert_eq!(error["error"]["type"], "server_error", "{error}");
    assert_eq!(error["error"]["code"], "engine_failed", "{error}");
    assert_eq!(done, "[DONE]");
    // The request was admitted, or, if the engine broke before it arrived, refused.
    let whole = whole.answer();
    assert!([500, 503].contains(&whole.status), "{}", whole.text());
    assert_eq!(whole.json()["error"]["code"], "engine_failed");
    for path in ["/health", "/ready", "/live"] {
        assert_eq!(server.get(path).status, 503, "{path}");
    }
    server.signal();
    let reason = server.wait().unwrap_err().to_string();
    let rank = format!("rank {}", rank_count - 1);
    assert!(reason.contains(&rank) && reason.contains(words), "{reason}");
}

fn does_not_respond(rank_count: usize) {
    breaks(
        rank_count,
        |engine| engine.disconnect_doorbell().unwrap(),
        "does not respond to its doorbell",
    );
}

fn stalls(rank_count: usize) {
    breaks(rank_count, CudaEngine::stall, "waited too long for all CTAs at a grid barrier");
}

fn dies(rank_count: usize) {
    breaks(rank_count, CudaEngine::kill, "cuStreamQuery: CUDA_ERROR_");
}

#[test]
#[ignore = "breaks the GPU for its process, see below"]
fn one_dies() {
    dies(1);
}

#[test]
#[ignore = "breaks the GPU for its process, see below"]
fn one_of_two_dies() {
    dies(2);
}

#[test]
#[ignore = "breaks the GPU for its process, see below"]
fn one_does_not_respond() {
    does_not_respond(1);
}

#[test]
#[ignore = "breaks the GPU for its process, see below"]
fn one_of_two_does_not_respond() {
    does_not_respond(2);
}

#[test]
#[ignore = "breaks the GPU for its process, see below"]
fn one_stalls() {
    stalls(1);
}

#[test]
#[ignore = "breaks the GPU for its process, see below"]
fn one_of_two_stalls() {
    stalls(2);
}

/// Runs each of these tests in its own process, which must succeed.
fn run(names: [&str; 2]) {
    for (rank_count, name) in (1..).zip(names) {
        if let Err(reason) = Found::look(rank_count, &options(rank_count).toolchain) {
            return println!("skipped: {reason}");
        }
        assert!(alone(name).status().unwrap().success(), "{name}");
    }
}

#[test]
fn a_server_ends_with_a_gpu_that_dies() {
    run(["one_dies", "one_of_two_dies"]);
}

#[test]
fn a_server_ends_with_a_rank_that_does_not_respond() {
    run(["one_does_not_respond", "one_of_two_does_not_respond"]);
}

#[test]
fn a_server_ends_with_a_rank_that_stalls() {
    run(["one_stalls", "one_of_two_stalls"]);
}
