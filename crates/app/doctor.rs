//! `kilotok doctor`: checks the machine for everything that kilotok needs, and gives advice about
//! what is missing. Runs anywhere: CUDA's libraries are opened only if they exist.

mod gpu;

use std::fmt;
use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Result, bail};
use indicatif::BinaryBytes;
use kilotok_weights::hub::HubConfig;

use crate::config::{DEFAULT_HOST, DEFAULT_PORT};
use crate::output::say;
use crate::serve::listen_hint;
use crate::{environment, machine};

/// With less memory than this, no published model of the supported families fits; small models and
/// dummies do.
const MEMORY_USUAL: u64 = 8 << 30;
/// Room for a checkpoint of the smallest published model.
const CACHE_USUAL: u64 = 320 << 30;
/// If the hub takes longer to answer, it counts as unreachable.
const HUB_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Port that `serve` will listen on.
    #[arg(long, default_value_t = DEFAULT_PORT)]
    port: u16,
    /// Address that `serve` will listen on.
    #[arg(long, default_value = DEFAULT_HOST)]
    host: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Ok,
    /// Something works less well, or is needed only for some uses.
    Warn,
    Fail,
}

/// The result of one check.
#[derive(Clone, Debug)]
struct Finding {
    verdict: Verdict,
    what: &'static str,
    found: String,
    /// Advice for the user; empty if nothing is wrong.
    advice: String,
}

impl Finding {
    fn ok(what: &'static str, found: impl Into<String>) -> Self {
        Self { verdict: Verdict::Ok, what, found: found.into(), advice: String::new() }
    }

    fn warn(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        let (found, advice) = (found.into(), advice.into());
        Self { verdict: Verdict::Warn, what, found, advice }
    }

    fn fail(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fail, ..Self::warn(what, found, advice) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.verdict {
            Verdict::Ok => "ok  ",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        write!(f, "{mark}  {:<14} {}", self.what, self.found)?;
        if self.advice.is_empty() { Ok(()) } else { write!(f, "\n{:21}{}", "", self.advice) }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut failed = 0;
    let mut tell = |finding: Finding| {
        say!("{finding}");
        failed += usize::from(finding.verdict == Verdict::Fail);
    };
    tell(processor());
    tell(memory());
    gpu::look().into_iter().for_each(&mut tell);
    hub().into_iter().for_each(&mut tell);
    tell(port(&args.host, args.port));
    if failed > 0 {
        bail!("{failed} of these must be put right first");
    }
    Ok(())
}

fn processor() -> Finding {
    let (unit, wide) = machine::vector_unit();
    let name = machine::processor().unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let found = format!("{name}, {} cores, {unit}", machine::core_count());
    if wide {
        return Finding::ok("processor", found);
    }
    Finding::warn("processor", found, "the reference engine is slow without AVX2 or AVX-512")
}

fn memory() -> Finding {
    let Some(memory) = machine::memory() else {
        let advice = "give --kv-gib, since memory cannot be planned";
        return Finding::warn("memory", "the system does not tell", advice);
    };
    let (free, total) = (BinaryBytes(memory.free), BinaryBytes(memory.total));
    let found = format!("{free} free of {total}");
    if memory.free >= MEMORY_USUAL {
        return Finding::ok("memory", found);
    }
    Finding::warn("memory", found, "enough for small models and dummy weights of them only")
}

fn hub() -> Vec<Finding> {
    let config = match environment::hub() {
        Ok(config) => config,
        Err(error) => {
            return vec![Finding::fail("hub", error.to_string(), "set HF_HOME to a folder")];
        }
    };
    vec![cache(&config), reach(&config), token(&config)]
}

fn cache(config: &HubConfig) -> Finding {
    let place = config.cache.display();
    let Some(free) = machine::disk_free(&config.cache) else {
        return Finding::warn("cache", format!("{place}"), "its free space is not known");
    };
    let found = format!("{place}, {} free", BinaryBytes(free));
    let writable = config.cache.ancestors().find(|folder| folder.is_dir());
    if writable.is_none_or(|folder| tempfile::tempfile_in(folder).is_err()) {
        let advice = "it cannot be written: set HF_HOME to a folder that can";
        return Finding::fail("cache", found, advice);
    }
    if free >= CACHE_USUAL {
        return Finding::ok("cache", found);
    }
    let advice = "published models take 320 to 1100 GB: set HF_HOME to a larger disk for those";
    Finding::warn("cache", found, advice)
}

fn reach(config: &HubConfig) -> Finding {
    if config.offline {
        return Finding::warn(
            "hub",
            "HF_HUB_OFFLINE is set",
            "only models in the cache can be used; unset it to download",
        );
    }
    let address = config.endpoint.trim_end_matches('/');
    let advice = "models in the cache and in folders still work; else check the network, a proxy \
                  (HTTPS_PROXY), or set HF_ENDPOINT to a mirror";
    match answers(address) {
        Ok(status) if status < 500 => Finding::ok("hub", format!("{address} answers")),
        Ok(status) => Finding::warn("hub", format!("{address} answers {status}"), advice),
        Err(error) => Finding::warn("hub", format!("{address}: {error}"), advice),
    }
}

/// The HTTP status with which an address answers.
fn answers(address: &str) -> Result<u16> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().timeout(HUB_TIMEOUT).build()?;
    crate::runtime()?.block_on(async {
        match client.head(address).send().await {
            Ok(response) => Ok(response.status().as_u16()),
            Err(error) => bail!("{}", crate::client::innermost(&error)),
        }
    })
}

fn token(config: &HubConfig) -> Finding {
    match &config.token {
        Some(_) => Finding::ok("hub token", "there is one"),
        None => Finding::ok("hub token", "none; only gated models need one (HF_TOKEN)"),
    }
}

fn port(host: &str, port: u16) -> Finding {
    match TcpListener::bind((host, port)) {
        Ok(_) => Finding::ok("port", format!("{host}:{port} is free")),
        Err(error) => {
            let found = format!("{host}:{port}: {error}");
            Finding::fail("port", found, listen_hint(&error))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_fails() {
        let used = TcpListener::bind((DEFAULT_HOST, 0)).unwrap();
        let number = used.local_addr().unwrap().port();
        let finding = port(DEFAULT_HOST, number);
        assert_eq!(finding.verdict, Verdict::Fail);
        assert!(finding.to_string().starts_with("FAIL  port"), "{finding}");
        assert!(finding.to_string().contains("--port"));
        assert_eq!(port(DEFAULT_HOST, 0).verdict, Verdict::Ok);
        // This address is reserved for documentation.
        assert!(port("192.0.2.1", 0).advice.contains("--host"));
    }

    #[test]
    fn this_machine_can_be_looked_at() {
        for finding in [processor(), memory()].into_iter().chain(gpu::look()) {
            assert_ne!(finding.verdict, Verdict::Fail, "{finding}");
            assert_eq!(finding.verdict == Verdict::Ok, finding.advice.is_empty(), "{finding}");
        }
    }
}
