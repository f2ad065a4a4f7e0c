//! The GPU engine: the same promises as every engine, and the reference engine's replies. Where
//! there is no GPU that it runs on, every test says so and passes.
//!
//! The binary finds all it needs by itself, so that one built elsewhere can be brought to a machine
//! with a GPU, driver and NVRTC. Run it there with `--test-threads=1`: every engine wants the GPU
//! for itself.

#![expect(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use kilotok_abi::TokenId;
use kilotok_cpu::{CpuEngine, CpuOptions};
use kilotok_cuda::{CudaEngine, CudaOptions, Found, Toolchain};
use kilotok_engine::Engine;
use kilotok_model::Knobs;
use kilotok_testkit::host::{Drafts, Host, How, Reply, Request};
use kilotok_testkit::toy::{Files, steady_prompt};
use kilotok_testkit::{Toy, conformance};
use kilotok_weights::{Checkpoint, Quiet};

conformance!(cuda_flash, || cuda(&FLASH, 1), absent(1));
conformance!(cuda_pro, || cuda(&PRO, 1), absent(1));
conformance!(cuda_pro_2_ranks, || cuda(&PRO, 2), absent(2));

static FLASH: LazyLock<Checkpoint> = LazyLock::new(|| toy(&Toy::flash()));
static PRO: LazyLock<Checkpoint> = LazyLock::new(|| toy(&Toy::pro_fp4()));
static DEMO: LazyLock<Checkpoint> = LazyLock::new(demo);

/// How far log-probabilities of the two engines may be apart. The GPU rounds activations to BF16,
/// 2^-9 of each value, before every product and in its pages; the toys' logits are of the order of
/// 10, and a few layers add up.
const TOLERANCE: f32 = 0.05;
/// How far the likeliest token is ahead of the next in replies that both must give.
const GAP: f32 = 0.2;

/// Compiled kernels stay from one run to the next.
fn toolchain() -> Toolchain {
    let cache = std::env::temp_dir().join("kilotok-test-kernels");
    Toolchain { cache: Some(cache), prefixes: Vec::new() }
}

/// Why so many ranks cannot run here, if so.
fn absent(rank_count: usize) -> Option<String> {
    static ONE: LazyLock<Option<String>> = LazyLock::new(|| reason(1));
    if rank_count == 1 { ONE.clone() } else { ONE.clone().or_else(|| reason(rank_count)) }
}

fn reason(rank_count: usize) -> Option<String> {
    Found::look(rank_count, &toolchain()).err().map(|error| error.to_string())
}

/// Its files stay until it is closed.
fn toy(toy: &Toy) -> Checkpoint {
    let folder = tempfile::tempdir().unwrap();
    toy.write(folder.path(), Files::One).unwrap();
    open(folder.path())
}

fn demo() -> Checkpoint {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in kilotok_demo::FILES {
        let file = folder.path().join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, bytes).unwrap();
    }
    open(folder.path())
}

fn open(folder: &Path) -> Checkpoint {
    Checkpoint::open(folder, &Knobs::default()).unwrap()
}

fn sizes(rank_count: usize) -> CpuOptions {
    CpuOptions {
        rank_count,
        slot_count: 16,
        token_max: kilotok_cuda::TOKENS_MAX,
        position_max: 512,
        page_tokens: 8,
        page_count: 256,
    }
}

fn cpu(checkpoint: &Checkpoint) -> Box<dyn Engine> {
    Box::new(CpuEngine::start(checkpoint.spec(), checkpoint, &sizes(1), &Quiet).unwrap())
}

fn cuda(checkpoint: &Checkpoint, rank_count: usize) -> Box<dyn Engine> {
    let options = CudaOptions { sizes: sizes(rank_count), toolchain: toolchain() };
    let tell = |line: &str| eprintln!("{line}");
    let engine = CudaEngine::start(checkpoint.spec(), checkpoint, &options, &Quiet, &tell);
    Box::new(engine.unwrap_or_else(|error| panic!("{error}")))
}

/// Replies of the reference and of GPUs to a prompt after which the likeliest tokens are far ahead.
fn replies(checkpoint: &Checkpoint, rank_count: usize) -> [Reply; 2] {
    let prompt: Vec<TokenId> = steady_prompt(&mut *cpu(checkpoint), 70, 16, GAP).unwrap().unwrap();
    let request = Request { score: true, ..Request::greedy(prompt, 16) };
    [cpu(checkpoint), cuda(checkpoint, rank_count)]
        .map(|mut engine| Host::new(&mut *engine, 0).run(&request, &How::default()).unwrap())
}

#[test]
fn replies_are_the_references() {
    if let Some(reason) = absent(1) {
        return println!("skipped: {reason}");
    }
    for (name, checkpoint) in [("flash", &*FLASH), ("pro", &*PRO), ("demo", &*DEMO)] {
        let [reference, gpu] = replies(checkpoint, 1);
        println!("{name}: {}", furthest(&reference, &gpu));
        reference.near(&gpu, TOLERANCE).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn ranks_agree() {
    for count in [2, 4, 8] {
        if let Some(reason) = absent(count) {
            return println!("skipped from {count} ranks on: {reason}");
        }
        let [reference, gpu] = replies(&PRO, count);
        println!("{count} ranks: {}", furthest(&reference, &gpu));
        reference.near(&gpu, TOLERANCE).unwrap_or_else(|error| panic!("{count} ranks: {error}"));
    }
}

/// The largest distance between log-probabilities of the same tokens.
fn furthest(one: &Reply, other: &Reply) -> f32 {
    let one = one.logprobs.iter().chain(&one.scored);
    let pairs = one.zip(other.logprobs.iter().chain(&other.scored));
    let same = pairs.filter(|(a, b)| a.chosen.token == b.chosen.token);
    same.map(|(a, b)| (a.chosen.logprob - b.chosen.logprob).abs()).fold(0.0, f32::max)
}

/// Drafts are guesses, and a near tie may fall to another token; but a drafter that computes
/// something else is hardly ever right.
#[test]
fn drafts_are_as_good_as_the_references() {
    if let Some(reason) = absent(1) {
        return println!("skipped: {reason}");
    }
    for (name, checkpoint) in [("flash", &*FLASH), ("pro", &*PRO)] {
        let request = Request::greedy((0..60).map(|i| i * 37 % 250).collect(), 64);
        let how = How { drafts: Drafts::Held { made: 7, used: 7 }, ..How::default() };
        let rows = [cpu(checkpoint), cuda(checkpoint, 1)]
            .map(|mut engine| Host::new(&mut *engine, 0).run(&request, &how).unwrap().sampled_rows);
        println!("{name}: {rows:?} rows for 64 tokens");
        assert!(rows[0].abs_diff(rows[1]) <= 8, "{name}: {rows:?} rows for 64 tokens");
    }
}
