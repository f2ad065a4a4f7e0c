//! Creates series and registers them. A name that is taken or not allowed is a bug, found by the
//! first test that runs.

use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    Opts, Registry,
};

const VALID: &str = "names of series are valid and used once";

/// Creates series that have some labels in common.
pub struct SeriesBuilder<'a> {
    registry: &'a Registry,
    /// The labels of every series.
    labels: Vec<(&'static str, String)>,
}

impl<'a> SeriesBuilder<'a> {
    pub(super) fn plain(registry: &'a Registry) -> Self {
        Self { registry, labels: Vec::new() }
    }

    /// With the labels `model_name` and `engine`. There is one engine, number 0.
    pub(super) fn labelled(registry: &'a Registry, model_name: &str) -> Self {
        let labels = vec![("model_name", model_name.to_owned()), ("engine", "0".to_owned())];
        Self { registry, labels }
    }

    fn opts(&self, name: &str, help: &str) -> Opts {
        let labels = self.labels.iter();
        let labels = labels.map(|(label, value)| ((*label).to_owned(), value.clone()));
        Opts::new(name, help).const_labels(labels.collect())
    }

    fn register<T: Collector + Clone + 'static>(&self, made: prometheus::Result<T>) -> T {
        let made = made.expect(VALID);
        self.registry.register(Box::new(made.clone())).expect(VALID);
        made
    }

    pub fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::with_opts(self.opts(name, help)))
    }

    /// A counter with a label, starting at 0 for the label's known values.
    pub fn counters(&self, name: &str, help: &str, label: &str, values: &[&str]) -> IntCounterVec {
        let made: IntCounterVec =
            self.register(IntCounterVec::new(self.opts(name, help), &[label]));
        for value in values {
            made.with_label_values(&[value]).reset();
        }
        made
    }

    pub fn counters_of(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(self.opts(name, help), labels))
    }

    pub fn int_gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::with_opts(self.opts(name, help)))
    }

    pub fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.register(Gauge::with_opts(self.opts(name, help)))
    }

    pub fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.register(GaugeVec::new(self.opts(name, help), labels))
    }

    pub fn histogram(&self, name: &str, help: &str, buckets: Vec<f64>) -> Histogram {
        let opts = HistogramOpts { common_opts: self.opts(name, help), buckets };
        self.register(Histogram::with_opts(opts))
    }

    pub fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: Vec<f64>,
    ) -> HistogramVec {
        let opts = HistogramOpts { common_opts: self.opts(name, help), buckets };
        self.register(HistogramVec::new(opts, labels))
    }
}
