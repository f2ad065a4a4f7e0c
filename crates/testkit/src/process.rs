//! Tests in a process of their own, since they leave it, or the devices that it uses, unusable.

use std::env;
use std::process::Command;

/// Of the clocks of emulated GPUs (kernels/README.md): a second's wait is to end before a minute.
const EMULATED_SLOWNESS: &str = "10";

/// Runs an ignored test of this program, given its full name, in a process of its own, in which
/// waits for emulated GPUs end sooner.
///
/// # Panics
/// If the system does not say which program this is, or it has no such test.
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
