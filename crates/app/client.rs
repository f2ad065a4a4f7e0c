//! A client of OpenAI's API, for `chat`, `bench` and `health`: addresses, keys, errors with advice,
//! and events of a stream.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use reqwest::Response;
use serde_json::Value;

use crate::config::{DEFAULT_HOST, DEFAULT_PORT};

/// Time for a server to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest line of a stream.
const LINE_BYTES_MAX: usize = 64 << 20;
/// Most characters of an unexpected answer that an error shows.
const SHOWN_CHARS: usize = 300;

#[derive(clap::Args, Clone)]
pub(crate) struct Server {
    /// Address of the server [default: that of `kilotok serve` on this machine].
    #[arg(value_name = "URL", conflicts_with = "url")]
    address: Option<String>,
    /// Address of the server, given as a flag.
    #[arg(long)]
    url: Option<String>,
    /// API key, if the server needs one [default: the environment variable `KILOTOK_API_KEY`].
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// Do not check the server's TLS certificate.
    #[arg(long)]
    insecure: bool,
}

/// See the module's documentation.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    /// Without `/v1` and without a final slash.
    pub(crate) base: String,
    key: Option<String>,
}

impl Client {
    /// `key` comes from the environment; the flag takes precedence.
    pub(crate) fn new(server: &Server, key: Option<String>) -> Result<Self> {
        // Several providers may be linked in; rustls must be told which to use.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .tls_danger_accept_invalid_certs(server.insecure)
            .build()
            .context("starting an HTTP client")?;
        let key = server.api_key.clone().or(key);
        Ok(Self { http, base: base(server.address.as_deref().or(server.url.as_deref()))?, key })
    }

    fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Response> {
        let response = request.send().await.map_err(|error| self.unsent(&error))?;
        if response.status().is_success() { Ok(response) } else { Err(refusal(response).await) }
    }

    fn unsent(&self, error: &reqwest::Error) -> anyhow::Error {
        let cause = innermost(error).to_string();
        let advice = if cause.contains("certificate") {
            "--insecure takes it as it is"
        } else {
            "is the server running?"
        };
        anyhow!("{} cannot be reached: {cause} ({advice})", self.base)
    }

    pub(crate) async fn get(&self, path: &str) -> Result<String> {
        let response = self.send(self.request(reqwest::Method::GET, path)).await?;
        Ok(response.text().await?)
    }

    /// Names of the models that are served.
    pub(crate) async fn models(&self) -> Result<Vec<String>> {
        let text = self.get("/v1/models").await?;
        let listed: Value = serde_json::from_str(&text).with_context(|| {
            format!("{}/v1/models is not of OpenAI's API: {}", self.base, short(&text))
        })?;
        let models = listed["data"].as_array().into_iter().flatten();
        Ok(models.filter_map(|model| Some(model["id"].as_str()?.to_owned())).collect())
    }

    /// The wanted model, or the first one that is served.
    pub(crate) async fn model(&self, wanted: Option<&str>) -> Result<String> {
        let served = self.models().await?;
        let Some(wanted) = wanted else {
            return served.into_iter().next().context("the server serves no model");
        };
        if !served.iter().any(|name| name == wanted) {
            bail!("{wanted} is not served at {}, but {}", self.base, served.join(", "));
        }
        Ok(wanted.to_owned())
    }

    /// Sends a request for a stream.
    pub(crate) async fn stream(&self, path: &str, body: &Value) -> Result<Events> {
        let request = self.request(reqwest::Method::POST, path).json(body);
        let response = self.send(request).await?;
        Ok(Events { response, lines: Lines::default() })
    }
}

/// The innermost cause of a failed request: connection refused, unknown host, certificate.
pub(crate) fn innermost(error: &reqwest::Error) -> &dyn std::error::Error {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause
}

/// The address in its full form: the user may type `localhost:8000` or `http://localhost:8000/v1/`.
fn base(url: Option<&str>) -> Result<String> {
    let url = url.map_or_else(|| format!("{DEFAULT_HOST}:{DEFAULT_PORT}"), str::to_owned);
    let url = if url.contains("://") { url } else { format!("http://{url}") };
    let url = url.trim_end_matches('/');
    let url = url.strip_suffix("/v1").unwrap_or(url).trim_end_matches('/');
    let parsed = reqwest::Url::parse(url).with_context(|| format!("{url} is no address"))?;
    if !["http", "https"].contains(&parsed.scheme()) {
        bail!("{url} is neither http nor https");
    }
    Ok(url.to_owned())
}

