//! Tests that leave a process, or the devices that it uses, unfit for others.

use std::env;
use std::process::Command;

/// An ignored test of this program, by its whole name, in a process of its own.
///
/// # Panics
/// If the system does not say which program this is.
#[must_use]
pub fn alone(test: &str) -> Command {
    let mut process = Command::new(env::current_exe().expect("tests are a program"));
    process.args([test, "--exact", "--ignored", "--nocapture"]);
    process
}
