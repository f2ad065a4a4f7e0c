//! The text that Prometheus reads: every series that dashboards and routers query exists from the
//! start, and every line can be parsed.

use std::collections::BTreeMap;

use kilotok_testkit::ScriptedEngine;

use super::*;

const HISTOGRAMS: &[&str] = &[
    "vllm:time_to_first_token_seconds",
    "vllm:inter_token_latency_seconds",
    "vllm:request_time_per_output_token_seconds",
    "vllm:e2e_request_latency_seconds",
    "vllm:request_queue_time_seconds",
    "vllm:request_inference_time_seconds",
    "vllm:request_prefill_time_seconds",
    "vllm:request_decode_time_seconds",
    "vllm:request_prompt_tokens",
    "vllm:request_generation_tokens",
    "vllm:request_max_num_generation_tokens",
    "vllm:request_params_n",
    "vllm:request_params_max_tokens",
    "vllm:request_prefill_kv_computed_tokens",
    "vllm:request_num_preemptions",
    "vllm:iteration_tokens_total",
    "kilotok:step_seconds",
    "kilotok:host_seconds",
    "kilotok:step_rows",
    "kilotok:mask_seconds",
];

/// Series, and the labels that they have besides the common ones.
const SINGLES: &[(&str, &str)] = &[
    ("vllm:num_requests_running", ""),
    ("vllm:num_requests_waiting", ""),
    ("vllm:num_requests_waiting_by_reason", r#"reason="capacity""#),
    ("vllm:num_requests_waiting_by_reason", r#"reason="deferred""#),
    ("vllm:kv_cache_usage_perc", ""),
    ("vllm:engine_sleep_state", r#"sleep_state="awake""#),
    ("vllm:prefix_cache_queries_total", ""),
    ("vllm:prefix_cache_hits_total", ""),
    ("vllm:external_prefix_cache_queries_total", ""),
    ("vllm:external_prefix_cache_hits_total", ""),
    ("vllm:mm_cache_queries_total", ""),
    ("vllm:mm_cache_hits_total", ""),
    ("vllm:num_preemptions_total", ""),
    ("vllm:prompt_tokens_total", ""),
    ("vllm:prompt_tokens_cached_total", ""),
    ("vllm:prompt_tokens_by_source_total", r#"source="local_compute""#),
    ("vllm:generation_tokens_total", ""),
    ("vllm:request_success_total", r#"finished_reason="stop""#),
    ("vllm:request_success_total", r#"finished_reason="length""#),
    ("vllm:request_success_total", r#"finished_reason="abort""#),
    ("vllm:request_success_total", r#"finished_reason="error""#),
    ("vllm:request_success_total", r#"finished_reason="repetition""#),
    ("vllm:corrupted_requests_total", ""),
    ("vllm:admission_rejections_total", r#"reason="queue_full""#),
    ("vllm:spec_decode_num_drafts_total", ""),
    ("vllm:spec_decode_num_draft_tokens_total", ""),
    ("vllm:spec_decode_num_accepted_tokens_total", ""),
    ("vllm:spec_decode_num_accepted_tokens_per_pos_total", r#"position="6""#),
    ("kilotok:plans_refused_total", ""),
    ("kilotok:drafts_verified_total", r#"position="6",rule="match""#),
    ("kilotok:drafts_accepted_total", r#"position="0",rule="rejection""#),
    ("kilotok:drafts_accepted_total", r#"position="0",rule="assumed""#),
    ("kilotok:pages_used", r#"group="2",kind="draft""#),
];

/// Values by series. Panics on a line that is not in the format.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let (mut types, mut values) = (BTreeMap::new(), BTreeMap::new());
    for line in text.lines() {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert_eq!(types.insert(name.to_owned(), kind.to_owned()), None, "{name} comes twice");
        } else if !line.starts_with("# HELP ") {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            let suffixes = ["", "_bucket", "_sum", "_count"];
            let known = suffixes.iter().any(|suffix| {
                name.strip_suffix(suffix).is_some_and(|name| types.contains_key(name))
            });
            assert!(known, "{line}");
            let value = if value == "+Inf" { f64::INFINITY } else { value.parse().unwrap() };
            assert_eq!(values.insert(series.to_owned(), value), None, "{series} comes twice");
        }
    }
    values
}

/// A series of the model `a "b"` in the text format: labels in order.
fn series(name: &str, labels: &str) -> String {
    let mut labels: Vec<_> = labels.split(',').filter(|label| !label.is_empty()).collect();
    labels.extend([r#"engine="0""#, r#"model_name="a \"b\"""#]);
    labels.sort_unstable();
    format!("{name}{{{}}}", labels.join(","))
}

#[test]
fn everything_is_there_from_the_start() {
    let caps = ScriptedEngine::caps();
    let metrics = Metrics::new(r#"a "b""#, &caps);
    metrics.configured(&caps, true);
    let values = parse(&metrics.text());
    for (name, labels) in SINGLES {
        let expected = if labels.contains("awake") { 1.0 } else { 0.0 };
        assert_eq!(values.get(&series(name, labels)), Some(&expected), "{name} {labels}");
    }
    for name in HISTOGRAMS {
        let labels = r#"engine="0",model_name="a \"b\"""#;
        assert_eq!(values.get(&format!("{name}_count{{{labels}}}")), Some(&0.0), "{name}");
        let all = format!(r#"{name}_bucket{{{labels},le="+Inf"}}"#);
        assert_eq!(values.get(&all), Some(&0.0), "{name}");
    }
    let cache = r#"block_size="8",enable_prefix_caching="True",num_gpu_blocks="1024""#;
    let cache = series("vllm:cache_config_info", cache);
    assert_eq!(values.get(&cache), Some(&1.0));
}

#[test]
fn fast_engines_have_buckets() {
    let metrics = Metrics::new("a", &ScriptedEngine::caps());
    metrics.vllm.requests.inter_token.observe(0.0012);
    let values = parse(&metrics.text());
    let below = |bound: &str| {
        let name = "vllm:inter_token_latency_seconds_bucket";
        values[&format!(r#"{name}{{engine="0",model_name="a",le="{bound}"}}"#)]
    };
    assert_eq!((below("0.001"), below("0.0015"), below("0.01")), (0.0, 1.0, 1.0));
}
