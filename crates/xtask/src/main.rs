//! Chores of the repository. `cargo xtask abi` writes the header that CUDA sources include. `cargo
//! xtask tidy` checks the tree against the house rules, and `cargo xtask tidy --update` shrinks the
//! list of items that are longer than the rules allow. `cargo xtask kernels` compiles the kernels
//! with nvcc and compares their resources with a table, which `--update` writes. `cargo xtask gpu`
//! packs everything that a machine with GPUs but without Rust needs to test and measure; `cargo
//! xtask emulate` runs the GPU's tests and the kernels' harnesses on the CPU.

#![expect(clippy::print_stdout, reason = "a tool for the terminal")]

mod cargo;
mod emulate;
mod gpu;
mod kernels;
mod tidy;
mod tree;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::{env, fs};

use kilotok_abi::header;

use tree::Tree;

const USAGE: &str = "usage: cargo xtask abi | tidy [--update] | kernels [--update] | \
                     gpu [FOLDER] | emulate [TEST..]";

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode, Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let root = root.canonicalize()?;
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["abi"] => write_header(&root)?,
        ["tidy"] => return Ok(tidy::run(&Tree::read(root)?)),
        ["kernels"] => return kernels::run(&root, false),
        ["kernels", "--update"] => return kernels::run(&root, true),
        ["gpu"] => gpu::run(root, None)?,
        ["gpu", folder] if !folder.starts_with('-') => gpu::run(root, Some(folder))?,
        ["emulate", ref tests @ ..] => return emulate::run(&root, tests),
        ["tidy", "--update"] => tidy::update(&Tree::read(root)?)?,
        _ => return Err(USAGE.into()),
    }
    Ok(ExitCode::SUCCESS)
}

fn write_header(root: &Path) -> Result<(), Box<dyn Error>> {
    let path = root.join(header::PATH);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, header::text())?;
    println!("wrote {}", header::PATH);
    Ok(())
}
