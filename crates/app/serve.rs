//! `kilotok serve`: config, plan, engine, text and server, in this order; each is announced before
//! it begins. Errors that can be found early are reported before anything is loaded.

mod announce;

use std::io::{self, ErrorKind, IsTerminal};
use std::net::{IpAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use kilotok_generation::{Admission, AdmissionOptions, Metrics};
use kilotok_server::{Hosts, ServerConfig, Service, serve};
use kilotok_text::{Grammars, Text};
use tracing_subscriber::EnvFilter;

use crate::buffered_output::BufferedOutput;
use crate::config::{Config, LoadFormat, LogFormat, RawConfig};
use crate::signals::Signals;
use crate::{demo, engine, environment, machine, output};

#[derive(clap::Args)]
#[command(allow_negative_numbers = true)] // they are refused in our own words
pub(crate) struct Args {
    /// TOML file with the same settings, under the flags' names; flags take precedence [default:
    /// the environment variable `KILOTOK_CONFIG`].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    raw: RawConfig,
}

/// Time to write the log's last lines, if they are read.
const LOG_WAIT_MAX: Duration = Duration::from_secs(1);
/// Threads besides those that compute and those that handle requests: engine, grammars, log and
/// others that are started once.
const THREADS_FIXED: usize = 16;

pub(crate) fn run(args: Args) -> Result<()> {
    let outcome = run_logged(args);
    output::flush();
    outcome
}

fn run_logged(args: Args) -> Result<()> {
    let start = now();
    let file = args.config.or_else(environment::config_file);
    let raw = args.raw.over_file(file.as_deref())?;
    ensure!(
        raw.api_key.is_some() || !environment::lacks_api_key(),
        "KILOTOK_API_KEY is set, but has no key in it: give one, or unset it for a server without"
    );
    let config = Config::resolve(&raw, environment::api_keys())?;
    let signals = Signals::listen()?;
    threads_to_be_had(3 * machine::core_count() + THREADS_FIXED)?;
    output::detach().context("starting a thread")?;
    let log = log(config.log_format)?;
    let outcome = run_with(&config, &signals, start, &log);
    log.flush(LOG_WAIT_MAX);
    outcome
}

fn run_with(
    config: &Config,
    signals: &Signals,
    start: Instant,
    log: &BufferedOutput,
) -> Result<()> {
    let open_files = raise_open_files();
    // A port in use is reported before minutes of loading. The port is released again, so that
    // clients are refused at once until there is an engine, instead of waiting.
    drop(bind(config)?);
    let planned = engine::plan(config)?;
    let verification = config.requests.verification(&planned.caps())?;
    announce::plan(config, &planned, verification, open_files);
    let (folder, vocab_size) = (&planned.folder, planned.spec.vocab_size as u32);
    let text = Arc::new(read_text(folder, planned.spec.vocab_size, config)?);
    check_vocabulary(&text, vocab_size, folder)?;
    text.check_template().with_context(|| folder.display().to_string())?;
    let grammars = Grammars::new(&text, vocab_size, &text.defaults().end_tokens)
        .with_context(|| format!("{}: the vocabulary", folder.display()))?;
    let loaded = planned.load()?;
    let caps = loaded.engine.caps().clone();
    let metrics = Arc::new(Metrics::new(&config.served_names[0], &caps));
    log.count(Arc::clone(&metrics));
    let options = AdmissionOptions {
        waiting_max: config.waiting_max,
        stall_ms: u32::try_from(config.stall_timeout.as_millis()).unwrap_or(u32::MAX),
        ..AdmissionOptions::default()
    };
    let (admission, thread) =
        Admission::start(loaded.engine, config.limits, Arc::clone(&metrics), options);
    let runtime = crate::runtime()?;
    let listener = bind(config)?;
    let address = listener.local_addr()?;
    announce::text(config, &text);
    let has_template = text.has_template();
    let settings = ServerConfig { verification, ..settings(config, &loaded.folder, address.ip()) };
    let service = Service::new(text, Arc::new(grammars), admission, metrics, settings);
    let service = Arc::new(service);
    signals.serving();
    announce::ready(config, address, has_template, start.elapsed());
    let served = runtime.block_on(async {
        tokio::spawn(end_all(signals.clone(), Arc::clone(&service)));
        serve(listener, service, signals.clone().reach(1)).await
    });
    runtime.shutdown_background();
    served?;
    thread.join()?;
    announce::over();
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "the app owns the clock")]
fn now() -> Instant {
    Instant::now()
}

/// Ends the remaining requests at the second signal.
async fn end_all(signals: Signals, service: Arc<Service>) {
    signals.reach(2).await;
    service.stop();
}

