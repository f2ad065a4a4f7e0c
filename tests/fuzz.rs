//! A short run of every fuzz target on stable Rust: first the unchanged seeds, then a fixed number
//! of mutants of the seeds, the same in every run. Long runs with coverage are in `tests/fuzz`.

#![expect(clippy::unwrap_used, reason = "a test ends at what it did not expect")]
#![expect(unexpected_cfgs, reason = "`fuzzing` is set where libFuzzer drives a target")]

#[path = "fuzz/targets/body.rs"]
mod body;
#[path = "fuzz/targets/config.rs"]
mod config;
#[path = "fuzz/targets/conversation.rs"]
mod conversation;
#[path = "fuzz/targets/generation.rs"]
mod generation;
#[expect(dead_code, reason = "made for the tests of malformed checkpoints")]
#[path = "malformed/good.rs"]
mod good;
#[path = "fuzz/targets/grammar.rs"]
mod grammar;
#[path = "fuzz/targets/header.rs"]
mod header;
#[path = "fuzz/targets/index.rs"]
mod index;
#[path = "fuzz/targets/mask.rs"]
mod mask;
#[path = "fuzz/targets/reply.rs"]
mod reply;
#[path = "fuzz/targets/template.rs"]
mod template;
#[path = "fuzz/targets/tokenizer.rs"]
mod tokenizer;
#[path = "malformed/torch.rs"]
mod torch;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use kilotok_testkit::Random;

/// Most edits of one mutant.
const EDITS_MAX: usize = 4;
/// Most bytes that one edit removes or repeats.
const RUN_MAX: usize = 64;
/// Texts that are most likely to upset parsers of text and numbers.
const TOKENS: [&[u8]; 20] = [
    b"\"",
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"null",
    b"-1",
    b"0",
    b"1e999",
    b"\\ud800",
    b"\0",
    b"\xff",
    b"\xf0\x9f\x98\x80",
    b"18446744073709551616",
    b"{{",
    b"{%",
    b"<|im_end|>",
];

/// Runs a target on its seeds and on this many mutants of them.
#[track_caller]
fn exercise(target: &str, mutant_count: usize, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds").join(target);
    let mut paths: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let seeds: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
    assert!(!seeds.is_empty(), "{target} has no seeds");
    let mut dice = Random::new(1);
    let mutants = (0..mutant_count).map(|_| mutant(&seeds, &mut dice));
    for input in seeds.iter().cloned().chain(mutants) {
        let ran = catch_unwind(AssertUnwindSafe(|| run(&input)));
        assert!(ran.is_ok(), "{target} fails on {:?}", String::from_utf8_lossy(&input));
    }
}

/// A seed with a few edits.
fn mutant(seeds: &[Vec<u8>], dice: &mut Random) -> Vec<u8> {
    let mut bytes = dice.pick(seeds);
    for _ in 0..=dice.below(EDITS_MAX) {
        let at = dice.below(bytes.len() + 1);
        let end = (at + 1 + dice.below(RUN_MAX)).min(bytes.len());
        match dice.below(6) {
            0 if at < bytes.len() => bytes[at] = dice.bits() as u8,
            1 => drop(bytes.drain(at..end)),
            2 => {
                let run = bytes[at..end].to_vec();
                bytes.splice(at..at, run);
            }
            3 => {
                let other = &seeds[dice.below(seeds.len())];
                let from = dice.below(other.len() + 1);
                let to = (from + RUN_MAX).min(other.len());
                bytes.splice(at..end, other[from..to].iter().copied());
            }
            4 => bytes.truncate(at),
            _ => {
                let token = TOKENS[dice.below(TOKENS.len())];
                bytes.splice(at..at, token.iter().copied());
            }
        }
    }
    bytes
}

#[test]
fn bodies_of_every_endpoint() {
    exercise("body", 600, body::run);
}

#[test]
fn configs() {
    exercise("config", 600, config::run);
}

#[test]
fn conversations() {
    exercise("conversation", 300, conversation::run);
}

#[test]
fn generation_configs() {
    exercise("generation", 300, generation::run);
}

#[test]
fn grammars() {
    exercise("grammar", 200, grammar::run);
}

#[test]
fn headers() {
    exercise("header", 600, header::run);
}

#[test]
fn indices() {
    exercise("index", 300, index::run);
}

#[test]
fn masks() {
    exercise("mask", 600, mask::run);
}

#[test]
fn replies() {
    exercise("reply", 600, reply::run);
}

#[test]
fn templates() {
    exercise("template", 300, template::run);
}

#[test]
fn tokenizers() {
    exercise("tokenizer", 300, tokenizer::run);
}
