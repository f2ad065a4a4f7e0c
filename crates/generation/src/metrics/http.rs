//! Series of answered requests, under the names of the instrumentation that vLLM has. They have no
//! label of the model.

use prometheus::{Histogram, HistogramVec, IntCounterVec};

use super::buckets;
use super::make::Maker;

pub(super) struct Http {
    answered: IntCounterVec,
    seconds: HistogramVec,
    seconds_fine: Histogram,
}

/// A method is whatever a client writes there; a series for each would fill the memory.
const METHODS: [&str; 9] =
    ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "CONNECT", "TRACE"];

impl Http {
    pub(super) fn new(make: &Maker<'_>) -> Self {
        Self {
            answered: make.counters_of(
                "http_requests_total",
                "Total number of requests by method, status and handler.",
                &["handler", "method", "status"],
            ),
            seconds: make.histograms(
                "http_request_duration_seconds",
                "Latency with only few buckets by handler.",
                &["handler", "method"],
                buckets::http(),
            ),
            seconds_fine: make.histogram(
                "http_request_duration_highr_seconds",
                "Latency with many buckets but no API specific labels.",
                buckets::http_fine(),
            ),
        }
    }

    pub(super) fn answered(&self, handler: &str, method: &str, status: u16, seconds: f64) {
        let known = METHODS.into_iter().find(|known| *known == method);
        let method = known.unwrap_or("other");
        let status = format!("{}xx", status / 100);
        self.answered.with_label_values(&[handler, method, &status]).inc();
        self.seconds.with_label_values(&[handler, method]).observe(seconds);
        self.seconds_fine.observe(seconds);
    }
}
