//! The result of a run: a table for people, and JSON in the form of `vllm bench serve` for tools
//! that read that form.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::figures::Figures;
use super::sample::{Outcome, Sample};
use super::{Args, Endpoint};

/// Percentiles of each latency, besides mean and median.
const PERCENTILES: [f64; 3] = [90.0, 95.0, 99.0];

struct Latencies {
    first: Figures,
    per_token: Figures,
    gap: Figures,
    whole: Figures,
}

impl Latencies {
    fn of(outcome: &Outcome) -> Self {
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        Self {
            first: Figures::of(outcome.good().filter_map(Sample::first).map(ms)),
            per_token: Figures::of(outcome.good().filter_map(Sample::per_token).map(ms)),
            gap: Figures::of(outcome.good().flat_map(Sample::gaps).map(ms)),
            whole: Figures::of(outcome.good().map(|sample| ms(sample.latency))),
        }
    }

    /// Each latency with vLLM's name and with ours.
    fn named(&self) -> [(&'static str, &'static str, &Figures); 4] {
        [
            ("ttft", "first token", &self.first),
            ("tpot", "per token after it", &self.per_token),
            ("itl", "from chunk to chunk", &self.gap),
            ("e2el", "whole reply", &self.whole),
        ]
    }
}

fn total(outcome: &Outcome, count: impl Fn(&Sample) -> u32) -> u64 {
    outcome.good().map(|sample| u64::from(count(sample))).sum()
}

/// Tokens per second of each user, from the first token to the last, calculated from the mean and
/// the median of the times. In a mean of speeds, a reply that arrived all at once would outweigh
/// the others.
fn user_speeds(outcome: &Outcome) -> [f64; 2] {
    let times = outcome.good().filter_map(Sample::per_token).filter(|time| !time.is_zero());
    let times = Figures::of(times.map(|time| time.as_secs_f64()));
    [times.mean, times.median()].map(|time| if time > 0.0 { 1.0 / time } else { 0.0 })
}

/// Most tokens within one second of the run.
fn busiest_second(outcome: &Outcome) -> u64 {
    let mut seconds = BTreeMap::<u64, u64>::new();
    for sample in outcome.good() {
        for (at, count) in &sample.came {
            *seconds.entry((sample.start + *at).as_secs()).or_default() += u64::from(*count);
        }
    }
    seconds.into_values().max().unwrap_or_default()
}

/// Most requests that were in flight at the same time.
fn most_in_flight(outcome: &Outcome) -> usize {
    let ends = outcome
        .good()
        .flat_map(|sample| [(sample.start, true), (sample.start + sample.latency, false)]);
    let mut ends: Vec<_> = ends.collect();
    // At equal times, ends sort before starts.
    ends.sort_unstable();
    let (mut now, mut most) = (0_usize, 0);
    for (_, begins) in ends {
        now = if begins { now + 1 } else { now.saturating_sub(1) };
        most = most.max(now);
    }
    most
}

pub(super) fn table(outcome: &Outcome) -> String {
    let mut out = String::new();
    let seconds = outcome.duration.as_secs_f64();
    let (input, output) =
        (total(outcome, |sample| sample.input_count), total(outcome, |s| s.output_count));
    let cached = total(outcome, |sample| sample.cached_count);
    let completed = outcome.good().count();
    let mut line = |what: &str, value: String| {
        let _ = writeln!(out, "{what:<24}{value}");
    };
    line("model", format!("{} at {}", outcome.model, outcome.what));
    line(
        "requests",
        format!("{completed} complete, {} failed, in {seconds:.2} s", outcome.failed_count()),
    );
    line("tokens", format!("{input} in ({cached} of them cached), {output} out"));
    line("together", format!("{:.1} tokens a second", output as f64 / seconds));
    let [mean, median] = user_speeds(outcome);
    line("each user", format!("{mean:.1} tokens a second, median {median:.1}"));
    if let Some(length) = outcome.drafting.acceptance() {
        let drafting = &outcome.drafting;
        let share = drafting.accepted_count as f64 / drafting.drafted_count.max(1) as f64 * 100.0;
        line(
            "acceptance",
            format!(
                "{length:.2} tokens a step{}, {share:.0} % of {} drafts",
                if drafting.assumed { " (assumed, not verified)" } else { "" },
                drafting.drafted_count
            ),
        );
        if !drafting.accepted_at.is_empty() {
            let rate = |count: &u64| format!("{:.2}", *count as f64 / drafting.row_count as f64);
            let rates: Vec<_> = drafting.accepted_at.iter().map(rate).collect();
            line("  by place", rates.join(" "));
        }
    }
    let _ = writeln!(
        out,
        "{:<24}{:>10}{:>10}{:>10}{:>10}{:>10}",
        "milliseconds", "mean", "median", "p90", "p95", "p99"
    );
    for (_, what, figures) in Latencies::of(outcome).named() {
        let _ = write!(out, "  {what:<22}{:>10.2}{:>10.2}", figures.mean, figures.median());
        for percent in PERCENTILES {
            let _ = write!(out, "{:>10.2}", figures.percentile(percent));
        }
        out.push('\n');
    }
    out
}

