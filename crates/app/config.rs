//! Settings. [`RawConfig`] has the settings of the config file and of flags, all optional.
//! [`Config::resolve`] checks them and fills in defaults; nothing changes the result after that.
//! Sizes that depend on the model are determined in `plan`. This module reads no environment
//! variable.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kilotok_batch::SLOTS_MAX;
use kilotok_engine::{Caps, DRAFT_TEMPERATURE_MAX, Verification};
use kilotok_generation::{AdmissionOptions, WAITING_MAX};
use kilotok_model::Knobs;
use kilotok_sched::Limits;
use kilotok_server::{ServerConfig, TlsFiles};
use kilotok_text::Format;
use serde::{Deserialize, Serialize};

use crate::demo;
use crate::knobs::KnobArgs;

/// Where the server listens, and where `chat`, `bench` and `health` look for it.
pub(crate) const DEFAULT_PORT: u16 = 8000;
/// Only this machine, unless the user says otherwise.
pub(crate) const DEFAULT_HOST: &str = "127.0.0.1";
/// Usual number of requests that run at once.
pub(crate) const SLOTS_USUAL: u32 = 256;
/// Enough for a prompt of a million tokens, and the JSON around it.
const DEFAULT_BODY_MIB: u32 = 32;
/// Enough for dozens of the longest prompts at once.
const DEFAULT_REQUEST_MIB: u32 = 1024;
/// How many bodies of the largest size the default memory holds. A body of plain text takes 4 times
/// its bytes, one of long token ids 16 times, and large requests may fill three quarters.
const REQUEST_BODIES: u32 = 16;
/// More stop strings than any client sends; every token of a reply is checked against all of them.
const STOP_MOST: usize = 256;
/// Proxies cut streams that are silent for about half a minute.
const DEFAULT_KEEP_ALIVE_S: f64 = 15.0;
const DEFAULT_SHUTDOWN_TIMEOUT_S: f64 = 60.0;
/// A step of a healthy engine takes milliseconds; one of a large model on a CPU takes seconds.
const DEFAULT_STALL_S: f64 = 60.0;
/// The best value for the demo model, see `benches/results/demo_acceptance.md`. A drafter that
/// makes all drafts in one pass does not know the tokens between and averages over them, so its
/// distributions are too flat.
pub(crate) const DEFAULT_DRAFT_TEMPERATURE: f32 = 0.4;
/// Upper limit of times; more is a mistake.
const SECONDS_MAX: f64 = 86_400.0;

