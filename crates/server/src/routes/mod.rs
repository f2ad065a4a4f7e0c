//! All routes, and the layers around them: CORS, keys, ids, metrics, and the responses to unknown
//! paths.

pub(crate) mod control;
mod cors;
pub(crate) mod health;
pub(crate) mod metrics;
pub(crate) mod models;
mod not_found;
pub(crate) mod openapi;
pub(crate) mod page;
pub(crate) mod sglang;
pub(crate) mod tokenize;

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use tokio::runtime::Handle;

use crate::handler_runtime::run_on_handlers;
use crate::middleware::observe;
use crate::service::Service;
use crate::{chat, completions, messages, responses};

/// All routes of the server. Routes that do more than a look-up run on the threads of `handlers`.
pub fn router(service: Arc<Service>, handlers: Handle) -> Router {
    let origins = &service.config.cors_origins;
    let (cors, origins) = (cors::layer(origins), cors::Origins::new(origins));
    let on_handlers = from_fn_with_state((handlers, service.cut_off()), run_on_handlers);
    let looked_up = Router::new()
        .route("/health", get(health::health))
        .route("/ready", get(health::ready))
        .route("/live", get(health::live))
        .route("/version", get(control::version))
        .route("/load", get(control::load))
        .route("/metrics", get(metrics::metrics))
        .route("/model_info", get(sglang::model_info))
        .route("/get_model_info", get(sglang::model_info))
        .route("/server_info", get(sglang::server_info))
        .route("/get_server_info", get(sglang::server_info))
        .route("/get_load", get(sglang::get_load))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route("/", get(page::page))
        .route("/favicon.ico", get(page::no_icon));
    Router::new()
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/chat/completions/render", post(chat::render))
        .route("/v1/completions", post(completions::create))
        .route("/v1/completions/render", post(completions::render))
        .route("/v1/responses", post(responses::create))
        .route("/v1/messages", post(messages::create))
        .route("/v1/messages/count_tokens", post(messages::count_tokens))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/abort_requests", post(control::abort))
        .route("/openapi.json", get(openapi::document))
        .route_layer(on_handlers)
        .merge(looked_up)
        .fallback(not_found::not_found)
        .method_not_allowed_fallback(not_found::method_not_allowed)
        .layer(from_fn_with_state(Arc::clone(&service), observe))
        .layer(cors)
        .layer(from_fn_with_state(origins, cors::refuse))
        .with_state(service)
}
