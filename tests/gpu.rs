//! The GPU engine: it keeps the same promises as every engine, and gives the reference engine's
//! replies. Without a suitable GPU every test says so and passes.
//!
//! The binary finds everything that it needs by itself, so a binary built elsewhere can be copied
//! to a machine with a GPU, a driver and NVRTC. Its tests take turns there, because every engine
//! needs the whole GPU.

#![expect(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

/// Ends a test that needs more GPUs than there are, and says so.
macro_rules! needs_gpus {
    ($count:expr) => {
        if let Some(reason) = crate::absent($count) {
            return println!("skipped: {reason}");
        }
    };
}

#[path = "gpu/distances.rs"]
mod distances;
#[path = "gpu/drafts.rs"]
mod drafts;
#[path = "gpu/law.rs"]
mod law;
#[path = "gpu/numbers.rs"]
mod numbers;
#[path = "gpu/overflow.rs"]
mod overflow;
#[path = "gpu/pair.rs"]
mod pair;
#[path = "gpu/phases.rs"]
mod phases;
#[path = "gpu/plans.rs"]
mod plans;
#[path = "gpu/wide.rs"]
mod wide;
#[path = "gpu/width.rs"]
mod width;

use std::collections::BTreeMap;
use std::fs;
use std::sync::{LazyLock, Mutex};

use kilotok_abi::TokenId;
use kilotok_cpu::{CpuEngine, CpuOptions};
use kilotok_cuda::{CudaEngine, CudaOptions, Found, Toolchain};
use kilotok_engine::Engine;
use kilotok_model::{Knobs, ModelSpec};
use kilotok_testkit::host::{Host, How, Request};
use kilotok_testkit::toy::{Files, steady_prompt};
use kilotok_testkit::{Toy, conformance, take_turn};
use kilotok_weights::{Checkpoint, Quiet, WeightSource};

conformance!(cuda_flash, || cuda(&FLASH, 1), absent(1));
conformance!(cuda_pro, || cuda(&PRO, 1), absent(1));
conformance!(cuda_wide_experts, || cuda(&WIDE_EXPERTS, 1), absent(1));
conformance!(cuda_v2_6_flash, || cuda(&V2_6_FLASH, 1), absent(1));
conformance!(cuda_v2_6_flash_2_ranks, || cuda(&V2_6_FLASH, 2), absent(2));
conformance!(cuda_qwen3_moe, || cuda(&QWEN3_MOE, 1), absent(1));
conformance!(cuda_qwen3_fp8, || cuda(&QWEN3_FP8, 1), absent(1));
conformance!(cuda_gpt_oss, || cuda(&GPT_OSS, 1), absent(1));
conformance!(cuda_gpt_oss_2_ranks, || cuda(&GPT_OSS, 2), absent(2));
conformance!(cuda_qwen3_dense, || cuda(&QWEN3_DENSE, 1), absent(1));
conformance!(cuda_demo, || cuda_of(&DEMO, &long(1)), absent(1));
conformance!(cuda_pro_2_ranks, || cuda(&PRO, 2), absent(2));
conformance!(cuda_pro_4_ranks, || cuda(&PRO, 4), absent(4));
conformance!(cuda_pro_8_ranks, || cuda(&PRO, 8), absent(8));
// With every step in the wide pass; and with only the steps of more than one tile of tokens.
conformance!(cuda_pro_wide, || cuda_wide(&PRO, &wide(1), 0), absent(1));
conformance!(cuda_pro_both, || cuda_wide(&PRO, &wide(1), TILE), absent(1));
conformance!(cuda_pro_both_2_ranks, || cuda_wide(&PRO, &wide(2), TILE), absent(2));
conformance!(cuda_pro_both_8_ranks, || cuda_wide(&PRO, &wide(8), TILE), absent(8));
conformance!(cuda_qwen3_moe_both_2_ranks, || cuda_wide(&QWEN3_MOE, &wide(2), TILE), absent(2));
conformance!(cuda_qwen3_fp8_both, || cuda_wide(&QWEN3_FP8, &wide(1), TILE), absent(1));
conformance!(cuda_gpt_oss_both, || cuda_wide(&GPT_OSS, &wide(1), TILE), absent(1));
conformance!(cuda_v2_6_flash_both, || cuda_wide(&V2_6_FLASH, &wide(1), TILE), absent(1));
conformance!(cuda_demo_both, || cuda_wide(&DEMO, &long_and_wide(1), TILE), absent(1));
conformance!(cuda_demo_2_ranks, || cuda_of(&DEMO, &long(2)), absent(2));
conformance!(cuda_demo_4_ranks, || cuda_of(&DEMO, &long(4)), absent(4));
conformance!(cuda_demo_8_ranks, || cuda_of(&DEMO, &long(8)), absent(8));

