//! The middleware of every request: its id, W3C trace context, a span, keys, an access log,
//! metrics.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::Instrument;
use uuid::Uuid;

use crate::auth::Caller;
use crate::budget::HeldMemory;
use crate::error::ApiError;
use crate::messages::{is_client, translate_error};
use crate::service::Service;

/// The id and the caller of a request. The id comes from the client, or is generated; the reply's
/// id contains it.
#[derive(Clone, Debug)]
pub(crate) struct RequestId {
    pub(crate) id: String,
    /// Whether the id came in a header. A header takes precedence over the body.
    given: bool,
    caller: Caller,
    memory: Arc<HeldMemory>,
}

/// The id of a reply.
#[derive(Clone, Debug)]
pub(crate) struct ReplyId {
    /// The id in the response.
    pub(crate) shown: String,
    caller: Caller,
    memory: Arc<HeldMemory>,
}

impl ReplyId {
    /// The id under which admission knows the reply. It differs between callers.
    pub(crate) fn internal(&self) -> String {
        self.caller.own(&self.shown)
    }

    /// Gives back the memory that the request held, once its prompt is made.
    pub(crate) fn release_memory(&self) {
        self.memory.release();
    }
}

/// Most characters of an id.
const ID_CHARS_MAX: usize = 128;
const ID_HEADER: &str = "x-request-id";

impl RequestId {
    fn of(headers: &HeaderMap, caller: Caller, memory: HeldMemory) -> Self {
        let given = headers.get(ID_HEADER).and_then(|value| value.to_str().ok());
        let given = given.filter(|id| is_id(id)).map(str::to_owned);
        let random = || Uuid::new_v4().simple().to_string();
        let (is_given, memory) = (given.is_some(), Arc::new(memory));
        Self { id: given.unwrap_or_else(random), given: is_given, caller, memory }
    }

    /// The id of a reply: from the header, else from the body, else random.
    pub(crate) fn reply(&self, prefix: &str, body: Option<&str>) -> Result<ReplyId, ApiError> {
        let id = match body {
            Some(id) if !is_id(id) => {
                return Err(ApiError::bad(
                    "request_id",
                    format!("request_id: 1 to {ID_CHARS_MAX} letters, digits or \"-_.:\", please"),
                ));
            }
            Some(id) if !self.given => id,
            _ => &self.id,
        };
        let (caller, memory) = (self.caller.clone(), Arc::clone(&self.memory));
        Ok(ReplyId { shown: format!("{prefix}{id}"), caller, memory })
    }

    pub(crate) fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The memory that the request holds.
    pub(crate) fn memory(&self) -> Arc<HeldMemory> {
        Arc::clone(&self.memory)
    }

    /// The work of converting the request's body, in bytes of text that would take as long.
    pub(crate) fn work(&self) -> usize {
        self.memory.work()
    }
}

fn is_id(id: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    (1..=ID_CHARS_MAX).contains(&id.len()) && id.chars().all(plain)
}

