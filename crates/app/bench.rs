//! `kilotok bench`: measures a server of OpenAI's API, or an engine without a server. Requests are
//! sent one after the other on a number of connections, or at random times at a given rate.

mod arrivals;
mod bytes;
mod direct;
mod figures;
mod http;
mod phases;
mod prompts;
mod report;
mod round_args;
mod rounds;
mod sample;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::value_parser;
use kilotok_engine::Verification;

use crate::chat::temperature;
use crate::client::Server;
use crate::config::{
    DEFAULT_DRAFT_TEMPERATURE, EngineKind, LoadFormat, VerifyRule, check_draft_temperature,
};
use crate::knobs::KnobArgs;
use crate::output::{lines, say};

/// Requests per connection, unless the user says otherwise.
const ROUNDS: u32 = 10;
/// Upper limit of requests in flight; more is a mistake.
const CONCURRENCY_MAX: usize = 65_536;
/// Upper limit of requests; more would take days.
const REQUESTS_MAX: i64 = 1_000_000;
/// Longer than the context of any model.
const TOKENS_MAX: i64 = 1 << 24;
/// All prompts are made before the run; more tokens than this would take gigabytes.
const PROMPT_TOKENS_MAX: u64 = 1 << 30;
/// About one request a day; a lower rate is a mistake.
const RATE_MIN: f64 = 1e-5;

#[derive(clap::Args)]
#[command(mut_group("KnobArgs", |knobs| knobs.requires("engine")))]
pub(crate) struct Args {
    #[command(flatten)]
    server: Server,
    /// The model's name at the server [default: the first that it serves].
    #[arg(long)]
    model: Option<String>,
    /// Measure this model on the engine itself, without a server: a folder, or a name on the
    /// Hugging Face hub.
    #[arg(long, value_name = "MODEL", conflicts_with_all = ["address", "url", "model", "endpoint"])]
    engine: Option<String>,
    /// API that requests use: chat, or plain completions.
    #[arg(long, value_enum, default_value_t = Endpoint::Chat)]
    endpoint: Endpoint,
    /// Write the result to this file, in the JSON format of `vllm bench serve`.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also write the text of every reply to the file of --json.
    #[arg(long, requires = "json", conflicts_with = "engine")]
    save_texts: bool,

    /// Requests in flight at once; with --request-rate, the most that may be [default: 1; with
    /// --request-rate no limit].
    #[arg(long, short = 'c', help_heading = "Load")]
    concurrency: Option<usize>,
    /// Send this many requests a second, at random times (Poisson arrivals), instead of a new one
    /// whenever one ends.
    #[arg(long, value_name = "RATE", help_heading = "Load")]
    request_rate: Option<f64>,
    /// Number of measured requests [default: ten for each in flight].
    #[arg(long, short = 'n', value_name = "COUNT", help_heading = "Load")]
    #[arg(value_parser = value_parser!(u32).range(1..=REQUESTS_MAX))]
    num_prompts: Option<u32>,
    /// Number of requests that are sent before the measurement and not counted.
    #[arg(long, default_value_t = 1, value_name = "COUNT", help_heading = "Load")]
    #[arg(value_parser = value_parser!(u32).range(..=REQUESTS_MAX))]
    warmup: u32,

    /// Tokens of each random prompt.
    #[arg(long, default_value_t = 512, value_name = "TOKENS", help_heading = "Requests")]
    #[arg(value_parser = value_parser!(u32).range(1..=TOKENS_MAX))]
    input_len: u32,
    /// How many of the --input-len tokens are the same at the start of all prompts.
    #[arg(long, default_value_t = 0, value_name = "TOKENS", help_heading = "Requests")]
    #[arg(value_parser = value_parser!(u32).range(..=TOKENS_MAX))]
    prefix_len: u32,
    /// Tokens of each reply.
    #[arg(long, default_value_t = 128, value_name = "TOKENS", help_heading = "Requests")]
    #[arg(value_parser = value_parser!(u32).range(1..=TOKENS_MAX))]
    output_len: u32,
    /// File of prompts to use instead of random ones: lines of JSON with `prompt` or `messages`,
    /// and optionally `output_tokens` in place of --output-len.
    #[arg(long, value_name = "FILE", help_heading = "Requests")]
    dataset: Option<PathBuf>,
    /// Whether replies go on past the model's end tokens [default: true with random prompts, false
    /// with --dataset].
    #[arg(long, num_args = 0..=1, default_missing_value = "true", help_heading = "Requests")]
    ignore_eos: Option<bool>,
    /// Sampling temperature; 0 always takes the likeliest token.
    #[arg(long, default_value_t = 0.0, value_parser = temperature, help_heading = "Requests")]
    temperature: f64,
    /// How drafts of sampled tokens are verified [default: match]. With `rejection`, requests to a
    /// server have no seed, and the server verifies their drafts by the rule that it was started
    /// with. With --rounds, this flag lets rows verify the drafter's own drafts instead of random
    /// tokens.
    #[arg(long, value_name = "RULE", help_heading = "Requests")]
    verify: Option<VerifyRule>,
    /// With --engine and --verify: temperature at which drafts are sampled for rejection sampling,
    /// as a factor of --temperature [default: 0.4]. With 0, both rules verify the same drafts.
    #[arg(long, requires_all = ["engine", "verify"], value_name = "FACTOR")]
    #[arg(help_heading = "Requests")]
    draft_temperature: Option<f32>,
    /// Seed of prompts, arrival times and sampling: the same seed gives the same load.
    #[arg(long, default_value_t = 0, help_heading = "Requests")]
    seed: u64,

