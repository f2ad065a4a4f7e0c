//! Replies as server-sent events: when the status is sent, which comments keep an idle stream open,
//! and how events are framed. The JSON of the events comes from the encoder of each API.

use std::fmt::Display;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use kilotok_generation::{Failure, Increment, Replies};
use serde::Serialize;
use utoipa::ToSchema;

use crate::encoder::Encoder;
use crate::error::ApiError;

/// One event of a stream, as `/openapi.json` describes it.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its description is of use")]
pub(crate) struct SentEvent {
    /// Name of the event. The events of OpenAI's chat and completions APIs have no names.
    event: Option<String>,
    /// JSON, or `[DONE]` where OpenAI ends a stream with that.
    data: String,
}

/// A buffer of events that are ready to be sent.
#[derive(Default)]
pub(crate) struct SseBuffer(Vec<u8>);

impl SseBuffer {
    /// Adds an event without a name.
    pub(crate) fn data(&mut self, value: &impl Serialize) {
        self.0.extend_from_slice(b"data: ");
        // JSON escapes all newlines in strings, so the data is one line.
        if let Err(error) = serde_json::to_writer(&mut self.0, value) {
            tracing::error!(%error, "an event cannot be written as JSON");
        }
        self.0.extend_from_slice(b"\n\n");
    }

    pub(crate) fn event(&mut self, name: &str, value: &impl Serialize) {
        self.0.extend_from_slice(b"event: ");
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(b'\n');
        self.data(value);
    }

    /// Adds data that is not JSON, such as `[DONE]`.
    pub(crate) fn text(&mut self, text: impl Display) {
        self.0.extend_from_slice(format!("data: {text}\n\n").as_bytes());
    }

    fn keep_alive(&mut self) {
        self.0.extend_from_slice(b": keep-alive\n\n");
    }

    fn take(&mut self) -> Option<Bytes> {
        let bytes = std::mem::take(&mut self.0);
        (!bytes.is_empty()).then(|| Bytes::from(bytes))
    }
}

/// The response as a stream. A reply that fails before its first increment determines the HTTP
/// status, unless it fails only after the keep-alive interval, when a comment has already been
/// sent.
pub(crate) async fn respond(
    replies: Replies,
    encoder: impl Encoder,
    keep_alive: Duration,
) -> Result<Response, ApiError> {
    let keep_alive = if keep_alive.is_zero() { Duration::MAX } else { keep_alive };
    let out = SseBuffer::default();
    let mut events = EventStream { replies, encoder, keep_alive, out, over: false };
    events.first().await?;
    let events = stream::unfold(events, |mut events| async {
        let bytes = events.next().await?;
        Some((Ok::<_, std::convert::Infallible>(bytes), events))
    });
    let mut response = Body::from_stream(events).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Otherwise nginx would buffer the events.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

struct EventStream<E> {
    replies: Replies,
    encoder: E,
    keep_alive: Duration,
    out: SseBuffer,
    over: bool,
}

impl<E: Encoder> EventStream<E> {
    async fn first(&mut self) -> Result<(), ApiError> {
        match tokio::time::timeout(self.keep_alive, self.replies.next()).await {
            Ok(Some(Err(failure))) => return Err(ApiError::from_failure(failure)),
            Ok(next) => self.encode(next),
            Err(_) => self.out.keep_alive(),
        }
        Ok(())
    }

    /// The next bytes to send; `None` after the last.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(bytes) = self.out.take() {
                return Some(bytes);
            }
            if self.over {
                return None;
            }
            match tokio::time::timeout(self.keep_alive, self.replies.next()).await {
                Ok(next) => self.encode(next),
                Err(_) => self.out.keep_alive(),
            }
        }
    }

    fn encode(&mut self, next: Option<Result<(usize, Increment), Failure>>) {
        match next {
            Some(Ok((index, next))) => return self.encoder.increment(index, next, &mut self.out),
            Some(Err(failure)) => {
                let error = ApiError::from_failure(failure);
                tracing::warn!(error = %error.message, "a stream failed");
                self.encoder.fail(&error, &mut self.out);
            }
            None => {}
        }
        self.encoder.end(&mut self.out);
        self.over = true;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn frames_are_lines() {
        let mut frames = SseBuffer::default();
        frames.data(&json!({"text": "a\nb"}));
        frames.event("ping", &json!({}));
        frames.text("[DONE]");
        frames.keep_alive();
        let bytes = frames.take().unwrap();
        let text = std::str::from_utf8(&bytes).unwrap();
        assert_eq!(
            text,
            "data: {\"text\":\"a\\nb\"}\n\nevent: ping\ndata: {}\n\n\
             data: [DONE]\n\n: keep-alive\n\n"
        );
        assert_eq!(frames.take(), None);
    }
}
