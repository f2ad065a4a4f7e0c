//! The only place that reads environment variables.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kilotok_weights::hub::{DEFAULT_ENDPOINT, HubConfig, ModelRef, pull};

use crate::progress::Bar;

/// The hub's settings, by the variables that its Python client reads: `HF_HOME`, `HF_HUB_CACHE`,
/// `HF_TOKEN` or the token file, `HF_ENDPOINT`, `HF_HUB_OFFLINE`.
#[expect(clippy::disallowed_methods, reason = "this is where the environment is read")]
pub(crate) fn hub() -> Result<HubConfig> {
    let var = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let in_cache = || var("XDG_CACHE_HOME").map(|cache| PathBuf::from(cache).join("huggingface"));
    let in_home = || var("HOME").map(|home| PathBuf::from(home).join(".cache/huggingface"));
    let home = var("HF_HOME").map(PathBuf::from).or_else(in_cache).or_else(in_home);
    let home = home.context("neither HF_HOME nor HOME is set")?;
    let stored_token = || {
        let file = var("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        std::fs::read_to_string(file).ok()
    };
    let token = var("HF_TOKEN").or_else(stored_token).map(|token| token.trim().to_owned());
    Ok(HubConfig {
        cache: var("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from),
        token: token.filter(|token| !token.is_empty()),
        endpoint: var("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned()),
        offline: var("HF_HUB_OFFLINE").is_some_and(|value| is_true(&value)),
    })
}

/// What Python's hub client takes for true.
fn is_true(value: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str())
}

/// The folder of a model that is named by its folder or by its hub name.
pub(crate) fn folder(model: &str) -> Result<PathBuf> {
    let path = Path::new(model);
    if path.is_dir() {
        return Ok(path.to_owned());
    }
    let name: ModelRef = model
        .parse()
        .with_context(|| format!("{model} is no folder, and no name of a model on the hub"))?;
    Ok(pull(&name, &hub()?, &Bar::new("downloading"))?)
}