static FLASH: LazyLock<Checkpoint> = LazyLock::new(|| toy(&Toy::flash()));
/// No experts nearly tie, so rounding cannot change the result much.
static DENSE: LazyLock<Checkpoint> = LazyLock::new(|| toy(&Toy::dense()));
static PRO_DENSE: LazyLock<Checkpoint> = LazyLock::new(|| toy(&Toy::pro_dense()));
static WIDE: LazyLock<Checkpoint> = LazyLock::new(|| toy(&Toy::wide()));
static PRO: LazyLock<Checkpoint> = LazyLock::new(|| toy(&Toy::pro_fp4()));
static V2_6_FLASH: LazyLock<Checkpoint> = LazyLock::new(|| toy(&Toy::v2_6_flash()));
static WIDE_EXPERTS: LazyLock<Checkpoint> = LazyLock::new(|| toy(&Toy::wide_experts()));
static QWEN3_MOE: LazyLock<Checkpoint> = LazyLock::new(|| toy(&Toy::qwen3_moe_bf16()));
static QWEN3_FP8: LazyLock<Checkpoint> = LazyLock::new(|| toy(&Toy::qwen3_moe()));
static QWEN3_EXPERTS: LazyLock<Checkpoint> = LazyLock::new(|| toy(&Toy::qwen3_experts()));
static GPT_OSS: LazyLock<Checkpoint> = LazyLock::new(|| toy(&Toy::gpt_oss()));
static UNEVEN: LazyLock<Checkpoint> = LazyLock::new(|| toy(&Toy::uneven()));
static QWEN3_DENSE: LazyLock<Checkpoint> = LazyLock::new(|| toy(&Toy::qwen3_dense()));
static DEMO: LazyLock<Checkpoint> = LazyLock::new(demo);

/// Largest relative error of the weights of a model's copy, as in
/// `only_other_experts_make_choices_wrong`. A prompt after which the copy chooses other tokens is
/// not used, since rounding on a GPU could change its tokens too ([`prompt`]).
const OFF_BY: f32 = 0.002;
/// The error for V2.6-Flash, which has a near tie of experts that `OFF_BY` does not reveal.
const V2_6_OFF_BY: f32 = -0.004;
/// Models with experts, each with its copy. gpt-oss has none, because the formats of its weights
/// cannot express the error.
static OFF: LazyLock<[(&LazyLock<Checkpoint>, Checkpoint); 6]> = LazyLock::new(|| {
    let off = |model, of: Toy, by| (model, toy(&of.off_by(by)));
    [
        off(&FLASH, Toy::flash(), OFF_BY),
        off(&PRO, Toy::pro_fp4(), OFF_BY),
        off(&WIDE_EXPERTS, Toy::wide_experts(), OFF_BY),
        off(&V2_6_FLASH, Toy::v2_6_flash(), V2_6_OFF_BY),
        off(&QWEN3_MOE, Toy::qwen3_moe_bf16(), OFF_BY),
        off(&QWEN3_FP8, Toy::qwen3_moe(), OFF_BY),
    ]
});

/// Every model that is used to compare engines.
fn models() -> [(&'static str, &'static Checkpoint); 11] {
    [
        ("dense", &DENSE),
        ("wide", &WIDE),
        ("flash", &FLASH),
        ("pro", &PRO),
        ("wide experts", &WIDE_EXPERTS),
        ("v2.6 flash", &V2_6_FLASH),
        ("qwen3 moe", &QWEN3_MOE),
        ("qwen3 fp8", &QWEN3_FP8),
        ("qwen3 dense", &QWEN3_DENSE),
        ("gpt-oss", &GPT_OSS),
        ("demo", &DEMO),
    ]
}

/// Lead of the likeliest token over the next one in replies that both engines must give.
const GAP: f32 = 0.2;
/// Prompts of several windows. The longer one has more keys than attention processes in one chunk.
const PROMPT_LENS: [usize; 2] = [70, 400];
/// Tokens of a tile, and of a step of the wide pass.
const TILE: u32 = 8;
const WIDE_TOKENS: u32 = 256;
/// Tokens of the replies that are compared.
const TOKENS: u32 = 12;

/// Compiled kernels are kept from one run to the next.
fn toolchain() -> Toolchain {
    let cache = std::env::temp_dir().join("kilotok-test-kernels");
    Toolchain { cache: Some(cache), prefixes: Vec::new() }
}

/// The reason why this many ranks cannot run here, if they cannot. Otherwise the GPUs are the
/// calling thread's until it ends.
fn absent(rank_count: usize) -> Option<String> {
    // `Found` holds the GPUs' contexts. Creating those of eight GPUs takes seconds, so tests share
    // them.
    static FOUND: Mutex<BTreeMap<usize, Result<Found, String>>> = Mutex::new(BTreeMap::new());
    let mut found = FOUND.lock().unwrap();
    let reason =
        found.entry(rank_count).or_insert_with(|| look(rank_count)).as_ref().err().cloned();
    drop(found);
    if reason.is_none() {
        take_turn();
    }
    reason
}

