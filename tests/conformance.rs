//! Checks every engine against every promise of the conformance kit, with one line per engine. Then
//! come checks for which the kit would need several engines: that a model is the same on any number
//! of ranks and in any format, and that recorded steps give the recorded outputs.

#![expect(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;
use std::sync::LazyLock;

use kilotok_abi::{Sampling, TokenId};
use kilotok_cpu::{CpuEngine, CpuOptions};
use kilotok_engine::Engine;
use kilotok_engine::trace::{Header, Recorded, Trace, read, replay, write};
use kilotok_model::Knobs;
use kilotok_testkit::host::{Drafts, Host, How, Reply, Request};
use kilotok_testkit::toy::{Files, steady_prompt};
use kilotok_testkit::{DraftAccuracy, ScriptedEngine, Toy, conformance};
use kilotok_weights::{Checkpoint, Quiet};

conformance!(scripted, || scripted(DraftAccuracy::Percent(70)));
conformance!(cpu_flash, || cpu(&FLASH, 1));
conformance!(cpu_flash_2_ranks, || cpu(&FLASH, 2));
conformance!(cpu_pro, || cpu(&PRO, 1));
conformance!(cpu_pro_2_ranks, || cpu(&PRO, 2));
conformance!(cpu_v2_6_flash, || cpu(&V2_6_FLASH, 1));
conformance!(cpu_v2_6_flash_2_ranks, || cpu(&V2_6_FLASH, 2));
conformance!(cpu_qwen3_moe, || cpu(&QWEN3_MOE, 1));
conformance!(cpu_qwen3_moe_2_ranks, || cpu(&QWEN3_MOE, 2));
conformance!(cpu_qwen3_dense, || cpu(&QWEN3_DENSE, 1));
conformance!(cpu_gpt_oss, || cpu(&GPT_OSS, 1));
conformance!(cpu_gpt_oss_2_ranks, || cpu(&GPT_OSS, 2));

static FLASH: LazyLock<Checkpoint> = LazyLock::new(|| open(&Toy::flash(), Files::One));
static PRO: LazyLock<Checkpoint> = LazyLock::new(|| open(&Toy::pro_fp4(), Files::Sharded(3)));
static V2_6_FLASH: LazyLock<Checkpoint> = LazyLock::new(|| open(&Toy::v2_6_flash(), Files::One));
static QWEN3_MOE: LazyLock<Checkpoint> = LazyLock::new(|| open(&Toy::qwen3_moe(), Files::One));
static QWEN3_DENSE: LazyLock<Checkpoint> = LazyLock::new(|| open(&Toy::qwen3_dense(), Files::One));
static GPT_OSS: LazyLock<Checkpoint> = LazyLock::new(|| open(&Toy::gpt_oss(), Files::Sharded(2)));

/// Tolerance of log-probabilities of engines that differ only in the order of F32 sums.
const TOLERANCE: f32 = 2e-5;
/// Lead of the likeliest token over the next one in replies that are used to compare engines.
const GAP: f32 = 0.05;

fn scripted(skill: DraftAccuracy) -> Box<dyn Engine> {
    Box::new(ScriptedEngine::new(ScriptedEngine::caps(), skill))
}

/// Writes the toy to a folder, which is removed once the checkpoint is open; the files stay until
/// the checkpoint is closed.
fn open(toy: &Toy, files: Files) -> Checkpoint {
    let folder = tempfile::tempdir().unwrap();
    toy.write(folder.path(), files).unwrap();
    Checkpoint::open(folder.path(), &Knobs::default()).unwrap()
}

fn cpu(checkpoint: &Checkpoint, rank_count: usize) -> Box<dyn Engine> {
    let options = CpuOptions {
        rank_count,
        slot_count: 16,
        token_max: 192,
        position_max: 512,
        page_tokens: 8,
        page_count: 256,
    };
    Box::new(CpuEngine::start(checkpoint.spec(), checkpoint, &options, &Quiet).unwrap())
}

/// A prompt of several windows after which the likeliest tokens lead clearly.
fn prompt(checkpoint: &Checkpoint) -> Vec<TokenId> {
    steady_prompt(&mut [cpu(checkpoint, 1)], 70, 16, GAP).unwrap().unwrap()
}

fn reply(checkpoint: &Checkpoint, rank_count: usize, prompt: &[TokenId]) -> Reply {
    let request = Request { score: true, ..Request::greedy(prompt.to_vec(), 16) };
    Host::new(&mut *cpu(checkpoint, rank_count), 0).run(&request, &How::default()).unwrap()
}

#[test]
fn ranks_agree() {
    let of_families: [(&Checkpoint, &[usize]); 4] =
        [(&FLASH, &[2, 4, 8]), (&PRO, &[2, 4, 8]), (&QWEN3_MOE, &[2, 4, 8]), (&GPT_OSS, &[2])];
    for (checkpoint, counts) in of_families {
        let prompt = prompt(checkpoint);
        let alone = reply(checkpoint, 1, &prompt);
        for &count in counts {
            let shared = reply(checkpoint, count, &prompt);
            alone.near(&shared, TOLERANCE).unwrap_or_else(|e| panic!("{count} ranks: {e}"));
        }
    }
}

