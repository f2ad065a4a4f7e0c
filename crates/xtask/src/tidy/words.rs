//! One concept has one word, in names and comments alike; the table is in crates/README.md.

use super::rust::{is_word, words};
use super::{Finding, states_rules};
use crate::tree::{File, Tree};

/// Words that are ambiguous or say nothing, and what to say instead.
const BANNED: &[(&str, &str)] = &[
    ("block", "say page, draft, group, CTA or tile"),
    ("blocks", "say pages, drafts, groups, CTAs or tiles"),
    ("iteration", "say step"),
    ("iterations", "say steps"),
    ("tick", "say step"),
    ("ticks", "say steps"),
];

/// Names that were replaced, and what to say instead. A name also counts with further parts, as in
/// `forget_times`.
const RETIRED: &[(&str, &str)] = &[
    ("Chorus", "say Replies"),
    ("Doorman", "say socket timeouts"),
    ("Exchange", "say all-reduce, all-gather or WideCollective"),
    ("Letterhead", "say ResponseHead"),
    ("Lobby", "say Shared"),
    ("Patience", "say socket timeouts"),
    ("Said", "say the whole reply"),
    ("Spelling", "say the text of log-probabilities"),
    ("Talk", "say ChatPrompt"),
    ("forget", "say clear or reset"),
    ("hand_over", "say publish or release"),
    ("look_for", "say poll"),
];

/// Phrases in which a banned word is right, and why. A phrase only counts as whole words.
const PHRASES: &[(&str, &str)] = &[
    ("weight_block_size", "key of a checkpoint's config.json"),
    ("hybrid_block_size", "key of a checkpoint's config.json"),
    ("mxfp4_block_size", "key of a checkpoint's config.json"),
    ("block_size", "key of a drafter's config.json"),
    ("_blocks", "ending of a tensor's name in gpt-oss checkpoints"),
    ("gate_up_proj_blocks", "tensor of gpt-oss checkpoints"),
    ("down_proj_blocks", "tensor of gpt-oss checkpoints"),
    ("content_block", "field of Anthropic's API"),
    ("content_block_start", "event of Anthropic's API"),
    ("content_block_delta", "event of Anthropic's API"),
    ("content_block_stop", "event of Anthropic's API"),
    ("FP8 block", "128 x 128 weights that share a scale"),
    ("FP8 blocks", "128 x 128 weights that share a scale"),
    ("block verification", "name of an accept rule"),
    ("block diffusion", "what DFlash is"),
    ("blockIdx", "CUDA's name"),
    ("blockDim", "CUDA's name"),
    ("blockDimX", "CUDA's name"),
    ("blockDimY", "CUDA's name"),
    ("blockDimZ", "CUDA's name"),
    ("WouldBlock", "name of an error of std::io"),
    ("trim_blocks", "name of an option of Jinja"),
    ("lstrip_blocks", "name of an option of Jinja"),
    ("{% block", "tag of Jinja"),
    ("BlockStart", "token of minijinja"),
    ("CallBlock", "instruction of minijinja"),
    ("LoadBlocks", "instruction of minijinja"),
    ("compiled.blocks", "field of minijinja"),
    ("unsafe block", "Rust's term"),
    ("undocumented_unsafe_blocks", "name of a lint"),
    ("iteration order", "of a map"),
    ("iteration_tokens_total", "series of vLLM"),
    ("num_gpu_blocks", "label of a series of vLLM"),
    ("block_on", "name of a function of tokio"),
];

/// Beginnings of names that say "speculative" where `draft` is the word.
const SPECULATIVE: &[&str] =
    &["spec_accept", "spec_dec", "spec_draft", "spec_len", "spec_step", "spec_tok", "spec_verif"];

/// How vLLM's names of drafts begin, in its series and in the results of its benchmarks, which
/// other programs read.
const SERIES: &str = "spec_decode_";

/// Names that do not say what a module contains.
const EMPTY_NAMES: &[&str] = &["common", "core", "helper", "helpers", "misc", "util", "utils"];

/// Notes of unfinished work, as whole words.
const LEFTOVERS: &[&str] = &["FIXME", "TODO", "XXX"];

