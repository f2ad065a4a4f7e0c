//! How requests are answered, the same for all APIs: in pieces, or whole.

use std::sync::Arc;

use axum::http::StatusCode;
use axum::response::Response;

use crate::chorus::Chorus;
use crate::dialects::Letterhead;
use crate::dialects::show::{Extras, Show};
use crate::error::ApiError;
use crate::params::sampling::Chosen;
use crate::service::Service;
use crate::sse::{self, Dialect};
use crate::unenforced;
use crate::wire::sampled::StreamOptions;

/// Tokens and log-probabilities of a reply that are written in a few hundred microseconds.
const INLINE_ENTRIES_MAX: usize = 1024;

/// Tells what the client asked for and does not get. HTTP's own `warning` is obsolete.
pub(super) const WARNING_HEADER: &str = "x-kilotok-warning";

/// The reply, streamed if the client wants that.
pub(super) async fn answer(
    service: &Arc<Service>,
    chorus: Chorus,
    mut dialect: impl Dialect,
    stream: Option<bool>,
) -> Result<Response, ApiError> {
    let warning = unenforced::header(chorus.warnings());
    dialect.warn(chorus.warnings());
    let mut response = told(service, chorus, dialect, stream).await?;
    if let Some(warning) = warning {
        response.headers_mut().insert(WARNING_HEADER, warning);
    }
    Ok(response)
}

async fn told(
    service: &Arc<Service>,
    mut chorus: Chorus,
    dialect: impl Dialect,
    stream: Option<bool>,
) -> Result<Response, ApiError> {
    if stream == Some(true) {
        return sse::respond(chorus, dialect, service.config.keep_alive).await;
    }
    let mut pieces = Vec::new();
    while let Some(next) = chorus.next().await {
        pieces.push(next?);
    }
    let entries = pieces.iter().map(|(_, piece)| {
        let alternatives = piece.logprobs.iter().chain(&piece.scored);
        piece.tokens.len() + alternatives.map(|each| 1 + each.top.len()).sum::<usize>()
    });
    if entries.sum::<usize>() <= INLINE_ENTRIES_MAX {
        return Ok(dialect.whole(pieces));
    }
    // A reply that was made is not lost to a fault here: its error says so.
    let told = tokio::task::spawn_blocking(move || dialect.whole(pieces)).await;
    told.map_err(|_| {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        ApiError::new(status, "writing the reply failed")
    })
}

/// What chat and plain completions show of the replies to so many prompts.
pub(super) fn show(
    head: Letterhead,
    chosen: &Chosen,
    prompt_count: usize,
    logprobs: Option<u32>,
    options: Option<StreamOptions>,
) -> Show {
    Show {
        head,
        n: chosen.n,
        choice_count: prompt_count * chosen.n as usize,
        logprobs,
        prompt_logprobs: chosen.prompt_logprobs,
        tokens_as_ids: chosen.tokens_as_ids,
        token_ids: chosen.token_ids,
        extras: Extras::of(options),
    }
}

/// There is one tier, whatever it is called.
pub(super) fn check_tier(tier: Option<&str>) -> Result<(), ApiError> {
    match tier {
        None | Some("auto" | "default" | "standard_only") => Ok(()),
        Some(other) => Err(ApiError::not_implemented("service_tier", other)),
    }
}
