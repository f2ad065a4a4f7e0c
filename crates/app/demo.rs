//! The demo model as a folder, which all that read a model want: unpacked from the binary into the
//! user's cache once, under a name that its content gives.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ring::digest::{Context as Digest, SHA256};

/// What it is called where a model is named.
pub(crate) const NAME: &str = "demo";

/// Digits of the folder's name; enough that two versions never share one.
const DIGIT_COUNT: usize = 16;

/// Its folder below `cache`, which is made if it is not there.
pub(crate) fn unpack(cache: &Path) -> Result<PathBuf> {
    let folder = cache.join(format!("demo-{}", fingerprint()));
    if is_whole(&folder) {
        return Ok(folder);
    }
    unpack_at(cache, &folder).with_context(|| {
        format!(
            "unpacking the demo model into {} (XDG_CACHE_HOME can name another place for caches)",
            folder.display()
        )
    })?;
    Ok(folder)
}

/// Whether all files are there: whoever cleans caches may have taken some.
fn is_whole(folder: &Path) -> bool {
    kilotok_demo::FILES.iter().all(|(name, bytes)| {
        fs::metadata(folder.join(name)).is_ok_and(|file| file.len() == bytes.len() as u64)
    })
}

/// Whole or not at all: another process may be about the same.
fn unpack_at(cache: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(cache)?;
    let partial = tempfile::Builder::new().prefix("demo-").tempdir_in(cache)?;
    for (name, bytes) in kilotok_demo::FILES {
        let file = partial.path().join(name);
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&file, bytes).with_context(|| file.display().to_string())?;
    }
    if folder.is_dir() && !is_whole(folder) {
        fs::remove_dir_all(folder)?;
    }
    let renamed = fs::rename(partial.path(), folder);
    if renamed.is_err() && is_whole(folder) {
        return Ok(());
    }
    Ok(renamed?)
}

fn fingerprint() -> String {
    let mut digest = Digest::new(&SHA256);
    for (name, bytes) in kilotok_demo::FILES {
        digest.update(name.as_bytes());
        digest.update(&(bytes.len() as u64).to_le_bytes());
        digest.update(bytes);
    }
    digest.finish().as_ref()[..DIGIT_COUNT / 2].iter().fold(String::new(), |mut digits, byte| {
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_unpacked_once() {
        let cache = tempfile::tempdir().unwrap();
        let folder = unpack(cache.path()).unwrap();
        for (name, bytes) in kilotok_demo::FILES {
            assert_eq!(&fs::read(folder.join(name)).unwrap(), bytes, "{name}");
        }
        fs::write(folder.join("mark"), "").unwrap();
        assert_eq!(unpack(cache.path()).unwrap(), folder);
        assert!(folder.join("mark").exists());
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_was_taken_away_comes_back() {
        let cache = tempfile::tempdir().unwrap();
        let folder = unpack(cache.path()).unwrap();
        let (name, bytes) = kilotok_demo::FILES[0];
        for damage in [fs::remove_file, |file| fs::write(file, "{")] {
            damage(folder.join(name)).unwrap();
            assert_eq!(unpack(cache.path()).unwrap(), folder);
            assert_eq!(&fs::read(folder.join(name)).unwrap(), bytes);
        }
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = format!("{:#}", unpack(file.path()).unwrap_err());
        assert!(error.contains(&file.path().display().to_string()), "{error}");
        assert!(error.contains("XDG_CACHE_HOME"), "{error}");
    }
}