/// The trace that a request is part of: `00-<32 hex>-<16 hex>-<2 hex>`.
fn trace_of(headers: &HeaderMap) -> Option<(&str, &str)> {
    let text = headers.get("traceparent")?.to_str().ok()?;
    let mut parts = text.split('-');
    let (version, trace, parent, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |part: &str, count: usize| {
        part.len() == count && part.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
    };
    let zero = |part: &str| part.bytes().all(|c| c == b'0');
    let whole = hex(version, 2) && hex(trace, 32) && hex(parent, 16) && hex(flags, 2);
    let known = version != "ff" && (version != "00" || parts.next().is_none());
    (whole && known && !zero(trace) && !zero(parent)).then_some((trace, parent))
}

/// Runs around every route.
pub(crate) async fn observe(
    State(service): State<Arc<Service>>,
    mut request: Request,
    next: Next,
) -> Response {
    let admitted = admit(&service, &request);
    let caller = admitted.as_ref().cloned().unwrap_or_default();
    let id = RequestId::of(request.headers(), caller, service.budget.hold());
    let (trace, parent) = trace_of(request.headers()).unzip();
    let method = request.method().clone();
    let pattern = request.extensions().get::<MatchedPath>().cloned();
    let span = tracing::info_span!(
        "request",
        %method,
        path = request.uri().path(),
        request_id = %id.id,
        trace_id = trace,
        parent_id = parent,
    );
    let echo = HeaderValue::from_str(&id.id);
    let anthropic =
        request.uri().path().starts_with("/v1/messages") || is_client(request.headers());
    let orca = request.headers().get("endpoint-load-metrics-format").cloned();
    request.extensions_mut().insert(id.clone());
    let start = tokio::time::Instant::now();
    let mut response = match admitted {
        Err(error) => error.into_response(),
        Ok(_) => next.run(request).instrument(span.clone()).await,
    };
    let seconds = start.elapsed().as_secs_f64();
    let status = response.status();
    let handler = pattern.as_ref().map_or("none", MatchedPath::as_str);
    service.http_metrics.answered(handler, method.as_str(), status.as_u16(), seconds);
    let error = response.extensions().get::<ApiError>().map(|error| error.message.as_str());
    let status = status.as_u16();
    span.in_scope(|| {
        if method == Method::GET {
            // Probes and scrapes come every few seconds.
            tracing::debug!(status, seconds, error, "answered");
        } else {
            tracing::info!(status, seconds, error, "answered");
        }
    });
    if anthropic {
        response = translate_error(response, &id.id);
    }
    if let Ok(echo) = echo {
        response.headers_mut().insert(ID_HEADER, echo);
    }
    if let Some(load) = orca.and_then(|format| load_report(&format, &service)) {
        response.headers_mut().insert("endpoint-load-metrics", load);
    }
    response
}

/// The caller of a request, if the request is allowed.
fn admit(service: &Service, request: &Request) -> Result<Caller, ApiError> {
    service.config.hosts.check(request)?;
    service.keys.check(request.uri().path(), request.headers())
}

/// The load figures by which Envoy balances, in the format that the header asks for.
fn load_report(format: &HeaderValue, service: &Service) -> Option<HeaderValue> {
    let load = service.admission.load();
    let (usage, waiting) = (load.usage, load.waiting());
    let text = match format.to_str().ok()?.to_ascii_uppercase().as_str() {
        "TEXT" => format!(
            "TEXT named_metrics.kv_cache_usage_perc={usage}, \
             named_metrics.num_requests_waiting={waiting}"
        ),
        "JSON" => format!(
            "JSON {{\"named_metrics\": {{\"kv_cache_usage_perc\": {usage}, \
             \"num_requests_waiting\": {waiting}}}}}"
        ),
        _ => return None,
    };
    HeaderValue::from_str(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;

    fn of(headers: &HeaderMap) -> RequestId {
        RequestId::of(headers, Caller::default(), Budget::new(0).hold())
    }

    fn with(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        headers
    }

    #[test]
    fn ids_are_taken_if_they_are_harmless() {
        let id = |value: &str| of(&with(ID_HEADER, value));
        assert_eq!(id("abc-1.2_3:4").reply("r-", Some("body")).unwrap().shown, "r-abc-1.2_3:4");
        for odd in ["", "a b", "é", "a\"b", &"x".repeat(129)] {
            let id = id(odd);
            assert!(!id.given && id.id.len() == 32, "{odd:?}");
            assert_eq!(id.reply("r-", Some("body")).unwrap().shown, "r-body");
            assert!(id.reply("r-", Some("bo dy")).is_err());
        }
    }

    #[test]
    fn trace_context_is_read_as_w3c_says() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let headers = with("traceparent", good);
        let expected = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        assert_eq!(trace_of(&headers), Some(expected));
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
        ] {
            assert_eq!(trace_of(&with("traceparent", bad)), None, "{bad}");
        }
        let later = "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more";
        assert_eq!(trace_of(&with("traceparent", later)), Some(expected));
    }
}