/// See the module's documentation. As in vLLM, times of single requests are in seconds.
pub(super) fn json(args: &Args, outcome: &Outcome) -> Value {
    let mut all = Map::new();
    let mut put = |name: &str, value: Value| drop(all.insert(name.to_owned(), value));
    let direct = args.engine.is_some();
    let backend = match (direct, args.endpoint) {
        (true, _) => "kilotok-engine",
        (false, Endpoint::Chat) => "openai-chat",
        (false, Endpoint::Completions) => "openai",
    };
    put("date", date().into());
    put("endpoint_type", backend.into());
    put("backend", backend.into());
    put("label", "kilotok".into());
    put("model_id", outcome.model.clone().into());
    put("tokenizer_id", outcome.model.clone().into());
    put("num_prompts", outcome.samples.len().into());
    put("request_rate", args.request_rate.map_or_else(|| "inf".into(), Value::from));
    put("burstiness", 1.0.into());
    put("max_concurrency", args.in_flight_max().map_or(Value::Null, Value::from));
    let seconds = outcome.duration.as_secs_f64();
    let completed = outcome.good().count();
    let (input, output) =
        (total(outcome, |sample| sample.input_count), total(outcome, |s| s.output_count));
    put("duration", seconds.into());
    put("completed", completed.into());
    put("failed", outcome.failed_count().into());
    put("total_input_tokens", input.into());
    put("total_cached_tokens", total(outcome, |sample| sample.cached_count).into());
    put("total_output_tokens", output.into());
    put("request_throughput", (completed as f64 / seconds).into());
    put("request_goodput", Value::Null);
    put("output_throughput", (output as f64 / seconds).into());
    put("total_token_throughput", ((input + output) as f64 / seconds).into());
    put("max_output_tokens_per_s", (busiest_second(outcome) as f64).into());
    put("max_concurrent_requests", most_in_flight(outcome).into());
    let [mean, median] = user_speeds(outcome);
    put("mean_tokens_per_s_per_user", mean.into());
    put("median_tokens_per_s_per_user", median.into());
    all.extend(singles(args, outcome));
    all.extend(drafts(outcome));
    for (name, _, figures) in Latencies::of(outcome).named() {
        all.insert(format!("mean_{name}_ms"), figures.mean.into());
        all.insert(format!("median_{name}_ms"), figures.median().into());
        all.insert(format!("std_{name}_ms"), figures.deviation.into());
        for percent in PERCENTILES {
            all.insert(format!("p{percent}_{name}_ms"), figures.percentile(percent).into());
        }
    }
    Value::Object(all)
}

/// Lists with a value for each request.
fn singles(args: &Args, outcome: &Outcome) -> Map<String, Value> {
    let list =
        |value: &dyn Fn(&Sample) -> Value| -> Value { outcome.samples.iter().map(value).collect() };
    let seconds = |duration: Duration| Value::from(duration.as_secs_f64());
    let mut all = Map::new();
    let mut put = |name: &str, value: Value| drop(all.insert(name.to_owned(), value));
    put("input_lens", list(&|sample| sample.input_count.into()));
    put("output_lens", list(&|sample| sample.output_count.into()));
    put("ttfts", list(&|sample| seconds(sample.first().unwrap_or_default())));
    put("itls", list(&|sample| sample.gaps().map(seconds).collect()));
    put("latencies", list(&|sample| seconds(sample.latency)));
    put("start_times", list(&|sample| seconds(sample.start)));
    put("queue_times", list(&|sample| seconds(sample.held_back)));
    if args.save_texts {
        put("generated_texts", list(&|sample| sample.text.clone().into()));
    }
    put("errors", list(&|sample| sample.error.clone().unwrap_or_default().into()));
    all
}

