//! `kilotok health`: asks a server whether it is well, for containers without curl.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::client::{Client, Server};
use crate::environment;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    server: Server,
    /// Ask whether new requests are welcome, instead of whether the engine makes progress.
    #[arg(long)]
    ready: bool,
    /// Seconds to wait for an answer.
    #[arg(long, default_value_t = 5)]
    timeout: u64,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let client = Client::new(&args.server, environment::api_key())?;
    let path = if args.ready { "/ready" } else { "/health" };
    let runtime = crate::runtime()?;
    runtime.block_on(async {
        let answer = client.get(path);
        tokio::time::timeout(Duration::from_secs(args.timeout), answer)
            .await
            .with_context(|| format!("no answer in {} s", args.timeout))?
    })?;
    Ok(())
}