/// First folders of paths that exist only on one machine.
const MACHINE_FOLDERS: &[&str] = &["Users", "home", "mnt", "root", "work"];

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in &tree.files {
        let source = matches!(file.extension(), "rs" | "cu" | "cuh" | "h");
        if source || file.extension() == "py" {
            findings.extend(empty_name(file));
        }
        if states_rules(file) {
            continue;
        }
        for (line, text) in file.lines() {
            let mut find = |what| findings.push(Finding::new(&file.path, line, what));
            leftovers(text, &mut find);
            machine_paths(text, &mut find);
            if source {
                banned_words(text, &mut find);
            }
        }
    }
    findings
}

fn empty_name(file: &File) -> Option<Finding> {
    let stem = file.path.rsplit_once('.').map_or("", |(stem, _)| stem);
    let name = stem.split('/').find(|name| EMPTY_NAMES.contains(name));
    let what = |name| format!("`{name}` says nothing: name it for what it holds");
    if let Some(name) = name {
        return Some(Finding::new(&file.path, 1, what(name)));
    }
    file.lines().find_map(|(line, text)| {
        let (_, name) = text.split_once("mod ")?;
        let name = name.strip_suffix(" {")?;
        EMPTY_NAMES.contains(&name).then(|| Finding::new(&file.path, line, what(name)))
    })
}

fn leftovers(text: &str, find: &mut impl FnMut(String)) {
    for word in words(text).filter(|word| LEFTOVERS.contains(word)) {
        find(format!("{word}: do it, or open an issue"));
    }
    for call in ["todo!(", "unimplemented!("] {
        if text.contains(call) {
            find(format!("{call}): do it, or return an error"));
        }
    }
}

fn machine_paths(text: &str, find: &mut impl FnMut(String)) {
    for folder in MACHINE_FOLDERS {
        let path = format!("/{folder}/");
        let mut starts = text.match_indices(&path);
        // Within a longer path or an address, the folder may be another one.
        if starts.any(|(at, _)| !text[..at].ends_with(|c| is_word(c) || "./-}".contains(c))) {
            find(format!("{path} is a path of one machine: say it relative to the repository"));
        }
    }
}

fn banned_words(text: &str, find: &mut impl FnMut(String)) {
    let text = without_phrases(text);
    for word in words(&text) {
        let speculative = SPECULATIVE.iter().any(|start| word.starts_with(start));
        if speculative && !word.starts_with(SERIES) {
            find(format!("`{word}`: say draft"));
        }
        let retired = RETIRED.iter().find(|(name, _)| {
            word.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
        });
        if let Some((_, instead)) = retired {
            find(format!("`{word}`: {instead}"));
        }
        let banned = parts(word)
            .find_map(|part| BANNED.iter().find(|(banned, _)| part.eq_ignore_ascii_case(banned)));
        if let Some((banned, instead)) = banned {
            find(format!("`{banned}` in `{word}`: {instead}"));
        }
    }
}

/// The line without the allowed phrases.
fn without_phrases(line: &str) -> String {
    let mut out = line.to_owned();
    for (phrase, _) in PHRASES {
        let mut from = 0;
        while let Some(at) = find_ignoring_case(&out[from..], phrase) {
            let (start, end) = (from + at, from + at + phrase.len());
            if !out[..start].ends_with(is_word) && !out[end..].starts_with(is_word) {
                out.replace_range(start..end, &" ".repeat(phrase.len()));
            }
            from = end;
        }
    }
    out
}

fn find_ignoring_case(text: &str, phrase: &str) -> Option<usize> {
    // Converting ASCII to lower case keeps every byte's position.
    text.to_ascii_lowercase().find(&phrase.to_ascii_lowercase())
}

/// The parts of a name: `kv_block`, `KvBlock`, `KVBlock` and `block0` all contain `block`.
fn parts(name: &str) -> impl Iterator<Item = &str> {
    let pieces = name.split(|c: char| !c.is_alphabetic());
    pieces.flat_map(|piece| {
        let mut rest = piece;
        std::iter::from_fn(move || {
            let hump = hump_length(rest);
            let (part, after) = rest.split_at(hump);
            rest = after;
            (hump > 0).then_some(part)
        })
    })
}

