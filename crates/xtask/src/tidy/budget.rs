//! Functions and files stay short. Those that are already longer are listed in the ratchet file and
//! may only shrink. A new entry must be written by hand, so that a reviewer sees it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::{fs, io};

use super::{Finding, rust};
use crate::tree::Tree;

const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 600;
const RATCHET: &str = "crates/xtask/ratchet.txt";
/// Used in place of a function's name if the entry is for a whole file.
const WHOLE: &str = "-";

/// Path and function.
type Key = (String, String);

/// The measured size of a key, and the line on which it starts or is listed.
#[derive(Clone, Copy)]
struct Size {
    line_count: usize,
    line: usize,
}

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let ratchet = tree.text(RATCHET).unwrap_or_default();
    let (listed, mut findings) = parse(ratchet);
    let found = measure(tree);
    for (key, size) in &found {
        let Size { line_count, line } = *size;
        let (what, limit) = describe(key);
        let text = match listed.get(key).map(|entry| entry.line_count) {
            None => format!("{what} has {line_count} lines, at most {limit}: split it"),
            Some(was) if was < line_count => {
                format!("{what} grew from {was} to {line_count} lines: it may only shrink")
            }
            Some(was) if was > line_count => {
                format!("{what} shrank to {line_count} lines: run `cargo xtask tidy --update`")
            }
            Some(_) => continue,
        };
        findings.push(Finding::new(&key.0, line, text));
    }
    for (key, entry) in listed.iter().filter(|(key, _)| !found.contains_key(*key)) {
        let text = format!("{} {} is short enough or gone: remove the entry", key.0, key.1);
        findings.push(Finding::new(RATCHET, entry.line, text));
    }
    findings
}

/// Rewrites the ratchet file with everything that is still too long, each with its smallest size so
/// far.
pub(crate) fn update(tree: &Tree) -> io::Result<()> {
    let ratchet = tree.text(RATCHET).unwrap_or_default();
    fs::write(tree.root.join(RATCHET), shrink(ratchet, &measure(tree)))
}

fn shrink(ratchet: &str, found: &BTreeMap<Key, Size>) -> String {
    let comments = ratchet.lines().take_while(|line| line.starts_with('#'));
    let mut out: String = comments.flat_map(|line| [line, "\n"]).collect();
    for (key, entry) in parse(ratchet).0 {
        if let Some(size) = found.get(&key) {
            let line_count = size.line_count.min(entry.line_count);
            let _ = writeln!(out, "{} {} {line_count}", key.0, key.1);
        }
    }
    out
}

fn describe((_, function): &Key) -> (String, usize) {
    if function == WHOLE {
        ("file".to_owned(), FILE_LINES_MAX)
    } else {
        (format!("`{function}`"), FUNCTION_LINES_MAX)
    }
}

/// Everything over its limit. If several functions of a file have the same name, the longest
/// counts.
fn measure(tree: &Tree) -> BTreeMap<Key, Size> {
    let mut found: BTreeMap<Key, Size> = BTreeMap::new();
    for file in &tree.files {
        if !matches!(file.extension(), "rs" | "py" | "cu" | "cuh") {
            continue;
        }
        let line_count = file.text.lines().count();
        if line_count > FILE_LINES_MAX {
            let size = Size { line_count, line: 1 };
            found.insert((file.path.clone(), WHOLE.to_owned()), size);
        }
        if !file.is_rust() {
            continue;
        }
        for function in rust::functions(&rust::mask(&file.text)) {
            let rust::Function { name, line, line_count } = function;
            if line_count > FUNCTION_LINES_MAX {
                let size = Size { line_count, line };
                let key = (file.path.clone(), name.to_owned());
                let longest = found.entry(key).or_insert(size);
                if longest.line_count < line_count {
                    *longest = size;
                }
            }
        }
    }
    found
}

fn parse(ratchet: &str) -> (BTreeMap<Key, Size>, Vec<Finding>) {
    let mut listed = BTreeMap::new();
    let mut findings = Vec::new();
    let entries = (1..).zip(ratchet.lines());
    for (line, entry) in entries.filter(|(_, entry)| !entry.starts_with('#')) {
        let fields: Vec<&str> = entry.split(' ').collect();
        let parsed = match fields[..] {
            [path, function, count] => count.parse().ok().map(|count| (path, function, count)),
            _ => None,
        };
        if let Some((path, function, line_count)) = parsed {
            let key = (path.to_owned(), function.to_owned());
            listed.insert(key, Size { line_count, line });
        } else {
            findings.push(Finding::new(RATCHET, line, "write `path function lines`"));
        }
    }
    (listed, findings)
}

#[cfg(test)]
mod tests {
    use super::super::tests::said;
    use super::*;

    const PATH: &str = "crates/abi/src/a.rs";

    fn function(line_count: usize) -> String {
        format!("fn long() {{{}}}\n", "\n".repeat(line_count - 1))
    }

    fn judge(line_count: usize, ratchet: &str) -> Vec<String> {
        said(check, &[(PATH, &function(line_count)), (RATCHET, ratchet)])
    }

    #[test]
    fn new_offenders_fail() {
        assert!(judge(70, "").is_empty());
        assert_eq!(
            judge(71, ""),
            ["crates/abi/src/a.rs:1: `long` has 71 lines, at most 70: split it"]
        );
        let file = "x = 1\n".repeat(601);
        let said = said(check, &[("tests/a.py", &file)]);
        assert_eq!(said, ["tests/a.py:1: file has 601 lines, at most 600: split it"]);
    }

    #[test]
    fn listed_ones_may_only_shrink() {
        let listed = "# why\ncrates/abi/src/a.rs long 80\n";
        assert!(judge(80, listed).is_empty());
        assert!(judge(81, listed)[0].contains("grew from 80 to 81"));
        assert!(judge(79, listed)[0].contains("shrank to 79 lines: run"));
        assert_eq!(
            judge(70, listed),
            ["crates/xtask/ratchet.txt:2: crates/abi/src/a.rs long is short enough or gone: \
              remove the entry"]
        );
        assert!(judge(70, "a b\n")[0].contains(":1: write `path function lines`"));
    }

    #[test]
    fn update_only_shrinks() {
        let tree = Tree::of(&[(PATH, &function(80)), ("b.rs", &function(90))]);
        let found = measure(&tree);
        let listed = "# why\ncrates/abi/src/a.rs long 100\ngone.rs f 71\n";
        assert_eq!(shrink(listed, &found), "# why\ncrates/abi/src/a.rs long 80\n");
        let listed = "crates/abi/src/a.rs long 75\n";
        assert_eq!(shrink(listed, &found), listed);
    }
}
