//! `kilotok health`: checks that a server is healthy, for containers without curl.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::client::{Client, Server};
use crate::environment;
use crate::output::say;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    server: Server,
    /// Ask whether the server takes new requests (/ready), instead of whether the engine makes
    /// progress (/health).
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
    let found = runtime.block_on(async {
        let answer = async {
            let health = client.get(path).await?;
            // Other servers may be healthy and not have this path.
            let load = client.get("/load").await.unwrap_or_default();
            Ok::<_, anyhow::Error>(found(&health, &load))
        };
        tokio::time::timeout(Duration::from_secs(args.timeout), answer)
            .await
            .with_context(|| format!("{}: no answer in {} s", client.base, args.timeout))?
    })?;
    say!("{}: {found}", client.base);
    Ok(())
}

/// One line about a healthy server, from its answers.
fn found(health: &str, load: &str) -> String {
    let read = |text| serde_json::from_str::<Value>(text).unwrap_or_default();
    let (health, load) = (read(health), read(load));
    let status = health["status"].as_str().unwrap_or("ok");
    match (load["running"].as_u64(), load["waiting"].as_u64()) {
        (Some(running), Some(waiting)) => {
            format!("{status}, {running} requests running, {waiting} waiting")
        }
        _ => status.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_is_said() {
        let load = r#"{"server_load": 3, "running": 2, "waiting": 1}"#;
        assert_eq!(found(r#"{"status":"ok"}"#, load), "ok, 2 requests running, 1 waiting");
        assert_eq!(found(r#"{"status":"draining"}"#, ""), "draining");
        assert_eq!(found("", "<html>"), "ok");
    }
}