/// Length of the first hump of a camel-case name.
fn hump_length(name: &str) -> usize {
    let chars: Vec<(usize, char)> = name.char_indices().collect();
    let starts_hump = |i: usize| {
        let upper = |i: usize| chars.get(i).is_some_and(|(_, c)| c.is_uppercase());
        let lower = |i: usize| chars.get(i).is_some_and(|(_, c)| c.is_lowercase());
        upper(i) && (lower(i - 1) || lower(i + 1))
    };
    let next = (1..chars.len()).find(|&i| starts_hump(i));
    next.map_or(name.len(), |i| chars[i].0)
}

#[cfg(test)]
mod tests {
    use super::super::tests::said;
    use super::*;

    fn judge(text: &str) -> Vec<String> {
        said(check, &[("crates/abi/src/a.rs", text)])
    }

    #[test]
    fn names_fall_into_parts() {
        for (name, expected) in [
            ("kv_block", vec!["kv", "block"]),
            ("KVBlockTable", vec!["KV", "Block", "Table"]),
            ("MAX_BLOCKS", vec!["MAX", "BLOCKS"]),
            ("block0", vec!["block"]),
            ("spawn_blocking", vec!["spawn", "blocking"]),
        ] {
            assert_eq!(parts(name).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn banned_words_are_found() {
        assert_eq!(
            judge("let a = kv_block; // per iteration\n"),
            [
                "crates/abi/src/a.rs:1: `block` in `kv_block`: say page, draft, group, CTA or tile",
                "crates/abi/src/a.rs:1: `iteration` in `iteration`: say step"
            ]
        );
        for bad in ["BlockTable", "my_block_size", "Blocks", "tick()", "spec_tokens", "FP8Block"] {
            assert_eq!(judge(bad).len(), 1, "{bad}");
        }
        for good in [
            "\"weight_block_size\"",
            "an fp8 block",
            "blockIdx.x",
            "spec_of",
            "sticky",
            "vllm:spec_decode_num_drafts_total",
        ] {
            assert!(judge(good).is_empty(), "{good}");
        }
        assert!(said(check, &[("tests/a.py", "block = 1\n")]).is_empty());
    }

    #[test]
    fn retired_names_are_found() {
        for bad in ["struct Doorman;", "fn forget_times()", "hand_over(x)", "enum class Exchange"] {
            assert_eq!(judge(bad).len(), 1, "{bad}");
        }
        for good in ["atomicExch(x)", "unforgettable", "Exchanged", "TalkBack"] {
            assert!(judge(good).is_empty(), "{good}");
        }
    }

    #[test]
    fn modules_are_named_for_what_they_hold() {
        let path = "crates/cpu/src/utils/a.rs";
        assert_eq!(
            said(check, &[(path, "")]),
            ["crates/cpu/src/utils/a.rs:1: `utils` says nothing: name it for what it holds"]
        );
        assert_eq!(judge("//! Why.\npub mod helpers {\n").len(), 1);
        assert!(said(check, &[("docs/common.md", ""), ("a/corefile.rs", "")]).is_empty());
    }

    #[test]
    fn nothing_is_left_over() {
        for bad in ["// TODO: more", "// FIXME", "todo!()", "unimplemented!(\"x\")", "XXX"] {
            assert_eq!(judge(bad).len(), 1, "{bad}");
        }
        assert!(judge("TODOS todo methodology").is_empty());
    }

    #[test]
    fn paths_of_one_machine_are_found() {
        for bad in ["see /home/me/x", "\"/root/.cache\"", "cd /work/here"] {
            assert_eq!(judge(bad).len(), 1, "{bad}");
        }
        for good in ["https://example.org/home/x", "a/work/b", "$HOME/work/x", "./root/x"] {
            assert!(judge(good).is_empty(), "{good}");
        }
    }

    #[test]
    fn every_phrase_is_needed() {
        let mut find = |what: String| panic!("{what}");
        for (phrase, _) in PHRASES {
            let banned = words(phrase)
                .flat_map(parts)
                .any(|part| BANNED.iter().any(|(banned, _)| part.eq_ignore_ascii_case(banned)));
            assert!(banned, "{phrase}");
            banned_words(phrase, &mut find);
        }
    }
}
