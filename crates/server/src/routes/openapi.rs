//! `/openapi.json`, generated from the wire types and the routes.

use std::sync::LazyLock;

use axum::http::{Method, header};
use axum::response::IntoResponse;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

use crate::chat::wire::ChunkChoice;
use crate::error::ErrorBody;
use crate::wire::chunk::Chunk;

use super::{control, health, metrics, models, sglang, tokenize};
use crate::{chat, completions, messages, responses};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "kilotok",
        description = "Chat, completions and messages, as clients of OpenAI and Anthropic speak \
                       them. Unknown fields are ignored; known fields that are not \
                       implemented are refused by name.",
    ),
    paths(
        chat::create,
        chat::render,
        completions::create,
        completions::render,
        responses::create,
        messages::create,
        messages::count_tokens,
        models::list,
        models::one,
        tokenize::tokenize,
        tokenize::detokenize,
        control::abort,
        control::version,
        control::load,
        health::health,
        health::ready,
        health::live,
        metrics::metrics,
        sglang::model_info,
        sglang::server_info,
        sglang::get_load,
    ),
    components(schemas(ErrorBody, Chunk<'static, ChunkChoice<'static>>)),
    modifiers(&Keys),
    security((), ("key" = [])),
)]
struct Document;

struct Keys;

impl Modify for Keys {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        let components = document.components.get_or_insert_with(Default::default);
        components.add_security_scheme("key", SecurityScheme::Http(bearer));
    }
}

static DOCUMENT: LazyLock<String> =
    LazyLock::new(|| Document::openapi().to_json().unwrap_or_default());

/// Paths and their methods, as listed in the document.
static OPERATIONS: LazyLock<Vec<(String, Vec<Method>)>> = LazyLock::new(|| {
    let paths = Document::openapi().paths.paths.into_iter();
    let methods = paths.map(|(path, item)| {
        let methods = [(Method::GET, item.get.is_some()), (Method::POST, item.post.is_some())];
        (path, methods.into_iter().filter(|(_, taken)| *taken).map(|(method, _)| method).collect())
    });
    methods.collect()
});

pub(super) fn operations() -> &'static [(String, Vec<Method>)] {
    &OPERATIONS
}

pub(crate) async fn document() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.as_str())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    /// Every operation has a unique name, and every `$ref` resolves.
    #[test]
    fn the_document_is_whole() {
        fn check(value: &Value, document: &Value) {
            match value {
                Value::Object(fields) => {
                    if let Some(Value::String(path)) = fields.get("$ref") {
                        let pointer = path.strip_prefix('#').unwrap();
                        assert!(document.pointer(pointer).is_some(), "{path}");
                    }
                    fields.values().for_each(|field| check(field, document));
                }
                Value::Array(list) => list.iter().for_each(|entry| check(entry, document)),
                _ => {}
            }
        }
        let document: Value = serde_json::from_str(&DOCUMENT).unwrap();
        check(&document, &document);
        let methods = document["paths"].as_object().unwrap().values();
        let operations = methods.flat_map(|path| path.as_object().unwrap().values());
        let ids: Vec<_> = operations.map(|operation| &operation["operationId"]).collect();
        let distinct: BTreeSet<_> = ids.iter().map(ToString::to_string).collect();
        assert_eq!(distinct.len(), ids.len(), "{ids:?}");
        let temperature =
            &document["components"]["schemas"]["ChatRequest"]["properties"]["temperature"];
        assert_eq!(temperature["maximum"], 2.0);
        assert!(document["paths"]["/v1/messages"]["post"]["responses"]["4XX"].is_object());
    }
}
