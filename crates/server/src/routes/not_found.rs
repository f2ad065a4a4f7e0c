//! Unknown paths and methods: the error suggests the path or methods that were probably meant.

use axum::extract::Request;
use axum::http::{Method, StatusCode};

use super::openapi::operations;
use crate::error::ApiError;

/// Letters by which a path may differ from the path that was probably meant.
const MISTAKES_MAX: usize = 3;

/// Path prefixes of other servers' APIs, and what to use here instead.
const OTHERS: [(&[&str], &str); 7] = [
    (
        &[
            "/v1/embeddings",
            "/v1/rerank",
            "/rerank",
            "/v1/score",
            "/score",
            "/pooling",
            "/classify",
        ],
        "this server writes text, and has neither embeddings nor scores of documents",
    ),
    (
        &["/v1/audio", "/v1/images", "/v1/videos", "/v1/realtime"],
        "this server reads and writes text alone",
    ),
    (
        &["/v1/responses/", "/v1/chat/completions/", "/v1/conversations"],
        "replies are not stored: send the whole conversation with every request",
    ),
    (
        &[
            "/v1/files",
            "/v1/uploads",
            "/v1/batches",
            "/v1/fine_tuning",
            "/v1/assistants",
            "/v1/threads",
            "/v1/vector_stores",
        ],
        "nothing is stored here",
    ),
    (
        &["/api/"],
        "this server does not speak Ollama's API: set the client to OpenAI's, with a base URL that \
         ends in /v1",
    ),
    (
        &["/generate", "/completion", "/infill", "/inference", "/invocations"],
        "send the prompt to /v1/completions, or messages to /v1/chat/completions",
    ),
    (&["/docs", "/redoc", "/swagger"], "/openapi.json describes the API"),
];

pub(super) async fn not_found(request: Request) -> ApiError {
    let path = request.uri().path();
    let message = format!("there is no {path} here: {}", advice(path));
    ApiError::new(StatusCode::NOT_FOUND, message).with_code("unknown_url")
}

/// What to request instead of this path.
fn advice(path: &str) -> String {
    let steps: Vec<_> = path.split('/').filter(|step| !step.is_empty()).collect();
    let plain = format!("/{}", steps.join("/").to_lowercase());
    let known = || operations().iter().map(|(known, _)| known.as_str());
    let is_known = |path: &str| known().any(|known| known == path);
    if plain == "/v1" {
        return "it is the base URL of OpenAI's clients; under it are /v1/chat/completions, \
                /v1/completions, /v1/responses, /v1/messages and /v1/models"
            .to_owned();
    }
    if is_known(&plain) {
        return format!("ask {plain}, written like this");
    }
    let once = plain.replace("/v1/v1", "/v1");
    if once != plain && is_known(&once) {
        return format!(
            "ask {once}. The base URL that the client was given already ends in /v1, and the \
             client adds it again: leave it out there"
        );
    }
    let under = format!("/v1{plain}");
    if is_known(&under) {
        return format!(
            "ask {under}. The base URL that the client was given should end in /v1, as in {BASE}"
        );
    }
    let beside = plain.strip_prefix("/v1").unwrap_or_default();
    if is_known(beside) {
        return format!("ask {beside}, which is not under /v1");
    }
    if let Some((_, advice)) =
        OTHERS.iter().find(|(starts, _)| starts.iter().any(|start| plain.starts_with(start)))
    {
        return (*advice).to_owned();
    }
    // A known path behind a proxy's prefix, or under another provider's.
    let inner = known().find(|known| known.starts_with("/v1/") && plain.ends_with(&known[3..]));
    let near = known().map(|known| (strsim::osa_distance(known, &plain), known)).min();
    let near = near.filter(|(mistakes, _)| *mistakes <= MISTAKES_MAX).map(|(_, known)| known);
    match inner.or(near) {
        Some(meant) => format!("was {meant} meant? OpenAI's clients are given the base URL {BASE}"),
        None => format!(
            "OpenAI's clients are given the base URL {BASE}, the chat page is at /, and \
             /openapi.json lists all paths"
        ),
    }
}

/// The server does not know the address at which clients reach it.
const BASE: &str = "http://HOST:PORT/v1";

pub(super) async fn method_not_allowed(request: Request) -> ApiError {
    let (method, path) = (request.method(), request.uri().path());
    let found = operations().iter().find(|(known, _)| known == path);
    let takes = found.map_or(&[Method::GET][..], |(_, methods)| methods);
    let names: Vec<_> = takes.iter().map(Method::as_str).collect();
    let body = if takes == [Method::POST] { ", with a JSON object as its body" } else { "" };
    let message = format!("{path} does not take {method}: send {}{body}", names.join(" or "));
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message).with_code("method_not_allowed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_are_nearly_right_are_mended() {
        for (asked, meant) in [
            ("/chat/completions", "/v1/chat/completions."),
            ("/completions", "/v1/completions."),
            ("/messages", "/v1/messages."),
            ("/models", "/v1/models."),
            ("/v1/v1/chat/completions", "/v1/chat/completions."),
            ("/v1/v1/messages", "/v1/messages."),
            ("/v1/chat/completions/", "/v1/chat/completions,"),
            ("//v1//models", "/v1/models,"),
            ("/V1/Chat/Completions", "/v1/chat/completions,"),
            ("/v1/chat/completion", "/v1/chat/completions "),
            ("/v1/chatcompletions", "/v1/chat/completions "),
            ("/v1/health", "/health,"),
            ("/v1/metrics", "/metrics,"),
            ("/helth", "/health "),
            ("/openai/v1/chat/completions", "/v1/chat/completions "),
            ("/openai/deployments/gpt/chat/completions", "/v1/chat/completions "),
            ("/api/v1/chat/completions", "/v1"),
            ("/v1", "/v1/chat/completions,"),
        ] {
            let advice = advice(asked);
            assert!(advice.contains(meant), "{asked}: {advice}");
        }
    }

    #[test]
    fn what_others_have_is_answered_in_words() {
        for (asked, says) in [
            ("/v1/embeddings", "embeddings"),
            ("/v1/images/generations", "text alone"),
            ("/v1/responses/resp_1", "not stored"),
            ("/api/generate", "Ollama"),
            ("/generate", "/v1/completions"),
            ("/docs", "/openapi.json"),
            ("/wp-login.php", "/openapi.json"),
            ("/", "/openapi.json"),
        ] {
            let advice = advice(asked);
            assert!(advice.contains(says), "{asked}: {advice}");
        }
    }
}
