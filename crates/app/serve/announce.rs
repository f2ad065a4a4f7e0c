//! Messages of `serve`: the plan before loading, then the server's address and how to try it. JSON
//! logs have the same messages as events.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use kilotok_engine::Verification;
use kilotok_text::Text;

use crate::check::describe;
use crate::config::{Config, LoadFormat, LogFormat};
use crate::engine::Planned;
use crate::environment;
use crate::output::say;

/// Prints the plan: model, engine, memory, limits.
pub(super) fn plan(
    config: &Config,
    planned: &Planned,
    verification: Verification,
    open_files: Option<u64>,
) {
    if is_open_to_all(config) {
        tracing::warn!(host = config.host, "{OPEN_TO_ALL}: {CLOSE}");
    }
    let shorter = planned.plan.shorter_chunks(config.limits.chunk_max);
    if let Some(shorter) = shorter.filter(|_| config.chunk_given) {
        tracing::warn!("{shorter}");
    }
    if config.log_format == LogFormat::Json {
        tracing::info!(
            model = config.model,
            context_max = planned.plan.context_max,
            slots = planned.plan.sizes.slot_count,
            drafts = drafts(config, planned, verification),
            text_only = planned.spec.multimodal,
            "planned"
        );
        return;
    }
    say!("kilotok {}\n\nmodel\n  folder    {}", version(), planned.folder.display());
    describe(&planned.spec);
    if config.load_format == LoadFormat::Dummy {
        say!("  weights   made up: replies will make no sense");
        if !planned.folder.join("tokenizer.json").exists() {
            say!("  tokens    made up: bytes, and numbers in place of words");
        }
    }
    say!("\nengine\n  {}", planned.chosen);
    say!(
        "\nmemory\n{}\nlimits\n{}",
        planned.plan,
        limits(config, planned, verification, open_files)
    );
}

fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

fn limits(
    config: &Config,
    planned: &Planned,
    verification: Verification,
    open_files: Option<u64>,
) -> String {
    let mut out = String::new();
    let mut line = |what: &str, value: String| {
        let _ = writeln!(out, "  {what:<22} {value}");
    };
    let limits = &config.limits;
    let yes = |on: bool| if on { "on" } else { "off" }.to_owned();
    line("names", config.served_names.join(", "));
    line("context", format!("{} tokens", planned.plan.context_max));
    let (slots, rows) = (planned.plan.sizes.slot_count, planned.caps().row_max);
    let at_once = if rows < slots { format!(", {rows} of them in a step") } else { String::new() };
    line("running", format!("{slots} requests{at_once}"));
    line("waiting", format!("{} requests", config.waiting_max));
    line(
        "step",
        format!(
            "{} prompt tokens or {} ms, whichever is less{}",
            limits.chunk_max.min(planned.plan.sizes.token_max),
            f64::from(limits.step_us_max) / 1e3,
            if limits.stall_free { "" } else { "; longer where many prompts wait" }
        ),
    );
    line("prefix cache", yes(limits.prefix_cache));
    line("drafts", drafts(config, planned, verification));
    let of_one = &config.requests;
    line("replies", format!("{} to one request", of_one.n_max));
    line("stop strings", format!("{} of one request", of_one.stop_max));
    let by_default = match of_one.token_max_default {
        Some(tokens) => format!("{tokens} tokens"),
        None => "what there is room for, 16 tokens in /v1/completions".to_owned(),
    };
    line("a reply by default", by_default);
    line("body", format!("{} MiB", config.body_max >> 20));
    line("request memory", format!("{} MiB of all together", config.request_memory >> 20));
    if let Some(count) = open_files {
        line("open files", count.to_string());
    }
    line("keep-alive", format!("{} s", config.keep_alive.as_secs_f64()));
    line(
        "shutdown",
        format!(
            "{} s delay, {} s to finish",
            config.drain_delay.as_secs_f64(),
            config.shutdown_timeout.as_secs_f64()
        ),
    );
    line("stalled after", format!("{} s", config.stall_timeout.as_secs_f64()));
    let keys = match config.api_keys.len() {
        0 if is_open_to_all(config) => format!("none: {OPEN_TO_ALL}"),
        0 => "none: only programs on this machine can reach it".to_owned(),
        count => count.to_string(),
    };
    line("API keys", keys);
    if !config.allowed_hosts.is_empty() {
        line("hosts", format!("this machine's, {}", config.allowed_hosts.join(", ")));
    }
    let origins = match &config.cors_origins[..] {
        [] => "none: web pages of other sites may not use it (--cors-origin)".to_owned(),
        origins => origins.join(", "),
    };
    line("CORS origins", origins);
    out
}

/// How drafts are verified, if the engine drafts.
fn drafts(config: &Config, planned: &Planned, verification: Verification) -> String {
    if planned.spec.drafter.is_none() || config.limits.draft_rows_max == 0 {
        return "off".to_owned();
    }
    match verification {
        Verification::Match => "verified by sample and match".to_owned(),
        Verification::Rejection { draft_temperature } => format!(
            "verified by rejection sampling where a request samples and names no seed, drawn at \
             {draft_temperature} times its temperature"
        ),
        Verification::Assumed { chance } => format!(
            "not verified: each counts as accepted with probability {chance:.3} after those before \
             it, so speeds are assumed (--assume-acceptance)"
        ),
    }
}

