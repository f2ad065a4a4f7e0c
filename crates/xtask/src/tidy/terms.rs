//! The field's standard terms must be used, so that a reader can search for them, and comments must
//! be about code, not about persons.

use super::rust::words;
use super::{Finding, states_rules};
use crate::tree::Tree;

/// The file or folder that implements a well-known thing, and the thing's standard term, which must
/// occur there.
const REQUIRED: &[(&str, &str)] = &[
    ("crates/batch/", "KV cache"),
    ("crates/cpu/", "RMSNorm"),
    ("crates/cpu/", "RoPE"),
    ("crates/cpu/", "softmax"),
    ("crates/cuda/", "doorbell"),
    ("crates/cuda/", "split-K"),
    ("crates/engine/", "prefill"),
    ("crates/generation/", "admission"),
    ("crates/model/", "grouped-query attention"),
    ("crates/model/", "tensor-parallel"),
    ("crates/sampling/", "logit processor"),
    ("crates/sampling/", "top-p"),
    ("crates/sched/", "chunked prefill"),
    ("crates/sched/", "continuous batching"),
    ("crates/sched/", "KV cache"),
    ("crates/sched/", "preempt"),
    ("crates/sched/", "prefix cache"),
    ("crates/server/", "SSE"),
    ("kernels/README.md", "doorbell"),
    ("kernels/README.md", "prefill"),
    ("kernels/include/kilotok/comm/", "all-gather"),
    ("kernels/include/kilotok/comm/", "all-reduce"),
    ("kernels/include/kilotok/cta.cuh", "grid barrier"),
    ("kernels/include/kilotok/cta.cuh", "producer"),
    ("kernels/include/kilotok/cta.cuh", "warp-specialised"),
    ("kernels/include/kilotok/gemm/", "GEMM"),
    ("kernels/include/kilotok/gemm/", "mbarrier"),
    ("kernels/include/kilotok/gemm/", "ring buffer"),
    ("kernels/include/kilotok/gemm/", "split-K"),
    ("kernels/include/kilotok/phase/", "flash-decoding"),
    ("kernels/include/kilotok/phase/", "KV cache"),
    ("kernels/include/kilotok/phase/", "online softmax"),
    ("kernels/include/kilotok/phase/", "RMSNorm"),
    ("kernels/include/kilotok/phase/", "RoPE"),
    ("kernels/include/kilotok/phase/", "top-k"),
    ("kernels/include/kilotok/ptx/", "TMA"),
    ("kernels/include/kilotok/sample/", "Gumbel-max"),
    ("kernels/include/kilotok/sample/", "logit processor"),
    ("kernels/include/kilotok/sample/", "top-p"),
    ("kernels/include/kilotok/wide/", "all-reduce"),
    ("kernels/include/kilotok/wide/", "grouped GEMM"),
    ("kernels/include/kilotok/wide/", "online softmax"),
    ("kernels/include/kilotok/wide/", "RMSNorm"),
    ("kernels/include/kilotok/wide/", "swizzle"),
    ("kernels/include/kilotok/wide/", "wgmma"),
];

/// Words for persons. Prose with one of them is usually a sentence that has lost its subject.
const PERSONS: &[&str] =
    &["anybody", "everybody", "nobody", "somebody", "someone", "whoever", "whom", "whomever"];

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = missing(tree);
    for file in &tree.files {
        if states_rules(file) {
            continue;
        }
        let mut in_docstring = false;
        for (line, text) in file.lines() {
            let prose = match file.extension() {
                "rs" | "cpp" | "cu" | "cuh" | "h" => comment(text),
                "py" => python_prose(text, &mut in_docstring),
                "md" => text,
                _ => break,
            };
            let persons = words(prose)
                .filter_map(|word| PERSONS.iter().find(|person| word.eq_ignore_ascii_case(person)));
            findings.extend(persons.map(|person| {
                let what = format!("`{person}`: name the part of the program");
                Finding::new(&file.path, line, what)
            }));
        }
    }
    findings
}

/// Required terms that are missing from their folder. Paths that are not in the tree are not
/// checked.
fn missing(tree: &Tree) -> Vec<Finding> {
    let absent = REQUIRED.iter().filter(|(folder, term)| {
        let mut files = tree.files.iter().filter(|file| file.path.starts_with(folder)).peekable();
        files.peek().is_some() && !files.any(|file| contains(&file.text, term))
    });
    let finding = |(folder, term): &(&str, &str)| {
        let what = format!("nothing here says `{term}`: call it by this name where it is");
        Finding::new(folder, 1, what)
    };
    absent.map(finding).collect()
}

fn contains(text: &str, term: &str) -> bool {
    text.to_ascii_lowercase().contains(&term.to_ascii_lowercase())
}

/// The comment of a line, if it has one. Addresses in strings have no space before their slashes.
fn comment(line: &str) -> &str {
    let trimmed = line.trim_start();
    if trimmed.starts_with("//") {
        return trimmed;
    }
    line.find(" // ").map_or("", |at| &line[at..])
}

/// The comment of a line of Python, or the line if it is part of a docstring.
fn python_prose<'a>(line: &'a str, in_docstring: &mut bool) -> &'a str {
    let begins = line.trim_start().starts_with("\"\"\"");
    let is_part = *in_docstring || begins;
    if line.matches("\"\"\"").count() % 2 == 1 && is_part {
        *in_docstring = !*in_docstring;
    }
    if is_part {
        return line;
    }
    let trimmed = line.trim_start();
    if trimmed.starts_with('#') {
        return trimmed;
    }
    line.find("  # ").map_or("", |at| &line[at..])
}

#[cfg(test)]
mod tests {
    use super::super::tests::said;
    use super::*;

    #[test]
    fn missing_terms_are_found() {
        let found =
            said(check, &[("crates/server/src/a.rs", "//! Streams of server-sent events.\n")]);
        assert_eq!(
            found,
            ["crates/server/:1: nothing here says `SSE`: call it by this name where it is"]
        );
        assert!(said(check, &[("crates/server/src/a.rs", "//! Streams, by SSE.\n")]).is_empty());
    }

    #[test]
    fn persons_in_comments_are_found() {
        let judge = |text| said(check, &[("tests/a.rs", text)]);
        for bad in ["/// Whoever waits.", "let a = 1; // nobody reads it", "//! For whom."] {
            assert_eq!(judge(bad).len(), 1, "{bad}");
        }
        for good in ["let nobody = \"https://nobody.example\";", "/// The client."] {
            assert!(judge(good).is_empty(), "{good}");
        }
    }

    #[test]
    fn persons_in_other_prose_are_found() {
        let judge = |path, text| said(check, &[(path, text)]).len();
        assert_eq!(judge("a.md", "# Nobody\nSomebody waits.\n"), 2);
        for bad in [
            "# Nobody waits.",
            "a = 1  # for whom",
            "\"\"\"What anybody asks.\"\"\"",
            "\"\"\"First.\n\nWhoever asks.\n\"\"\"\n\"anybody?\"",
        ] {
            assert_eq!(judge("tests/a.py", bad), 1, "{bad}");
        }
        assert_eq!(judge("tests/a.py", "say(\"anybody?\", 'Nobody # else')"), 0);
        assert_eq!(judge("a.svg", "somebody"), 0);
    }

    #[test]
    fn required_terms_are_in_order() {
        let key = |entry: &(&str, &str)| (entry.0.to_owned(), entry.1.to_lowercase());
        assert!(REQUIRED.is_sorted_by_key(key));
    }
}
