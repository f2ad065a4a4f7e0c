//! Opens files safely: a pipe without end, a folder with the file's name, or a text that would fill
//! the memory is an error. Errors do not name the file; the caller does.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use memmap2::Mmap;

/// Maps a file into memory. Its bytes are read from disk when they are accessed.
pub(crate) fn map(path: &Path) -> Result<Mmap, String> {
    let file = open(path)?;
    #[expect(unsafe_code, reason = "checkpoints are larger than memory")]
    // SAFETY: the map is read-only. A program that overwrites or shortens a checkpoint while it is
    // being loaded breaks the load, with wrong numbers, which are checked, or with SIGBUS. The same
    // holds for every other reader of such files.
    let map = unsafe { Mmap::map(&file) };
    map.map_err(|error| format!("cannot be mapped: {error}"))
}

/// Reads a file of at most `bytes_max` bytes.
pub(crate) fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let file = open(path)?;
    file.take(bytes_max + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > bytes_max {
        return Err(format!("has more than {bytes_max} bytes"));
    }
    Ok(bytes)
}

pub(crate) fn read_text(path: &Path, bytes_max: u64) -> Result<String, String> {
    String::from_utf8(read(path, bytes_max)?).map_err(|error| format!("is not UTF-8: {error}"))
}

fn open(path: &Path) -> Result<File, String> {
    let fail = |error| format!("cannot be opened: {error}");
    // Opening a pipe would wait for its other end.
    if !fs::metadata(path).map_err(fail)?.is_file() {
        return Err("is not a regular file".to_owned());
    }
    File::open(path).map_err(fail)
}
