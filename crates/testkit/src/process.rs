//! Tests that leave a process, or the devices that it uses, unfit for others.

use std::env;
use std::process::Command;

/// Of the clocks of emulated GPUs (kernels/README.md): a second's wait is to end before a minute.
const EMULATED_SLOWNESS: &str = "10";

/// An ignored test of this program, by its whole name, in a process of its own, in which waits for
/// emulated GPUs end sooner than elsewhere.
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
    // Without a test there is nothing that could fail.
    let listed = only().arg("--list").output().expect("the program runs").stdout;
    assert!(listed.starts_with(test.as_bytes()), "there is no ignored test {test}");
    let mut process = only();
    process.arg("--nocapture").env("EMULATED_SLOWNESS", EMULATED_SLOWNESS);
    process
}