#[test]
fn formats_agree() {
    let (fused, split) = (Toy::pro_fp4().float_twin(), Toy::pro_fp4().split_twin());
    let twins = [open(&fused, Files::One), open(&split, Files::Sharded(2))];
    let prompt = prompt(&PRO);
    for count in [1, 2, 4, 8] {
        let quantised = reply(&PRO, count, &prompt);
        for (twin, name) in twins.iter().zip([fused.name, split.name]) {
            let floats = reply(twin, count, &prompt);
            let near = quantised.near(&floats, TOLERANCE);
            near.unwrap_or_else(|e| panic!("{name} on {count} ranks: {e}"));
        }
    }
}

#[test]
fn formats_of_qwen3_moe_agree() {
    let twin = open(&Toy::qwen3_moe().float_twin(), Files::One);
    let prompt = prompt(&QWEN3_MOE);
    for count in [1, 4] {
        let quantised = reply(&QWEN3_MOE, count, &prompt);
        quantised.near(&reply(&twin, count, &prompt), TOLERANCE).unwrap();
    }
}

/// The toys' drafters are sometimes right, so that the promises about drafts are tested.
#[test]
fn drafts_are_accepted_now_and_then() {
    for checkpoint in [&*FLASH, &*PRO] {
        let request = Request::greedy((0..60).map(|i| i * 37 % 250).collect(), 64);
        let how = How { drafts: Drafts::Held { made: 7, used: 7 }, ..How::default() };
        let reply = Host::new(&mut *cpu(checkpoint, 1), 0).run(&request, &how).unwrap();
        assert!((16..56).contains(&reply.sampled_rows), "{} rows", reply.sampled_rows);
    }
}

fn traces() -> impl Iterator<Item = (&'static str, Header)> {
    let toys = [("flash", 1), ("pro_fp4", 1), ("pro_fp4", 2)];
    let files = ["flash.jsonl", "pro_fp4.jsonl", "pro_fp4_2_ranks.jsonl"];
    let scripted = std::iter::once(("scripted.jsonl", Header::new("scripted", 1)));
    scripted.chain(files.into_iter().zip(toys.map(|(toy, ranks)| Header::new(toy, ranks))))
}

fn engine(header: &Header) -> Box<dyn Engine> {
    match header.model.as_str() {
        "scripted" => scripted(DraftAccuracy::Percent(70)),
        "flash" => cpu(&FLASH, header.ranks as usize),
        "pro_fp4" => cpu(&PRO, header.ranks as usize),
        other => panic!("no engine for {other}"),
    }
}

#[test]
fn traces_replay() {
    for (file, header) in traces() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/traces").join(file);
        let trace = read(BufReader::new(File::open(path).unwrap())).unwrap();
        let mut engine = engine(&header);
        assert_eq!(trace.header, Header { caps: Some(engine.caps().clone()), ..header });
        replay(&mut *engine, &trace).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
}

/// Run this with `--ignored` when the format of plans changes; the tokens must not change.
#[test]
#[ignore = "rewrites tests/traces"]
fn rewrite_traces() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/traces");
    fs::create_dir_all(&folder).unwrap();
    for (file, header) in traces() {
        let trace = record(engine(&header), header);
        write(&trace, File::create(folder.join(file)).unwrap()).unwrap();
    }
}

/// Four requests: chunked, drafted, masked, preempted. The log-probabilities of a model are not
/// recorded, because their last bits depend on the machine.
fn record(engine: Box<dyn Engine>, header: Header) -> Trace {
    let mut engine = Recorded::new(engine);
    let text = |seed: u32| (0..30 + seed).map(|i| (i * i * 7 + i * seed * 31) % 250).collect();
    let mut requests: Vec<_> = (1..5).map(|seed| Request::greedy(text(seed), 12)).collect();
    requests[1].setup.sampling =
        Sampling { seed: 5, temperature: 0.8, top_p: 0.9, ..Sampling::GREEDY };
    requests[2].setup.sampling.repetition_penalty = 1.3;
    requests[3].mask = Some(|known, vocab_size| {
        let word = if known.len().is_multiple_of(2) { 0x3333_3333 } else { 0xf0f0_f0f0 };
        vec![word; vocab_size.div_ceil(32) as usize]
    });
    let drafts = Drafts::Held { made: 5, used: 4 };
    let how = |joins| How { joins, chunk: 17, drafts: drafts.clone(), ..How::default() };
    let mut hows: Vec<_> = (0..4).map(how).collect();
    hows[2].preempt = vec![4];
    let jobs: Vec<_> = requests.iter().zip(&hows).collect();
    Host::new(&mut engine, 2).run_all(&jobs).unwrap();
    let mut trace = engine.into_trace(header);
    if trace.header.model != "scripted" {
        for step in &mut trace.steps {
            step.plan.rows.iter_mut().for_each(|row| row.logprobs = None);
            let rows = step.output.iter_mut().flat_map(|output| &mut output.rows);
            rows.for_each(|row| row.logprobs.clear());
        }
    }
    trace
}
