//! vLLM's series, under its names. Series about features that kilotok does not have (a second
//! cache, a sleeping engine) exist with their neutral values, because dashboards and routers query
//! them.

use kilotok_engine::{Caps, PageKind};
use prometheus::{Gauge, GaugeVec, Histogram, IntCounter, IntCounterVec, IntGauge};

use super::buckets;
use super::builder::SeriesBuilder;

pub(super) struct VllmSeries {
    pub(super) running: IntGauge,
    pub(super) waiting: IntGauge,
    pub(super) waiting_capacity: Gauge,
    pub(super) waiting_deferred: Gauge,
    pub(super) usage: Gauge,
    cache: GaugeVec,
    pub(super) counts: Counts,
    pub(super) drafts: Drafts,
    pub(super) finished: IntCounterVec,
    pub(super) rejections: IntCounterVec,
    pub(super) requests: Requests,
}

/// Counters, which only grow from step to step.
pub(super) struct Counts {
    pub(super) prefix_queries: IntCounter,
    pub(super) prefix_hits: IntCounter,
    pub(super) preemptions: IntCounter,
    pub(super) prompt_tokens: IntCounter,
    pub(super) prompt_computed: IntCounter,
    pub(super) prompt_hit: IntCounter,
    pub(super) prompt_cached: IntCounter,
    pub(super) generation_tokens: IntCounter,
    pub(super) corrupted: IntCounter,
}

pub(super) struct Drafts {
    pub(super) rows: IntCounter,
    pub(super) drafted: IntCounter,
    pub(super) accepted: IntCounter,
    pub(super) accepted_at: Vec<IntCounter>,
}

/// Histograms with one observation per request, or per token of a request.
pub(super) struct Requests {
    pub(super) ttft: Histogram,
    pub(super) inter_token: Histogram,
    pub(super) per_token: Histogram,
    pub(super) e2e: Histogram,
    pub(super) queue: Histogram,
    pub(super) inference: Histogram,
    pub(super) prefill: Histogram,
    pub(super) decode: Histogram,
    pub(super) prompt_tokens: Histogram,
    pub(super) generation_tokens: Histogram,
    pub(super) generation_tokens_max: Histogram,
    pub(super) params_n: Histogram,
    pub(super) params_max_tokens: Histogram,
    pub(super) prefill_computed: Histogram,
    pub(super) preemptions: Histogram,
    pub(super) step_tokens: Histogram,
}

impl VllmSeries {
    pub(super) fn new(make: &SeriesBuilder<'_>, caps: &Caps) -> Self {
        let by_reason = make.gauges(
            "vllm:num_requests_waiting_by_reason",
            "Number of waiting requests, by what they wait for.",
            &["reason"],
        );
        let asleep = make.gauges(
            "vllm:engine_sleep_state",
            "Whether the engine is in this state: it is always awake.",
            &["sleep_state"],
        );
        for (state, value) in [("awake", 1.0), ("weights_offloaded", 0.0), ("discard_all", 0.0)] {
            asleep.with_label_values(&[state]).set(value);
        }
        nothing_external(make);
        Self {
            running: make.int_gauge(
                "vllm:num_requests_running",
                "Number of requests in model execution batches.",
            ),
            waiting: make.int_gauge(
                "vllm:num_requests_waiting",
                "Number of requests waiting to be processed.",
            ),
            waiting_capacity: by_reason.with_label_values(&["capacity"]),
            waiting_deferred: by_reason.with_label_values(&["deferred"]),
            usage: make.gauge(
                "vllm:kv_cache_usage_perc",
                "KV-cache usage, 1 is all: of the page group that has least left.",
            ),
            cache: make.gauges(
                "vllm:cache_config_info",
                "Sizes of the KV cache, as labels.",
                &["block_size", "num_gpu_blocks", "enable_prefix_caching"],
            ),
            counts: Counts::new(make),
            drafts: Drafts::new(make, caps),
            finished: make.counters(
                "vllm:request_success_total",
                "Count of requests that ended, by reason.",
                "finished_reason",
                &["stop", "length", "abort", "error", "repetition"],
            ),
            rejections: make.counters(
                "vllm:admission_rejections_total",
                "Requests that were not admitted, by reason.",
                "reason",
                &["queue_full", "draining", "failed"],
            ),
            requests: Requests::new(make, caps),
        }
    }

    pub(super) fn configured(&self, caps: &Caps, prefix_cache: bool) {
        let full = |kind| kind == PageKind::Full;
        let Some(group) = caps.groups.iter().find(|group| full(group.kind)) else {
            return;
        };
        let prefix_cache = if prefix_cache { "True" } else { "False" };
        let sizes = [group.page_tokens, group.page_count].map(|size| size.to_string());
        self.cache.with_label_values(&[&*sizes[0], &*sizes[1], prefix_cache]).set(1.0);
    }
}