/// Checks that the system allows as many threads as a server needs. The code that starts them later
/// could not report an error.
fn threads_to_be_had(count: usize) -> Result<()> {
    let all_there = Arc::new(Barrier::new(count + 1));
    let started = (0..count).map(|_| {
        let all_there = Arc::clone(&all_there);
        thread::Builder::new().spawn(move || all_there.wait())
    });
    // All threads must exist at the same time, because the limit applies to their number.
    let mut missing = started.filter_map(Result::err).collect::<Vec<_>>();
    let Some(error) = missing.pop() else {
        all_there.wait();
        return Ok(());
    };
    bail!("{count} threads are needed ({error}): raise `ulimit -u`, or the container's limit")
}

/// Raises the limit of open files and connections as far as the system allows; returns the limit.
fn raise_open_files() -> Option<u64> {
    let raised = rlimit::increase_nofile_limit(u64::MAX);
    raised.inspect_err(|error| tracing::warn!(%error, "the limit of open files stays")).ok()
}

fn bind(config: &Config) -> Result<TcpListener> {
    let (host, port) = (config.host.as_str(), config.port);
    TcpListener::bind((host, port)).map_err(|error| {
        anyhow!("cannot listen on {host}:{port} ({}): {error}", listen_hint(&error))
    })
}

/// Advice for an error of listening on an address.
pub(crate) fn listen_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::AddrInUse => "another --port may be free, 0 always is",
        ErrorKind::PermissionDenied => "--port 1024 and above need no permission",
        _ => "--host is an address of this machine, or 0.0.0.0 for all",
    }
}

fn log(format: LogFormat) -> Result<BufferedOutput> {
    let filter = environment::log_filter();
    let filter = EnvFilter::try_new(&filter).with_context(|| format!("KILOTOK_LOG={filter}"))?;
    let lost = |count| tracing::warn!(count, "log lines were lost: they were not read in time");
    let log =
        BufferedOutput::start("kilotok-log", io::stderr(), lost).context("starting a thread")?;
    let writer = log.clone();
    let colours = io::stderr().is_terminal() && !environment::no_color();
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || writer.clone())
        // Otherwise errors would be logged with `eprintln!`, which panics if the log cannot be
        // written.
        .log_internal_errors(false)
        .with_ansi(colours);
    let set = match format {
        LogFormat::Text => lines.with_target(false).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    set.map_err(|error| anyhow!("setting up the log: {error}"))?;
    // The default hook could wait forever for a reader of standard error.
    std::panic::set_hook(Box::new(|panic| {
        if !kilotok_text::panic_is_expected() {
            tracing::error!("{panic}");
        }
    }));
    Ok(log)
}

fn read_text(folder: &Path, vocab_size: usize, config: &Config) -> Result<Text> {
    let text = match config.load_format {
        LoadFormat::Auto => Text::open(folder),
        LoadFormat::Dummy => Text::dummy(folder, vocab_size),
    };
    let text = text.with_context(|| folder.display().to_string())?;
    match config.reply_format {
        Some(format) => text.with_format(format).context("--reply-format"),
        None => Ok(text),
    }
}

/// Checks that no token is outside the model's vocabulary, as every request with such a token would
/// fail.
pub(crate) fn check_vocabulary(text: &Text, vocab_size: u32, folder: &Path) -> Result<()> {
    let count = text.vocab_count();
    ensure!(
        count <= vocab_size as usize,
        "{}: the tokenizer has {count} tokens, but the model knows {vocab_size}: are they of one \
         checkpoint?",
        folder.display()
    );
    Ok(())
}

/// Host names that clients may use. A server that only this machine can reach and that has no keys
/// accepts only this machine's names, since a web page could use any other name.
fn hosts(config: &Config, at: IpAddr) -> Hosts {
    let names = &config.allowed_hosts;
    let guarded = at.is_loopback() && config.api_keys.is_empty();
    if names.iter().any(|name| name == "*") || (names.is_empty() && !guarded) {
        return Hosts::Any;
    }
    Hosts::Only(names.iter().chain([&config.host]).cloned().collect())
}

fn settings(config: &Config, folder: &Path, at: IpAddr) -> ServerConfig {
    ServerConfig {
        served_names: config.served_names.clone(),
        model_root: folder.display().to_string(),
        api_keys: config.api_keys.clone(),
        cors_origins: config.cors_origins.clone(),
        tls: config.tls.clone(),
        hosts: hosts(config, at),
        body_max: config.body_max,
        request_memory: config.request_memory,
        keep_alive: config.keep_alive,
        n_max: config.requests.n_max,
        stop_max: config.requests.stop_max,
        token_max_default: config.requests.token_max_default,
        allow_priority: config.requests.allow_priority,
        examples: examples(config),
        drain_delay: config.drain_delay,
        shutdown_timeout: config.shutdown_timeout,
        ..ServerConfig::default()
    }
}

/// Examples for the demo model: it can do little, and they show what.
fn examples(config: &Config) -> Vec<String> {
    let own = if config.model == demo::NAME { kilotok_demo::EXAMPLES } else { &[] };
    own.iter().map(|example| (*example).to_owned()).collect()
}
