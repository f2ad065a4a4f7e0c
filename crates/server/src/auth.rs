//! API keys. Their digests are compared, in a time that does not depend on the keys.

use axum::http::{HeaderMap, StatusCode, header};
use ring::digest::{SHA256, digest};

use crate::error::ApiError;

/// SHA-256 digests of the API keys.
pub(crate) struct Keys(Vec<[u8; 32]>);

/// The caller of a request, identified by its API key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Caller {
    /// The index of the caller's key, if the server has keys.
    key_index: Option<usize>,
}

impl Caller {
    /// The id, made unique to this caller: two callers may send the same id. Ids that clients send
    /// contain no slash.
    pub(crate) fn own(&self, id: &str) -> String {
        self.key_index.map_or_else(|| id.to_owned(), |index| format!("{index}/{id}"))
    }
}

/// Paths that need a key; health, metrics, version and page do not.
const GUARDED: [&str; 8] = [
    "/v1",
    "/tokenize",
    "/detokenize",
    "/abort_requests",
    "/model_info",
    "/get_model_info",
    "/server_info",
    "/get_server_info",
];

impl Keys {
    pub(crate) fn new(keys: &[String]) -> Self {
        Self(keys.iter().map(|key| hash(key.as_bytes())).collect())
    }

    /// The caller, if these headers have a key for the path.
    pub(crate) fn check(&self, path: &str, headers: &HeaderMap) -> Result<Caller, ApiError> {
        let under = |root: &str| {
            path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if self.0.is_empty() || !GUARDED.iter().any(|root| under(root)) {
            return Ok(Caller::default());
        }
        let Some(key) = presented(headers) else {
            return Err(unauthorized(
                "an API key is needed: send `Authorization: Bearer KEY` or `x-api-key: KEY`",
            ));
        };
        let key_index = self.index(key);
        if key_index.is_none() {
            return Err(unauthorized("the API key is not one of this server's"));
        }
        Ok(Caller { key_index })
    }

    fn index(&self, key: &[u8]) -> Option<usize> {
        let hash = hash(key);
        let differs =
            |known: &[u8; 32]| known.iter().zip(&hash).fold(0, |all, (a, b)| all | (a ^ b)) != 0;
        // All keys are compared, so that the time does not depend on the index.
        let known = self.0.iter().map(differs).enumerate();
        known.fold(None, |found, (index, differs)| if differs { found } else { Some(index) })
    }
}

fn hash(key: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, key).as_ref());
    out
}

fn presented(headers: &HeaderMap) -> Option<&[u8]> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let value = value.as_bytes();
        let (scheme, key) = value.split_at_checked("Bearer ".len())?;
        return scheme.eq_ignore_ascii_case(b"Bearer ").then_some(key.trim_ascii());
    }
    headers.get("x-api-key").map(|value| value.as_bytes().trim_ascii())
}

fn unauthorized(message: &str) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, message).with_code("invalid_api_key")
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderName;

    use super::*;

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(HeaderName::from_static(name), value.parse().unwrap());
        headers
    }

    #[test]
    fn any_key_opens_the_guarded_paths() {
        let keys = Keys::new(&["one".into(), "two".into()]);
        let may = |path, name, value| keys.check(path, &headers(name, value)).is_ok();
        for key in ["Bearer one", "bearer two", "BEARER one "] {
            assert!(may("/v1/chat/completions", "authorization", key), "{key}");
        }
        assert!(may("/tokenize", "x-api-key", "two"));
        for key in ["one", "Basic one", "Bearer", "Bearer ", "Bearer on", "Bearer one two", "Be"] {
            assert!(!may("/v1/models", "authorization", key), "{key}");
        }
        assert!(!may("/abort_requests", "x-api-key", ""));
        assert!(!may("/detokenize", "accept", "one"));
        assert!(!may("/get_model_info", "accept", "one"));
        for open in ["/health", "/metrics", "/version", "/", "/v1beta", "/tokenizers"] {
            assert!(keys.check(open, &HeaderMap::new()).is_ok(), "{open}");
        }
        assert_eq!(keys.check("/v1", &HeaderMap::new()).unwrap_err().status.as_u16(), 401);
    }

    #[test]
    fn without_keys_all_is_open() {
        assert!(Keys::new(&[]).check("/v1/models", &HeaderMap::new()).is_ok());
    }
}
