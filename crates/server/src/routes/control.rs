//! `/abort_requests`, `/version` and `/load`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, State};

use crate::error::{ApiError, ErrorResponses};
use crate::middleware::RequestId;
use crate::service::Service;
use crate::wire::body::Body;
use crate::wire::control::{AbortRequest, Aborted, LoadBody, VersionBody};

/// Prefixes that may precede a request's own id in the id of its reply.
const PREFIXES: [&str; 5] = ["", "chatcmpl-", "cmpl-", "resp_", "msg_"];

/// Ends replies by their ids, as a closed connection would. If the server has API keys, it ends
/// only replies to requests with the caller's key.
#[utoipa::path(
    post,
    path = "/abort_requests",
    request_body = AbortRequest,
    responses(
        (status = 200, description = "How many were ended.", body = Aborted),
        ErrorResponses,
    ),
)]
pub(crate) async fn abort(
    State(service): State<Arc<Service>>,
    Extension(request_id): Extension<RequestId>,
    Body(request): Body<AbortRequest>,
) -> Result<Json<Aborted>, ApiError> {
    let caller = request_id.caller();
    let ids = request.request_ids.map(|ids| ids.0).unwrap_or_default();
    let aborted = if request.abort_all == Some(true) {
        service.admission.abort_all(&caller.own(""))
    } else if ids.is_empty() {
        let message = "request_ids: name some, or set abort_all";
        return Err(ApiError::bad("request_ids", message));
    } else {
        let ids = ids.iter().filter(|id| !id.is_empty());
        let abort = |id: &String| -> usize {
            let own = |prefix| caller.own(&format!("{prefix}{id}"));
            PREFIXES.iter().map(|prefix| service.admission.abort(&own(prefix))).sum()
        };
        ids.map(abort).sum()
    };
    Ok(Json(Aborted { aborted }))
}

/// The server's version.
#[utoipa::path(
    get,
    path = "/version",
    responses((status = 200, description = "The version.", body = VersionBody)),
)]
pub(crate) async fn version() -> Json<VersionBody> {
    Json(VersionBody { version: env!("CARGO_PKG_VERSION") })
}

/// The server's load: requests, KV cache and memory.
#[utoipa::path(
    get,
    path = "/load",
    responses((status = 200, description = "The load.", body = LoadBody)),
)]
pub(crate) async fn load(State(service): State<Arc<Service>>) -> Json<LoadBody> {
    let load = service.admission.load();
    Json(LoadBody {
        server_load: load.held,
        running: load.running,
        waiting: load.waiting(),
        kv_cache_usage: load.usage,
        kv_cache_tokens: load.token_count,
        kv_cache_tokens_max: load.token_max,
        request_bytes: service.budget.held(),
        request_bytes_max: service.budget.max(),
    })
}
