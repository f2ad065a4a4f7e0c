//! Steps of the reference engine on a model of the demo's size: plain decode, a verify row with its
//! drafts, a prompt chunk. Their ratios tell whether drafting can pay on a CPU. Measured once in
//! wall-clock time, and on Linux once in CPU time of threads, which other load disturbs less.

use std::hint::black_box;

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kilotok_abi::{PageId, Sampling, SlotId};
use kilotok_cpu::{CpuEngine, CpuOptions};
use kilotok_engine::{Engine, PageRun, Row, RowTokens, SlotSetup, StepPlan};
use kilotok_model::{Knobs, read_config, read_drafter};
use kilotok_weights::{Dummy, Quiet};

/// 44 million expert weights in MXFP4, two of sixteen experts a token.
const CONFIG: &str = r#"{
    "architectures": ["MiMoV2ForCausalLM"], "model_type": "mimo_v2",
    "attention_projection_layout": "fused_qkv", "vocab_size": 8192, "hidden_size": 512,
    "num_hidden_layers": 8, "layernorm_epsilon": 1e-5, "max_position_embeddings": 4096,
    "eos_token_id": 0, "hidden_act": "silu", "attention_bias": false,
    "tie_word_embeddings": false, "num_attention_heads": 16, "num_key_value_heads": 8,
    "head_dim": 48, "v_head_dim": 32, "swa_num_attention_heads": 16,
    "swa_num_key_value_heads": 8, "swa_head_dim": 48, "swa_v_head_dim": 32,
    "partial_rotary_factor": 0.334, "rope_theta": 1e7, "swa_rope_theta": 1e4,
    "sliding_window": 128, "attention_value_scale": 0.612, "add_swa_attention_sink_bias": true,
    "add_full_attention_sink_bias": false, "intermediate_size": 1024,
    "moe_intermediate_size": 256, "n_routed_experts": 16, "num_experts_per_tok": 2,
    "scoring_func": "sigmoid", "topk_method": "noaux_tc", "n_group": 1, "topk_group": 1,
    "norm_topk_prob": true, "hybrid_layer_pattern": [0, 1, 1, 1, 0, 1, 1, 0],
    "moe_layer_freq": [0, 1, 1, 1, 1, 1, 1, 1],
    "quantization_config": {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
        "weight_block_size": [128, 128], "store_dtype": "mxfp4", "mxfp4_block_size": 32,
        "ignored_layers": [
            "model.layers.0.self_attn.o_proj", "model.layers.1.self_attn.o_proj",
            "model.layers.2.self_attn.o_proj", "model.layers.3.self_attn.o_proj",
            "model.layers.4.self_attn.o_proj", "model.layers.5.self_attn.o_proj",
            "model.layers.6.self_attn.o_proj", "model.layers.7.self_attn.o_proj"
        ]
    }
}"#;
const DRAFTER: &str = r#"{
    "architectures": ["DFlashDraftModel"], "model_type": "qwen3", "hidden_act": "silu",
    "attention_bias": false, "hidden_size": 512, "num_target_layers": 8, "rms_norm_eps": 1e-5,
    "block_size": 8, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 8, "head_dim": 64, "partial_rotary_factor": 0.5, "rope_theta": 10000,
    "intermediate_size": 1024, "sliding_window": 1024,
    "dflash_config": {
        "target_layer_ids": [0, 2, 4, 6, 7], "mask_token_id": 8191, "use_swa": true,
        "attention_sink_bias": true, "attention_value_scale": 0.612
    }
}"#;

const CONTEXT: u32 = 512;

/// An engine whose slot 0 has a context of [`CONTEXT`] tokens.
struct Bench {
    engine: CpuEngine,
}

impl Bench {
    fn new() -> Self {
        let knobs = Knobs::default();
        let mut spec = read_config("config", CONFIG, &knobs).expect("a good config");
        let drafter = read_drafter("drafter", DRAFTER, &spec, &knobs).expect("a good config");
        spec.drafter = Some(drafter);
        let options = CpuOptions::default();
        let engine = CpuEngine::start(&spec, &Dummy::new(0), &options, &Quiet).expect("it starts");
        let mut bench = Self { engine };
        bench.row(0, CONTEXT, 0, 0);
        bench
    }

    /// Runs `count` tokens at `start`, the last `draft_count` of them drafts that are never right.
    fn row(&mut self, start: u32, count: u32, draft_count: u32, draft_next: u32) {
        let page_tokens = self.engine.caps().groups[0].page_tokens;
        let pages = (0..(start + count).div_ceil(page_tokens)).map(PageId).collect();
        let setup = SlotSetup::new(Sampling::GREEDY, CONTEXT);
        let tokens = (start..start + count).map(|position| position * 37 % 8192).collect();
        let row = Row {
            setup: Some(Box::new(setup)),
            pages: vec![PageRun { first: 0, pages }; self.engine.caps().groups.len()],
            draft_next,
            ..Row::new(SlotId(0), start, RowTokens::Given { tokens, draft_count })
        };
        black_box(self.engine.run(&StepPlan { rows: vec![row] }).expect("a good plan"));
    }
}

fn steps<M: Measurement>(criterion: &mut Criterion<M>, name: &str) {
    let mut bench = Bench::new();
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(1));
    group.bench_function("decode", |b| b.iter(|| bench.row(CONTEXT, 1, 0, 0)));
    group.bench_function("verify_8", |b| b.iter(|| bench.row(CONTEXT, 8, 7, 0)));
    group.bench_function("verify_8_and_draft", |b| b.iter(|| bench.row(CONTEXT, 8, 7, 7)));
    group.throughput(Throughput::Elements(u64::from(CONTEXT)));
    group.sample_size(10);
    group.bench_function("prompt_512", |b| b.iter(|| bench.row(0, CONTEXT, 0, 0)));
    group.finish();
}

/// Nanoseconds that all threads together spent on a CPU.
struct CpuTime;

impl Measurement for CpuTime {
    type Intermediate = u64;
    type Value = u64;

    fn start(&self) -> u64 {
        let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        let of_task = |task: std::fs::DirEntry| {
            let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            text.split(' ').next().and_then(|time| time.parse::<u64>().ok()).unwrap_or(0)
        };
        tasks.map(of_task).sum()
    }

    fn end(&self, start: u64) -> u64 {
        self.start() - start
    }

    fn add(&self, a: &u64, b: &u64) -> u64 {
        a + b
    }

    fn zero(&self) -> u64 {
        0
    }

    fn to_f64(&self, value: &u64) -> f64 {
        *value as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

fn by_the_clock(criterion: &mut Criterion) {
    steps(criterion, "cpu_step");
}

fn by_time_on_a_cpu(criterion: &mut Criterion<CpuTime>) {
    if cfg!(target_os = "linux") {
        steps(criterion, "cpu_step_on_cpu");
    }
}

criterion_group!(clock, by_the_clock);
criterion_group! {
    name = on_cpu;
    config = Criterion::default().with_measurement(CpuTime);
    targets = by_time_on_a_cpu
}
criterion_main!(clock, on_cpu);