#[derive(clap::Args, Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct RawConfig {
    /// A model's folder, or its name on the Hugging Face hub [default: the demo model, `demo`].
    pub(crate) model: Option<String>,
    /// Where weights come from: `auto` reads the checkpoint, `dummy` makes them up [default: auto].
    #[arg(long)]
    pub(crate) load_format: Option<LoadFormat>,
    /// Name of the model in the API; may be given several times [default: its name on the hub, or
    /// its folder's name].
    #[arg(long, value_name = "NAME")]
    pub(crate) served_model_name: Option<Vec<String>>,
    /// Format in which the model writes reasoning and tool calls: mimo, `qwen3_coder`, hermes,
    /// harmony or plain [default: recognised by the chat template].
    #[arg(long, value_name = "FORMAT")]
    pub(crate) reply_format: Option<String>,

    /// Address to listen on [default: 127.0.0.1].
    #[arg(long, help_heading = "Network")]
    pub(crate) host: Option<String>,
    /// Port to listen on; 0 takes any free one [default: 8000].
    #[arg(long, help_heading = "Network")]
    pub(crate) port: Option<u16>,
    /// API key that clients must send; may be given several times. To keep it out of process
    /// listings, set the environment variable `KILOTOK_API_KEY` instead [default: clients need no
    /// key].
    #[arg(long, value_name = "KEY", help_heading = "Network")]
    pub(crate) api_key: Option<Vec<String>>,
    /// Origin of web pages that may call the API, or `*`; may be given several times [default:
    /// none, so that browsers keep pages of other sites out].
    #[arg(long, value_name = "ORIGIN", help_heading = "Network")]
    pub(crate) cors_origin: Option<Vec<String>>,
    /// Host name that requests may use besides this machine's own names, or `*.example.org` for all
    /// names below it; may be given several times [default: none on a loopback address without API
    /// keys, else any].
    #[arg(long, value_name = "NAME", help_heading = "Network")]
    pub(crate) allowed_hosts: Option<Vec<String>>,
    /// File with the certificate chain in PEM. With it the server speaks HTTPS instead of HTTP. A
    /// renewed file is noticed within seconds.
    #[arg(long, value_name = "FILE", help_heading = "Network")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// File with the certificate's private key in PEM.
    #[arg(long, value_name = "FILE", help_heading = "Network")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Largest request body in MiB [default: 32].
    #[arg(long, value_name = "MIB", help_heading = "Network")]
    pub(crate) body_max: Option<u32>,
    /// Memory in MiB for the bodies of all requests and the values made from them, until the engine
    /// has the prompts; requests beyond it are refused with 503 [default: 1024, or 16 times the
    /// largest body if that is more].
    #[arg(long, value_name = "MIB", help_heading = "Network")]
    pub(crate) request_memory: Option<u32>,
    /// Seconds without an event after which a stream gets a comment, so that proxies keep it open;
    /// 0 sends none [default: 15].
    #[arg(long, value_name = "SECONDS", help_heading = "Network")]
    pub(crate) keep_alive: Option<f64>,

    /// What the model runs on: GPUs (`cuda`), the reference engine on the CPU (`cpu`), or GPUs if
    /// there are any whose kernels can run the model, and else the CPU (`auto`) [default: auto].
    #[arg(long, help_heading = "Engine")]
    pub(crate) engine: Option<EngineKind>,
    /// Number of tensor-parallel ranks that share the model: 1, 2, 4 or 8 [default: 1].
    #[arg(long, help_heading = "Engine")]
    pub(crate) ranks: Option<u32>,
    /// Most requests that run at once; further ones wait [default: 256, or as many as there is
    /// memory for; 8 on a CPU].
    #[arg(long, help_heading = "Engine")]
    pub(crate) slots: Option<u32>,
    /// Most tokens of a prompt and its reply together [default: 32768, or what the model was
    /// trained for or the memory holds, if that is less].
    #[arg(long, value_name = "TOKENS", help_heading = "Engine")]
    pub(crate) context_max: Option<u32>,
    /// Size of the KV cache in GiB [default: what all slots need, but on a CPU at most a quarter of
    /// the free memory, and on GPUs at most all of it].
    #[arg(long, value_name = "GIB", help_heading = "Engine")]
    pub(crate) kv_gib: Option<f64>,
    /// Tokens per page of the KV cache [default: 16].
    #[arg(long, value_name = "TOKENS", help_heading = "Engine")]
    pub(crate) page_tokens: Option<u32>,
    /// Seconds without a finished step after which an engine that has work counts as stalled:
    /// /health then answers 503 [default: 60].
    #[arg(long, value_name = "SECONDS", help_heading = "Engine")]
    pub(crate) stall_timeout: Option<f64>,

    /// Keep pages of the KV cache, so that later requests that start with the same tokens need not
    /// compute them again; this is the default.
    #[arg(long, num_args = 0, default_missing_value = "true", help_heading = "Scheduling")]
    pub(crate) prefix_cache: Option<bool>,
    /// Compute every prompt as a whole, without a prefix cache.
    #[serde(skip)]
    #[arg(long, conflicts_with = "prefix_cache", help_heading = "Scheduling")]
    pub(crate) no_prefix_cache: bool,
    /// Draft tokens with the model's drafter, if it has one (speculative decoding); this is the
    /// default.
    #[arg(long, num_args = 0, default_missing_value = "true", help_heading = "Scheduling")]
    pub(crate) drafts: Option<bool>,
    /// Never draft tokens. Replies are slower. Greedy and seeded replies are the same as with
    /// drafts, and others have the same distribution.
    #[serde(skip)]
    #[arg(long, conflicts_with = "drafts", help_heading = "Scheduling")]
    pub(crate) no_drafts: bool,
    /// How drafts are verified if a request samples without a seed: by rejection sampling
    /// (`rejection`), or by sample and match (`match`), which gives the same tokens as without
    /// drafts. Both give the same distribution of tokens. Greedy and seeded requests always use
    /// sample and match [default: rejection].
    #[arg(long, value_name = "RULE", help_heading = "Scheduling")]
    pub(crate) verify: Option<VerifyRule>,
    /// Temperature at which drafts are sampled for rejection sampling, as a factor of the request's
    /// temperature; 0 takes the likeliest tokens [default: 0.4].
    #[arg(long, value_name = "FACTOR", help_heading = "Scheduling")]
    pub(crate) draft_temperature: Option<f32>,
    /// For measurements with `--load-format dummy`, where no draft is ever right: accept drafts at
    /// random, so that a step that verifies all its drafts brings this many tokens on average.
    #[arg(long, value_name = "TOKENS", conflicts_with = "no_drafts", help_heading = "Scheduling")]
    pub(crate) assume_acceptance: Option<f64>,
    /// Let requests set `priority`, which says which of them are scheduled first. Without this
    /// flag, any priority but 0 is refused.
    #[arg(long, num_args = 0, default_missing_value = "true", help_heading = "Scheduling")]
    pub(crate) allow_priority: Option<bool>,
    /// Most requests that may wait to start; further ones are refused with 429 [default: 1024].
    #[arg(long, value_name = "REQUESTS", help_heading = "Scheduling")]
    pub(crate) waiting_max: Option<u32>,
    /// Most prompt tokens of one step; the server warns at its start if the engine can take fewer
    /// [default: 8192, or what the engine can take].
    #[arg(long, value_name = "TOKENS", help_heading = "Scheduling")]
    pub(crate) chunk_max: Option<u32>,
    /// Milliseconds that a step with decoding requests should take, or twice its time without
    /// prompts if that is more; prompts are cut into chunks that fit. While many prompts wait and
    /// few requests decode, steps take longer on purpose, unless --stall-free is given [default:
    /// 35].
    #[arg(long, value_name = "MS", help_heading = "Scheduling")]
    pub(crate) step_ms_max: Option<f64>,
    /// Cut prompts to fit --step-ms-max even while many prompts wait and few requests decode:
    /// running replies do not pause for prompts, and prompts are computed later.
    #[arg(long, num_args = 0, default_missing_value = "true", help_heading = "Scheduling")]
    pub(crate) stall_free: Option<bool>,

    /// Most replies to one request: the number of its prompts times `n` [default: 128].
    #[arg(long, value_name = "REPLIES", help_heading = "Requests")]
    pub(crate) n_max: Option<u32>,
    /// Most stop strings of one request [default: 16].
    #[arg(long, value_name = "STRINGS", help_heading = "Requests")]
    pub(crate) stop_max: Option<u32>,
    /// Most tokens of a reply if the request sets no limit [default: the rest of the context, and
    /// 16 in /v1/completions].
    #[arg(long, value_name = "TOKENS", help_heading = "Requests")]
    pub(crate) max_tokens_default: Option<u32>,

    /// Seconds for which the server still accepts requests after SIGTERM, while load balancers
    /// notice. After a failure of the engine, requests get status 503 for that long, and for at
    /// least a second [default: 0].
    #[arg(long, value_name = "SECONDS", help_heading = "Operation")]
    pub(crate) drain_delay: Option<f64>,
    /// Seconds that running requests have to finish at a shutdown, after --drain-delay [default:
    /// 60].
    #[arg(long, value_name = "SECONDS", help_heading = "Operation")]
    pub(crate) shutdown_timeout: Option<f64>,
    /// Form of log lines [default: text].
    #[arg(long, help_heading = "Operation")]
    pub(crate) log_format: Option<LogFormat>,

    #[command(flatten)]
    pub(crate) knobs: KnobArgs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LoadFormat {
    #[default]
    Auto,
    Dummy,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum EngineKind {
    #[default]
    Auto,
    Cpu,
    Cuda,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum VerifyRule {
    #[default]
    Rejection,
    Match,
}

impl VerifyRule {
    pub(crate) fn with(self, draft_temperature: f32) -> Verification {
        match self {
            Self::Match => Verification::Match,
            Self::Rejection => Verification::Rejection { draft_temperature },
        }
    }
}

pub(crate) fn check_draft_temperature(factor: f32) -> Result<()> {
    ensure!(
        (0.0..=DRAFT_TEMPERATURE_MAX).contains(&factor),
        "--draft-temperature is {factor}: give 0 to {DRAFT_TEMPERATURE_MAX}"
    );
    Ok(())
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LogFormat {
    #[default]
    Text,
    Json,
}

impl RawConfig {
    /// Combines these flags with the settings of the file. Flags take precedence.
    pub(crate) fn over_file(self, file: Option<&Path>) -> Result<Self> {
        let flags = self.negated();
        let Some(path) = file else { return Ok(flags) };
        let named = || format!("config file {}", path.display());
        let text = std::fs::read_to_string(path).with_context(named)?;
        // The file is parsed on its own first, so that errors name the line, the key and the known
        // keys.
        let from_file: Self = toml::from_str(&text).with_context(named)?;
        let mut both = toml::Table::try_from(&from_file)?;
        lay_over(&mut both, toml::Table::try_from(&flags)?);
        Ok(both.try_into()?)
    }

    fn negated(mut self) -> Self {
        if self.no_prefix_cache {
            self.prefix_cache = Some(false);
        }
        if self.no_drafts {
            self.drafts = Some(false);
        }
        self
    }
}

fn lay_over(below: &mut toml::Table, above: toml::Table) {
    for (key, value) in above {
        match (below.get_mut(&key), value) {
            (Some(toml::Value::Table(below)), toml::Value::Table(above)) => lay_over(below, above),
            (_, value) => drop(below.insert(key, value)),
        }
    }
}

/// The resolved settings: the model, the address and the limits.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) model: String,
    pub(crate) load_format: LoadFormat,
    pub(crate) knobs: Knobs,
    pub(crate) served_names: Vec<String>,
    pub(crate) reply_format: Option<Format>,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) api_keys: Vec<String>,
    pub(crate) cors_origins: Vec<String>,
    pub(crate) tls: Option<TlsFiles>,
    /// Host names besides those of this machine.
    pub(crate) allowed_hosts: Vec<String>,
    pub(crate) body_max: usize,
    pub(crate) request_memory: usize,
    /// Zero means never.
    pub(crate) keep_alive: Duration,
    pub(crate) requests: RequestLimits,
    pub(crate) engine: EngineSettings,
    pub(crate) limits: Limits,
    /// Requests that may wait to start; further ones are refused.
    pub(crate) waiting_max: u32,
    /// Whether the user chose the longest chunk. Only then a warning says that the engine uses
    /// shorter ones.
    pub(crate) chunk_given: bool,
    pub(crate) stall_timeout: Duration,
    pub(crate) drain_delay: Duration,
    pub(crate) shutdown_timeout: Duration,
    pub(crate) log_format: LogFormat,
}

/// The limits of one request.
#[derive(Clone, Debug)]
pub(crate) struct RequestLimits {
    pub(crate) n_max: u32,
    pub(crate) stop_max: usize,
    /// For requests without `max_tokens`; the room in the context limits it further.
    pub(crate) token_max_default: Option<u32>,
    pub(crate) allow_priority: bool,
    pub(crate) verify: VerifyRule,
    pub(crate) draft_temperature: f32,
    /// The number of tokens that a request's step is assumed to produce, instead of verifying its
    /// drafts.
    pub(crate) assume_acceptance: Option<f64>,
}

impl RequestLimits {
    /// How drafts of requests that sample without a seed are verified. If an acceptance is assumed,
    /// it applies to all requests.
    pub(crate) fn verification(&self, caps: &Caps) -> Result<Verification> {
        if let Some(length) = self.assume_acceptance {
            let draft_max = if caps.drafter { caps.draft_max } else { 0 };
            return Verification::assumed(length, draft_max).with_context(|| {
                let most = draft_max + 1;
                format!(
                    "--assume-acceptance is {length}: steps of this model bring 1 to {most} tokens"
                )
            });
        }
        Ok(self.verify.with(self.draft_temperature))
    }
}

/// The user's settings of the engine; model and memory limit them further.
#[derive(Clone, Debug)]
pub(crate) struct EngineSettings {
    pub(crate) kind: EngineKind,
    pub(crate) rank_count: usize,
    pub(crate) slot_count: u32,
    /// Whether the user chose the number of slots. If not, the plan may choose fewer.
    pub(crate) slots_given: bool,
    pub(crate) page_tokens: u32,
    pub(crate) context_max: Option<u32>,
    pub(crate) kv_bytes: Option<u64>,
}

impl Config {
    /// `api_keys` come from the environment; keys in flags or the file replace them.
    pub(crate) fn resolve(raw: &RawConfig, api_keys: Vec<String>) -> Result<Self> {
        let model = raw.model.clone().unwrap_or_else(|| demo::NAME.to_owned());
        let host = raw.host.as_deref().unwrap_or(DEFAULT_HOST);
        // Brackets as in URLs.
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = bare.unwrap_or(host).to_owned();
        ensure!(!host.is_empty(), "--host is empty: give an address, such as 0.0.0.0 for all");
        let seconds = |name: &str, value: Option<f64>, default: f64| {
            let value = value.unwrap_or(default);
            let sensible = (0.0..=SECONDS_MAX).contains(&value);
            ensure!(sensible, "--{name} is {value}: give seconds from 0 to {SECONDS_MAX}");
            Ok(Duration::from_secs_f64(value))
        };
        let keep_alive = seconds("keep-alive", raw.keep_alive, DEFAULT_KEEP_ALIVE_S)?;
        let body_mib = raw.body_max.unwrap_or(DEFAULT_BODY_MIB);
        ensure!((1..=4096).contains(&body_mib), "--body-max is {body_mib}: give 1 to 4096 MiB");
        let request_mib = raw.request_memory;
        let request_mib = request_mib.unwrap_or(DEFAULT_REQUEST_MIB.max(REQUEST_BODIES * body_mib));
        ensure!(
            request_mib >= REQUEST_BODIES * body_mib,
            "--request-memory is {request_mib}: give at least {REQUEST_BODIES} times --body-max, \
             which is {body_mib} MiB"
        );
        let stall_timeout = seconds("stall-timeout", raw.stall_timeout, DEFAULT_STALL_S)?;
        ensure!(!stall_timeout.is_zero(), "--stall-timeout is 0: a step takes some time");
        Ok(Self {
            served_names: served_names(raw, &model)?,
            reply_format: reply_format(raw)?,
            api_keys: keys(raw.api_key.clone().unwrap_or(api_keys))?,
            cors_origins: origins(raw.cors_origin.clone().unwrap_or_default())?,
            tls: tls(raw)?,
            requests: requests(raw)?,
            engine: engine(raw)?,
            limits: limits(raw)?,
            waiting_max: waiting_max(raw)?,
            chunk_given: raw.chunk_max.is_some(),
            drain_delay: seconds("drain-delay", raw.drain_delay, 0.0)?,
            shutdown_timeout: seconds(
                "shutdown-timeout",
                raw.shutdown_timeout,
                DEFAULT_SHUTDOWN_TIMEOUT_S,
            )?,
            load_format: raw.load_format.unwrap_or_default(),
            knobs: raw.knobs.knobs()?,
            port: raw.port.unwrap_or(DEFAULT_PORT),
            allowed_hosts: hosts(raw.allowed_hosts.clone().unwrap_or_default())?,
            body_max: body_mib as usize * (1 << 20),
            request_memory: request_mib as usize * (1 << 20),
            keep_alive,
            log_format: raw.log_format.unwrap_or_default(),
            stall_timeout,
            model,
            host,
        })
    }
}

/// The model's name on the hub, or the folder's name.
fn served_names(raw: &RawConfig, model: &str) -> Result<Vec<String>> {
    let given = raw.served_model_name.clone().unwrap_or_default();
    ensure!(given.iter().all(|name| !name.trim().is_empty()), "--served-model-name is empty");
    if !given.is_empty() {
        return Ok(given);
    }
    let path = Path::new(model);
    if !path.is_dir() {
        let (name, _revision) = model.split_once('@').unwrap_or((model, ""));
        return Ok(vec![name.to_owned()]);
    }
    // Paths such as `.` and `..` do not contain the folder's name.
    let whole = path.canonicalize().with_context(|| model.to_owned())?;
    let name = whole.file_name().map(|name| name.to_string_lossy().into_owned());
    Ok(vec![name.unwrap_or_else(|| model.to_owned())])
}

fn reply_format(raw: &RawConfig) -> Result<Option<Format>> {
    // Flags may be written with hyphens.
    let parse = |name: &str| name.replace('-', "_").parse::<Format>();
    raw.reply_format.as_deref().map(parse).transpose().context("--reply-format")
}

/// Refuses empty keys, which would let every client in.
fn keys(keys: Vec<String>) -> Result<Vec<String>> {
    for key in &keys {
        let sendable = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic());
        ensure!(sendable, "an API key must be printable ASCII without spaces, and not empty");
    }
    Ok(keys)
}