/// The error for a request that the server refused.
async fn refusal(response: Response) -> anyhow::Error {
    let status = response.status();
    let wait = response.headers().get("retry-after").and_then(|wait| wait.to_str().ok());
    let wait = wait.map(|wait| format!(" (try again in {wait} s)")).unwrap_or_default();
    let body = response.text().await.unwrap_or_default();
    let said = message(&body).unwrap_or_else(|| short(&body));
    let hint = match status.as_u16() {
        401 | 403 => " (give the server's key with --api-key or KILOTOK_API_KEY)",
        404 if said.is_empty() => " (is this the address of an OpenAI-compatible server?)",
        _ => "",
    };
    anyhow!("the server answered {status}: {said}{wait}{hint}")
}

/// The message of an error, in any of the usual forms.
fn message(body: &str) -> Option<String> {
    let body: Value = serde_json::from_str(body).ok()?;
    let error = &body["error"];
    let found = [&error["message"], error, &body["message"], &body["detail"], &body["status"]];
    found.iter().find_map(|value| value.as_str()).map(str::to_owned)
}

fn short(text: &str) -> String {
    text.trim().chars().take(SHOWN_CHARS).collect()
}

/// The events of a stream.
pub(crate) struct Events {
    response: Response,
    lines: Lines,
}

impl Events {
    /// The next event; `None` after the last one.
    ///
    /// # Errors
    /// The server reports a failure, or the stream ends before its end mark.
    pub(crate) async fn next(&mut self) -> Result<Option<Value>> {
        loop {
            while let Some(line) = self.lines.next() {
                let Some(data) = line.strip_prefix("data:").map(str::trim) else { continue };
                if data == "[DONE]" {
                    return Ok(None);
                }
                let event: Value = serde_json::from_str(data)
                    .with_context(|| format!("an event is no JSON: {}", short(data)))?;
                if event.get("error").is_some_and(|error| !error.is_null()) {
                    bail!("{}", message(data).unwrap_or_else(|| short(data)));
                }
                return Ok(Some(event));
            }
            let bytes = self.response.chunk().await.context("the connection was lost")?;
            let bytes = bytes.context("the reply ended before it was complete")?;
            self.lines.push(&bytes)?;
        }
    }
}

/// Splits received pieces into lines.
#[derive(Default)]
struct Lines {
    bytes: Vec<u8>,
    /// Bytes that were already returned as lines.
    read: usize,
}

impl Lines {
    fn push(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes.drain(..self.read);
        self.read = 0;
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() > LINE_BYTES_MAX {
            bail!("the server sends a line without an end");
        }
        Ok(())
    }

    /// The next complete line.
    fn next(&mut self) -> Option<String> {
        let rest = &self.bytes[self.read..];
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        let line = String::from_utf8_lossy(&rest[..end]).trim_end_matches('\r').to_owned();
        self.read += end + 1;
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_understood_as_typed() {
        for (typed, expected) in [
            (None, "http://127.0.0.1:8000"),
            (Some("localhost:9000"), "http://localhost:9000"),
            (Some("http://a:1/v1/"), "http://a:1"),
            (Some("https://a.example/proxy/v1"), "https://a.example/proxy"),
        ] {
            assert_eq!(base(typed).unwrap(), expected);
        }
        for bad in ["ftp://a", "http://", "http://a b"] {
            assert!(base(Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn lines_do_not_depend_on_how_they_are_cut() {
        let text = "data: {\"a\":\"é\"}\r\n\r\n: keep-alive\n\ndata: [DONE]\n\n".as_bytes();
        for size in 1..=text.len() {
            let mut lines = Lines::default();
            let mut found = Vec::new();
            for piece in text.chunks(size) {
                lines.push(piece).unwrap();
                found.extend(std::iter::from_fn(|| lines.next()));
            }
            let expected = ["data: {\"a\":\"é\"}", "", ": keep-alive", "", "data: [DONE]", ""];
            assert_eq!(found, expected, "{size}");
        }
    }

    #[test]
    fn errors_of_all_shapes_are_read() {
        for body in [
            r#"{"error":{"message":"no"}}"#,
            r#"{"error":"no"}"#,
            r#"{"message":"no"}"#,
            r#"{"detail":"no"}"#,
            r#"{"status":"no"}"#,
        ] {
            assert_eq!(message(body).as_deref(), Some("no"), "{body}");
        }
        assert_eq!(message("<html>"), None);
    }
}
