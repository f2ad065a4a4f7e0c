//! The house rules. Each check reads the whole tree and reports every violation of its rule: where
//! it is, and what to do about it. A rule that no program checks is only a wish.

mod attributes;
mod budget;
mod bulk;
mod edges;
mod form;
mod generated;
mod links;
mod rust;
mod terms;
mod words;

use std::collections::BTreeMap;
use std::fmt;
use std::process::ExitCode;

use crate::tree::{File, Tree};

pub(crate) use budget::update;

const CHECKS: &[fn(&Tree) -> Vec<Finding>] = &[
    attributes::check,
    budget::check,
    bulk::check,
    edges::check,
    form::check,
    generated::check,
    links::check,
    terms::check,
    words::check,
];

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    path: String,
    line: usize,
    what: String,
}

impl Finding {
    fn new(path: &str, line: usize, what: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, what: what.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

/// Prints every finding, then the size of the code.
pub(crate) fn run(tree: &Tree) -> ExitCode {
    let mut findings: Vec<Finding> = CHECKS.iter().flat_map(|check| check(tree)).collect();
    findings.sort();
    for finding in &findings {
        println!("{finding}");
    }
    print_sizes(tree);
    if findings.is_empty() {
        println!("tidy: {} files, nothing to do", tree.files.len());
        ExitCode::SUCCESS
    } else {
        println!("tidy: {} to do", findings.len());
        ExitCode::FAILURE
    }
}

/// Whether the file states rules or has examples of violations, and so contains what the rules
/// forbid.
fn states_rules(file: &File) -> bool {
    file.path.starts_with("crates/xtask/src/tidy/")
}

fn print_sizes(tree: &Tree) {
    let sizes = sizes(tree);
    println!("{:>10} {:>10}  lines of Rust", "code", "all");
    for (part, (code, all)) in &sizes {
        println!("{code:>10} {all:>10}  {part}");
    }
    let (code, all) = sizes.values().fold((0, 0), |sum, size| (sum.0 + size.0, sum.1 + size.1));
    println!("{code:>10} {all:>10}  together");
}

/// Lines of code and lines of every kind, per crate or top folder.
fn sizes(tree: &Tree) -> BTreeMap<&str, (usize, usize)> {
    let mut sizes = BTreeMap::new();
    for file in tree.files.iter().filter(|file| file.is_rust()) {
        let inner = file.path.strip_prefix("crates/").unwrap_or(&file.path);
        let part = inner.split('/').next().unwrap_or_default();
        let size: &mut (usize, usize) = sizes.entry(part).or_default();
        size.0 += rust::code_lines(&file.text);
        size.1 += file.text.lines().count();
    }
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The findings of a check, one per line.
    pub(super) fn said(check: fn(&Tree) -> Vec<Finding>, files: &[(&str, &str)]) -> Vec<String> {
        let findings = check(&Tree::of(files));
        findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_finding_reads_as_a_place() {
        let finding = Finding::new("a/b.rs", 7, "too long: split it");
        assert_eq!(finding.to_string(), "a/b.rs:7: too long: split it");
    }

    #[test]
    fn sizes_are_per_crate() {
        let tree = Tree::of(&[
            ("crates/abi/src/a.rs", "//! Doc.\nfn f() {}\n"),
            ("crates/abi/src/b.rs", "//! Doc.\n"),
            ("tests/c.rs", "fn g() {}\n"),
        ]);
        assert_eq!(sizes(&tree), [("abi", (1, 3)), ("tests", (1, 1))].into_iter().collect());
    }
}