fn origins(origins: Vec<String>) -> Result<Vec<String>> {
    for origin in &origins {
        let host = origin.split_once("://").map(|(_, host)| host).unwrap_or_default();
        let sensible = origin == "*" || (!host.is_empty() && !host.contains('/'));
        ensure!(
            sensible,
            "--cors-origin {origin}: an origin is scheme://host[:port] without a path, or *"
        );
    }
    Ok(origins)
}

fn hosts(names: Vec<String>) -> Result<Vec<String>> {
    for name in &names {
        let sensible = !name.is_empty() && !name.contains([':', '/', ' ']);
        ensure!(sensible, "--allowed-hosts {name}: give a name without scheme, port and path");
    }
    Ok(names)
}

fn tls(raw: &RawConfig) -> Result<Option<TlsFiles>> {
    match (raw.tls_cert.clone(), raw.tls_key.clone()) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => {
            let files = TlsFiles { certificate, key };
            files.check()?;
            Ok(Some(files))
        }
        (Some(_), None) => bail!("--tls-cert needs --tls-key too"),
        (None, Some(_)) => bail!("--tls-key needs --tls-cert too"),
    }
}

fn requests(raw: &RawConfig) -> Result<RequestLimits> {
    let usual = ServerConfig::default();
    let n_max = raw.n_max.unwrap_or(usual.n_max);
    ensure!(n_max > 0, "--n-max is 0: a request has at least 1 reply");
    let stop_max = raw.stop_max.map_or(usual.stop_max, |stop_max| stop_max as usize);
    ensure!(stop_max <= STOP_MOST, "--stop-max is {stop_max}: give 0 to {STOP_MOST}");
    let token_max_default = raw.max_tokens_default.or(usual.token_max_default);
    ensure!(token_max_default != Some(0), "--max-tokens-default is 0: a reply has at least 1");
    let allow_priority = raw.allow_priority.unwrap_or_default();
    let draft_temperature = raw.draft_temperature.unwrap_or(DEFAULT_DRAFT_TEMPERATURE);
    check_draft_temperature(draft_temperature)?;
    let verify = raw.verify.unwrap_or_default();
    let assume_acceptance = raw.assume_acceptance;
    ensure!(
        assume_acceptance.is_none() || raw.load_format == Some(LoadFormat::Dummy),
        "--assume-acceptance makes replies of a real model wrong: it goes with --load-format dummy"
    );
    Ok(RequestLimits {
        n_max,
        stop_max,
        token_max_default,
        allow_priority,
        verify,
        draft_temperature,
        assume_acceptance,
    })
}

