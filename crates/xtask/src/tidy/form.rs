//! The form of every file: it begins with a description of its purpose, and its lines are clean.

use super::Finding;
use crate::tree::{File, Tree};

const COLUMNS_MAX: usize = 100;

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    // Fixtures are written by programs, and compared byte by byte.
    let files = tree.files.iter().filter(|file| !file.path.contains("/fixtures/"));
    files.flat_map(check_file).collect()
}

fn check_file(file: &File) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(text) = missing_purpose(file) {
        findings.push(Finding::new(&file.path, 1, text));
    }
    let is_source = matches!(file.extension(), "rs" | "py" | "cu" | "cuh" | "h");
    for (line, text) in file.lines() {
        let mut find = |what: String| findings.push(Finding::new(&file.path, line, what));
        if text.ends_with(char::is_whitespace) {
            find("whitespace at the end: delete it".to_owned());
        }
        if file.is_rust() && text.contains('\t') {
            find("a tab: use spaces, or \\t in a string".to_owned());
        }
        let columns = text.chars().count();
        if is_source && columns > COLUMNS_MAX {
            find(format!("{columns} columns, at most {COLUMNS_MAX}: wrap it"));
        }
    }
    if !file.text.is_empty() && !file.text.ends_with('\n') {
        let last = file.text.lines().count();
        let text = "no newline at the end of the file: add one";
        findings.push(Finding::new(&file.path, last, text));
    }
    findings
}

fn missing_purpose(file: &File) -> Option<&'static str> {
    let text = &file.text;
    match file.extension() {
        "rs" if !text.starts_with("//!") => Some("say what the file is for, with `//!`"),
        "cu" | "cuh" | "h" if !text.starts_with("//") => {
            Some("say what the file is for, with `//`")
        }
        "py" => {
            let mut lines = text.lines().skip_while(|line| line.starts_with('#'));
            let first = lines.find(|line| !line.is_empty()).unwrap_or_default();
            let documented = first.trim_start_matches('r').starts_with("\"\"\"");
            (!documented).then_some("say what the file is for, with a docstring")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::said;
    use super::*;

    fn judge(path: &str, text: &str) -> Vec<String> {
        said(check, &[(path, text)])
    }

    #[test]
    fn files_say_what_they_are_for() {
        for (path, good, bad) in [
            ("a.rs", "//! Why.\n", "// Why.\n"),
            ("a.cuh", "// Why.\n", "#pragma once\n"),
            ("a.py", "#!/usr/bin/env python3\n\n\"\"\"Why.\"\"\"\n", "import os\n"),
        ] {
            assert!(judge(path, good).is_empty(), "{path}");
            assert_eq!(judge(path, bad).len(), 1, "{path}");
        }
        assert_eq!(judge("a.rs", "").len(), 1);
    }

    #[test]
    fn lines_are_clean() {
        assert_eq!(
            judge("a.md", "one \ntwo"),
            [
                "a.md:1: whitespace at the end: delete it",
                "a.md:2: no newline at the end of the file: add one"
            ]
        );
        assert_eq!(judge("a.rs", "//! Why.\n\tfn f() {}\n").len(), 1);
        let wide = format!("//! {}\n", "é".repeat(97));
        assert!(judge("a.rs", &wide)[0].contains("101 columns"));
        assert!(judge("a.md", &wide).is_empty());
        assert!(judge("tests/parity/fixtures/a/config.json", "{} ").is_empty());
    }
}
