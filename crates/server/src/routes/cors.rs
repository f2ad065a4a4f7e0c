//! CORS: web pages of other sites may do nothing, unless the operator lists their origins. A
//! browser tells the developer of a refused page little, so the response and the log give the
//! reason.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tower_http::cors::{AllowHeaders, AllowOrigin, Any, CorsLayer};

use crate::encoder::WARNING_HEADER;
use crate::error::ApiError;

/// Most refused origins that are logged, each once: a page can send requests from any number of
/// origins.
const LOGGED_MAX: usize = 16;
/// Most characters of an origin. Real origins are shorter.
const ORIGIN_CHARS_MAX: usize = 256;

/// Lets pages of these origins read responses.
pub(super) fn layer(origins: &[String]) -> CorsLayer {
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
    let own = ["x-request-id", WARNING_HEADER].map(HeaderName::from_static);
    let exposed = own.into_iter().chain([header::RETRY_AFTER]).collect::<Vec<_>>();
    layer
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST])
        // `*` would not include `authorization`, which carries the key.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(exposed)
}

/// The origins that may call the API, and the refused ones that were logged.
pub(super) struct Origins {
    allowed: Vec<String>,
    refused: Mutex<BTreeSet<String>>,
}

impl Origins {
    pub(super) fn new(allowed: &[String]) -> Arc<Self> {
        Arc::new(Self { allowed: allowed.to_vec(), refused: Mutex::default() })
    }

    /// Whether to log the origin: it is new, and not too many were logged.
    fn is_news(&self, origin: &str) -> bool {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.len() < LOGGED_MAX && refused.insert(origin.to_owned())
    }
}

/// Answers a browser's preflight request if the origin is refused.
pub(super) async fn refuse(
    State(origins): State<Arc<Origins>>,
    request: Request,
    next: Next,
) -> Response {
    let Some(origin) = preflight(&request) else { return next.run(request).await };
    if origins.allowed.iter().any(|allowed| allowed == "*" || *allowed == origin) {
        return next.run(request).await;
    }
    // Pages opened from files have the origin `null`, which cannot be listed.
    let flag = format!("--cors-origin {}", if origin == "null" { "'*'" } else { &origin });
    if origins.is_news(&origin) {
        tracing::warn!(origin, "a web page of another site was refused; `{flag}` lets it in");
    }
    let message = format!(
        "web pages of {origin} may not call this server: pages of other sites are refused unless \
         it is started with `{flag}`"
    );
    ApiError::new(StatusCode::FORBIDDEN, message).with_code("origin_not_allowed").into_response()
}

/// The origin of a page, if this is a preflight request.
fn preflight(request: &Request) -> Option<String> {
    let headers = request.headers();
    let asks = request.method() == Method::OPTIONS
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let origin = headers.get(header::ORIGIN).filter(|_| asks)?;
    Some(String::from_utf8_lossy(origin.as_bytes()).chars().take(ORIGIN_CHARS_MAX).collect())
}