fn engine(raw: &RawConfig) -> Result<EngineSettings> {
    let at_least_one = |name: &str, value: Option<u32>, default: u32| {
        let value = value.unwrap_or(default);
        ensure!(value > 0, "--{name} is 0: give at least 1");
        Ok(value)
    };
    let rank_count = at_least_one("ranks", raw.ranks, 1)? as usize;
    ensure!(
        [1, 2, 4, 8].contains(&rank_count),
        "--ranks is {rank_count}: a model can be shared by 1, 2, 4 or 8"
    );
    let slot_count = at_least_one("slots", raw.slots, SLOTS_USUAL)?;
    ensure!(slot_count <= SLOTS_MAX, "--slots is {slot_count}: give 1 to {SLOTS_MAX}");
    if let Some(context_max) = raw.context_max {
        ensure!(context_max > 1, "--context-max is {context_max}: a prompt and a reply need 2");
    }
    if let Some(gib) = raw.kv_gib {
        let sensible = gib.is_finite() && gib > 0.0 && gib < 1e6;
        ensure!(sensible, "--kv-gib is {gib}: give how many GiB keys and values may take");
    }
    Ok(EngineSettings {
        kind: raw.engine.unwrap_or_default(),
        rank_count,
        slot_count,
        slots_given: raw.slots.is_some(),
        page_tokens: at_least_one("page-tokens", raw.page_tokens, 16)?,
        context_max: raw.context_max,
        kv_bytes: raw.kv_gib.map(|gib| (gib * f64::from(1 << 30)) as u64),
    })
}

