//! The response to a request, for all APIs: a stream of events, or one JSON body.

use std::sync::Arc;

use axum::response::Response;
use kilotok_generation::Replies;

use super::Encoder;
use crate::error::ApiError;
use crate::service::Service;
use crate::sse;
use crate::unenforced;

/// Up to this many tokens and log-probabilities, a reply is encoded within a few hundred
/// microseconds, and so on the thread of the request.
const INLINE_ENTRIES_MAX: usize = 1024;

/// The header with the constraints of the request that are not enforced. HTTP's own `warning` is
/// obsolete.
pub(crate) const WARNING_HEADER: &str = "x-kilotok-warning";

/// The response: a stream if the request asks for one.
pub(crate) async fn respond(
    service: &Arc<Service>,
    replies: Replies,
    mut encoder: impl Encoder,
    stream: Option<bool>,
) -> Result<Response, ApiError> {
    service.unenforced.note(replies.warnings(), &service.http_metrics);
    let warnings = unenforced::shortened(replies.warnings());
    encoder.warn(&warnings);
    let mut response = if stream == Some(true) {
        sse::respond(replies, encoder, service.config.keep_alive).await?
    } else {
        whole(replies, encoder).await?
    };
    if let Some(warning) = unenforced::header(&warnings) {
        response.headers_mut().insert(WARNING_HEADER, warning);
    }
    Ok(response)
}

async fn whole(mut replies: Replies, encoder: impl Encoder) -> Result<Response, ApiError> {
    let mut increments = Vec::new();
    while let Some(next) = replies.next().await {
        increments.push(next.map_err(ApiError::from_failure)?);
    }
    let entries = increments.iter().map(|(_, increment)| {
        let logprobs = increment.logprobs.iter().chain(&increment.prompt_logprobs);
        increment.tokens.len() + logprobs.map(|each| 1 + each.top.len()).sum::<usize>()
    });
    if entries.sum::<usize>() <= INLINE_ENTRIES_MAX {
        return Ok(encoder.response(increments));
    }
    // A panic here must not close the connection: the client gets an error instead.
    let response = tokio::task::spawn_blocking(move || encoder.response(increments)).await;
    response.map_err(|_| ApiError::internal("writing the reply failed"))
}

/// Checks the service tier. There is only one, under several names.
pub(crate) fn check_tier(tier: Option<&str>) -> Result<(), ApiError> {
    match tier {
        None | Some("auto" | "default" | "standard_only") => Ok(()),
        Some(other) => Err(ApiError::not_implemented("service_tier", other)),
    }
}
