//! Arguments of `kilotok bench` for bare rounds.

use std::path::PathBuf;

use anyhow::{Result, ensure};

/// Upper limit of rounds; more is a mistake.
const ROUNDS_MAX: u32 = 1_000_000;
/// Upper limit of rows in a step; more is a mistake.
const BATCH_MAX: u32 = 4096;

#[derive(clap::Args)]
#[command(next_help_heading = "Rounds")]
pub(crate) struct RoundArgs {
    /// With --engine: measure bare rounds, this many for each batch, draft length and context,
    /// instead of requests. In a round, each row verifies its drafts and makes new ones; there is
    /// no scheduler.
    #[arg(
        long,
        requires = "engine",
        conflicts_with_all = [
            "json", "concurrency", "request_rate", "num_prompts", "warmup", "input_len",
            "prefix_len", "output_len", "dataset", "ignore_eos",
        ],
        value_name = "COUNT"
    )]
    pub(super) rounds: Option<u32>,
    /// Number of rows of a round, one for each request; a list measures each.
    #[arg(long, requires = "rounds", value_delimiter = ',', default_value = "1")]
    pub(super) batch: Vec<u32>,
    /// Number of drafts that a row verifies and makes; a list measures each [default: as many as
    /// the engine can].
    #[arg(long, requires = "rounds", conflicts_with = "no_drafts", value_name = "TOKENS")]
    #[arg(value_delimiter = ',')]
    pub(super) draft_len: Vec<u32>,
    /// Number of prompt tokens that a row computes, instead of verifying drafts; a list measures
    /// each.
    #[arg(long, requires = "rounds", conflicts_with = "draft_len", value_name = "TOKENS")]
    #[arg(value_delimiter = ',')]
    pub(super) chunk_len: Vec<u32>,
    /// Tokens that the rows consist of. With the weights of --load-format dummy, random tokens
    /// choose experts nearly uniformly.
    #[arg(long, value_enum, default_value_t, requires = "rounds")]
    pub(super) routing: Routing,
    /// Number of tokens in the context before a row; a list measures each.
    #[arg(long, requires = "rounds", default_value = "1024", value_name = "TOKENS")]
    #[arg(value_delimiter = ',')]
    pub(super) context: Vec<u32>,
    /// Also report the speed that one row would have if a round brought it this many tokens.
    #[arg(long, requires = "rounds", value_name = "TOKENS")]
    pub(super) assume_acceptance: Option<f64>,
    /// Also report how long each phase of the kernels takes. The kernels are then compiled to
    /// record times, which slows them a little.
    #[arg(long, requires = "rounds")]
    pub(super) phases: bool,
    /// Write the results to this file: a JSON list with an entry for each batch, draft length and
    /// context.
    #[arg(long, requires = "rounds", value_name = "FILE")]
    pub(super) out: Option<PathBuf>,
    /// The commit to name in the file of --out [default: that of the folder, if git knows].
    #[arg(long, requires = "rounds", value_name = "COMMIT")]
    pub(super) commit: Option<String>,
}

/// Routing of a round's tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Routing {
    /// Random tokens.
    #[default]
    Uniform,
    /// The same token everywhere, so that rows need few experts; --phases counts them.
    Same,
}

impl RoundArgs {
    pub(super) fn wanted(&self) -> bool {
        self.rounds.is_some()
    }

    pub(super) fn check(&self) -> Result<u32> {
        let rounds = self.rounds.unwrap_or_default();
        ensure!((1..=ROUNDS_MAX).contains(&rounds), "--rounds is {rounds}: 1 to {ROUNDS_MAX}");
        for batch in &self.batch {
            ensure!((1..=BATCH_MAX).contains(batch), "--batch is {batch}: give 1 to {BATCH_MAX}");
        }
        ensure!(!self.chunk_len.contains(&0), "--chunk-len is 0: a row reads at least 1 token");
        ensure!(
            self.routing == Routing::Uniform || self.phases,
            "--routing same: how many experts that takes is only known if kernels count them: add \
             --phases"
        );
        let acceptance = self.assume_acceptance.unwrap_or(1.0);
        ensure!(
            (1.0..=1e3).contains(&acceptance),
            "--assume-acceptance is {acceptance}: a round brings at least 1 token"
        );
        Ok(rounds)
    }
}
