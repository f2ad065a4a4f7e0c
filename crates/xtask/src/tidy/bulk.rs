//! The repository stays small to clone: no large files, and weights only where tests need them.

use super::Finding;
use crate::tree::Tree;

const FILE_BYTES_MAX: usize = 1 << 20;
const WEIGHT_EXTENSIONS: &[&str] =
    &["bin", "gguf", "npy", "npz", "onnx", "pt", "pth", "safetensors"];
/// Files that the binary embeds. A test there limits their total size.
const EMBEDDED: &str = "crates/demo/checkpoint/";
/// Fixtures of the parity tests, seeds of the fuzz targets, and the embedded demo checkpoint.
const WEIGHT_FOLDERS: &[&str] = &["tests/parity/fixtures/", "tests/fuzz/seeds/", "crates/demo/"];

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.files.iter().filter(|file| file.path != "Cargo.lock") {
        let embedded = file.path.starts_with(EMBEDDED);
        if file.bytes > FILE_BYTES_MAX && !embedded {
            let text = format!(
                "{} bytes, at most {FILE_BYTES_MAX}: make it smaller or fetch it when needed",
                file.bytes
            );
            findings.push(Finding::new(&file.path, 1, text));
        }
        let expected = WEIGHT_FOLDERS.iter().any(|folder| file.path.starts_with(folder));
        if WEIGHT_EXTENSIONS.contains(&file.extension()) && !expected {
            let text = format!("weights belong in {}: move them", WEIGHT_FOLDERS.join(" or "));
            findings.push(Finding::new(&file.path, 1, text));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::tests::said;
    use super::*;

    #[test]
    fn large_files_and_stray_weights_are_found() {
        let large = "x".repeat(FILE_BYTES_MAX + 1);
        let said = said(
            check,
            &[
                ("Cargo.lock", &large),
                ("tests/parity/fixtures/a/model.safetensors", ""),
                ("docs/picture.svg", &large),
                ("crates/cpu/model.safetensors", ""),
            ],
        );
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].starts_with("docs/picture.svg:1: 1048577 bytes"));
        assert!(said[1].starts_with("crates/cpu/model.safetensors:1: weights belong in"));
    }
}
