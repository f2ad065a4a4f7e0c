//! Checkpoints that are broken, contradictory or hostile. Each case is a good checkpoint with one
//! fault. It must be refused with a message that names the file, the tensor or field, and the
//! reason. No case may panic, hang or take more memory than its own size explains.

#![expect(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

mod configs;
mod families;
mod folders;
mod good;
mod headers;
mod masks;
mod tensors;
mod torch;

use std::path::Path;

use good::Files;
use kilotok_model::{Knobs, Ranks, declare};
use kilotok_weights::{Checkpoint, Piece, Quiet, load};

/// Opens a folder and reads every weight of it.
fn read_all(folder: &Path) -> Result<(), String> {
    let checkpoint = Checkpoint::open(folder, &Knobs::default()).map_err(|e| e.to_string())?;
    let decls = declare(checkpoint.spec()).into_iter();
    let pieces: Vec<_> = decls.map(|decl| Piece { decl, ranks: Ranks::ALONE }).collect();
    load(&checkpoint, &pieces, &Quiet, |_, _| {}).map_err(|error| error.to_string())
}

#[track_caller]
fn assert_refused(result: Result<(), String>, wanted: &[&str]) {
    let error = result.expect_err(&format!("{wanted:?}"));
    for wanted in wanted {
        assert!(error.contains(wanted), "the message lacks {wanted:?}:\n{error}");
    }
}

/// The message must contain each of the wanted parts.
#[track_caller]
fn refuses(files: &Files, wanted: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    good::write(files, folder.path());
    assert_refused(read_all(folder.path()), wanted);
}

#[track_caller]
fn accepts(files: &Files) {
    let folder = tempfile::tempdir().unwrap();
    good::write(files, folder.path());
    read_all(folder.path()).unwrap();
}
