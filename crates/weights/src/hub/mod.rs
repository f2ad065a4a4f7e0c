//! Fetches a model from the Hugging Face hub into the cache that Python's `huggingface_hub` uses,
//! so that either finds what the other downloaded.
//!
//! The crate `hf-hub` knows the layout of the cache, builds every request and carries the token;
//! `fetch` adds what it lacks: transfers that resume, can be cancelled and are checked against the
//! hash that the hub lists. `store` is the cache on disk. A snapshot gets its links only when every
//! file is complete and correct, and the branch is moved to the snapshot last, so an interrupted
//! pull never shows a half-fetched model. Nothing here reads the environment: the app fills in
//! [`HubConfig`].

mod fetch;
mod flow;
mod partial;
mod store;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use hf_hub::{Repo, RepoType};

use crate::Progress;
use fetch::Client;
use flow::Flow;
use store::Store;

/// The public hub, for an app whose user set no `HF_ENDPOINT`.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Most files that are fetched at once, as in Python's `huggingface_hub`.
pub const PARALLEL_MAX: usize = 8;

/// Where and how to reach the hub.
#[derive(Clone)]
pub struct HubConfig {
    /// The folder that holds `models--org--name`: `HF_HUB_CACHE`, else `$HF_HOME/hub`.
    pub cache: PathBuf,
    /// `HF_TOKEN`, else the text of `$HF_HOME/token`.
    pub token: Option<String>,
    /// `HF_ENDPOINT`, else [`DEFAULT_ENDPOINT`].
    pub endpoint: String,
    /// `HF_HUB_OFFLINE`: look in the cache only.
    pub offline: bool,
}

/// Written by hand, because configs are printed and the token is a secret.
impl fmt::Debug for HubConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubConfig")
            .field("cache", &self.cache)
            .field("token", &self.token.as_ref().map(|_| "set"))
            .field("endpoint", &self.endpoint)
            .field("offline", &self.offline)
            .finish()
    }
}

/// A model on the hub: `org/name`, or `org/name@revision` for a branch, tag or commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelRef {
    id: String,
    revision: String,
}

impl ModelRef {
    /// `org/name`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The revision that the user named, else `main`.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    fn repo_at(&self, revision: &str) -> Repo {
        Repo::with_revision(self.id.clone(), RepoType::Model, revision.to_owned())
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.revision.as_str() {
            "main" => write!(f, "{}", self.id),
            revision => write!(f, "{}@{revision}", self.id),
        }
    }
}

/// Both parts become folder names, so names that could lead out of the cache are refused too.
impl FromStr for ModelRef {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let refuse = |why| HubError::Name { name: text.to_owned(), why };
        let (id, revision) = text.split_once('@').unwrap_or((text, "main"));
        match id.split_once('/') {
            Some((org, name)) if is_hub_name(org) && is_hub_name(name) => {}
            Some(_) => {
                return Err(refuse(
                    "organisation and name are letters, digits, `-`, `_` and single dots or \
                     dashes, and start and end with a letter, digit or `_`",
                ));
            }
            None => return Err(refuse("it has the form `org/name` or `org/name@revision`")),
        }
        if !is_revision(revision) {
            return Err(refuse("what follows `@` is not a branch, a tag or a commit"));
        }
        Ok(Self { id: id.to_owned(), revision: revision.to_owned() })
    }
}

/// The hub's own rule for names.
fn is_hub_name(name: &str) -> bool {
    let edge = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.starts_with(edge)
        && name.ends_with(edge)
        && name.len() <= 96
        && name.chars().all(|c| edge(c) || c == '-' || c == '.')
        && !name.contains("--")
        && !name.contains("..")
}

/// Git's rule for names of refs, without the characters that have a meaning in URLs or paths.
fn is_revision(revision: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
    revision.split('/').all(|part| {
        !part.is_empty()
            && !part.starts_with('.')
            && !part.contains("..")
            && part.chars().all(plain)
    })
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Whether this is a complete commit id, which needs no look-up.
fn is_commit(revision: &str) -> bool {
    is_hex(revision, 40)
}

/// The reason why a model cannot be fetched, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("`{name}` is no model on the hub: {why}")]
    Name { name: String, why: &'static str },

    #[error("HF_TOKEN holds a character that cannot be sent: check it for quotes and line breaks")]
    Token,

    #[error(
        "{model} is not complete in the cache and the hub is switched off: {} lacks {missing}; \
         pull it once without HF_HUB_OFFLINE",
        folder.display()
    )]
    Offline { model: ModelRef, folder: PathBuf, missing: String },

    #[error("the hub client cannot start: {0}")]
    Client(String),

    #[error(
        "cannot reach the hub at {endpoint} for {what}: {source}; HF_HUB_OFFLINE=1 takes what is \
         in the cache"
    )]
    Unreachable { what: String, endpoint: String, source: Box<ureq::Error> },

    #[error("the hub answered HTTP {status} for {what}: {advice}")]
    Refused { what: String, status: u16, advice: String },

    #[error("{model} cannot be pulled by what the hub lists: {why}")]
    Listing { model: ModelRef, why: String },

    #[error("{file}: asked for the bytes from {start}, the hub sends the range `{range}`")]
    Range { file: String, start: u64, range: String },

    #[error(
        "{file}: the transfer stopped at {got} of {size} bytes; pull again to go on from there"
    )]
    Interrupted { file: String, got: u64, size: u64 },

    #[error("{file}: the hub lists {size} bytes but sends {got}")]
    Size { file: String, size: u64, got: u64 },

    #[error("{file}: its content is not what the hub lists; pull again to fetch it anew")]
    Corrupt { file: String },

    #[error("{model} is being pulled by another process; wait for it to end ({})", lock.display())]
    Busy { model: ModelRef, lock: PathBuf },

    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },

    #[error("cancelled; pull again to go on from there")]
    Cancelled,
}

