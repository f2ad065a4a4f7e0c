//! Dummy weights are good enough for measurements: in a model as deep as the largest one,
//! activations keep their size and every expert gets its share of the tokens.

#![recursion_limit = "256"] // a config is one long json!
#![expect(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

use std::sync::{Arc, Mutex};

use kilotok_abi::{PageId, Sampling, SlotId};
use kilotok_cpu::{CpuEngine, CpuOptions, Seen};
use kilotok_engine::{Engine, PageGroup, PageRun, Row, RowTokens, SlotSetup, StepPlan};
use kilotok_model::{Knobs, ModelSpec, read_config};
use kilotok_weights::{Dummy, Quiet};
use serde_json::json;

/// As in MiMo-V2.5-Pro.
const LAYERS: usize = 70;
const EXPERTS: usize = 32;
const TOP_K: usize = 4;
const TOKENS: u32 = 64;

/// A model with the depth and the formats of the largest one, at a twenty-fourth of its width.
fn spec() -> ModelSpec {
    let is_full = |layer: usize| layer == 0 || layer % 8 == 7;
    let windows: Vec<u8> = (0..LAYERS).map(|layer| u8::from(!is_full(layer))).collect();
    let sparse: Vec<u8> = (0..LAYERS).map(|layer| u8::from(layer > 0)).collect();
    let ignored: Vec<String> =
        (0..LAYERS).map(|layer| format!("model.layers.{layer}.self_attn.o_proj")).collect();
    let config = json!({
        "architectures": ["MiMoV2ForCausalLM"], "model_type": "mimo_v2",
        "attention_projection_layout": "fused_qkv", "vocab_size": 1024, "hidden_size": 256,
        "num_hidden_layers": LAYERS, "layernorm_epsilon": 1e-5, "max_position_embeddings": 4096,
        "eos_token_id": 0, "hidden_act": "silu", "attention_bias": false,
        "tie_word_embeddings": false, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 24, "v_head_dim": 16, "swa_num_attention_heads": 16,
        "swa_num_key_value_heads": 8, "swa_head_dim": 24, "swa_v_head_dim": 16,
        "partial_rotary_factor": 0.334, "rope_theta": 1e7, "swa_rope_theta": 1e4,
        "sliding_window": 16, "attention_value_scale": 0.612,
        "add_swa_attention_sink_bias": true, "add_full_attention_sink_bias": false,
        "intermediate_size": 512, "moe_intermediate_size": 64, "n_routed_experts": EXPERTS,
        "num_experts_per_tok": TOP_K, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
        "n_group": 1, "topk_group": 1, "norm_topk_prob": true, "hybrid_layer_pattern": windows,
        "moe_layer_freq": sparse,
        "quantization_config": {
            "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
            "weight_block_size": [128, 128], "store_dtype": "mxfp4", "mxfp4_block_size": 32,
            "ignored_layers": ignored,
        },
    });
    read_config("config.json", &config.to_string(), &Knobs::default()).unwrap()
}

/// The test's record of a step.
struct Notes {
    /// Mean square of the residual stream after each layer.
    squares: Vec<f64>,
    logit_squares: f64,
    /// For each layer, how many tokens went to each expert.
    visits: Vec<[u32; EXPERTS]>,
}

fn run() -> Notes {
    let spec = spec();
    let options = CpuOptions { token_max: TOKENS, page_count: TOKENS, ..CpuOptions::default() };
    let mut engine = CpuEngine::start(&spec, &Dummy::new(0), &options, &Quiet).unwrap();
    let notes = Notes {
        squares: vec![0.0; LAYERS + 1],
        logit_squares: 0.0,
        visits: vec![[0; EXPERTS]; LAYERS],
    };
    let notes = Arc::new(Mutex::new(notes));
    let notebook = notes.clone();
    let square = |values: &[f32]| {
        let sum: f64 = values.iter().map(|value| f64::from(*value).powi(2)).sum();
        sum / values.len() as f64
    };
    engine.watch(Box::new(move |seen| {
        let mut notes = notebook.lock().unwrap();
        match seen {
            Seen::Hidden { index, values, .. } => {
                notes.squares[index] += square(values) / f64::from(TOKENS);
            }
            Seen::Logits { values, .. } => notes.logit_squares = square(values),
            Seen::Experts { layer, experts, .. } => {
                for expert in experts {
                    notes.visits[layer][*expert] += 1;
                }
            }
            Seen::DraftContext { .. } | Seen::DraftLogits { .. } => {}
        }
    }));
    let setup = SlotSetup::new(Sampling::GREEDY, TOKENS);
    let tokens = (0..TOKENS).map(|i| i * 389 % 1024).collect();
    let every_page = |group: &PageGroup| PageRun {
        first: 0,
        pages: (0..TOKENS.div_ceil(group.page_tokens)).map(PageId).collect(),
    };
    let row = Row {
        setup: Some(Box::new(setup)),
        pages: engine.caps().groups.iter().map(every_page).collect(),
        ..Row::new(SlotId(0), 0, RowTokens::Given { tokens, draft_count: 0 })
    };
    let out = engine.run(&StepPlan { rows: vec![row] }).unwrap();
    assert_eq!(out.rows[0].fault, None);
    drop(engine);
    Arc::into_inner(notes).unwrap().into_inner().unwrap()
}

#[test]
fn a_deep_model_stays_healthy() {
    let Notes { squares, logit_squares, visits } = run();
    for (layer, square) in squares.iter().enumerate() {
        let size = square.sqrt();
        assert!((0.3..30.0).contains(&size), "residual stream after layer {layer}: {size}");
    }
    let logits = logit_squares.sqrt();
    assert!((0.2..20.0).contains(&logits), "logits: {logits}");
    // With uniform routing, an expert gets TOKENS * TOP_K / EXPERTS = 8 tokens in each layer. Over
    // all layers, few experts may get too few, and none may get several times its share.
    let shares: Vec<u32> = visits[1..].iter().flatten().copied().collect();
    let starved = shares.iter().filter(|&&count| count == 0).count() as f64 / shares.len() as f64;
    let most = shares.iter().max().unwrap();
    assert!(starved < 0.05, "{starved} of the experts are never visited");
    assert!(*most < TOKENS * 3 / 4, "one expert is visited by {most} of {TOKENS} tokens");
    println!(
        "residual {:?}, logits {logits}, starved {starved}, most {most}",
        squares[LAYERS].sqrt()
    );
}
