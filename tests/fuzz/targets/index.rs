//! Reads any bytes as the index of a checkpoint with two valid files. It must be opened or refused;
//! an index that names files outside the folder must never be followed.

#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
#[path = "../../malformed/good.rs"]
mod good;
#[cfg(fuzzing)]
#[path = "../../malformed/torch.rs"]
mod torch;

use std::fs;
use std::sync::LazyLock;

use kilotok_model::Knobs;
use kilotok_weights::Checkpoint;
use tempfile::TempDir;

use crate::good::{Model, write};

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| run(bytes));

const INDEX: &str = "model.safetensors.index.json";

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder");
    write(&Model::good().sharded(|_, _| {}), folder.path());
    folder
});

pub(crate) fn run(bytes: &[u8]) {
    fs::write(FOLDER.path().join(INDEX), bytes).expect("the folder can be written");
    let _ = Checkpoint::open(FOLDER.path(), &Knobs::default());
}
