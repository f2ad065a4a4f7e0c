//! Sends any bytes as the body of a POST to the path in the first line, to a server with a scripted
//! engine. Every fault must be reported as the sender's, in JSON.

#![cfg_attr(fuzzing, no_main)]

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use kilotok_engine::Caps;
use kilotok_generation::{Admission, AdmissionOptions, Metrics};
use kilotok_sched::Limits;
use kilotok_server::{ServerConfig, Service, router};
use kilotok_testkit::{DraftAccuracy, ScriptedEngine};
use kilotok_text::{Grammars, Text};
use tokio::runtime::Runtime;
use tower::ServiceExt;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| run(bytes));

const PATHS: [&str; 10] = [
    "/v1/chat/completions",
    "/v1/chat/completions/render",
    "/v1/completions",
    "/v1/completions/render",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/tokenize",
    "/detokenize",
    "/abort_requests",
];
/// More than a reply with as many tokens as the engine has room for.
const ANSWER_BYTES_MAX: usize = 8 << 20;

static SERVER: LazyLock<(Runtime, Router)> = LazyLock::new(|| {
    let tokenizer = include_bytes!("../../text/fixtures/mimo/tokenizer.json");
    let template = include_bytes!("../../text/fixtures/mimo/chat_template.jinja");
    let file = |name: &str| match name {
        "tokenizer.json" => Some(tokenizer.to_vec()),
        "chat_template.jinja" => Some(template.to_vec()),
        _ => None,
    };
    let text = Text::from_files(&file).expect("a good checkpoint");
    let caps = Caps { vocab_size: 265, position_max: 256, ..ScriptedEngine::caps() };
    let grammars = Grammars::new(&text, caps.vocab_size, &[258]).expect("a good vocabulary");
    let config = ServerConfig { n_max: 2, ..ServerConfig::default() };
    let metrics = Arc::new(Metrics::new("toy", &caps));
    let engine = ScriptedEngine::new(caps, DraftAccuracy::Percent(70));
    let limits = Limits::default();
    let (admission, _) = Admission::start(
        Box::new(engine),
        limits,
        Arc::clone(&metrics),
        AdmissionOptions::default(),
    );
    let service = Service::new(Arc::new(text), Arc::new(grammars), admission, metrics, config);
    let runtime = Runtime::new().expect("threads");
    let router = router(Arc::new(service), runtime.handle().clone());
    (runtime, router)
});

pub(crate) fn run(bytes: &[u8]) {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return };
    let Some(path) = PATHS.iter().find(|path| path.as_bytes() == &bytes[..end]) else { return };
    let request = Request::post(*path)
        .header("host", "localhost")
        .header("content-type", "application/json")
        .body(Body::from(bytes[end + 1..].to_vec()))
        .expect("a good request");
    let (runtime, router) = &*SERVER;
    runtime.block_on(async {
        let answer = router.clone().oneshot(request).await.expect("routers do not fail");
        let status = answer.status();
        let body = to_bytes(answer.into_body(), ANSWER_BYTES_MAX).await.expect("a bounded answer");
        let shown = String::from_utf8_lossy(&body);
        assert!(!status.is_server_error(), "{path}: {status} {shown}");
        if status.is_client_error() {
            let json: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
            assert!(json["error"]["message"].is_string(), "{path}: {status} {shown}");
        }
    });
}
