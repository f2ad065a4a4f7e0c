//! Errors of requests, in OpenAI's form: status, type, parameter, code and a sentence that says
//! what to do. The Messages API translates them to Anthropic's form.

use std::collections::BTreeMap;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use kilotok_text::{GrammarError, TextError};
use serde::Serialize;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder};
use utoipa::{IntoResponses, ToSchema};

use kilotok_generation::{Failure, FailureKind, Refusal};

/// An error as the response to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    pub status: StatusCode,
    pub message: String,
    /// The field of the request that is at fault.
    pub param: Option<String>,
    pub code: Option<&'static str>,
    pub retry_after_s: Option<u64>,
}

/// The body of every error.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    pub error: ErrorDetail,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorDetail {
    /// What was wrong, where, and what to do.
    pub message: String,
    /// The kind of error, such as `invalid_request_error`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The field of the request that is at fault.
    pub param: Option<String>,
    /// A name for programs, such as `context_length_exceeded`.
    pub code: Option<&'static str>,
}

/// The errors of any request, for `/openapi.json`.
pub(crate) struct ErrorResponses;

impl IntoResponses for ErrorResponses {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        let fault = |status: &str, whose: &str| {
            let body = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorBody")));
            let fault = ResponseBuilder::new().description(whose);
            let fault = fault.content("application/json", body.build()).build();
            (status.to_owned(), fault.into())
        };
        [fault("4XX", "The request is refused."), fault("5XX", "The server failed.")].into()
    }
}

impl ApiError {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let message = shortened(message.into());
        Self { status, message, param: None, code: None, retry_after_s: None }
    }

    /// An error of the caller, in a named field.
    pub fn bad(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message).with_param(param)
    }

    /// A field that other servers have, with a value that this server does not implement.
    pub fn not_implemented(param: impl Into<String>, what: &str) -> Self {
        let param = param.into();
        let message = format!("{param}: {what} is not implemented by this server");
        Self::bad(param, message).with_code("unsupported_parameter")
    }

    pub fn internal(message: &str) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    pub fn unknown_model(model: &str, served: &[String]) -> Self {
        let message = format!("the model `{model}` is not served here; served: {served:?}");
        Self::new(StatusCode::NOT_FOUND, message).with_param("model").with_code("model_not_found")
    }

    #[must_use]
    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(shortened(param.into()));
        self
    }

    #[must_use]
    pub fn with_code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// An error of the prompt names the field that the prompt came from.
    pub fn from_refusal(refusal: Refusal, prompt: &str) -> Self {
        match refusal {
            Refusal::QueueFull { retry_after_s } => Self {
                retry_after_s: Some(retry_after_s),
                ..Self::new(
                    StatusCode::TOO_MANY_REQUESTS,
                    "too many requests are waiting; try again later",
                )
                .with_code("queue_full")
            },
            Refusal::TooLong { token_count, context_max } => Self::bad(
                prompt,
                format!(
                    "the prompt has {token_count} tokens, but at most {context_max} fit, with one \
                     of the reply; shorten it"
                ),
            )
            .with_code("context_length_exceeded"),
            Refusal::Illegal(reason) => Self::bad(prompt, reason),
            Refusal::Draining => Self {
                retry_after_s: Some(RETRY_DRAINING_S),
                ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "the server is shutting down")
                    .with_code("shutting_down")
            },
            Refusal::Failed(reason) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("the engine has failed: {reason}"),
            )
            .with_code("engine_failed"),
        }
    }

    pub fn from_failure(failure: Failure) -> Self {
        let (status, code) = match failure.kind {
            FailureKind::Engine => (StatusCode::INTERNAL_SERVER_ERROR, "engine_failed"),
            FailureKind::Fault => (StatusCode::INTERNAL_SERVER_ERROR, "no_token"),
            FailureKind::NothingAllowed => (StatusCode::BAD_REQUEST, "nothing_allowed"),
            FailureKind::Busy => (StatusCode::SERVICE_UNAVAILABLE, "overloaded"),
            FailureKind::Shutdown => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
        };
        let retry_after_s = match failure.kind {
            FailureKind::Busy => Some(RETRY_BUSY_S),
            FailureKind::Shutdown => Some(RETRY_DRAINING_S),
            FailureKind::Engine | FailureKind::Fault | FailureKind::NothingAllowed => None,
        };
        Self { retry_after_s, ..Self::new(status, failure.message).with_code(code) }
    }

    pub fn from_text(error: &TextError, param: &str) -> Self {
        match error {
            TextError::TooLong { token_max } => {
                let message = format!(
                    "the prompt has more than {token_max} tokens, and no more fit; shorten it"
                );
                Self::bad(param, message).with_code("context_length_exceeded")
            }
            TextError::NoThread(_) => Self::no_thread(error.to_string()),
            error => Self::bad(param, error.to_string()),
        }
    }

    /// The system allows no more threads, or has no memory for one.
    fn no_thread(message: String) -> Self {
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, message).with_code("overloaded");
        Self { retry_after_s: Some(RETRY_BUSY_S), ..error }
    }

    pub fn from_grammar(error: &GrammarError, param: &str) -> Self {
        let message = format!("{param}: {error}");
        match error {
            GrammarError::Invalid(_) => Self::bad(param, message).with_code("invalid_grammar"),
            GrammarError::TooLarge(_) | GrammarError::Cancelled => {
                Self::bad(param, message).with_code("grammar_too_large")
            }
            GrammarError::NoThread(_) => Self::no_thread(message),
            GrammarError::Fault(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, message),
        }
    }

    pub fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            503 => "service_unavailable_error",
            400..500 => "invalid_request_error",
            _ => "server_error",
        }
    }

    pub fn body(&self) -> ErrorBody {
        let (message, param) = (self.message.clone(), self.param.clone());
        ErrorBody { error: ErrorDetail { message, kind: self.kind(), param, code: self.code } }
    }
}

