//! Reads a checkpoint's text files safely: a pipe without end, a device, a folder with the file's
//! name, or a file that would fill the memory is an error.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::Path;

/// The largest known `tokenizer.json` has 35 MB; the other files have some kilobytes.
const BYTES_MAX: u64 = 128 << 20;

/// A regular file's bytes; `None` if there is no such file.
///
/// # Errors
/// The file cannot be read. The message has the file's path.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, String> {
    let fail = |reason: &dyn std::fmt::Display| Err(format!("{}: {reason}", path.display()));
    // Opening a pipe would wait for its other end.
    match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return fail(&error),
        Ok(found) if !found.is_file() => return fail(&"it is not a regular file"),
        Ok(_) => {}
    }
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(BYTES_MAX + 1).read_to_end(&mut bytes));
    match read {
        Err(error) => fail(&error),
        Ok(count) if count as u64 > BYTES_MAX => {
            fail(&format_args!("it has more than {BYTES_MAX} bytes"))
        }
        Ok(_) => Ok(Some(bytes)),
    }
}
