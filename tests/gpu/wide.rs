//! Compares the wide pass with the narrow one. Whichever pass computes a prompt, in chunks of any
//! length, the reply must have the same bits, and so must the pages that it reads and the drafter's
//! context.

use kilotok_abi::TokenId;
use kilotok_cpu::CpuOptions;
use kilotok_engine::{Engine, difference};
use kilotok_testkit::Random;
use kilotok_testkit::host::{Drafts, Host, How, Reply, Request, some};
use kilotok_weights::Checkpoint;

use crate::{
    DEMO, GPT_OSS, PRO, PRO_DENSE, QWEN3_DENSE, QWEN3_EXPERTS, QWEN3_FP8, QWEN3_MOE, TILE,
    V2_6_FLASH, WIDE_EXPERTS, cuda_wide, long_and_wide, sizes, start_cuda, wide,
};

/// Tokens of the prompt: more than twice the number that a CTA of the wide pass multiplies, more
/// than a chunk of keys, and not a multiple of a tile.
const PROMPT: usize = 203;
/// Tokens of the reply.
const TOKENS: u32 = 4;
/// Number of tokens above which steps take the wide pass, and prompt tokens of a row. In the first
/// case all steps take the wide pass; in the second only steps with prompts do, except those with
/// few tokens.
const CASES: [(u32, &[u32]); 2] = [(0, &[u32::MAX, 65]), (TILE, &[128, 7])];
/// Number of requests that decode together: more than the narrow pass and the head take at a time,
/// and several of each kind.
const ROWS: u32 = 80;
const KINDS: usize = 5;

fn engine(checkpoint: &Checkpoint, ranks: usize, wide_above: u32) -> Box<dyn Engine> {
    cuda_wide(checkpoint, &CpuOptions { slot_count: ROWS, ..wide(ranks) }, wide_above)
}

fn prompt(checkpoint: &Checkpoint, seed: u64, length: usize) -> Request {
    let draw = &mut Random::new(seed);
    let last = checkpoint.spec().vocab_size as u32 - 1;
    let prompt = (0..length).map(|_| draw.between(0, last)).collect();
    Request { score: true, ..Request::greedy(prompt, TOKENS) }
}

/// With drafts, if the model has a drafter.
fn how(engine: &dyn Engine, chunk: u32) -> How {
    let made = if engine.caps().drafter { engine.caps().draft_max } else { 0 };
    How { chunk, drafts: Drafts::Held { made, used: made }, ..How::default() }
}

fn reply(engine: &mut dyn Engine, request: &Request, chunk: u32) -> Reply {
    let how = how(engine, chunk);
    Host::new(engine, 0).run(request, &how).unwrap()
}

fn same(expected: &Reply, found: &Reply, what: &str) {
    assert_eq!(difference(expected, found), None, "{what}");
    assert_eq!(expected.drafts, found.drafts, "{what}: drafts");
}

fn compare(name: &str, checkpoint: &Checkpoint, ranks: usize, cases: &[(u32, &[u32])]) {
    needs_gpus!(ranks);
    // If a prompt is not scored, only its last token's logits are wanted, or none of a chunk's.
    let scored = prompt(checkpoint, 3, PROMPT);
    let requests = [Request { score: false, ..scored.clone() }, scored];
    let mut narrow = crate::cuda(checkpoint, ranks);
    let expected = requests.each_ref().map(|request| reply(&mut *narrow, request, u32::MAX));
    drop(narrow);
    for (wide_above, chunks) in cases {
        let mut engine = engine(checkpoint, ranks, *wide_above);
        for (request, expected) in requests.iter().zip(&expected) {
            for &chunk in *chunks {
                let found = reply(&mut *engine, request, chunk);
                same(expected, &found, &format!("{name} by {chunk}, wide above {wide_above}"));
            }
        }
    }
}

/// For emulated GPUs: a prompt of an odd number of tokens in one chunk, in other pages.
fn compare_few(name: &str, checkpoint: &Checkpoint, prompt: Vec<TokenId>) {
    needs_gpus!(1);
    let sizes = CpuOptions { token_max: prompt.len() as u32, ..sizes(1) };
    let request = Request::greedy(prompt, 2);
    let expected = reply(&mut *crate::cuda(checkpoint, 1), &request, u32::MAX);
    let mut engine = cuda_wide(checkpoint, &sizes, TILE);
    let how = how(&*engine, u32::MAX);
    let found = Host::new(&mut *engine, 1).run(&request, &how).unwrap();
    same(&expected, &found, name);
}