/// Most bytes of a message. It may quote the client's input: megabytes of it are of no use to the
/// client, and would fill the log.
const MESSAGE_BYTES_MAX: usize = 2000;

fn shortened(mut text: String) -> String {
    if text.len() > MESSAGE_BYTES_MAX {
        text.truncate(text.floor_char_boundary(MESSAGE_BYTES_MAX));
        text.push_str("...");
    }
    text
}

/// Masks are made within milliseconds, but the header cannot say less than a second.
const RETRY_BUSY_S: u64 = 1;
/// By then a load balancer has taken a replica that is shutting down off its list.
const RETRY_DRAINING_S: u64 = 5;

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        // The log and the translation to other APIs read it from there.
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_say_whether_to_try_again() {
        for (kind, status, retry_after_s) in [
            (FailureKind::Engine, 500, None),
            (FailureKind::Fault, 500, None),
            (FailureKind::NothingAllowed, 400, None),
            (FailureKind::Busy, 503, Some(RETRY_BUSY_S)),
            (FailureKind::Shutdown, 503, Some(RETRY_DRAINING_S)),
        ] {
            let error = ApiError::from_failure(Failure { kind, message: String::new() });
            assert_eq!((error.status.as_u16(), error.retry_after_s), (status, retry_after_s));
        }
    }

    #[test]
    fn a_request_for_which_there_is_no_thread_may_come_again() {
        let template = TextError::NoThread(std::io::ErrorKind::WouldBlock.into());
        let grammar = GrammarError::NoThread("Resource temporarily unavailable".to_owned());
        for error in
            [ApiError::from_text(&template, "messages"), ApiError::from_grammar(&grammar, "regex")]
        {
            assert_eq!((error.status.as_u16(), error.retry_after_s), (503, Some(RETRY_BUSY_S)));
            assert!(error.message.contains("no thread"), "{}", error.message);
        }
    }
}
