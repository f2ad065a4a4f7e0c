//! The endpoints of a worker that SGLang's router uses: `/model_info`, `/server_info` and
//! `/get_load`. Older routers use `/get_model_info` and `/get_server_info`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use crate::error::ErrorResponses;
use crate::service::Service;
use crate::wire::sglang::{CheckpointInfo, EngineLoad, ServerInfo};

/// The checkpoint, as SGLang describes it.
#[utoipa::path(
    get,
    path = "/model_info",
    responses(
        (status = 200, description = "The checkpoint.", body = CheckpointInfo<'static>),
        ErrorResponses,
    ),
)]
pub(crate) async fn model_info(State(service): State<Arc<Service>>) -> Response {
    let root = &service.config.model_root;
    Json(CheckpointInfo { model_path: root, tokenizer_path: root, is_generation: true })
        .into_response()
}

/// The server, as SGLang describes it.
#[utoipa::path(
    get,
    path = "/server_info",
    responses(
        (status = 200, description = "The server.", body = ServerInfo<'static>),
        ErrorResponses,
    ),
)]
pub(crate) async fn server_info(State(service): State<Arc<Service>>) -> Response {
    let info = ServerInfo {
        model_path: &service.config.model_root,
        served_model_name: service.model_name(),
        version: env!("CARGO_PKG_VERSION"),
        dp_size: 1,
        context_length: service.admission.context_max(),
        max_running_requests: service.admission.caps().slot_count,
        max_total_num_tokens: service.admission.load().token_max,
    };
    Json(info).into_response()
}

/// The server's load, as SGLang describes it: a list with one entry.
#[utoipa::path(
    get,
    path = "/get_load",
    responses((status = 200, description = "The load.", body = [EngineLoad])),
)]
pub(crate) async fn get_load(State(service): State<Arc<Service>>) -> Json<[EngineLoad; 1]> {
    let load = service.admission.load();
    Json([EngineLoad {
        dp_rank: 0,
        num_reqs: load.held,
        num_waiting_reqs: load.waiting(),
        num_tokens: load.token_count,
    }])
}