/// A model of each kind; the first two have a dense network too.
#[test]
fn few_wide_steps_have_the_narrow_passes_bits() {
    const LENGTH: usize = 75;
    for (name, checkpoint) in [
        ("wide experts", &WIDE_EXPERTS),
        ("v2.6 flash", &V2_6_FLASH),
        ("qwen3 moe", &QWEN3_MOE),
        ("qwen3 fp8", &QWEN3_FP8),
        ("gpt-oss", &GPT_OSS),
    ] {
        compare_few(name, checkpoint, prompt(checkpoint, 3, LENGTH).prompt);
    }
}

/// All tokens are the same, so some experts have all of them, and others none.
#[test]
fn few_wide_steps_of_few_experts_have_the_narrow_passes_bits() {
    /// Two runs of 96 rows, and one of 79, of 80 columns, the last of which were once left out.
    const LENGTH: usize = 271;
    compare_few("qwen3 fp8", &QWEN3_FP8, vec![3; LENGTH]);
}

#[test]
fn wide_steps_of_dense_layers_have_the_narrow_passes_bits() {
    compare("pro dense", &PRO_DENSE, 1, &CASES);
    compare("qwen3 dense", &QWEN3_DENSE, 1, &CASES);
}

#[test]
fn wide_steps_of_experts_have_the_narrow_passes_bits() {
    compare("pro", &PRO, 1, &CASES);
    compare("wide experts", &WIDE_EXPERTS, 1, &CASES);
}

#[test]
fn wide_steps_of_families_have_the_narrow_passes_bits() {
    compare("qwen3 moe", &QWEN3_MOE, 1, &CASES);
    compare("qwen3 fp8", &QWEN3_FP8, 1, &CASES[1..]);
    compare("qwen3 moe", &QWEN3_MOE, 2, &CASES[1..]);
    compare("v2.6 flash", &V2_6_FLASH, 1, &CASES);
}

#[test]
fn wide_steps_have_the_bits_of_the_kernel_for_one_token() {
    compare("qwen3 experts", &QWEN3_EXPERTS, 1, &CASES);
}

#[test]
fn wide_steps_of_the_demo_have_the_narrow_passes_bits() {
    compare("demo", &DEMO, 1, &CASES[1..]);
}

#[test]
fn wide_steps_of_gpt_oss_have_the_narrow_passes_bits() {
    compare("gpt-oss", &GPT_OSS, 1, &CASES);
    compare("gpt-oss", &GPT_OSS, 2, &CASES[1..]);
}

#[test]
fn wide_ranks_of_2_have_the_narrow_passes_bits() {
    compare("pro", &PRO, 2, &CASES);
    compare("pro dense", &PRO_DENSE, 2, &CASES[1..]);
}

#[test]
fn wide_ranks_of_4_have_the_narrow_passes_bits() {
    compare("pro", &PRO, 4, &CASES[1..]);
}

#[test]
fn wide_ranks_of_8_have_the_narrow_passes_bits() {
    compare("pro", &PRO, 8, &CASES[1..]);
}

#[test]
fn wide_rows_have_the_narrow_passes_bits() {
    needs_gpus!(1);
    let requests: Vec<_> = (0..KINDS).map(|kind| prompt(&PRO, kind as u64, 3 + kind)).collect();
    let mut narrow = crate::cuda(&PRO, 1);
    let expected: Vec<_> =
        requests.iter().map(|request| reply(&mut *narrow, request, u32::MAX)).collect();
    drop(narrow);
    let mut engine = engine(&PRO, 1, TILE);
    assert_eq!(engine.caps().row_max, ROWS);
    let how = how(&*engine, u32::MAX);
    let jobs: Vec<_> = requests.iter().cycle().take(ROWS as usize).map(|of| (of, &how)).collect();
    let found = Host::new(&mut *engine, 0).run_all(&jobs).unwrap();
    // Which drafts are reported depends on how many of them fit into a step.
    for (index, found) in found.iter().enumerate() {
        assert_eq!(difference(&expected[index % KINDS], found), None, "row {index}");
    }
}

/// In a long context a CTA has more than two chunks of keys, on the emulator's few multiprocessors:
/// then warps attend chunks of their own.
#[test]
fn the_kernel_for_one_token_has_the_wide_passes_bits_in_a_long_context() {
    const LENGTH: usize = 700;
    needs_gpus!(1);
    for (name, checkpoint) in [("gpt-oss", &GPT_OSS), ("qwen3 experts", &QWEN3_EXPERTS)] {
        let how = How { drafts: Drafts::Held { made: 0, used: 0 }, ..How::default() };
        let request = prompt(checkpoint, 5, LENGTH);
        let [expected, found] = [0, TILE].map(|above| {
            let mut engine = cuda_wide(checkpoint, &long_and_wide(1), above);
            Host::new(&mut *engine, 0).run(&request, &how).unwrap()
        });
        assert_eq!(difference(&expected, &found), None, "{name}");
    }
}

