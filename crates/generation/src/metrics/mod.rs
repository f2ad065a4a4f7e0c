//! The Prometheus metrics. Names, labels and meanings are vLLM's, so that its dashboards and the
//! routers in front of it work unchanged; series without a counterpart in vLLM begin with
//! `kilotok:`. The engine's thread writes through [`Meter`]: counts of a step once per step, times
//! of a reply at each of its rows. Mask workers and readers of replies write the measurements that
//! only they have. A server adds its own series with [`Metrics::builder`].

mod buckets;
mod builder;
mod finished;
mod kilotok;
mod meter;
mod vllm;

#[cfg(test)]
mod tests;

use kilotok_engine::Caps;
use prometheus::{Registry, TextEncoder};

pub use builder::SeriesBuilder;
pub(crate) use finished::{FinishedStats, Siblings};
use kilotok::KilotokSeries;
pub(crate) use meter::{Meter, StepSize};
use vllm::VllmSeries;

/// All series of one server.
pub struct Metrics {
    registry: Registry,
    /// The name under which the model is served.
    model_name: String,
    vllm: VllmSeries,
    own: KilotokSeries,
}

impl Metrics {
    /// `model_name`, the name under which the model is served, becomes a label of all series.
    ///
    /// # Panics
    /// If two series have the same name.
    pub fn new(model_name: &str, caps: &Caps) -> Self {
        let registry = Registry::new();
        let builder = SeriesBuilder::labelled(&registry, model_name);
        let (vllm, own) = (VllmSeries::new(&builder, caps), KilotokSeries::new(&builder, caps));
        Self { registry, model_name: model_name.to_owned(), vllm, own }
    }

    /// A builder for further series with the labels of these.
    pub fn builder(&self) -> SeriesBuilder<'_> {
        SeriesBuilder::labelled(&self.registry, &self.model_name)
    }

    /// A builder for further series without labels.
    pub fn plain_builder(&self) -> SeriesBuilder<'_> {
        SeriesBuilder::plain(&self.registry)
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

    /// Counts lines of the log that could not be written.
    pub fn log_lines_lost(&self, count: u64) {
        self.own.log_lines_lost.inc_by(count);
    }

    /// Counts a request that was not admitted.
    pub(crate) fn rejected(&self, reason: &str) {
        self.vllm.rejections.with_label_values(&[reason]).inc();
    }

    /// Observes the time to compute masks.
    pub(crate) fn masked(&self, seconds: f64) {
        self.own.mask_seconds.observe(seconds);
    }

    /// Publishes values that are fixed at start: the sizes of the cache, and whether prefixes are
    /// cached.
    pub(crate) fn configured(&self, caps: &Caps, prefix_cache: bool) {
        self.vllm.configured(caps, prefix_cache);
    }
}
