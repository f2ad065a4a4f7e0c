//! Lists the kernels' sources, so that the binary carries all of them and none is forgotten.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Folders below `kernels/` that are compiled at start; everything else there is for tests.
const FOLDERS: [&str; 2] = ["include", "step"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let here = PathBuf::from(env("CARGO_MANIFEST_DIR")?);
    let kernels = here.join("../../kernels").canonicalize()?;
    println!("cargo::rerun-if-changed=build.rs");
    let mut files = Vec::new();
    for folder in FOLDERS {
        let folder = kernels.join(folder);
        // Cargo watches everything in the folder.
        println!("cargo::rerun-if-changed={}", folder.display());
        collect(&folder, &mut files)?;
    }
    files.sort();
    let mut out = fs::File::create(Path::new(&env("OUT_DIR")?).join("sources.rs"))?;
    writeln!(out, "&[")?;
    for file in files {
        let name = file.strip_prefix(&kernels)?.to_string_lossy().replace('\\', "/");
        writeln!(out, "    ({name:?}, include_str!({:?})),", file.display().to_string())?;
    }
    writeln!(out, "]")?;
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "cargo hands build scripts their folders so")]
fn env(name: &str) -> Result<String, std::env::VarError> {
    std::env::var(name)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let source = path.extension().is_some_and(|end| end == "h" || end == "cuh" || end == "cu");
        if path.is_dir() {
            collect(&path, files)?;
        } else if source {
            files.push(path);
        }
    }
    Ok(())
}
