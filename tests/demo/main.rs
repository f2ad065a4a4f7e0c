//! The demo model: the engine computes the same values as the training code's oracle, the server's
//! replies match it round by round, and drafts of real text are accepted as often as in PyTorch.
//! Expected values are in `crates/demo`.

#![expect(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

mod acceptance;
mod expected;
#[path = "../parity/fixture.rs"]
#[expect(dead_code, reason = "fixtures of random checkpoints are read there")]
mod fixture;
mod parity;
mod replies;
mod rules;
mod server;

use std::path::{Path, PathBuf};

use kilotok_model::Knobs;
use kilotok_weights::Checkpoint;

/// A path within the demo's crate, relative to the folder where tests are run: the source tree, or
/// a folder with the files that a machine with GPUs needs.
fn of_demo(path: &str) -> PathBuf {
    Path::new("crates/demo").join(path)
}

fn checkpoint(knobs: &Knobs) -> Checkpoint {
    Checkpoint::open(&of_demo("checkpoint"), knobs).unwrap()
}