/// With vLLM's names.
fn drafts(outcome: &Outcome) -> Map<String, Value> {
    let drafting = &outcome.drafting;
    let Some(length) = drafting.acceptance() else { return Map::new() };
    let rows = drafting.row_count as f64;
    let share = drafting.accepted_count as f64 / drafting.drafted_count.max(1) as f64 * 100.0;
    let places: Vec<f64> = drafting.accepted_at.iter().map(|n| *n as f64 / rows).collect();
    let named = [
        ("acceptance_rate", json!(share)),
        ("acceptance_length", json!(length)),
        ("acceptance_is_assumed", json!(drafting.assumed)),
        ("num_drafts", json!(drafting.row_count)),
        ("draft_tokens", json!(drafting.drafted_count)),
        ("accepted_tokens", json!(drafting.accepted_count)),
        ("per_position_acceptance_rates", json!(places)),
    ];
    named.into_iter().map(|(name, value)| (format!("spec_decode_{name}"), value)).collect()
}

/// When the run ended, as `YYYYMMDD-HHMMSS` in UTC.
#[expect(clippy::disallowed_methods, reason = "the app owns the clock")]
fn date() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    date_of(since)
}

/// The date, counted in eras of 400 years that begin in March.
fn date_of(since: u64) -> String {
    let (days, second) = (since / 86_400 + 719_468, since % 86_400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let shifted = (5 * day + 2) / 153;
    let day = day - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::sample::Drafting;
    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Two requests of 9 tokens each; the second begins half way through.
    fn outcome() -> Outcome {
        let sample = Sample {
            came: vec![(ms(100), 1), (ms(200), 4), (ms(500), 4)],
            latency: ms(500),
            input_count: 7,
            output_count: 9,
            ..Sample::default()
        };
        let failed = Sample { error: Some("no".into()), ..Sample::default() };
        let late = Sample { start: ms(250), ..sample.clone() };
        let drafting = Drafting {
            row_count: 4,
            drafted_count: 28,
            accepted_count: 12,
            accepted_at: vec![4, 2],
            assumed: false,
        };
        let samples = vec![sample, failed, late];
        let (model, what) = ("m".to_owned(), "w".to_owned());
        Outcome { model, what, samples, duration: ms(1000), drafting }
    }

    #[test]
    fn the_result_has_vllms_shape() {
        let args = Cli::parse_from(["bench", "-c", "2"]).args;
        let result = json(&args, &outcome());
        for (name, expected) in [
            ("num_prompts", 3.0),
            ("completed", 2.0),
            ("failed", 1.0),
            ("duration", 1.0),
            ("total_input_tokens", 14.0),
            ("total_output_tokens", 18.0),
            ("request_throughput", 2.0),
            ("output_throughput", 18.0),
            ("mean_ttft_ms", 100.0),
            ("median_tpot_ms", 50.0),
            ("mean_itl_ms", 200.0),
            ("p90_itl_ms", 300.0),
            ("p99_e2el_ms", 500.0),
            ("std_e2el_ms", 0.0),
            ("mean_tokens_per_s_per_user", 20.0),
            ("max_concurrent_requests", 2.0),
            ("max_concurrency", 2.0),
            ("spec_decode_acceptance_length", 4.0),
        ] {
            assert_eq!(result[name].as_f64(), Some(expected), "{name}");
        }
        assert_eq!(result["request_rate"], "inf");
        assert_eq!(result["itls"][0], json!([0.1, 0.3]));
        assert_eq!(result["errors"], json!(["", "no", ""]));
        assert!(result.get("generated_texts").is_none());
    }

    #[test]
    fn the_table_says_the_same() {
        let table = table(&outcome());
        for part in
            ["2 complete, 1 failed", "18.0 tokens a second", "4.00 tokens a step", "1.00 0.50"]
        {
            assert!(table.contains(part), "{part} in {table}");
        }
    }

    #[test]
    fn days_are_counted_right() {
        for (since, expected) in [
            (0, "19700101-000000"),
            (951_782_400, "20000229-000000"),
            (1_795_240_345, "20261121-055225"),
            (4_107_542_399, "21000228-235959"),
        ] {
            assert_eq!(date_of(since), expected);
        }
    }
}
