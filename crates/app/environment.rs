//! The only place that reads environment variables.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use kilotok_cuda::Toolchain;
use kilotok_weights::hub::{DEFAULT_ENDPOINT, HubConfig, ModelRef, pull};

use crate::demo;
use crate::progress::WorkProgress;

#[expect(clippy::disallowed_methods, reason = "this is where the environment is read")]
fn var(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// `KILOTOK_API_KEY`: the keys that a server accepts, separated by commas. Other settings have no
/// variables: for a service called kilotok, Kubernetes sets `KILOTOK_PORT` and others to its own
/// values.
pub(crate) fn api_keys() -> Vec<String> {
    let keys = var("KILOTOK_API_KEY").unwrap_or_default();
    keys.split(',').map(str::trim).filter(|key| !key.is_empty()).map(str::to_owned).collect()
}

/// Whether the variable is set but has no key in it, although it was meant to keep others out.
pub(crate) fn lacks_api_key() -> bool {
    var("KILOTOK_API_KEY").is_some() && api_keys().is_empty()
}

/// The first of these keys, which clients send.
pub(crate) fn api_key() -> Option<String> {
    api_keys().into_iter().next()
}

/// `KILOTOK_CONFIG`, a file for `serve`.
pub(crate) fn config_file() -> Option<PathBuf> {
    var("KILOTOK_CONFIG").map(PathBuf::from)
}

/// `KILOTOK_LOG`: which events are logged, in the syntax of other programs' `RUST_LOG`.
pub(crate) fn log_filter() -> String {
    var("KILOTOK_LOG").unwrap_or_else(|| "info".to_owned())
}

/// The cache for compiled kernels, and where their compiler may be besides the usual places: in the
/// folders named by the variables of toolkits and Python environments, among the user's own
/// packages, and beside this program.
pub(crate) fn toolchain() -> Toolchain {
    let named = ["CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV", "CONDA_PREFIX", "HOME"];
    let program = std::env::current_exe().ok();
    let beside = program.as_deref().and_then(|program| program.parent()?.parent());
    let prefixes = named.into_iter().filter_map(var).map(PathBuf::from);
    Toolchain {
        cache: cache().ok().map(|cache| cache.join("kernels")),
        prefixes: prefixes.chain(beside.map(Path::to_owned)).collect(),
    }
}

/// The file with the history of lines typed into `chat`.
pub(crate) fn chat_history() -> Option<PathBuf> {
    let state = var("XDG_STATE_HOME").map(PathBuf::from);
    let state = state.or_else(|| Some(PathBuf::from(var("HOME")?).join(".local/state")))?;
    Some(state.join("kilotok/chat_history"))
}

/// Whether the terminal output should have no colours, see <https://no-color.org>.
pub(crate) fn no_color() -> bool {
    var("NO_COLOR").is_some()
}

/// The hub's settings, from the variables that its Python client reads: `HF_HOME`, `HF_HUB_CACHE`,
/// `HF_TOKEN` or the token file, `HF_ENDPOINT`, `HF_HUB_OFFLINE`.
pub(crate) fn hub() -> Result<HubConfig> {
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

/// Whether Python's hub client takes the value for true.
fn is_true(value: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str())
}

/// The folder for everything that kilotok can recreate.
fn cache() -> Result<PathBuf> {
    let home = || Some(PathBuf::from(var("HOME")?).join(".cache"));
    let cache = var("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    Ok(cache.context("neither XDG_CACHE_HOME nor HOME is set")?.join("kilotok"))
}

/// The folder of a model. `model` is a folder, a name on the hub, or the demo model's name.
pub(crate) fn folder(model: &str) -> Result<PathBuf> {
    // This comes first, so that a folder called `demo` is not used when no model is given.
    if model == demo::NAME {
        return demo::unpack(&cache()?);
    }
    let path = Path::new(model);
    if path.is_dir() {
        return Ok(path.to_owned());
    }
    if path.is_absolute() || model.starts_with('.') {
        bail!("there is no folder {model}");
    }
    let name: ModelRef = model.parse().context("there is no folder of that name")?;
    Ok(pull(&name, &hub()?, &WorkProgress::new("downloading"))?)
}
