//! The cache on disk: `models--org--name/{blobs,refs,snapshots}` in the layout of Python's
//! `huggingface_hub`. A blob is named by its hash, a snapshot has relative links to blobs, and a
//! ref is a file with a commit. A blob that is still being downloaded is `blobs/<hash>.partial`, a
//! name that no other tool writes to.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use hf_hub::{Cache, CacheRepo};
use serde_json::Value;

use super::{HubError, ModelRef, RemoteFile, is_commit, is_needed};

/// Most missing files that an error names; further ones are only counted.
const NAMED_MAX: usize = 4;

pub(super) struct Store<'a> {
    model: &'a ModelRef,
    cache: Cache,
    repo: CacheRepo,
    /// `models--org--name`.
    folder: String,
}

impl<'a> Store<'a> {
    pub(super) fn new(model: &'a ModelRef, cache: &Path) -> Self {
        let repo = model.repo_at(model.revision());
        let folder = repo.folder_name();
        let cache = Cache::new(cache.to_owned());
        Self { model, repo: cache.repo(repo), cache, folder }
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.repo.pointer_path(commit)
    }

    pub(super) fn blob(&self, file: &RemoteFile) -> PathBuf {
        self.repo.blob_path(&file.hash)
    }

    /// The path at which the bytes of a file are collected until it is complete.
    pub(super) fn partial(&self, file: &RemoteFile) -> PathBuf {
        self.repo.blob_path(&format!("{}.partial", file.hash))
    }

    pub(super) fn has_link(&self, commit: &str, file: &RemoteFile) -> bool {
        has_size(&self.snapshot(commit).join(&file.name), file.size)
    }

    pub(super) fn has_blob(&self, file: &RemoteFile) -> bool {
        has_size(&self.blob(file), file.size)
    }

    /// Links a blob under its name in the snapshot.
    pub(super) fn link(&self, commit: &str, file: &RemoteFile) -> Result<(), HubError> {
        let pointer = self.snapshot(commit).join(&file.name);
        let up = "../".repeat(Path::new(&file.name).components().count() + 1);
        let link = || -> io::Result<()> {
            pointer.parent().map_or(Ok(()), fs::create_dir_all)?;
            match fs::remove_file(&pointer) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            symlink(&self.blob(file), &format!("{up}blobs/{}", file.hash), &pointer)
        };
        link().map_err(HubError::io(&pointer))
    }

    /// Makes the branch or tag name this commit. Nothing is written if it does already.
    pub(super) fn point_to(&self, commit: &str) -> Result<(), HubError> {
        if self.commit().as_deref() == Some(commit) {
            return Ok(());
        }
        self.repo.create_ref(commit).map_err(HubError::io(&self.ref_path()))
    }

    /// A lock to hold while files are fetched, because two processes that appended to the same
    /// partial file would spoil it.
    pub(super) fn lock(&self) -> Result<File, HubError> {
        let path = self.cache.path().join(".locks").join(&self.folder).join("kilotok.lock");
        path.parent().map_or(Ok(()), fs::create_dir_all).map_err(HubError::io(&path))?;
        let file = File::create(&path).map_err(HubError::io(&path))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                Err(HubError::Busy { model: self.model.clone(), lock: path })
            }
            // Some network file systems have no locks. Without them, one pull at a time still
            // works.
            Err(TryLockError::Error(error)) if error.kind() != ErrorKind::Unsupported => {
                Err(HubError::Io { path, source: error })
            }
            _ => Ok(file),
        }
    }

    /// The cached snapshot, if it is complete according to its own indexes.
    pub(super) fn complete_snapshot(&self) -> Result<PathBuf, HubError> {
        let offline = |folder: PathBuf, missing: String| HubError::Offline {
            model: self.model.clone(),
            folder,
            missing,
        };
        let Some(commit) = self.commit() else {
            let folder = self.cache.path().join(&self.folder);
            return Err(offline(folder, format!("refs/{}", self.model.revision())));
        };
        let snapshot = self.snapshot(&commit);
        let mut missing = missing_in(&snapshot, "")?;
        if snapshot.join("dflash").is_dir() {
            missing.extend(missing_in(&snapshot, "dflash/")?);
        }
        if missing.is_empty() {
            return Ok(snapshot);
        }
        let mut text = missing[..missing.len().min(NAMED_MAX)].join(", ");
        if missing.len() > NAMED_MAX {
            let _ = write!(text, " and {} more", missing.len() - NAMED_MAX);
        }
        Err(offline(snapshot, text))
    }

    fn ref_path(&self) -> PathBuf {
        self.cache.path().join(&self.folder).join("refs").join(self.model.revision())
    }

    /// The commit of the revision, if the cache knows it.
    fn commit(&self) -> Option<String> {
        if is_commit(self.model.revision()) {
            return Some(self.model.revision().to_owned());
        }
        let text = fs::read_to_string(self.ref_path()).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }
}

fn has_size(path: &Path, size: u64) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == size)
}

/// The files that a folder of weights lacks: its config, a shard that an index names, any weights
/// at all, or the blob behind a link.
fn missing_in(snapshot: &Path, prefix: &str) -> Result<Vec<String>, HubError> {
    let folder = snapshot.join(prefix);
    let mut wanted = BTreeSet::from([format!("{prefix}config.json")]);
    let mut has_weights = false;
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Ok(wanted.into_iter().collect());
        }
        other => other.map_err(HubError::io(&folder))?,
    };
    for entry in entries {
        let path = entry.map_err(HubError::io(&folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(".safetensors.index.json") {
            wanted.extend(shards(&path)?.map(|shard| format!("{prefix}{shard}")));
        }
        has_weights |= name.ends_with(".safetensors");
        wanted.extend(Some(format!("{prefix}{name}")).filter(|name| is_needed(name)));
    }
    wanted.retain(|name| !snapshot.join(name).exists());
    if wanted.is_empty() && !has_weights {
        wanted.insert(format!("{prefix}*.safetensors"));
    }
    Ok(wanted.into_iter().collect())
}

/// The files that an index names. None if the index's blob is missing, which is reported anyway.
fn shards(index: &Path) -> Result<impl Iterator<Item = String>, HubError> {
    let value = match fs::read(index) {
        Err(error) if error.kind() == ErrorKind::NotFound => Value::Null,
        other => other
            .and_then(|text| serde_json::from_slice(&text).map_err(io::Error::from))
            .map_err(HubError::io(index))?,
    };
    let names = value["weight_map"].as_object().into_iter().flat_map(|map| map.values());
    let names: BTreeSet<String> =
        names.filter_map(|name| name.as_str().map(str::to_owned)).collect();
    Ok(names.into_iter())
}

#[cfg(unix)]
fn symlink(_blob: &Path, relative: &str, pointer: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(relative, pointer)
}

/// On other systems, creating a symbolic link may need rights that the user lacks.
#[cfg(not(unix))]
fn symlink(blob: &Path, _relative: &str, pointer: &Path) -> io::Result<()> {
    fs::hard_link(blob, pointer)
}