    /// With --engine: where weights come from; `auto` reads the checkpoint, `dummy` makes them up
    /// [default: auto].
    #[arg(long, requires = "engine", help_heading = "Engine")]
    load_format: Option<LoadFormat>,
    /// With --engine: number of tensor-parallel ranks that share the model: 1, 2, 4 or 8 [default:
    /// 1].
    #[arg(long, requires = "engine", help_heading = "Engine")]
    ranks: Option<u32>,
    /// With --engine: never draft tokens.
    #[arg(long, requires = "engine", help_heading = "Engine")]
    no_drafts: bool,
    /// With --engine: what the model runs on, GPUs (`cuda`) or the CPU (`cpu`); `auto` takes GPUs
    /// if there are any that can run it [default: auto].
    #[arg(long, requires = "engine", help_heading = "Engine")]
    engine_kind: Option<EngineKind>,
    #[command(flatten)]
    knobs: KnobArgs,
    #[command(flatten)]
    round: round_args::RoundArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Endpoint {
    Chat,
    Completions,
}

impl Endpoint {
    fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
        }
    }
}

impl Args {
    fn check(&self) -> Result<()> {
        ensure!(
            self.prefix_len <= self.input_len,
            "--prefix-len {} is beyond --input-len {}",
            self.prefix_len,
            self.input_len
        );
        let concurrency = self.concurrency.unwrap_or(1);
        ensure!(
            (1..=CONCURRENCY_MAX).contains(&concurrency),
            "--concurrency is {concurrency}: give 1 to {CONCURRENCY_MAX}"
        );
        let rate = self.request_rate.unwrap_or(1.0);
        ensure!(
            rate >= RATE_MIN && rate.is_finite(),
            "--request-rate is {rate}: give a rate of {RATE_MIN} a second or more"
        );
        let count = self.request_count() + self.warmup;
        let tokens = u64::from(count) * u64::from(self.input_len);
        ensure!(
            self.dataset.is_some() || tokens <= PROMPT_TOKENS_MAX,
            "{count} prompts of --input-len {} have {tokens} tokens: a run has up to \
             {PROMPT_TOKENS_MAX}",
            self.input_len
        );
        self.draft_temperature.map_or(Ok(()), check_draft_temperature)
    }

    /// How an engine verifies drafts of sampled tokens.
    fn verification(&self) -> Verification {
        let draft_temperature = self.draft_temperature.unwrap_or(DEFAULT_DRAFT_TEMPERATURE);
        self.verify.map_or(Verification::Match, |rule| rule.with(draft_temperature))
    }

    /// Most requests in flight. With random arrivals there is no limit unless the user sets one.
    fn in_flight_max(&self) -> Option<usize> {
        match self.request_rate {
            Some(_) => self.concurrency,
            None => Some(self.concurrency.unwrap_or(1)),
        }
    }

    fn request_count(&self) -> u32 {
        self.num_prompts.unwrap_or(ROUNDS * self.concurrency.unwrap_or(1) as u32)
    }

    fn is_dummy(&self) -> bool {
        self.load_format == Some(LoadFormat::Dummy)
    }

    fn ignore_end(&self) -> bool {
        self.ignore_eos.unwrap_or(self.dataset.is_none())
    }
}

/// Checks before measuring that the file of results can be written, so that no results are lost.
/// The file is left as it was, so a run that fails later leaves no empty file.
fn writable(path: &Path) -> Result<()> {
    let existed = path.symlink_metadata().is_ok();
    let made = fs::OpenOptions::new().append(true).create(true).open(path).map(drop);
    let left = if existed { made } else { made.and_then(|()| fs::remove_file(path)) };
    left.with_context(|| path.display().to_string())
}

pub(crate) fn run(args: &Args) -> Result<()> {
    args.check()?;
    if let Some(model) = args.engine.as_ref().filter(|_| args.round.wanted()) {
        return rounds::run(args, model);
    }
    if let Some(path) = &args.json {
        writable(path)?;
    }
    let result = match &args.engine {
        Some(model) => direct::run(args, model)?,
        None => crate::runtime()?.block_on(http::run(args))?,
    };
    lines(format_args!("{}", report::table(&result)));
    if let Some(path) = &args.json {
        let text = serde_json::to_string(&report::json(args, &result))?;
        fs::write(path, text + "\n").with_context(|| path.display().to_string())?;
        say!("written to {}", path.display());
    }
    let failed = result.samples.iter().find_map(|sample| sample.error.as_deref());
    match failed {
        Some(error) => {
            Err(anyhow::anyhow!("{} requests failed, first: {error}", result.failed_count()))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Bench {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn a_prompt_without_tokens_is_refused_by_its_own_name() {
        let words = ["bench", "--engine", "demo", "--rounds", "1", "--chunk-len", "8,0"];
        let error = Bench::parse_from(words).args.round.check().unwrap_err();
        assert!(error.to_string().contains("--chunk-len is 0"), "{error}");
    }

    #[test]
    fn asking_whether_results_can_be_written_leaves_everything_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let (new, old) = (folder.path().join("new.json"), folder.path().join("old.json"));
        fs::write(&old, "results").unwrap();
        writable(&new).unwrap();
        writable(&old).unwrap();
        assert!(!new.exists());
        assert_eq!(fs::read_to_string(&old).unwrap(), "results");
        let nowhere = folder.path().join("nowhere/new.json");
        let error = writable(&nowhere).unwrap_err();
        assert!(error.to_string().contains("nowhere/new.json"), "{error}");
    }
}
