//! Generated files are committed, and equal what their generator writes today.

use kilotok_abi::header;

use super::Finding;
use crate::tree::Tree;

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    if tree.text(header::PATH) == Some(&header::text()) {
        return Vec::new();
    }
    let text = "differs from the declarations in crates/abi: run `cargo xtask abi`";
    vec![Finding::new(header::PATH, 1, text)]
}

#[cfg(test)]
mod tests {
    use super::super::tests::said;
    use super::*;

    #[test]
    fn a_stale_or_missing_header_is_found() {
        assert!(said(check, &[(header::PATH, &header::text())]).is_empty());
        assert_eq!(said(check, &[(header::PATH, "// old\n")]).len(), 1);
        assert_eq!(said(check, &[]).len(), 1);
    }
}
