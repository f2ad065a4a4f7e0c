//! Exceptions to the compiler's checks are few, and each states its reason.

use super::rust::{mask, words};
use super::{Finding, states_rules};
use crate::tree::{File, Tree};

/// Where `unsafe` may be written, and how often.
const UNSAFE: &[(&str, usize)] = &[("crates/cuda/", usize::MAX), ("crates/weights/", 1)];

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let files = tree.files.iter().filter(|file| file.is_rust());
    let mut findings: Vec<Finding> = files.flat_map(unreasoned).collect();
    findings.extend(stray_unsafe(tree));
    findings
}

fn unreasoned(file: &File) -> Vec<Finding> {
    if states_rules(file) {
        return Vec::new();
    }
    let faults = attributes(&file.text).filter_map(|(at, attribute)| {
        let line = file.text[..at].matches('\n').count() + 1;
        Some(Finding::new(&file.path, line, fault(attribute)?))
    });
    faults.collect()
}

fn fault(attribute: &str) -> Option<&'static str> {
    if attribute.starts_with("allow(") {
        Some("`allow` outlives its cause unseen: use `expect` with a reason")
    } else if attribute.starts_with("expect(") && !attribute.contains("reason = \"") {
        Some("`expect` without a reason: say why")
    } else if attribute == "ignore" {
        Some("`ignore` without a reason: say why, or run the test")
    } else {
        None
    }
}

/// The content of every attribute, and where it starts.
fn attributes(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.match_indices('#').filter_map(|(at, _)| {
        let inner = text[at + 1..].trim_start_matches('!').strip_prefix('[')?;
        Some((at, &inner[..closing(inner)?]))
    })
}

/// The position of the bracket that closes the attribute `inner`. Brackets in strings do not count.
fn closing(inner: &str) -> Option<usize> {
    let mut depth = 0;
    let mut quoted = false;
    inner.find(|c| {
        match c {
            '"' => quoted = !quoted,
            '[' if !quoted => depth += 1,
            ']' if !quoted => depth -= 1,
            _ => {}
        }
        depth < 0
    })
}

fn stray_unsafe(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut left = UNSAFE.to_vec();
    for file in tree.files.iter().filter(|file| file.is_rust()) {
        let mut place = left.iter_mut().find(|place| file.path.starts_with(place.0));
        for (line, text) in (1..).zip(mask(&file.text).lines()) {
            for _ in words(text).filter(|word| *word == "unsafe") {
                match &mut place {
                    Some((_, count)) if *count > 0 => *count -= 1,
                    _ => {
                        let text = "`unsafe` is for crates/cuda and one mmap call of \
                                    crates/weights: do without";
                        findings.push(Finding::new(&file.path, line, text));
                    }
                }
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::tests::said;
    use super::*;

    fn judge(text: &str) -> Vec<String> {
        said(check, &[("crates/cpu/src/a.rs", text)])
    }

    #[test]
    fn exceptions_say_why() {
        let allowed = judge("//! Why.\n#[allow(dead_code)]\n");
        assert!(allowed[0].starts_with("crates/cpu/src/a.rs:2: `allow` outlives"));
        for bad in ["#![allow(x)]", "#[expect(x)]", "#[ignore]", "#[test]\n#[ignore]\n"] {
            assert_eq!(judge(bad).len(), 1, "{bad}");
        }
        for good in [
            "#[expect(x, reason = \"[why]\")]",
            "#[expect(\n    x,\n    reason = \"why\"\n)]",
            "#[ignore = \"needs 570 GB\"]",
            "r#type",
        ] {
            assert!(judge(good).is_empty(), "{good}");
        }
    }

    #[test]
    fn unsafe_stays_where_it_belongs() {
        assert_eq!(judge("// unsafe\nlet a = unsafe { b() };\n").len(), 1);
        assert!(judge("#![deny(unsafe_code)]\n").is_empty());
        let code = "let a = unsafe { b() };\n";
        assert!(said(check, &[("crates/weights/src/a.rs", code)]).is_empty());
        let twice = [("crates/weights/src/a.rs", code), ("crates/weights/src/b.rs", code)];
        assert_eq!(said(check, &twice).len(), 1);
    }
}
