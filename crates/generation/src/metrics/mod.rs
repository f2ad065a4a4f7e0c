//! What Prometheus is told. Names, labels and meanings are vLLM's, so that its dashboards and the
//! routers in front of it work unchanged; what vLLM has no name for is under `kilotok:`. The
//! engine's thread writes through [`Meter`], once per step; routes and readers write what they
//! alone know.

mod buckets;
mod ending;
mod http;
mod make;
mod meter;
mod own;
mod vllm;

#[cfg(test)]
mod tests;

use kilotok_engine::Caps;
use prometheus::{Registry, TextEncoder};

pub(crate) use ending::{EndReason, Ending, Siblings};
use http::Http;
use make::Maker;
pub(crate) use meter::{Meter, StepSize};
use own::Own;
use vllm::Vllm;

/// All series of one server.
pub struct Metrics {
    registry: Registry,
    vllm: Vllm,
    http: Http,
    own: Own,
}

impl Metrics {
    /// `model_name` is what the model is served as: a label of all series.
    ///
    /// # Panics
    /// If two series have one name.
    pub fn new(model_name: &str, caps: &Caps) -> Self {
        let registry = Registry::new();
        let labelled = Maker::labelled(&registry, model_name);
        let (vllm, own) = (Vllm::new(&labelled, caps), Own::new(&labelled, caps));
        let http = Http::new(&Maker::plain(&registry));
        Self { registry, vllm, http, own }
    }

    /// All series in Prometheus' text form, `text/plain; version=0.0.4`.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let encoded = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text);
        if let Err(error) = encoded {
            tracing::error!(%error, "metrics cannot be written as text");
        }
        text
    }

    /// An answered request. `handler` is a route's pattern, never a path that a caller made up.
    pub fn answered(&self, handler: &str, method: &str, status: u16, seconds: f64) {
        self.http.answered(handler, method, status, seconds);
    }

    /// Fields of a request that nobody knows.
    pub fn unknown_fields(&self, count: u64) {
        self.own.unknown_fields.inc_by(count);
    }

    /// So many tools, items or parts of a type were left out; whether they are the first of it.
    pub fn left_out(&self, what: &str, kind: &str, count: u64) -> bool {
        let counter = self.own.left_out.with_label_values(&[what, kind]);
        let first = counter.get() == 0;
        counter.inc_by(count);
        first
    }

    /// Memory that requests hold until their prompts are made.
    pub fn requests_hold(&self, bytes: usize) {
        self.own.request_bytes.set(bytes as i64);
    }

    /// Lines of the log that could not be written.
    pub fn log_lines_lost(&self, count: u64) {
        self.own.log_lines_lost.inc_by(count);
    }

    /// A connection that could not be accepted.
    pub fn accept_failed(&self) {
        self.own.accepts_failed.inc();
    }

    /// What a request's schema asks for and does not get.
    pub fn unenforced(&self, count: u64) {
        self.own.unenforced.inc_by(count);
    }

    /// A request that was not let in.
    pub(crate) fn rejected(&self, reason: &str) {
        self.vllm.rejections.with_label_values(&[reason]).inc();
    }

    /// Masks that took so long to make.
    pub(crate) fn masked(&self, seconds: f64) {
        self.own.mask_seconds.observe(seconds);
    }

    /// What was decided at start: `prefix_cache` pages, and how many requests may be there at once.
    pub(crate) fn configured(&self, caps: &Caps, prefix_cache: bool) {
        self.vllm.configured(caps, prefix_cache);
    }
}