impl HubError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}

/// A file of a model, as listed by the hub.
struct RemoteFile {
    /// Its path in the repository.
    name: String,
    /// The hash of the content, under which the cache stores it: SHA-256, or git's hash for a small
    /// file.
    hash: String,
    size: u64,
}

/// Whether a model is loaded or served from the file. Other formats of the same weights are left
/// out.
fn is_needed(name: &str) -> bool {
    const NAMES: [&str; 4] =
        ["config.json", "generation_config.json", "chat_template.jinja", "chat_template.json"];
    const SUFFIXES: [&str; 2] = [".safetensors", ".safetensors.index.json"];
    if name.contains('/') {
        return name.starts_with("dflash/");
    }
    NAMES.contains(&name)
        || name.starts_with("tokenizer") && name.strip_suffix(".json").is_some()
        || SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
}

/// Returns the snapshot folder with every file that the model needs (its configs, tokenizer,
/// template and weights, and all of `dflash/`), after downloading the missing ones.
///
/// `progress` gets the number of missing bytes before the first of them; bytes that an earlier pull
/// has left of a missing file count as arrived. It is not called if nothing is missing.
pub fn pull(
    model: &ModelRef,
    config: &HubConfig,
    progress: &dyn Progress,
) -> Result<PathBuf, HubError> {
    let store = Store::new(model, &config.cache);
    if config.offline {
        return store.complete_snapshot();
    }
    let mut flow = Flow::new(progress);
    let client = Client::new(model, config)?;
    let listing = client.list(&flow)?;
    let unlinked: Vec<&RemoteFile> =
        listing.files.iter().filter(|file| !store.has_link(&listing.commit, file)).collect();

    if !unlinked.is_empty() {
        let _lock = store.lock()?;
        // Equal files are one blob, which two threads must not write at the same time.
        let mut seen = BTreeSet::new();
        let absent: Vec<&RemoteFile> = unlinked
            .iter()
            .copied()
            .filter(|file| !store.has_blob(file) && seen.insert(&file.hash))
            .collect();
        client.download(&listing.commit, &absent, &store, &mut flow)?;
        for file in unlinked {
            store.link(&listing.commit, file)?;
        }
    }
    store.point_to(&listing.commit)?;
    Ok(store.snapshot(&listing.commit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_org_slash_name_and_maybe_a_revision() {
        let plain: ModelRef = "XiaomiMiMo/MiMo-V2.5_x".parse().unwrap();
        assert_eq!((plain.id(), plain.revision()), ("XiaomiMiMo/MiMo-V2.5_x", "main"));
        let pinned: ModelRef = "openai/gpt-oss-20b@refs/pr/7".parse().unwrap();
        assert_eq!((pinned.id(), pinned.revision()), ("openai/gpt-oss-20b", "refs/pr/7"));
        assert_eq!(pinned.to_string(), "openai/gpt-oss-20b@refs/pr/7");
        assert_eq!(plain.to_string(), plain.id());
    }

    #[test]
    fn what_could_leave_the_cache_is_no_model() {
        for text in [
            "",
            "gpt2",
            "/",
            "a/",
            "/b",
            "a/b/c",
            "../b",
            "a/..",
            "a/b..c",
            "a/b--c",
            "-a/b",
            "a/b-",
            "a\\b/c",
            "a/b c",
            "a/b?x",
            "a/b@",
            "a/b@..",
            "a/b@../../c",
            "a/b@/etc",
            "a/b@x//y",
            "a/b@x\\y",
            "a/b@x y",
            "a/b@x#y",
            "a/b@x%2f..",
            "a/b@.git",
            "a/b@c@d",
            "a/b\0",
        ] {
            let error = text.parse::<ModelRef>().unwrap_err();
            assert!(matches!(error, HubError::Name { .. }), "{text}: {error}");
            assert!(error.to_string().contains(&format!("`{text}`")), "{error}");
        }
    }

    #[test]
    fn needed_is_what_loads_and_serves_the_model() {
        for name in [
            "config.json",
            "generation_config.json",
            "chat_template.jinja",
            "chat_template.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "model.safetensors",
            "model_mtp.safetensors",
            "model-00001-of-00130.safetensors",
            "model.safetensors.index.json",
            "dflash/config.json",
            "dflash/mask_embedding.pt",
        ] {
            assert!(is_needed(name), "{name}");
        }
        for name in ["README.md", "pytorch_model.bin", "original/model.safetensors", "config.jsonl"]
        {
            assert!(!is_needed(name), "{name}");
        }
    }

    #[test]
    fn a_printed_config_keeps_the_token() {
        let config = HubConfig {
            cache: "/cache".into(),
            token: Some("hf_secret".into()),
            endpoint: DEFAULT_ENDPOINT.into(),
            offline: false,
        };
        assert!(!format!("{config:?}").contains("hf_secret"));
    }
}
