//! HTTP metrics: answered requests, under the names that vLLM's instrumentation uses, and the parts
//! of requests that are ignored or not enforced.

use kilotok_generation::Metrics;
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge};

pub(crate) struct HttpMetrics {
    answered: IntCounterVec,
    seconds: HistogramVec,
    seconds_fine: Histogram,
    pub(crate) unknown_fields: IntCounter,
    left_out: IntCounterVec,
    pub(crate) unenforced: IntCounter,
    pub(crate) request_bytes: IntGauge,
    pub(crate) accepts_failed: IntCounter,
}

/// Methods with a series of their own. A client can send any method, and a series for each would
/// fill the memory.
const METHODS: [&str; 9] =
    ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "CONNECT", "TRACE"];

impl HttpMetrics {
    /// Adds the HTTP series to those of the model.
    pub(crate) fn new(metrics: &Metrics) -> Self {
        // Series that vLLM has too carry no `model` label.
        let (builder, plain) = (metrics.builder(), metrics.plain_builder());
        Self {
            answered: plain.counters_of(
                "http_requests_total",
                "Total number of requests by method, status and handler.",
                &["handler", "method", "status"],
            ),
            seconds: plain.histograms(
                "http_request_duration_seconds",
                "Latency with only few buckets by handler.",
                &["handler", "method"],
                vec![0.1, 0.5, 1.0],
            ),
            seconds_fine: plain.histogram(
                "http_request_duration_highr_seconds",
                "Latency with many buckets but no API specific labels.",
                vec![
                    0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5,
                    2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 7.5, 10.0, 30.0, 60.0,
                ],
            ),
            unknown_fields: builder.counter(
                "kilotok:unknown_fields_total",
                "Fields of requests that were ignored because this server does not know them.",
            ),
            left_out: builder.counters_of(
                "kilotok:left_out_total",
                "Tools, items and parts of requests that prompts do not show: this server cannot \
                 run or read what is of their type.",
                &["what", "type"],
            ),
            unenforced: builder.counter(
                "kilotok:unenforced_keywords_total",
                "What schemas of requests ask for and no grammar enforces.",
            ),
            request_bytes: builder.int_gauge(
                "kilotok:request_bytes",
                "Memory that requests take until their prompts are made.",
            ),
            accepts_failed: builder.counter(
                "kilotok:accepts_failed_total",
                "Connections that could not be accepted, for want of descriptors for example.",
            ),
        }
    }

    /// Counts an answered request. `handler` is the route's pattern, never a path from the client.
    pub(crate) fn answered(&self, handler: &str, method: &str, status: u16, seconds: f64) {
        let known = METHODS.into_iter().find(|known| *known == method);
        let method = known.unwrap_or("other");
        let status = format!("{}xx", status / 100);
        self.answered.with_label_values(&[handler, method, &status]).inc();
        self.seconds.with_label_values(&[handler, method]).observe(seconds);
        self.seconds_fine.observe(seconds);
    }

    /// Counts left-out tools, items or parts of a type. Returns whether they are the first of their
    /// type.
    pub(crate) fn left_out(&self, what: &str, kind: &str, count: u64) -> bool {
        let counter = self.left_out.with_label_values(&[what, kind]);
        let first = counter.get() == 0;
        counter.inc_by(count);
        first
    }
}

#[cfg(test)]
mod tests {
    use kilotok_testkit::ScriptedEngine;

    use super::*;

    #[test]
    fn routes_are_counted() {
        let metrics = Metrics::new("a", &ScriptedEngine::caps());
        let http = HttpMetrics::new(&metrics);
        http.answered("/v1/models", "GET", 200, 0.004);
        http.answered("/v1/models", "GET", 204, 0.2);
        http.answered("/v1/models", "GET", 429, 0.004);
        http.unknown_fields.inc_by(3);
        let text = metrics.text();
        for line in [
            r#"http_requests_total{handler="/v1/models",method="GET",status="2xx"} 2"#,
            r#"http_requests_total{handler="/v1/models",method="GET",status="4xx"} 1"#,
            r#"http_request_duration_seconds_bucket{handler="/v1/models",method="GET",le="0.1"} 2"#,
            r#"http_request_duration_highr_seconds_bucket{le="0.005"} 2"#,
            r#"kilotok:unknown_fields_total{engine="0",model_name="a"} 3"#,
        ] {
            assert!(text.lines().any(|own| own == line), "{line}");
        }
    }
}
