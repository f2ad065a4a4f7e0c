//! Reads the body of a request: JSON into a Rust type. Errors name the place in the body, and
//! unknown fields are counted.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{BodyDataStream, HttpBody};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use serde_path_to_error::Track;
use utoipa::ToSchema;

use super::json_size::JsonSize;
use super::lenient::Lenient;
use super::type_error::type_error;
use super::unknown::nearest;
use crate::budget::HeldMemory;
use crate::error::ApiError;
use crate::middleware::RequestId;
use crate::service::Service;

/// Time for a whole body to arrive, so that bytes of the budget are not held for longer. There is
/// no minimum rate: 32 MiB, the default limit, need 4.5 Mbit/s, and a client may pause for half of
/// the time and then send the rest.
const BODY_WAIT_MAX: Duration = Duration::from_mins(1);
/// Largest piece of memory for an arriving body; a body wastes less than this.
const CHUNK_BYTES_MAX: usize = 256 << 10;

/// How many bytes of a body that is too large are read and discarded. Many clients read a response
/// only after sending everything, and lose it if the connection is closed before. The value is
/// several times the default limit of a body; beyond it the connection is closed.
const DISCARDED_BYTES_MAX: usize = 256 << 20;
/// Discarding ends after this time, however slow the line is.
const DISCARD_WAIT_MAX: Duration = Duration::from_secs(10);

/// Most names of unknown fields that are logged for one request.
const LOGGED_MAX: usize = 8;

/// The JSON of a request.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned + ToSchema + Send + 'static> FromRequest<Arc<Service>> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, service: &Arc<Service>) -> Result<Self, ApiError> {
        check_content_type(request.headers())?;
        let path = request.uri().path().to_owned();
        let memory = request.extensions().get().map(RequestId::memory);
        let memory = memory.unwrap_or_else(|| Arc::new(service.budget.hold()));
        let byte_max = service.config.body_max;
        let announced = usize::try_from(request.body().size_hint().lower()).unwrap_or(usize::MAX);
        // A client that expects `100 Continue` gets the error at once, and sends no body.
        let expects_continue = request.headers().contains_key(header::EXPECT);
        let mut body = request.into_body().into_data_stream();
        let fits = if announced > byte_max {
            Err(unreadable(StatusCode::PAYLOAD_TOO_LARGE))
        } else {
            memory.check(announced)
        };
        let read = match fits {
            Err(error) if expects_continue => return Err(error),
            Err(error) => Err(error),
            Ok(()) => tokio::time::timeout(BODY_WAIT_MAX, read(&mut body, byte_max, &memory))
                .await
                .unwrap_or_else(|_| Err(unreadable(StatusCode::REQUEST_TIMEOUT))),
        };
        let chunks = match read {
            Ok(chunks) => chunks,
            Err(error) => {
                // The response is sent at once, while the rest of the body is discarded in the
                // background.
                tokio::spawn(tokio::time::timeout(DISCARD_WAIT_MAX, discard(body)));
                return Err(error);
            }
        };
        let length = chunks.length;
        let (value, unknown) =
            service.work(length, move |_| build(&chunks.join(&memory)?, &memory)).await?;
        if unknown.count > 0 {
            service.http_metrics.unknown_fields.inc_by(unknown.count);
            let UnknownFields { names, count } = unknown;
            tracing::debug!(%path, ?names, count, "unknown fields were ignored");
            for name in names {
                if let Some(meant) = nearest::<T>(&name) {
                    tracing::warn!(%path, name, "an unknown field was ignored; was {meant} meant?");
                }
            }
        }
        Ok(Self(value))
    }
}

/// Reads a body. Its memory is taken from the budget before it is allocated.
async fn read(
    body: &mut BodyDataStream,
    byte_max: usize,
    memory: &HeldMemory,
) -> Result<Chunks, ApiError> {
    let mut chunks = Chunks::default();
    while let Some(part) = body.next().await {
        let part = part.map_err(|_| unreadable(StatusCode::BAD_REQUEST))?;
        if part.len() > byte_max - chunks.length {
            return Err(unreadable(StatusCode::PAYLOAD_TOO_LARGE));
        }
        chunks.push(&part, memory)?;
    }
    Ok(chunks)
}

/// An arriving body. Full chunks stay in place: a single growing buffer would be copied, and the
/// allocator would keep the smaller buffers. Received parts are copied into chunks, because even a
/// part of a few bytes keeps the whole buffer of its connection alive.
#[derive(Default)]
struct Chunks {
    buffers: Vec<Vec<u8>>,
    length: usize,
    capacity: usize,
}

