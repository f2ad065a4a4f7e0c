//! The state that all routes share: the model's text, the generation of replies, and the server's
//! configuration. All values are resolved already: nothing here reads a flag or a file.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kilotok_engine::Verification;
use kilotok_generation::{Admission, Generator, Health, Metrics, Reservation};
use kilotok_text::{Grammars, Text};
use tokio::sync::{Semaphore, watch};

use crate::auth::Keys;
use crate::budget::Budget;
use crate::date::unix_seconds;
use crate::error::ApiError;
use crate::hosts::Hosts;
use crate::metrics::HttpMetrics;
use crate::unenforced::Unenforced;

#[cfg(test)]
mod tests;

/// The server's configuration.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Names of the model; replies carry the first one.
    pub served_names: Vec<String>,
    /// Where the checkpoint came from, for `/v1/models`.
    pub model_root: String,
    /// The API keys; if there are none, the API is open to everyone.
    pub api_keys: Vec<String>,
    /// Origins of the web pages that may call the API; `*` means all.
    pub cors_origins: Vec<String>,
    pub tls: Option<TlsFiles>,
    /// How often the TLS files are checked for changes.
    pub tls_look: Duration,
    /// The host names by which the server may be called.
    pub hosts: Hosts,
    /// Most bytes of a request's body.
    pub body_max: usize,
    /// Most bytes that all requests together may hold until their prompts are made.
    pub request_memory: usize,
    /// After this long without an event, a stream sends a comment.
    pub keep_alive: Duration,
    /// How long new requests are still accepted after the signal to stop, while `/ready` says no.
    pub drain_delay: Duration,
    /// How long running requests may take to finish after that.
    pub shutdown_timeout: Duration,
    /// Most replies of one request: prompts times `n`.
    pub n_max: u32,
    /// Most stop strings of one request.
    pub stop_max: usize,
    /// `max_tokens` of a request without one; `None` means as many as fit.
    pub token_max_default: Option<u32>,
    /// Whether requests may have a priority.
    pub allow_priority: bool,
    /// How drafts of requests that sample without a seed are verified. Those of others are matched.
    pub verification: Verification,
    /// Example questions of the chat page for this model, besides its general ones.
    pub examples: Vec<String>,
}

/// A certificate chain and its key, both PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            served_names: vec!["default".into()],
            model_root: String::new(),
            api_keys: Vec::new(),
            cors_origins: Vec::new(),
            tls: None,
            tls_look: Duration::from_secs(10),
            hosts: Hosts::Any,
            body_max: 32 << 20,
            request_memory: 1 << 30,
            keep_alive: Duration::from_secs(15),
            drain_delay: Duration::ZERO,
            shutdown_timeout: Duration::from_mins(1),
            n_max: 128,
            stop_max: 16,
            token_max_default: None,
            allow_priority: false,
            verification: Verification::Match,
            examples: Vec::new(),
        }
    }
}

/// The state that routes share.
pub struct Service {
    pub text: Arc<Text>,
    pub admission: Admission,
    pub metrics: Arc<Metrics>,
    pub(crate) http_metrics: Arc<HttpMetrics>,
    pub(crate) generator: Generator,
    pub config: ServerConfig,
    pub(crate) keys: Keys,
    /// The memory budget for bodies and prompts.
    pub(crate) budget: Arc<Budget>,
    pub(crate) created: u64,
    /// The server's version, which responses name as `system_fingerprint`.
    pub(crate) fingerprint: String,
    /// Set by the signal to stop.
    leaving: AtomicBool,
    /// Set when all remaining requests must end, whatever they are doing.
    cut_off: watch::Sender<bool>,
    /// Turns of the threads that run templates and tokenizers. Small and large texts have separate
    /// ones, so that a large text delays no small one.
    small_texts: Arc<Semaphore>,
    large_texts: Arc<Semaphore>,
    pub(crate) unenforced: Unenforced,
}

/// A text of at most this many bytes is processed in a few microseconds, less than it takes to hand
/// it to another thread.
const INLINE_BYTES_MAX: usize = 4096;

/// A text of at most this many bytes is rendered and encoded in some ten milliseconds.
const SMALL_BYTES_MAX: usize = 1 << 16;

/// More threads would only take the cores from one another.
const SMALL_TEXTS_MAX: usize = 4;

