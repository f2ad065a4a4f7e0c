//! Relative links in Markdown files must have existing targets.

use super::Finding;
use crate::tree::Tree;

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.files.iter().filter(|file| file.extension() == "md") {
        let mut fenced = false;
        for (line, text) in file.lines() {
            fenced ^= text.trim_start().starts_with("```");
            if fenced {
                continue;
            }
            for target in targets(text) {
                if !resolves(tree, &file.path, target) {
                    let text = format!("link to {target}, which does not exist: correct it");
                    findings.push(Finding::new(&file.path, line, text));
                }
            }
        }
    }
    findings
}

/// The targets of the links in a line, except those in code.
fn targets(line: &str) -> Vec<&str> {
    let prose = line.split('`').step_by(2);
    let links = prose.flat_map(|prose| prose.split("](").skip(1));
    links.filter_map(|link| link.split([')', ' ']).next()).collect()
}

fn resolves(tree: &Tree, from: &str, target: &str) -> bool {
    let path = target.split('#').next().unwrap_or_default();
    if path.is_empty() || target.contains("://") || target.starts_with("mailto:") {
        return true;
    }
    let Some(place) = join(from, path) else {
        return false;
    };
    let inside = format!("{place}/");
    let mut files = tree.files.iter();
    place.is_empty() || files.any(|file| file.path == place || file.path.starts_with(&inside))
}

/// The path to which `path` refers in the file `from`; `None` if it is outside the repository.
fn join(from: &str, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::super::tests::said;
    use super::*;

    #[test]
    fn dead_links_are_found() {
        let text = "[a](crates/README.md#words) [b](crates) [c](https://example.org/x)\n\
                    [d](#here) `[e](nowhere)`\n```\n[f](nowhere)\n```\n[g](gone.md)\n";
        let files = [("README.md", text), ("crates/README.md", "[up](../README.md)\n")];
        assert_eq!(
            said(check, &files),
            ["README.md:6: link to gone.md, which does not exist: correct it"]
        );
        let files = [("docs/a.md", "[out](../../b.md)\n"), ("b.md", "")];
        assert_eq!(said(check, &files).len(), 1);
    }

    #[test]
    fn a_code_span_between_brackets_is_still_a_link() {
        assert_eq!(targets("see [`abi`](abi/src/lib.rs)"), ["abi/src/lib.rs"]);
    }
}
