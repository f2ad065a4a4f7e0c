//! The demo model: the engine computes what its training code's oracle does, the server replies
//! with it round by round, and drafts of real text are accepted as often as in PyTorch. Expected
//! values are in `crates/demo`.

#![expect(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

#[path = "demo/acceptance.rs"]
mod acceptance;
#[path = "demo/expected.rs"]
mod expected;
#[path = "parity/fixture.rs"]
#[expect(dead_code, reason = "fixtures of random checkpoints are read there")]
mod fixture;
#[path = "demo/parity.rs"]
mod parity;
#[path = "demo/replies.rs"]
mod replies;
#[path = "demo/rules.rs"]
mod rules;
#[path = "demo/server.rs"]
mod server;

use std::path::{Path, PathBuf};

use kilotok_model::Knobs;
use kilotok_weights::Checkpoint;

/// A path within the demo's crate, from where tests are run: the source tree, or a folder with what
/// a machine with GPUs needs of it.
fn of_demo(path: &str) -> PathBuf {
    Path::new("crates/demo").join(path)
}

fn checkpoint(knobs: &Knobs) -> Checkpoint {
    Checkpoint::open(&of_demo("checkpoint"), knobs).unwrap()
}
