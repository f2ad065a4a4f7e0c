//! `kilotok serve`: config, plan, engine, text and server, one after the other, each announced
//! before it begins. What can be known to be wrong is said before anything is loaded.

mod announce;

use std::io::{self, ErrorKind, IsTerminal};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use kilotok_server::gate::{Gate, GateOptions};
use kilotok_server::metrics::Metrics;
use kilotok_server::{ServerConfig, Service, serve};
use kilotok_text::{Grammars, Text};
use tracing_subscriber::EnvFilter;

use crate::config::{Config, LoadFormat, LogFormat, RawConfig};
use crate::signals::Signals;
use crate::{engine, environment};

#[derive(clap::Args)]
#[command(allow_negative_numbers = true)] // they are refused in our own words
pub(crate) struct Args {
    /// TOML file with the same settings, named as the flags are; flags stand before it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    raw: RawConfig,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let start = now();
    let file = args.config.or_else(environment::config_file);
    let raw = args.raw.over_file(file.as_deref())?;
    ensure!(
        raw.api_key.is_some() || !environment::lacks_api_key(),
        "KILOTOK_API_KEY is set, but has no key in it: give one, or unset it for a server without"
    );
    let config = Config::resolve(&raw, environment::api_keys())?;
    let signals = Signals::listen()?;
    log(config.log_format)?;
    // A port in use is to be known before minutes of loading. It is let go again, so that until
    // there is an engine clients are refused at once, and do not wait.
    drop(bind(&config)?);
    let planned = engine::plan(&config)?;
    announce::plan(&config, &planned);
    let (folder, vocab_size) = (&planned.folder, planned.spec.vocab_size as u32);
    let text = Arc::new(read_text(folder, planned.spec.vocab_size, &config)?);
    check_vocabulary(&text, vocab_size, folder)?;
    let grammars = Grammars::new(&text, vocab_size, &text.defaults().end_tokens)
        .with_context(|| format!("{}: the vocabulary", folder.display()))?;
    let loaded = planned.load()?;
    let caps = loaded.engine.caps().clone();
    let metrics = Arc::new(Metrics::new(&config.served_names[0], &caps));
    let options = GateOptions {
        queue_max: config.limits.waiting_max,
        stall_ms: u32::try_from(config.stall_timeout.as_millis()).unwrap_or(u32::MAX),
        ..GateOptions::default()
    };
    let (gate, driver) = Gate::start(loaded.engine, config.limits, Arc::clone(&metrics), options);
    let runtime = crate::runtime()?;
    let listener = bind(&config)?;
    let port = listener.local_addr()?.port();
    announce::text(&config, &text);
    let has_template = text.has_template();
    let settings = settings(&config, &loaded.folder);
    let service = Service::new(text, Arc::new(grammars), gate.clone(), metrics, settings);
    signals.serving();
    announce::ready(&config, port, has_template, start.elapsed());
    let served = runtime.block_on(async {
        tokio::spawn(end_all(signals.clone(), gate));
        serve(listener, Arc::new(service), signals.reach(1)).await
    });
    drop(runtime);
    served?;
    driver.join()?;
    announce::over();
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "the app owns the clock")]
fn now() -> Instant {
    Instant::now()
}

/// The second signal ends what still runs.
async fn end_all(signals: Signals, gate: Gate) {
    signals.reach(2).await;
    gate.shut();
}

fn bind(config: &Config) -> Result<TcpListener> {
    let (host, port) = (config.host.as_str(), config.port);
    TcpListener::bind((host, port)).map_err(|error| {
        anyhow!("cannot listen on {host}:{port} ({}): {error}", listen_hint(&error))
    })
}

/// What to do where it cannot listen.
pub(crate) fn listen_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::AddrInUse => "another --port may be free, 0 always is",
        ErrorKind::PermissionDenied => "--port 1024 and above need no permission",
        _ => "--host is an address of this machine, or 0.0.0.0 for all",
    }
}

fn log(format: LogFormat) -> Result<()> {
    let filter = environment::log_filter();
    let filter = EnvFilter::try_new(&filter).with_context(|| format!("KILOTOK_LOG={filter}"))?;
    let colours = io::stderr().is_terminal() && !environment::no_color();
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        // It would say so with `eprintln!`, which panics where the log cannot be written.
        .log_internal_errors(false)
        .with_ansi(colours);
    let set = match format {
        LogFormat::Text => lines.with_target(false).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    set.map_err(|error| anyhow!("setting up the log: {error}"))
}

fn read_text(folder: &Path, vocab_size: usize, config: &Config) -> Result<Text> {
    let text = match config.load_format {
        LoadFormat::Auto => Text::open(folder),
        LoadFormat::Dummy => Text::dummy(folder, vocab_size),
    };
    let text = text.with_context(|| folder.display().to_string())?;
    Ok(match config.reply_format {
        Some(format) => text.with_format(format),
        None => text,
    })
}

/// A token that the model does not know would make every request with it fail.
fn check_vocabulary(text: &Text, vocab_size: u32, folder: &Path) -> Result<()> {
    let count = text.vocab_count();
    ensure!(
        count <= vocab_size as usize,
        "{}: the tokenizer has {count} tokens, but the model knows {vocab_size}: are they of one \
         checkpoint?",
        folder.display()
    );
    Ok(())
}

fn settings(config: &Config, folder: &Path) -> ServerConfig {
    ServerConfig {
        served_names: config.served_names.clone(),
        model_root: folder.display().to_string(),
        api_keys: config.api_keys.clone(),
        cors_origins: config.cors_origins.clone(),
        tls: config.tls.clone(),
        body_max: config.body_max,
        keep_alive: config.keep_alive,
        n_max: config.requests.n_max,
        stop_max: config.requests.stop_max,
        token_max_default: config.requests.token_max_default,
        drain_delay: config.drain_delay,
        shutdown_timeout: config.shutdown_timeout,
        ..ServerConfig::default()
    }
}
