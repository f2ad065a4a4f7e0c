//! Tests that run in a separate process, because they leave the process, or the devices that it
//! uses, unusable.

use std::env;
use std::process::Command;

/// The factor by which emulated GPUs slow down their clocks (kernels/README.md): a wait of a second
/// must end within a minute.
const EMULATED_SLOWNESS: &str = "10";

/// Runs an ignored test of this program, given its full name, in a separate process in which waits
/// of emulated GPUs end sooner.
///
/// # Panics
/// If the system does not report the path of this program, or if the program has no such test.
#[must_use]
pub fn alone(test: &str) -> Command {
    let only = || {
        let mut process = Command::new(env::current_exe().expect("tests are a program"));
        process.args([test, "--exact", "--ignored"]);
        process
    };
    // Without this check a missing test would pass.
    let listed = only().arg("--list").output().expect("the program runs").stdout;
    assert!(listed.starts_with(test.as_bytes()), "there is no ignored test {test}");
    let mut process = only();
    process.arg("--nocapture").env("EMULATED_SLOWNESS", EMULATED_SLOWNESS);
    process
}