const OPEN_TO_ALL: &str = "anyone who can reach this server may use it";
const CLOSE: &str = "set KILOTOK_API_KEY or --api-key, or listen on this machine alone with --host \
                     127.0.0.1";

/// Whether other machines can use the server without a key. They may be able to
/// reach every host name but `localhost`.
fn is_open_to_all(config: &Config) -> bool {
    let host = &config.host;
    let is_local = host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    config.api_keys.is_empty() && !is_local
}

/// Prints the tokenizer and the template.
pub(super) fn text(config: &Config, text: &Text) {
    let (count, format) = (text.vocab_count(), text.format());
    if config.log_format == LogFormat::Text {
        say!("text       {count} tokens, replies as {format} writes them");
    }
    if !text.has_template() {
        tracing::warn!("there is no chat template: only /v1/completions can be used");
    }
}

/// Prints the address, and a command to try it.
pub(super) fn ready(config: &Config, at: SocketAddr, has_template: bool, took: Duration) {
    let base = address(&config.host, at.port(), config.tls.is_some());
    if config.log_format == LogFormat::Json {
        tracing::info!(url = base, seconds = took.as_secs_f64(), "ready");
        return;
    }
    if is_open_to_all(config) {
        say!("WARNING: {OPEN_TO_ALL}.\nThere is no API key: {CLOSE}.\n");
    }
    say!("ready after {:.1} s\n", took.as_secs_f64());
    say!("  chat page   {base}/");
    say!("  API         {base}/v1");
    let exported = environment::api_keys() == config.api_keys;
    say!("\n{}\n", curl(config, exported, &base, has_template));
}

/// Prints that the server has ended as requested.
pub(super) fn over() {
    tracing::info!("stopped");
}

/// An address of the server that works on this machine.
fn address(host: &str, port: u16, tls: bool) -> String {
    let scheme = if tls { "https" } else { "http" };
    let host = match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) if address.is_unspecified() => "127.0.0.1".to_owned(),
        Ok(IpAddr::V6(address)) if address.is_unspecified() => "[::1]".to_owned(),
        Ok(IpAddr::V6(address)) => format!("[{address}]"),
        _ => host.to_owned(),
    };
    format!("{scheme}://{host}:{port}")
}

/// A shell command that sends a request. It is ready to run unless keys are not `exported` to
/// shells: a key must not be printed to a terminal.
fn curl(config: &Config, exported: bool, base: &str, has_template: bool) -> String {
    let (note, key) = match (config.api_keys.is_empty(), exported) {
        (true, _) => ("", ""),
        // The shell takes the first of several keys.
        (false, true) => ("", " -H \"Authorization: Bearer ${KILOTOK_API_KEY%%,*}\""),
        (false, false) => {
            ("with one of the API keys in $KEY:\n", " -H \"Authorization: Bearer $KEY\"")
        }
    };
    let model = &config.served_names[0];
    let (path, mut body) = if has_template {
        let messages = serde_json::json!([{ "role": "user", "content": "Hello!" }]);
        ("chat/completions", serde_json::json!({ "model": model, "messages": messages }))
    } else {
        let body = serde_json::json!({ "model": model, "prompt": "Hello!", "max_tokens": 64 });
        ("completions", body)
    };
    body["stream"] = true.into();
    let body = body.to_string().replace('\'', "'\\''");
    // Without -N, curl would buffer the stream. Some shells take brackets in the address for
    // patterns.
    format!("{note}curl -N '{base}/v1/{path}'{key} -H 'Content-Type: application/json' -d '{body}'")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RawConfig;

    fn config(name: &str, key: Option<&str>) -> Config {
        let raw = RawConfig {
            model: Some("a/b".into()),
            served_model_name: Some(vec![name.into()]),
            ..RawConfig::default()
        };
        Config::resolve(&raw, key.into_iter().map(str::to_owned).collect()).unwrap()
    }

    #[test]
    fn addresses_work_on_this_machine() {
        for (host, expected) in [
            ("0.0.0.0", "http://127.0.0.1:1"),
            ("::", "http://[::1]:1"),
            ("fe80::1", "http://[fe80::1]:1"),
            ("localhost", "http://localhost:1"),
        ] {
            assert_eq!(address(host, 1, false), expected);
        }
    }

    #[test]
    fn the_line_for_a_shell_is_quoted() {
        let line = curl(&config("it's", None), false, "http://h", true);
        assert!(line.contains(r#"{"model":"it'\''s","messages""#), "{line}");
        assert!(line.ends_with(r#","stream":true}'"#), "{line}");
        assert!(!line.contains("Bearer"));
        let line = curl(&config("m", Some("k")), true, "http://h", false);
        let bearer = "'http://h/v1/completions' -H \"Authorization: Bearer ${KILOTOK_API_KEY%%,*}";
        assert!(line.contains(bearer), "{line}");
        assert!(!line.contains("Bearer k"), "a key is no text for a terminal");
        let line = curl(&config("m", Some("k")), false, "http://h", false);
        assert!(line.starts_with("with one of the API keys in $KEY:\ncurl"), "{line}");
        assert!(line.contains("Bearer $KEY\"") && !line.contains("Bearer k"), "{line}");
    }
}
