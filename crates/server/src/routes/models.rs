//! `/v1/models`: one model, under all its names.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};

use crate::error::{ApiError, Faults};
use crate::service::Service;
use crate::wire::models::{ModelCard, ModelList};

/// Lists the names under which the model is served.
#[utoipa::path(
    get,
    path = "/v1/models",
    operation_id = "list_models",
    responses(
        (status = 200, description = "The names.", body = ModelList<'static>),
        Faults,
    ),
)]
pub(crate) async fn list(State(service): State<Arc<Service>>) -> Response {
    let data = service.config.served_names.iter().map(|name| card(name, &service)).collect();
    Json(ModelList { object: "list", data }).into_response()
}

/// Tells of one name.
#[utoipa::path(
    get,
    path = "/v1/models/{id}",
    operation_id = "model",
    params(("id" = String, Path, description = "A name of `/v1/models`.")),
    responses(
        (status = 200, description = "The model.", body = ModelCard<'static>),
        Faults,
    ),
)]
pub(crate) async fn one(
    State(service): State<Arc<Service>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let served = &service.config.served_names;
    let Path(id) = id.map_err(|_| ApiError::unknown_model("", served))?;
    let known = served.iter().find(|name| **name == id);
    let name = known.ok_or_else(|| ApiError::unknown_model(&id, served))?;
    Ok(Json(card(name, &service)).into_response())
}

fn card<'a>(name: &'a str, service: &'a Service) -> ModelCard<'a> {
    ModelCard {
        id: name,
        object: "model",
        created: service.created,
        owned_by: "kilotok",
        root: &service.config.model_root,
        parent: (),
        max_model_len: service.gate.context_max(),
    }
}
