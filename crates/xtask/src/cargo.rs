//! Builds programs with cargo for xtask, and runs other commands for their output.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// Variables that cargo sets for a program of this package. Build scripts, such as ring's, read
/// them too; if they changed, ring and everything that depends on it would be built again.
const OF_THIS_PACKAGE: &[&str] = &[
    "CARGO_MANIFEST_DIR",
    "CARGO_PKG_NAME",
    "CARGO_PKG_VERSION_MAJOR",
    "CARGO_PKG_VERSION_MINOR",
    "CARGO_PKG_VERSION_PATCH",
    "CARGO_PKG_VERSION_PRE",
];

pub(crate) struct Program {
    /// The name that xtask uses.
    pub(crate) name: &'static str,
    /// The kind and name that cargo uses.
    pub(crate) kind: &'static str,
    pub(crate) target: &'static str,
}

/// Builds, and returns cargo's messages in JSON.
pub(crate) fn cargo(root: &Path, arguments: &[&str]) -> Result<String, Box<dyn Error>> {
    let mut cargo = Command::new("cargo");
    cargo.args(arguments).args(["--locked", "--message-format=json-render-diagnostics"]);
    for name in OF_THIS_PACKAGE {
        cargo.env_remove(name);
    }
    said(cargo.current_dir(root).stderr(Stdio::inherit()), "Rust")
}

/// Runs a command and returns its output. `source` is the package that provides the command, for
/// errors.
pub(crate) fn said(command: &mut Command, source: &str) -> Result<String, Box<dyn Error>> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{name}, of {source}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout)?);
    }
    let reason = String::from_utf8_lossy(&output.stderr);
    Err(format!("{name}: {}\n{}", output.status, reason.trim()).into())
}

/// Path of a program that cargo has built.
pub(crate) fn executable(messages: &str, program: &Program) -> Option<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut found = messages.filter(|message| {
        let target = &message["target"];
        target["name"] == program.target && target["kind"][0] == program.kind
    });
    // A library is also built as a dependency; that message has no executable.
    found.find_map(|message| message["executable"].as_str().map(PathBuf::from))
}