/// Each large text takes a core for seconds, and hundreds of megabytes.
const LARGE_TEXTS_MAX: usize = 2;

/// Whether a request was cancelled because its client closed the connection.
#[derive(Clone, Default)]
pub(crate) struct Cancelled(Arc<AtomicBool>);

impl Cancelled {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Set when the request's future is dropped.
struct CancelOnDrop(Cancelled);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

impl Service {
    /// # Panics
    /// If `metrics` already belong to another service: the HTTP series are added to them.
    pub fn new(
        text: Arc<Text>,
        grammars: Arc<Grammars>,
        admission: Admission,
        metrics: Arc<Metrics>,
        config: ServerConfig,
    ) -> Self {
        Self {
            http_metrics: Arc::new(HttpMetrics::new(&metrics)),
            generator: Generator::new(admission.clone(), Arc::clone(&text), grammars),
            text,
            admission,
            metrics,
            keys: Keys::new(&config.api_keys),
            budget: Budget::new(config.request_memory),
            created: unix_seconds(),
            fingerprint: format!("kilotok-{}", env!("CARGO_PKG_VERSION")),
            leaving: AtomicBool::new(false),
            cut_off: watch::Sender::new(false),
            small_texts: Arc::new(Semaphore::new(SMALL_TEXTS_MAX)),
            large_texts: Arc::new(Semaphore::new(LARGE_TEXTS_MAX)),
            unenforced: Unenforced::default(),
            config,
        }
    }

    /// The name that replies carry.
    pub fn model_name(&self) -> &str {
        self.config.served_names.first().map_or("default", String::as_str)
    }

    /// The name to answer with, if the requested model is served here.
    pub(crate) fn model(&self, asked: Option<&str>) -> Result<String, ApiError> {
        let served = &self.config.served_names;
        match asked {
            None | Some("") => Ok(self.model_name().to_owned()),
            Some(name) if served.iter().any(|known| known == name) => Ok(name.to_owned()),
            Some(name) => Err(ApiError::unknown_model(name, served)),
        }
    }

    /// From now on `/ready` says no, so that load balancers send no more requests.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
    }

    /// Ends all remaining requests with an error, including those without replies.
    pub fn stop(&self) {
        self.admission.stop();
        self.cut_off.send_replace(true);
    }

    /// Becomes true when requests must end.
    pub(crate) fn cut_off(&self) -> watch::Receiver<bool> {
        self.cut_off.subscribe()
    }

    /// Whether new requests are admitted, and `/ready` says yes.
    pub fn is_ready(&self) -> bool {
        !self.leaving.load(Ordering::Acquire)
            && matches!(self.admission.health(), Health::Ok { .. })
    }

    /// A reservation, held while the prompt of a request is made.
    fn reserve(&self) -> Result<Reservation, ApiError> {
        self.admission.reserve().map_err(|refusal| ApiError::from_refusal(refusal, "prompt"))
    }

    /// Runs work on `bytes` of text: on this thread if they are few, else with
    /// [`Self::run_blocking`].
    pub(crate) async fn work<T: Send + 'static>(
        self: &Arc<Self>,
        bytes: usize,
        work: impl FnOnce(&Self) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        if bytes <= INLINE_BYTES_MAX {
            return work(self);
        }
        self.run_blocking(bytes, move |service, _| work(service)).await
    }

    /// Renders and tokenizes about `bytes` of text on another thread: the size of a template's
    /// input does not tell how long it takes. The work can see that its request was cancelled.
    pub(crate) async fn run_blocking<T: Send + 'static>(
        self: &Arc<Self>,
        bytes: usize,
        work: impl FnOnce(&Self, &Cancelled) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let _reservation = if bytes <= INLINE_BYTES_MAX { None } else { Some(self.reserve()?) };
        let lost = || ApiError::internal("preparing the request failed");
        let is_small = bytes <= SMALL_BYTES_MAX;
        let turns = if is_small { &self.small_texts } else { &self.large_texts };
        let turn = Arc::clone(turns).acquire_owned().await.map_err(|_| lost())?;
        let service = Arc::clone(self);
        let cancel_on_drop = CancelOnDrop(Cancelled::default());
        let cancelled = cancel_on_drop.0.clone();
        let done = tokio::task::spawn_blocking(move || {
            let done = work(&service, &cancelled);
            drop(turn);
            done
        });
        done.await.map_err(|_| lost())?
    }
}
