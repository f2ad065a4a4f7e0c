//! `/v1/models`: one model, listed under each of its names. Anthropic's clients are recognised by
//! their header.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};

use crate::date::rfc3339;
use crate::error::{ApiError, ErrorResponses};
use crate::messages::is_client;
use crate::params::ranges::count;
use crate::service::Service;
use crate::wire::models::{Model, ModelCard, ModelInfo, ModelList, ModelPage, Models, PageOptions};

/// Default and largest number of names on a page, as in Anthropic's API.
const PAGE_NAMES: u32 = 20;
const PAGE_NAMES_MAX: i64 = 1000;

/// Lists the names under which the model is served.
#[utoipa::path(
    get,
    path = "/v1/models",
    operation_id = "list_models",
    params(
        ("anthropic-version" = Option<String>, Header, description = "Asks for Anthropic's form."),
        PageOptions,
    ),
    responses(
        (status = 200, description = "The names.", body = Models<'static>),
        ErrorResponses,
    ),
)]
pub(crate) async fn list(
    State(service): State<Arc<Service>>,
    headers: HeaderMap,
    options: Result<Query<PageOptions>, QueryRejection>,
) -> Result<Response, ApiError> {
    let names = &service.config.served_names;
    if !is_client(&headers) {
        let data = names.iter().map(|name| card(name, &service)).collect();
        return Ok(Json(Models::OpenAi(ModelList { object: "list", data })).into_response());
    }
    let Query(options) = options.map_err(|error| ApiError::bad("limit", error.body_text()))?;
    let (page, has_more) = page(names, &options)?;
    let models = ModelPage {
        data: page.iter().map(|name| info(name, &service)).collect(),
        has_more,
        first_id: page.first().map(String::as_str),
        last_id: page.last().map(String::as_str),
    };
    Ok(Json(Models::Anthropic(models)).into_response())
}

/// Describes the model under one of its names.
#[utoipa::path(
    get,
    path = "/v1/models/{id}",
    operation_id = "model",
    params(
        ("id" = String, Path, description = "A name of `/v1/models`."),
        ("anthropic-version" = Option<String>, Header, description = "Asks for Anthropic's form."),
    ),
    responses(
        (status = 200, description = "The model.", body = Model<'static>),
        ErrorResponses,
    ),
)]
pub(crate) async fn one(
    State(service): State<Arc<Service>>,
    headers: HeaderMap,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let served = &service.config.served_names;
    let Path(id) = id.map_err(|_| ApiError::unknown_model("", served))?;
    let known = served.iter().find(|name| **name == id);
    let name = known.ok_or_else(|| ApiError::unknown_model(&id, served))?;
    let model = if is_client(&headers) {
        Model::Anthropic(info(name, &service))
    } else {
        Model::OpenAi(card(name, &service))
    };
    Ok(Json(model).into_response())
}

fn card<'a>(name: &'a str, service: &'a Service) -> ModelCard<'a> {
    ModelCard {
        id: name,
        object: "model",
        created: service.created,
        owned_by: "kilotok",
        root: &service.config.model_root,
        parent: (),
        max_model_len: service.admission.context_max(),
    }
}

fn info<'a>(name: &'a str, service: &'a Service) -> ModelInfo<'a> {
    ModelInfo {
        kind: "model",
        id: name,
        display_name: name,
        created_at: rfc3339(service.created),
        lifecycle: "active",
        max_input_tokens: service.admission.context_max(),
        max_tokens: service.admission.context_max(),
    }
}

/// The names of the requested page, and whether more follow.
fn page<'a>(names: &'a [String], options: &PageOptions) -> Result<(&'a [String], bool), ApiError> {
    let limit = count("limit", options.limit, 1, PAGE_NAMES_MAX)?.unwrap_or(PAGE_NAMES) as usize;
    let place = |param: &str, id: &String| {
        let known = names.iter().position(|name| name == id);
        known.ok_or_else(|| ApiError::bad(param, format!("{param}: there is no model {id:?}")))
    };
    match (&options.after_id, &options.before_id) {
        (Some(_), Some(_)) => {
            Err(ApiError::bad("before_id", "before_id: it cannot be sent together with after_id"))
        }
        (None, Some(id)) => {
            let before = &names[..place("before_id", id)?];
            let start = before.len().saturating_sub(limit);
            Ok((&before[start..], start > 0))
        }
        (after, None) => {
            let start = after.as_ref().map(|id| place("after_id", id)).transpose()?;
            let rest = &names[start.map_or(0, |start| start + 1)..];
            Ok((&rest[..rest.len().min(limit)], rest.len() > limit))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_each_other_in_both_directions() {
        let names: Vec<_> = ["a", "b", "c", "d", "e"].map(str::to_owned).into();
        let of = |after: Option<&str>, before: Option<&str>, limit| {
            let owned = |id: Option<&str>| id.map(str::to_owned);
            let (after_id, before_id) = (owned(after), owned(before));
            let (page, more) = page(&names, &PageOptions { after_id, before_id, limit })?;
            Ok::<_, ApiError>((page.concat(), more))
        };
        for (after, before, limit, expected) in [
            (None, None, None, ("abcde", false)),
            (None, None, Some(2), ("ab", true)),
            (Some("b"), None, Some(2), ("cd", true)),
            (Some("d"), None, Some(2), ("e", false)),
            (Some("e"), None, Some(2), ("", false)),
            (None, Some("e"), Some(2), ("cd", true)),
            (None, Some("c"), Some(2), ("ab", false)),
            (None, Some("a"), Some(2), ("", false)),
        ] {
            let (page, more) = of(after, before, limit).unwrap();
            assert_eq!((page.as_str(), more), expected, "{after:?} {before:?}");
        }
        for (after, before, limit, param) in [
            (Some("x"), None, None, "after_id"),
            (None, Some("x"), None, "before_id"),
            (Some("a"), Some("e"), None, "before_id"),
            (None, None, Some(0), "limit"),
            (None, None, Some(1001), "limit"),
        ] {
            let error = of(after, before, limit).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param));
        }
    }
}
