//! All routes, and what goes around them: limits, CORS, keys, ids, metrics, and JSON for whatever
//! is not there.

pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod control;
pub(crate) mod health;
pub(crate) mod messages;
pub(crate) mod metrics;
pub(crate) mod models;
pub(crate) mod openapi;
pub(crate) mod page;
mod reply;
pub(crate) mod responses;
pub(crate) mod sglang;
pub(crate) mod tokenize;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use tokio::runtime::Handle;
use tower_http::cors::{AllowHeaders, AllowOrigin, Any, CorsLayer};

use crate::error::ApiError;
use crate::handlers::apart;
use crate::service::Service;
use crate::trace::surround;

/// All that the server answers. What takes more than to look something up runs on the threads of
/// `handlers`.
pub fn router(service: Arc<Service>, handlers: Handle) -> Router {
    let cors = cors(&service.config.cors_origins);
    let apart = from_fn_with_state((handlers, service.cut_off()), apart);
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
        .route_layer(apart)
        .merge(looked_up)
        .fallback(not_found)
        .method_not_allowed_fallback(not_allowed)
        .layer(from_fn_with_state(Arc::clone(&service), surround))
        .layer(cors)
        .with_state(service)
}

async fn not_found(request: Request) -> ApiError {
    let path = request.uri().path();
    let message = format!("there is no {path} here; /openapi.json lists what there is");
    ApiError::new(StatusCode::NOT_FOUND, message).with_code("unknown_url")
}

async fn not_allowed(request: Request) -> ApiError {
    let (method, path) = (request.method(), request.uri().path());
    let message = format!("{path} does not take {method}; the header `allow` says what it takes");
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message).with_code("method_not_allowed")
}

/// What pages of other sites may do. Without origins the browser keeps them out.
fn cors(origins: &[String]) -> CorsLayer {
    let layer = CorsLayer::new();
    if origins.is_empty() {
        return layer;
    }
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::from(Any)
    } else {
        let origins = origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok());
        AllowOrigin::list(origins)
    };
    let told = [HeaderName::from_static("x-request-id"), header::RETRY_AFTER];
    layer
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST])
        // `*` would leave out `authorization`, and with it the key.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(told)
}