fn look(rank_count: usize) -> Result<Found, String> {
    let found = Found::look(rank_count, &toolchain()).map_err(|error| error.to_string())?;
    found.compiler.as_ref().map_err(ToString::to_string)?;
    Ok(found)
}

/// Opens a toy. Its files stay until the checkpoint is closed.
fn toy(toy: &Toy) -> Checkpoint {
    let folder = tempfile::tempdir().unwrap();
    toy.write(folder.path(), Files::One).unwrap();
    Checkpoint::open(folder.path(), &Knobs::default()).unwrap()
}

fn demo() -> Checkpoint {
    demo_with(&Knobs::default())
}

fn demo_with(knobs: &Knobs) -> Checkpoint {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in kilotok_demo::FILES {
        let file = folder.path().join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, bytes).unwrap();
    }
    Checkpoint::open(folder.path(), knobs).unwrap()
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

/// For a model whose windows are longer than those of the toys.
fn long(rank_count: usize) -> CpuOptions {
    CpuOptions { position_max: 2048, page_count: 8192, ..sizes(rank_count) }
}

/// For steps with more tokens than the narrow pass takes.
fn wide(rank_count: usize) -> CpuOptions {
    CpuOptions { token_max: WIDE_TOKENS, ..sizes(rank_count) }
}

fn long_and_wide(rank_count: usize) -> CpuOptions {
    CpuOptions { token_max: WIDE_TOKENS, ..long(rank_count) }
}

fn cpu(checkpoint: &Checkpoint) -> Box<dyn Engine> {
    Box::new(CpuEngine::start(checkpoint.spec(), checkpoint, &sizes(1), &Quiet).unwrap())
}

fn cuda(checkpoint: &Checkpoint, rank_count: usize) -> Box<dyn Engine> {
    cuda_of(checkpoint, &sizes(rank_count))
}

fn cuda_of(checkpoint: &Checkpoint, sizes: &CpuOptions) -> Box<dyn Engine> {
    cuda_from(checkpoint.spec(), checkpoint, sizes)
}

fn cuda_from(spec: &ModelSpec, source: &dyn WeightSource, sizes: &CpuOptions) -> Box<dyn Engine> {
    cuda_with(spec, source, sizes, None)
}

/// An engine that runs steps of more than `wide_above` tokens with the wide pass.
fn cuda_wide(checkpoint: &Checkpoint, sizes: &CpuOptions, wide_above: u32) -> Box<dyn Engine> {
    let engine = cuda_with(checkpoint.spec(), checkpoint, sizes, Some(wide_above));
    assert_eq!(engine.caps().wide_from, Some(wide_above + 1), "the wide pass runs this model");
    engine
}

fn cuda_with(
    spec: &ModelSpec,
    source: &dyn WeightSource,
    sizes: &CpuOptions,
    wide_above: Option<u32>,
) -> Box<dyn Engine> {
    Box::new(start_cuda(spec, source, sizes, wide_above))
}

fn start_cuda(
    spec: &ModelSpec,
    source: &dyn WeightSource,
    sizes: &CpuOptions,
    wide_above: Option<u32>,
) -> CudaEngine {
    let (sizes, toolchain) = (sizes.clone(), toolchain());
    let options = CudaOptions { sizes, toolchain, wide_above, ..CudaOptions::default() };
    let tell = |line: &str| eprintln!("{line}");
    let engine = CudaEngine::start(spec, source, &options, &Quiet, &tell);
    engine.unwrap_or_else(|error| panic!("{error}"))
}

/// A prompt after which the likeliest tokens lead clearly, even if weights are slightly off. So no
/// token is so near a tie of two experts that rounding sends it to the other one.
fn prompt(checkpoint: &Checkpoint, length: usize) -> Vec<TokenId> {
    let mut engines = vec![cpu(checkpoint)];
    let off = OFF.iter().find(|(model, _)| std::ptr::eq(&raw const ***model, checkpoint));
    engines.extend(off.map(|(_, off)| cpu(off)));
    steady_prompt(&mut engines, length, TOKENS, GAP).unwrap().expect("a steady prompt")
}

/// This needs no GPU: it checks that every model has steady prompts.
#[test]
fn there_are_steady_prompts() {
    for (_, checkpoint) in models() {
        for length in PROMPT_LENS {
            assert_eq!(prompt(checkpoint, length).len(), length);
        }
    }
}

#[test]
fn replies_are_the_references() {
    needs_gpus!(1);
    for (name, checkpoint) in models() {
        for length in PROMPT_LENS {
            let request = Request::greedy(prompt(checkpoint, length), TOKENS);
            let [expected, found] = [cpu(checkpoint), cuda(checkpoint, 1)].map(|mut engine| {
                Host::new(&mut *engine, 0).run(&request, &How::default()).unwrap().tokens
            });
            assert_eq!(found, expected, "{name} after {length} tokens");
        }
    }
}
