//! `/health`, `/ready` and `/live`. Health means that replies progress, not that a socket answers.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use crate::service::Service;
use crate::wire::control::HealthBody;
use kilotok_generation::Health;

type Answer = (StatusCode, Json<HealthBody>);

/// Whether the engine makes progress with the replies that it has.
#[utoipa::path(
    get,
    path = "/health",
    responses(
        (status = 200, description = "Replies advance, or there are none.", body = HealthBody),
        (status = 503, description = "The engine stalls or has failed.", body = HealthBody),
    ),
)]
pub(crate) async fn health(State(service): State<Arc<Service>>) -> Answer {
    let health = service.admission.health();
    // A server that is shutting down still serves the requests that it has.
    answer(matches!(health, Health::Ok { .. } | Health::Draining), health)
}

/// Whether new requests should be sent to this server.
#[utoipa::path(
    get,
    path = "/ready",
    responses(
        (status = 200, description = "The server accepts requests.", body = HealthBody),
        (status = 503, description = "New requests should go elsewhere.", body = HealthBody),
    ),
)]
pub(crate) async fn ready(State(service): State<Arc<Service>>) -> Answer {
    match service.admission.health() {
        // The server is shutting down, but admits requests for a moment longer.
        Health::Ok { .. } if !service.is_ready() => answer(false, Health::Draining),
        health => answer(matches!(health, Health::Ok { .. }), health),
    }
}

/// Whether the process should go on running. Once the engine has failed for good, it should be
/// restarted.
#[utoipa::path(
    get,
    path = "/live",
    responses(
        (status = 200, description = "The process is well.", body = HealthBody),
        (status = 503, description = "The engine has failed for good.", body = HealthBody),
    ),
)]
pub(crate) async fn live(State(service): State<Arc<Service>>) -> Answer {
    let health = service.admission.health();
    answer(!matches!(health, Health::Failed { .. }), health)
}

fn answer(well: bool, health: Health) -> Answer {
    let (name, message) = match health {
        Health::Ok { .. } => ("ok", None),
        Health::Draining => ("draining", None),
        Health::Failed { message } => ("failed", Some(message)),
        Health::Stalled { for_ms } => {
            let message = format!("there is work, but no step was finished for {for_ms} ms");
            ("stalled", Some(message))
        }
    };
    let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(HealthBody { status: name, message }))
}