impl Chunks {
    /// Appends a part. Memory is taken from the budget before it is allocated. Chunks grow with the
    /// body, so a client holds at most twice the bytes that it sent.
    fn push(&mut self, part: &[u8], memory: &HeldMemory) -> Result<(), ApiError> {
        let room = self.buffers.last().map_or(0, |last| last.capacity() - last.len());
        let (filling, rest) = part.split_at(part.len().min(room));
        if let Some(last) = self.buffers.last_mut() {
            last.extend_from_slice(filling);
        }
        if !rest.is_empty() {
            let capacity = rest.len().max(self.length.min(CHUNK_BYTES_MAX));
            memory.set(self.capacity + capacity)?;
            self.capacity += capacity;
            let mut chunk = Vec::with_capacity(capacity);
            chunk.extend_from_slice(rest);
            self.buffers.push(chunk);
        }
        self.length += part.len();
        Ok(())
    }

    /// The body in one piece. The budget must have room for it beside the chunks.
    fn join(mut self, memory: &HeldMemory) -> Result<Vec<u8>, ApiError> {
        if self.buffers.len() <= 1 {
            return Ok(self.buffers.pop().unwrap_or_default());
        }
        memory.set(self.capacity + self.length)?;
        let mut bytes = Vec::with_capacity(self.length);
        for chunk in self.buffers {
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }
}

async fn discard(mut body: BodyDataStream) {
    let mut left = DISCARDED_BYTES_MAX;
    while let Some(Ok(part)) = body.next().await
        && left > part.len()
    {
        left -= part.len();
    }
}

/// Parses a body, if its size is one that a request may have.
fn build<T: DeserializeOwned + ToSchema>(
    bytes: &[u8],
    memory: &HeldMemory,
) -> Result<(T, UnknownFields), ApiError> {
    let size = JsonSize::of(bytes);
    size.check()?;
    memory.set(size.memory())?;
    memory.set_work(size.work());
    parse(bytes)
}

/// Refuses content types that cannot be JSON; from a web page, all except JSON, because a browser
/// sends the others to any server without a preflight request. The rest must be accepted: many
/// clients send no content type, and curl sends that of a form.
fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let says = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let refuse = |what: String| Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, what));
    let kind = says(header::CONTENT_TYPE).unwrap_or_default().split(';').next().unwrap_or_default();
    let kind = kind.trim().to_ascii_lowercase();
    let odd = ["multipart/", "image/", "audio/", "video/"];
    let binary = ["application/octet-stream", "application/xml", "application/pdf"];
    if odd.iter().any(|odd| kind.starts_with(odd)) || binary.contains(&kind.as_str()) {
        return refuse(format!("content type {kind}: send application/json"));
    }
    if headers.contains_key(header::ORIGIN) && kind != "application/json" {
        return refuse("what a web page sends must have content type application/json".to_owned());
    }
    match says(header::CONTENT_ENCODING) {
        None | Some("identity" | "") => Ok(()),
        Some(coding) => refuse(format!("content encoding {coding}: send the JSON as it is")),
    }
}

fn unreadable(status: StatusCode) -> ApiError {
    let message = match status {
        StatusCode::PAYLOAD_TOO_LARGE => "the body is larger than this server accepts",
        StatusCode::REQUEST_TIMEOUT => "the body did not arrive in time",
        _ => "the body could not be read to its end",
    };
    ApiError::new(status, message)
}

/// Fields of a body that the request's type does not have.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct UnknownFields {
    pub(crate) count: u64,
    /// The paths of the first few of them.
    pub(crate) names: Vec<String>,
}