/// Without drafts a step of users has one token of each row, which small models attend in other
/// ways than longer rows.
fn compare_users(steps: &[(u32, usize)], lengths: &[usize], token_max: u32) {
    needs_gpus!(1);
    for (name, checkpoint) in [("gpt-oss", &GPT_OSS), ("qwen3 fp8", &QWEN3_FP8)] {
        let how = How { drafts: Drafts::Held { made: 0, used: 0 }, ..How::default() };
        let request =
            |&length: &usize| Request { token_max, ..prompt(checkpoint, length as u64, length) };
        let requests: Vec<_> = lengths.iter().map(request).collect();
        let mut alone = crate::cuda(checkpoint, 1);
        let mut run = |request| Host::new(&mut *alone, 0).run(request, &how).unwrap();
        let expected: Vec<_> = requests.iter().map(&mut run).collect();
        drop(alone);
        for &(wide_above, users) in steps {
            let mut engine = engine(checkpoint, 1, wide_above);
            let jobs: Vec<_> = requests.iter().cycle().take(users).map(|of| (of, &how)).collect();
            let found = Host::new(&mut *engine, 0).run_all(&jobs).unwrap();
            for (index, found) in found.iter().enumerate() {
                let difference = difference(&expected[index % expected.len()], found);
                assert_eq!(difference, None, "{name}, {users} users, user {index}");
            }
        }
    }
}

#[test]
fn steps_of_users_have_the_bits_of_a_user_alone() {
    // In the kernel for one tile of tokens, in that for more, and in the wide pass. Some prompts
    // are longer than a chunk of keys.
    const NARROW: u32 = 64;
    let steps = [(TILE, 7), (NARROW, 20), (TILE, 20)];
    compare_users(&steps, &[2, 9, 40, 130, 150], TOKENS);
}

/// For emulated GPUs: in the wide pass.
#[test]
fn steps_of_few_users_have_the_bits_of_a_user_alone() {
    compare_users(&[(TILE, 17)], &[2, 9, 40], 2);
}

/// Of the drafter's keys and values, those that no later row may read are not computed. They are
/// NaN here, so drafts would differ if they were read. Of three spans of tokens, later rows read
/// the first, in which a prefix ends that another request continues, and the last.
fn compare_context(checkpoint: &Checkpoint, ranks: usize) {
    const LENGTH: usize = 290;
    const LENT: usize = 20;
    needs_gpus!(ranks);
    let request = Request { mask: Some(some), score: false, ..prompt(checkpoint, 7, LENGTH) };
    let own = prompt(checkpoint, 8, LENGTH).prompt;
    let other = [&request.prompt[..LENT], &own[LENT..]].concat();
    let other = Request { prompt: other, ..request.clone() };
    let mut narrow = crate::cuda(checkpoint, ranks);
    let expected = [&request, &other].map(|request| reply(&mut *narrow, request, u32::MAX));
    assert!(expected.iter().all(|reply| !reply.drafts.is_empty()), "drafts are compared");
    drop(narrow);
    let sizes = CpuOptions { token_max: LENGTH as u32, ..sizes(ranks) };
    let mut engine = start_cuda(checkpoint.spec(), checkpoint, &sizes, Some(TILE));
    engine.spoil_context().unwrap();
    let how = How { keep: Some(LENT as u32), ..how(&engine, u32::MAX) };
    let mut host = Host::new(&mut engine, 0);
    let found = host.run(&request, &how).unwrap();
    same(&expected[0], &found, "the first request");
    // In two chunks, the second of which has fewer spans.
    let how = How { prefix: found.kept, keep: None, chunk: 200, ..how };
    same(&expected[1], &host.run(&other, &how).unwrap(), "the other, from its prefix on");
}

#[test]
fn a_context_that_nobody_reads_is_not_computed() {
    compare_context(&PRO, 1);
}

#[test]
fn wide_ranks_of_2_compute_no_context_that_nobody_reads() {
    compare_context(&PRO, 2);
}

#[test]
fn wide_ranks_of_8_compute_no_context_that_nobody_reads() {
    compare_context(&PRO, 8);
}