/// Registers the series of caches that kilotok does not have.
fn nothing_external(make: &SeriesBuilder<'_>) {
    for (name, help) in [
        ("vllm:external_prefix_cache_queries_total", "There is no external prefix cache."),
        ("vllm:external_prefix_cache_hits_total", "There is no external prefix cache."),
        ("vllm:mm_cache_queries_total", "There is no multi-modal cache."),
        ("vllm:mm_cache_hits_total", "There is no multi-modal cache."),
    ] {
        make.counter(name, help);
    }
}

impl Counts {
    fn new(make: &SeriesBuilder<'_>) -> Self {
        let sources = make.counters(
            "vllm:prompt_tokens_by_source_total",
            "Number of prompt tokens, by where their keys and values came from.",
            "source",
            &["local_compute", "local_cache_hit", "external_kv_transfer"],
        );
        Self {
            prefix_queries: make.counter(
                "vllm:prefix_cache_queries_total",
                "Prompt tokens looked up in the prefix cache.",
            ),
            prefix_hits: make.counter(
                "vllm:prefix_cache_hits_total",
                "Prompt tokens found in the prefix cache.",
            ),
            preemptions: make.counter(
                "vllm:num_preemptions_total",
                "Requests that lost their pages to others, and resumed later.",
            ),
            prompt_tokens: make
                .counter("vllm:prompt_tokens_total", "Number of prompt tokens processed."),
            prompt_computed: sources.with_label_values(&["local_compute"]),
            prompt_hit: sources.with_label_values(&["local_cache_hit"]),
            prompt_cached: make.counter(
                "vllm:prompt_tokens_cached_total",
                "Number of prompt tokens that need not be computed.",
            ),
            generation_tokens: make
                .counter("vllm:generation_tokens_total", "Number of tokens generated."),
            corrupted: make.counter(
                "vllm:corrupted_requests_total",
                "Requests that ended because the model computed NaN or infinity.",
            ),
        }
    }
}

impl Drafts {
    fn new(make: &SeriesBuilder<'_>, caps: &Caps) -> Self {
        let accepted_at = make.counters(
            "vllm:spec_decode_num_accepted_tokens_per_pos_total",
            "Accepted drafts, by their place in the row.",
            "position",
            &[],
        );
        let positions = (0..caps.draft_max).map(|position| position.to_string());
        Self {
            rows: make.counter("vllm:spec_decode_num_drafts_total", "Rows that verified drafts."),
            drafted: make
                .counter("vllm:spec_decode_num_draft_tokens_total", "Drafts that were verified."),
            accepted: make.counter(
                "vllm:spec_decode_num_accepted_tokens_total",
                "Drafts that were accepted.",
            ),
            accepted_at: positions
                .map(|position| accepted_at.with_label_values(&[&position]))
                .collect(),
        }
    }
}

impl Requests {
    fn new(make: &SeriesBuilder<'_>, caps: &Caps) -> Self {
        let time = |name: &str, help: &str| {
            make.histogram(&format!("vllm:{name}_seconds"), help, buckets::request())
        };
        let count = |name: &str, help: &str| {
            make.histogram(&format!("vllm:{name}"), help, buckets::counts(caps.position_max))
        };
        let between = |name: &str, help: &str| {
            make.histogram(&format!("vllm:{name}_seconds"), help, buckets::between_tokens())
        };
        Self {
            ttft: make.histogram(
                "vllm:time_to_first_token_seconds",
                "Time from arrival to the first token.",
                buckets::first_token(),
            ),
            inter_token: between(
                "inter_token_latency",
                "Time between steps that brought a request tokens.",
            ),
            per_token: between(
                "request_time_per_output_token",
                "Time per token of a request, the first left out.",
            ),
            e2e: time("e2e_request_latency", "Time from arrival to the end."),
            queue: time("request_queue_time", "Time from arrival to the first step."),
            inference: time("request_inference_time", "Time from the first step to the end."),
            prefill: time("request_prefill_time", "Time from the first step to the first token."),
            decode: time("request_decode_time", "Time from the first token to the last."),
            prompt_tokens: count("request_prompt_tokens", "Tokens of a prompt."),
            generation_tokens: count("request_generation_tokens", "Tokens of a reply."),
            generation_tokens_max: count(
                "request_max_num_generation_tokens",
                "Tokens of the longest reply to a request.",
            ),
            params_n: make.histogram(
                "vllm:request_params_n",
                "Replies that a request asked for.",
                buckets::replies(),
            ),
            params_max_tokens: count(
                "request_params_max_tokens",
                "Most tokens that a request asked for.",
            ),
            prefill_computed: count(
                "request_prefill_kv_computed_tokens",
                "Tokens of a prompt that had to be computed.",
            ),
            preemptions: make.histogram(
                "vllm:request_num_preemptions",
                "How often a request lost its pages to others.",
                [0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0].into(),
            ),
            step_tokens: make.histogram(
                "vllm:iteration_tokens_total",
                "Tokens of a step: of prompts, and chosen.",
                buckets::step_tokens(),
            ),
        }
    }
}
