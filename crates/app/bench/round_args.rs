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
    /// With --engine: measure so many bare rounds of each batch, draft length and context, instead
    /// of requests.
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
    /// Rows of a round.
    #[arg(long, requires = "rounds", value_delimiter = ',', default_value = "1")]
    pub(super) batch: Vec<u32>,
    /// Drafts that a row verifies and makes [default: as many as the engine can].
    #[arg(long, requires = "rounds", conflicts_with = "no_drafts", value_name = "TOKENS")]
    #[arg(value_delimiter = ',')]
    pub(super) draft_len: Vec<u32>,
    /// Tokens of a prompt that a row reads, instead of drafts that it verifies.
    #[arg(long, requires = "rounds", conflicts_with = "draft_len", value_name = "TOKENS")]
    #[arg(value_delimiter = ',')]
    pub(super) chunk_len: Vec<u32>,
    /// What tokens are: of the weights that --load-format dummy makes, random ones go to experts
    /// that are nearly uniform.
    #[arg(long, value_enum, default_value_t, requires = "rounds")]
    pub(super) routing: Routing,
    /// Tokens before the row.
    #[arg(long, requires = "rounds", default_value = "1024", value_name = "TOKENS")]
    #[arg(value_delimiter = ',')]
    pub(super) context: Vec<u32>,
    /// Tokens that a round of one row is to bring: what speed would be if it were so.
    #[arg(long, requires = "rounds", value_name = "TOKENS")]
    pub(super) assume_acceptance: Option<f64>,
    /// Say also how long each phase of the kernels takes. They are compiled so that they tell,
    /// which takes them a little time.
    #[arg(long, requires = "rounds")]
    pub(super) phases: bool,
    /// Write the results here: a list with an entry for each batch, draft length and context.
    #[arg(long, requires = "rounds", value_name = "FILE")]
    pub(super) out: Option<PathBuf>,
    /// The commit to name in it [default: that of the folder, if git knows].
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
