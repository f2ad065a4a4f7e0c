//! The demo model as a folder, like any other model: unpacked once from the binary into the user's
//! cache, under a name derived from its content.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use ring::digest::{Context as Digest, SHA256};

/// The name by which users select the demo model.
pub(crate) const NAME: &str = "demo";

/// Prefix of the folders' names, complete or not.
const PREFIX: &str = "demo-";
/// Hexadecimal digits of the folder's name; enough that no two versions share a name.
const DIGIT_COUNT: usize = 16;
/// Unpacking takes less than a second, so a process that takes 10 is not waited for.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// The demo model's folder below `cache`. Both are created if they do not exist.
pub(crate) fn unpack(cache: &Path) -> Result<PathBuf> {
    let folder = cache.join(format!("{PREFIX}{}", fingerprint()));
    if is_whole(&folder) {
        if let Some(_lock) = lock(cache, 1) {
            remove_partial(cache);
        }
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

/// Whether all files exist with the right content: users clean their caches, and disks fail.
fn is_whole(folder: &Path) -> bool {
    let holds = |path: &Path, bytes: &[u8]| -> io::Result<bool> {
        let file = fs::metadata(path)?;
        Ok(file.is_file() && file.len() == bytes.len() as u64 && fs::read(path)? == bytes)
    };
    let mut files = kilotok_demo::FILES.iter();
    files.all(|(name, bytes)| holds(&folder.join(name), bytes).unwrap_or(false))
}

/// A lock against other processes that unpack. `None` if one of them takes too long, or if the file
/// system has no locks.
fn lock(cache: &Path, tries: u32) -> Option<File> {
    let folder = File::open(cache).ok()?;
    for left in (0..tries).rev() {
        match folder.try_lock() {
            Ok(()) => return Some(folder),
            Err(TryLockError::WouldBlock) if left > 0 => thread::sleep(LOCK_PAUSE),
            Err(_) => {}
        }
    }
    None
}

/// Removes what killed processes left of their unpacking. Call this only with the lock held:
/// otherwise another process may still be unpacking there.
fn remove_partial(cache: &Path) {
    let is_partial = |name: &OsStr| {
        let rest = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        let digits = |rest: &str| rest.bytes().all(|byte| byte.is_ascii_hexdigit());
        rest.is_some_and(|rest| rest.len() != DIGIT_COUNT || !digits(rest))
    };
    for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
        if is_partial(&entry.file_name()) {
            // A folder that cannot be removed only costs space.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Unpacks all files, or none.
fn unpack_at(cache: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(cache)?;
    let lock = lock(cache, LOCK_TRIES);
    if is_whole(folder) {
        return Ok(());
    }
    if lock.is_some() {
        remove_partial(cache);
    }
    let partial = tempfile::Builder::new().prefix(PREFIX).tempdir_in(cache)?;
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
        let flip: fn(PathBuf) -> io::Result<()> = |file| {
            let mut bytes = fs::read(&file)?;
            bytes[0] ^= 1;
            fs::write(file, bytes)
        };
        for damage in [fs::remove_file, |file| fs::write(file, "{"), flip] {
            damage(folder.join(name)).unwrap();
            assert_eq!(unpack(cache.path()).unwrap(), folder);
            assert_eq!(&fs::read(folder.join(name)).unwrap(), bytes);
        }
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_killed_starts_left_is_removed_unless_another_unpacks() {
        let cache = tempfile::tempdir().unwrap();
        let left = cache.path().join("demo-a1B2c3");
        let others =
            ["demo-0123456789abcdef", "kernels", "demo"].map(|name| cache.path().join(name));
        let make = || {
            fs::create_dir_all(left.join("dflash")).unwrap();
            fs::write(left.join("dflash/config.json"), "{").unwrap();
        };
        for other in &others {
            fs::create_dir_all(other).unwrap();
        }
        make();
        unpack(cache.path()).unwrap();
        assert!(!left.exists(), "before unpacking");
        make();
        let busy = lock(cache.path(), 1).unwrap();
        unpack(cache.path()).unwrap();
        assert!(left.exists(), "another process unpacks");
        drop(busy);
        unpack(cache.path()).unwrap();
        assert!(!left.exists(), "before a start that has nothing to unpack");
        assert!(others.iter().all(|other| other.exists()));
    }

    #[test]
    fn several_may_unpack_at_once() {
        let cache = tempfile::tempdir().unwrap();
        thread::scope(|scope| {
            let starts: Vec<_> = (0..4).map(|_| scope.spawn(|| unpack(cache.path()))).collect();
            for start in starts {
                assert!(is_whole(&start.join().unwrap().unwrap()));
            }
        });
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