/// The parsed value, and the fields that its type does not have.
fn parse<T: DeserializeOwned + ToSchema>(bytes: &[u8]) -> Result<(T, UnknownFields), ApiError> {
    if bytes.trim_ascii_start().first().is_some_and(|first| *first != b'{') {
        let message = "the body must be a JSON object";
        return Err(ApiError::new(StatusCode::BAD_REQUEST, message).with_code("invalid_json"));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let mut track = Track::new();
    let mut unknown = UnknownFields::default();
    let mut note = |path: serde_ignored::Path<'_>| {
        unknown.count += 1;
        if unknown.names.len() < LOGGED_MAX {
            unknown.names.push(path.to_string());
        }
    };
    let tracked = serde_path_to_error::Deserializer::new(Lenient(&mut json), &mut track);
    let value = T::deserialize(serde_ignored::Deserializer::new(tracked, &mut note));
    let value = match value {
        Ok(value) => value,
        Err(error) => return Err(type_error::<T>(&error, &track.path().to_string())),
    };
    json.end().map_err(|error| type_error::<T>(&error, "."))?;
    Ok((value, unknown))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::super::unsupported::{NOT_IMPLEMENTED, Unsupported};
    use super::*;
    use crate::budget::Budget;

    #[derive(Debug, Deserialize, ToSchema)]
    struct Inner {
        depth: i64,
    }

    #[derive(Debug, Deserialize, ToSchema)]
    struct Outer {
        list: Vec<Inner>,
        #[serde(default)]
        #[expect(dead_code, reason = "it is read by reading")]
        fancy: Unsupported,
    }

    #[test]
    fn a_body_holds_what_is_allocated_for_it() {
        let budget = Budget::new(64 << 20);
        for part in [1, 100, 70_000, 3 << 20] {
            let memory = budget.hold();
            let mut chunks = Chunks::default();
            let mut sent = Vec::new();
            while sent.len() < 4 << 20 {
                let next: Vec<u8> = (sent.len()..sent.len() + part).map(|at| at as u8).collect();
                chunks.push(&next, &memory).unwrap();
                sent.extend(next);
                let allocated: usize = chunks.buffers.iter().map(Vec::capacity).sum();
                assert_eq!(budget.held(), allocated, "parts of {part} bytes");
                assert!(allocated <= 2 * sent.len() && allocated <= sent.len() + CHUNK_BYTES_MAX);
            }
            let allocated = budget.held();
            assert!(chunks.join(&memory).unwrap() == sent, "parts of {part} bytes");
            assert_eq!(budget.held(), allocated + sent.len(), "both are there while it is joined");
        }
        // Memory is allocated only if the budget has it.
        let (budget, mut chunks) = (Budget::new(1 << 20), Chunks::default());
        let memory = budget.hold();
        let part = vec![0; 100_000];
        let refused = (0..100).find_map(|_| chunks.push(&part, &memory).err());
        assert_eq!(refused.unwrap().status, StatusCode::PAYLOAD_TOO_LARGE);
        assert!(chunks.capacity <= 1 << 20 && budget.held() == chunks.capacity);
    }

    fn error(text: &str) -> (Option<String>, String) {
        let error = parse::<Outer>(text.as_bytes()).unwrap_err();
        assert_eq!(error.status, StatusCode::BAD_REQUEST);
        (error.param, error.message)
    }

    #[test]
    fn errors_name_the_place() {
        let (param, message) = error(r#"{"list": [{"depth": 1}, {"depth": "x"}]}"#);
        assert_eq!(param.as_deref(), Some("list[1].depth"));
        assert_eq!(message, "list[1].depth: invalid type: string \"x\", expected an integer");
        assert_eq!(error(r#"{"list": [{}]}"#).0.as_deref(), Some("list[0].depth"));
        assert_eq!(error("{}").0.as_deref(), Some("list"));
        let (param, message) = error(r#"{"list": [], "list": []}"#);
        assert_eq!(param.as_deref(), Some("list"));
        assert_eq!(message, "list: duplicate field `list`");
        let (param, message) = error("{\"list\": [\n1,}");
        assert_eq!(param.as_deref(), Some("list[0]"));
        assert_eq!(message, "list[0]: invalid type: integer `1`, expected an object");
        let (param, message) = error("{\"list\": [\noops");
        assert_eq!(param, None);
        assert!(message.contains("line 2"), "{message}");
        assert_eq!(error("{} x").0.as_deref(), Some("list"));
        assert!(error(r#"{"list": []} x"#).1.contains("trailing characters"));
        assert!(error("[1]").1.contains("must be a JSON object"));
    }

    #[test]
    fn errors_speak_of_json() {
        #[derive(Debug, Deserialize, ToSchema)]
        #[expect(dead_code, reason = "it is read by reading")]
        struct Fields {
            count: Option<u32>,
            share: Option<f32>,
            list: Option<Vec<i64>>,
            inner: Option<Inner>,
            flag: Option<bool>,
            name: Option<String>,
        }
        for (body, says) in [
            (r#"{"count": -1}"#, "integer `-1`, expected an integer from 0 to 4294967295"),
            (r#"{"count": 4294967296}"#, "expected an integer from 0 to 4294967295"),
            (r#"{"count": 1.5}"#, "`1.5`, expected an integer from 0 to 4294967295"),
            (r#"{"count": "5"}"#, "string \"5\", expected an integer"),
            (r#"{"count": [5]}"#, "array, expected an integer"),
            (r#"{"share": "5"}"#, "string \"5\", expected a number"),
            (r#"{"list": {}}"#, "invalid type: object, expected an array"),
            (r#"{"inner": 3}"#, "integer `3`, expected an object"),
            (r#"{"inner": [3]}"#, "invalid type: array, expected an object"),
            (r#"{"flag": "true"}"#, "string \"true\", expected true or false"),
            (r#"{"name": {}}"#, "invalid type: object, expected a string"),
        ] {
            let error = parse::<Fields>(body.as_bytes()).unwrap_err();
            assert!(error.message.contains(says), "{body}: {}", error.message);
        }
        assert!(parse::<Fields>(br#"{"count": 4294967295, "share": 1}"#).is_ok());
    }

    #[test]
    fn numbers_beyond_all_floats_are_errors_with_their_place() {
        let (param, message) = error(r#"{"list": [{"depth": 1e999}]}"#);
        assert_eq!(param.as_deref(), Some("list[0].depth"));
        assert!(message.contains("too large") && !message.contains("not JSON"), "{message}");
        let body = r#"{"a": {"minimum": 1}, "b": {"enum": [1, -1e999]}}"#;
        let error = parse::<serde_json::Value>(body.as_bytes()).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("b.enum[1]"));
    }

    #[test]
    fn integers_may_be_written_as_floats() {
        let depth = |text: &str| {
            let text = format!(r#"{{"list": [{{"depth": {text}}}]}}"#);
            parse::<Outer>(text.as_bytes()).map(|(value, _)| value.list[0].depth)
        };
        for (text, value) in [
            ("1.0", 1),
            ("-3.00", -3),
            ("1e3", 1000),
            ("-0.0", 0),
            ("-0", 0),
            ("9007199254740993", (1 << 53) + 1),
            ("-9223372036854775808.0", i64::MIN),
        ] {
            assert_eq!(depth(text).unwrap(), value, "{text}");
        }
        for text in ["1.5", "25e-1", "1e-300", "9223372036854775808.0", "1e300", "1e400", "NaN"] {
            let error = depth(text).unwrap_err();
            assert_eq!(error.status, StatusCode::BAD_REQUEST, "{text}");
            let place = error.param.as_deref();
            assert!(place == Some("list[0].depth") || text == "NaN", "{text}: {place:?}");
        }
        // In a field that takes any number, a number keeps its form.
        let (value, _) = parse::<serde_json::Value>(br#"{"a": [1.0, 1]}"#).unwrap();
        assert_eq!(value.to_string(), r#"{"a":[1.0,1]}"#);
    }

    #[test]
    fn what_is_not_implemented_is_refused_unless_neutral() {
        for neutral in ["null", "false", "0", "\"\"", "[]", "{}"] {
            let text = format!(r#"{{"list": [], "fancy": {neutral}}}"#);
            assert!(parse::<Outer>(text.as_bytes()).is_ok(), "{neutral}");
        }
        let (param, message) = error(r#"{"list": [], "fancy": 3}"#);
        assert_eq!(param.as_deref(), Some("fancy"));
        assert!(message.contains(NOT_IMPLEMENTED), "{message}");
    }

    #[test]
    fn unknown_fields_are_reported_with_their_paths() {
        let text = r#"{"list": [{"depth": 1, "width": 2}], "fancy": null, "colour": {"a": 1}}"#;
        let (value, unknown) = parse::<Outer>(text.as_bytes()).unwrap();
        assert_eq!(value.list[0].depth, 1);
        assert_eq!((unknown.count, unknown.names[0].as_str()), (2, "list.0.width"));
        assert_eq!(unknown.names[1], "colour");
        let many = format!(r#"{{"list": [], "a": 0{}}}"#, r#","z": 0"#.repeat(1000));
        let (_, unknown) = parse::<Outer>(many.as_bytes()).unwrap();
        assert_eq!((unknown.count, unknown.names.len()), (1001, LOGGED_MAX));
    }

    #[test]
    fn deep_nesting_and_bad_text_are_errors() {
        let deep = format!(r#"{{"list": [], "fancy": {}"#, "[".repeat(100_000));
        assert!(error(&deep).1.contains("recursion limit"));
        assert!(parse::<Outer>(b"{\"list\": [], \"fancy\": \"\xff\"}").is_err());
    }
}
