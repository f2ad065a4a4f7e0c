//! Replies as server-sent events: when the status is sent, what fills the silence, how events are
//! framed. What they say is up to the dialect of each API.

use std::fmt::Display;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;
use utoipa::ToSchema;

use crate::choice::Piece;
use crate::chorus::Chorus;
use crate::error::ApiError;

/// How an API tells a reply.
pub(crate) trait Dialect: Send + 'static {
    /// What the client asked for and does not get, before anything else.
    fn warn(&mut self, warnings: &[String]);
    /// What came of one reply. The first piece is what the stream begins with.
    fn piece(&mut self, index: usize, piece: Piece, out: &mut Frames);
    /// The reply failed: nothing more will come but the end.
    fn fail(&mut self, error: &ApiError, out: &mut Frames);
    fn end(&mut self, out: &mut Frames);
    /// The same without a stream: all that came of the replies, as one answer.
    fn whole(self, pieces: Vec<(usize, Piece)>) -> Response;
}

/// One event of a stream, as `/openapi.json` describes it.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its description is of use")]
pub(crate) struct SentEvent {
    /// What the event is. OpenAI's chats and completions have no names.
    event: Option<String>,
    /// JSON, or `[DONE]` where OpenAI ends a stream with that.
    data: String,
}

/// Events, ready to be sent.
#[derive(Default)]
pub(crate) struct Frames(Vec<u8>);

impl Frames {
    /// An event without a name.
    pub(crate) fn data(&mut self, value: &impl Serialize) {
        self.0.extend_from_slice(b"data: ");
        // JSON has no newline that is not escaped, so it is one line.
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

    /// What is no JSON, such as `[DONE]`.
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

/// Answers with a stream. A reply that fails before its first piece keeps the status of its
/// failure, unless that takes longer than proxies like to see nothing.
pub(crate) async fn respond(
    chorus: Chorus,
    dialect: impl Dialect,
    keep_alive: Duration,
) -> Result<Response, ApiError> {
    let keep_alive = if keep_alive.is_zero() { Duration::MAX } else { keep_alive };
    let mut teller = Teller { chorus, dialect, keep_alive, out: Frames::default(), over: false };
    teller.first().await?;
    let events = stream::unfold(teller, |mut teller| async {
        let bytes = teller.next().await?;
        Some((Ok::<_, std::convert::Infallible>(bytes), teller))
    });
    let mut response = Body::from_stream(events).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would hold events back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

struct Teller<D> {
    chorus: Chorus,
    dialect: D,
    keep_alive: Duration,
    out: Frames,
    over: bool,
}

impl<D: Dialect> Teller<D> {
    async fn first(&mut self) -> Result<(), ApiError> {
        match tokio::time::timeout(self.keep_alive, self.chorus.next()).await {
            Ok(Some(Err(error))) => return Err(error),
            Ok(next) => self.tell(next),
            Err(_) => self.out.keep_alive(),
        }
        Ok(())
    }

    /// Bytes to be sent; None after the last.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(bytes) = self.out.take() {
                return Some(bytes);
            }
            if self.over {
                return None;
            }
            match tokio::time::timeout(self.keep_alive, self.chorus.next()).await {
                Ok(next) => self.tell(next),
                Err(_) => self.out.keep_alive(),
            }
        }
    }

    fn tell(&mut self, next: Option<Result<(usize, Piece), ApiError>>) {
        match next {
            Some(Ok((index, piece))) => return self.dialect.piece(index, piece, &mut self.out),
            Some(Err(error)) => {
                tracing::warn!(error = %error.message, "a stream failed");
                self.dialect.fail(&error, &mut self.out);
            }
            None => {}
        }
        self.dialect.end(&mut self.out);
        self.over = true;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn frames_are_lines() {
        let mut frames = Frames::default();
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