fn waiting_max(raw: &RawConfig) -> Result<u32> {
    let waiting_max = raw.waiting_max.unwrap_or(AdmissionOptions::default().waiting_max);
    ensure!(waiting_max <= WAITING_MAX, "--waiting-max is {waiting_max}: give 0 to {WAITING_MAX}");
    Ok(waiting_max)
}

fn limits(raw: &RawConfig) -> Result<Limits> {
    let usual = Limits::default();
    let chunk_max = raw.chunk_max.unwrap_or(usual.chunk_max);
    ensure!(chunk_max > 0, "--chunk-max is 0: prompts would never be computed");
    let step_ms_max = raw.step_ms_max.unwrap_or(f64::from(usual.step_us_max) / 1e3);
    let sensible = step_ms_max > 0.0 && step_ms_max <= 1e6;
    ensure!(sensible, "--step-ms-max is {step_ms_max}: give milliseconds above 0");
    let drafts = raw.drafts.unwrap_or(true);
    Ok(Limits {
        chunk_max,
        chunk_min: usual.chunk_min.min(chunk_max),
        step_us_max: ((step_ms_max * 1e3) as u32).max(1),
        stall_free: raw.stall_free.unwrap_or(usual.stall_free),
        draft_rows_max: if drafts { usual.draft_rows_max } else { 0 },
        prefix_cache: raw.prefix_cache.unwrap_or(true),
        ..usual
    })
}
