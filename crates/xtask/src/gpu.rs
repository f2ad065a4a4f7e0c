//! Packs everything that a machine with GPUs but without Rust needs to test and measure the engine:
//! programs, the kernels' sources, models to measure, and the script that runs them all,
//! `gpu/run.sh`.

#[cfg(all(test, target_os = "linux"))]
mod tests;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cargo::{Program, cargo, executable, said};
use crate::tree::Tree;

/// The archive's folder, relative to the root.
const OUT: &str = "target/gpu";
/// The folder in the archive.
const PACK: &str = "kilotok-gpu";
const SCRIPT: &str = "crates/xtask/src/gpu/run.sh";
/// Parts of the repository that are packed unchanged: folders, and files that the demo's tests
/// read.
const PARTS: &[&str] = &[
    "kernels/",
    "benches/models/",
    "benches/soak.py",
    "crates/demo/checkpoint/",
    "crates/demo/held_out.jsonl",
    "crates/demo/figures/held_out.figures.json",
    "crates/demo/figures/held_out.rules.json",
];
/// Largest archive. It is sent to each new machine, and machines are often available for minutes
/// only.
const BYTES_MAX: u64 = 64 << 20;

/// The builds by cargo, and the programs that are taken from each.
const BUILDS: &[(&[&str], &[Program])] = &[
    (
        &["test", "--no-run", "-p=kilotok", GPU, BROKEN, DEMO, "-p=kilotok-cuda", CPU, "--lib"],
        &[
            Program { name: "gpu", kind: "test", target: "gpu" },
            Program { name: "broken", kind: "test", target: "broken" },
            Program { name: "demo", kind: "test", target: "demo" },
            Program { name: "cuda", kind: "lib", target: "kilotok_cuda" },
            Program { name: "cpu", kind: "lib", target: "kilotok_cpu" },
        ],
    ),
    (
        &["build", "--release", "-p=kilotok", "--bin=kilotok", "-p=kilotok-sampling", CASES],
        &[
            Program { name: "kilotok", kind: "bin", target: "kilotok" },
            Program { name: "device_cases", kind: "example", target: "device_cases" },
        ],
    ),
];

const GPU: &str = "--test=gpu";
const BROKEN: &str = "--test=broken";
const DEMO: &str = "--test=demo";
const CPU: &str = "-p=kilotok-cpu";
/// Writes the cases for `kernels/harness/sample.cu`.
const CASES: &str = "--example=device_cases";

/// Packs into `folder`, by default `target/gpu`.
pub(crate) fn run(root: PathBuf, folder: Option<&str>) -> Result<(), Box<dyn Error>> {
    let commit = commit(&root)?;
    let folder = folder.map_or_else(|| root.join(OUT), PathBuf::from);
    let pack = folder.join(PACK);
    if pack.exists() {
        fs::remove_dir_all(&pack)?;
    }
    fs::create_dir_all(pack.join("bin"))?;
    let mut parts = Vec::new();
    for (arguments, programs) in BUILDS {
        let messages = cargo(&root, arguments)?;
        for program in *programs {
            let from = executable(&messages, program)
                .ok_or_else(|| format!("cargo {arguments:?} made no {}", program.target))?;
            let to = pack.join("bin").join(program.name);
            // Debug info is most of a program's size.
            said(Command::new("strip").arg("-o").args([&to, &from]), "binutils")?;
            parts.push((format!("bin/{}", program.name), fs::metadata(to)?.len()));
        }
    }
    let tree = Tree::read(root)?;
    for part in PARTS {
        parts.push(((*part).to_owned(), copy(&tree, part, &pack)?));
    }
    fs::copy(tree.root.join(SCRIPT), pack.join("run.sh"))?;
    fs::write(pack.join("COMMIT"), format!("{commit}\n"))?;
    let archive = compress(&folder)?;
    let bytes = fs::metadata(&archive)?.len();
    check_size(bytes, &parts)?;
    println!(
        "{commit} is in {}, {}. On a machine with GPUs:\n  tar -xf {PACK}.tar.xz && \
         {PACK}/run.sh --help\nor, without xz, `python3 -m tarfile -e {PACK}.tar.xz`.",
        archive.display(),
        mebibytes(bytes)
    );
    Ok(())
}

/// The commit, and whether the working tree differs from it.
fn commit(root: &Path) -> Result<String, Box<dyn Error>> {
    let trust = format!("safe.directory={}", root.display());
    let describe = ["describe", "--always", "--dirty", "--exclude=*"];
    let mut git = Command::new("git");
    let text = said(git.args(["-c", &trust]).args(describe).current_dir(root), "git")?;
    Ok(text.trim().to_owned())
}

/// Copies a file, or the files of a folder; returns their number of bytes.
fn copy(tree: &Tree, part: &str, pack: &Path) -> Result<u64, Box<dyn Error>> {
    let mut bytes = 0;
    for file in tree.files.iter().filter(|file| file.path.starts_with(part)) {
        let to = pack.join(&file.path);
        fs::create_dir_all(to.parent().ok_or("a file without a folder")?)?;
        bytes += fs::copy(tree.root.join(&file.path), to)?;
    }
    Ok(bytes)
}

fn compress(folder: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let archive = folder.join(PACK).with_added_extension("tar.xz");
    let mut tar = Command::new("tar");
    // At -9 xz looks back 64 MiB, so the demo model, which two programs contain, is packed only
    // once.
    tar.env("XZ_OPT", "-9").arg("-cJf").arg(&archive).arg("-C").arg(folder).arg(PACK);
    said(&mut tar, "tar and xz-utils")?;
    Ok(archive)
}

/// Fails with a list of the parts if the archive is too large.
fn check_size(bytes: u64, parts: &[(String, u64)]) -> Result<(), String> {
    if bytes <= BYTES_MAX {
        return Ok(());
    }
    let lines = parts.iter().map(|(name, bytes)| format!("\n  {name}: {}", mebibytes(*bytes)));
    Err(format!(
        "the archive has {}, at most {}; before it was compressed:{}",
        mebibytes(bytes),
        mebibytes(BYTES_MAX),
        lines.collect::<String>()
    ))
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
