//! Qwen3-MoE as published, and configs of it that must not run.

use kilotok_model::{
    FeedForwardSpec, Format, Knobs, ModelSpec, Part, RouterDtype, RouterScores, WeightFormat,
    WeightId, Yarn, check_ranks, declare, read_config,
};
use serde_json::{Value, json};

use crate::configs;
use crate::published::{spec, stored_totals, with_drafter};
use crate::refusals::{changed, refuses_config};

#[test]
fn qwen3_moe_is_what_its_card_says() {
    let spec = spec(&configs::qwen3_moe());
    assert_eq!((spec.layers.len(), spec.hidden_size, spec.vocab_size), (48, 2048, 151_936));
    assert_eq!((spec.norm_eps, spec.end_tokens.as_slice()), (1e-6, &[151_645][..]));
    for layer in &spec.layers {
        let attention = &layer.attention;
        assert_eq!((attention.q_heads, attention.kv_heads), (32, 4));
        assert_eq!((attention.qk_dim, attention.v_dim, attention.rope.dims), (128, 128, 128));
        assert_eq!((attention.rope.base, attention.rope.yarn), (1e6, None));
        assert_eq!(attention.qk_norm_eps, Some(1e-6));
        assert!(!attention.bias && !attention.sinks && attention.window().is_none());
        let FeedForwardSpec::Experts(experts) = &layer.feed_forward else { panic!("experts") };
        assert_eq!((experts.count, experts.top_k, experts.width), (128, 8, 768));
        assert_eq!(experts.router.scores, RouterScores::Softmax);
        assert_eq!(experts.router.dtype, RouterDtype::Bf16);
        assert!(experts.router.normalise && !experts.router.bias && !experts.bias);
    }
}

/// As its index says.
#[test]
fn qwen3_moe_adds_up_to_its_files() {
    let apart = spec(&configs::qwen3_moe());
    assert_eq!(stored_totals(&apart), (18_867, 61_064_245_248));
    // The same bytes in two tensors a layer instead of 384.
    let name = apart.stacked_experts_name();
    assert_eq!(name.as_deref(), Some("model.layers.0.mlp.experts.gate_up_proj"));
    let stacked = apart.with_stacked_experts();
    assert_eq!(stored_totals(&stacked), (18_867 - 48 * 382, 61_064_245_248));
    assert_eq!(stacked.stacked_experts_name(), None);
}

#[test]
fn fp8_is_all_but_tables_routers_and_norms() {
    let spec = spec(&configs::qwen3_coder_fp8());
    let attention = &spec.layers[0].attention;
    assert_eq!(
        (attention.qkv_format, attention.output_format),
        (WeightFormat::Fp8, WeightFormat::Fp8)
    );
    assert_eq!(attention.rope.base, 1e7);
    for decl in declare(&spec) {
        let is_matrix = decl.name.contains("_proj.");
        assert_eq!(matches!(decl.format, Format::Fp8 { .. }), is_matrix, "{}", decl.name);
    }
    assert_eq!(spec.stacked_experts_name(), None);
}

/// 0.474 G parameters. Its rows are two tiles of tokens.
#[test]
fn its_drafter_has_16_rows_and_full_attention() {
    let spec = with_drafter(&configs::qwen3_coder_fp8(), &configs::qwen3_coder_drafter());
    let drafter = spec.drafter.as_ref().unwrap();
    assert_eq!((drafter.rows, drafter.layers.len(), drafter.own_mask), (16, 8, false));
    assert_eq!(drafter.taps, [1, 12, 23, 34, 45]);
    for layer in &drafter.layers {
        let attention = &layer.attention;
        assert!(!attention.bias && !attention.sinks && attention.window().is_none());
        assert_eq!(attention.rope, spec.layers[0].attention.rope);
        assert_eq!(attention.qk_norm_eps, Some(1e-6));
    }
    let own = declare(&spec).into_iter().filter(|decl| decl.part == Part::Drafter);
    let values: usize = own.map(|decl| decl.rows() * decl.cols()).sum();
    assert_eq!((values + 500_000) / 1_000_000, 474);
    for count in [1, 2, 4, 8] {
        check_ranks(&spec, count).unwrap();
    }
}

/// Layers without experts, of which the published files have none.
#[test]
fn some_layers_may_be_dense() {
    let changes = [("decoder_sparse_step", json!(2)), ("mlp_only_layers", json!([3]))];
    let spec = read(&changes).unwrap();
    let width = |layer: usize| match &spec.layers[layer].feed_forward {
        FeedForwardSpec::Dense(dense) => dense.width,
        FeedForwardSpec::Experts(_) => 0,
    };
    assert_eq!([0, 1, 2, 3, 4, 5].map(width), [6144, 0, 6144, 6144, 6144, 0]);
    let gate = declare(&spec).into_iter().find(|decl| decl.name.contains("layers.3.mlp.gate_proj"));
    assert!(matches!(gate.unwrap().id, WeightId::Layer(Part::Target, 3, _)));
}

/// As transformers 5 writes configs, and with the stretch that the model's card recommends.
#[test]
fn rotation_is_spelled_in_two_ways() {
    let yarn = |changes: &[(&str, Value)]| read(changes).unwrap().layers[0].attention.rope;
    let older = json!({
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768
    });
    let newer = json!({
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768,
        "rope_theta": 1e6
    });
    let rope = yarn(&[("rope_scaling", older)]);
    let wanted = Yarn {
        factor: 4.0,
        original_positions: 32768,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: true,
        magnitude: Yarn::usual_magnitude(4.0),
    };
    assert_eq!((rope.base, rope.yarn), (1e6, Some(wanted)));
    let changes = [("rope_theta", Value::Null), ("rope_parameters", newer)];
    assert_eq!(yarn(&changes), rope);
    let plain = json!({"rope_type": "default", "rope_theta": 1e6});
    assert_eq!(yarn(&[("rope_theta", Value::Null), ("rope_parameters", plain)]).yarn, None);
    let renamed = [("num_experts", Value::Null), ("num_local_experts", json!(128))];
    assert!(read(&renamed).is_ok());
}

#[test]
fn it_is_shared_by_up_to_8_ranks() {
    let spec = spec(&configs::qwen3_coder_fp8());
    for count in [1, 2, 4, 8] {
        check_ranks(&spec, count).unwrap();
    }
}

fn read(changes: &[(&str, Value)]) -> Result<ModelSpec, String> {
    let text = changed(configs::qwen3_moe(), changes);
    read_config("config.json", &text, &Knobs::default()).map_err(|error| error.to_string())
}

#[test]
fn refusals() {
    let yarn = |field: &str, value: Value| {
        let mut yarn = json!({
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768
        });
        yarn[field] = value;
        yarn
    };
    for (name, bad, wanted) in [
        ("architectures", json!(["Qwen3ForCausalLM"]), "architectures is"),
        ("attention_bias", json!(true), "attention_bias is true; kilotok knows only false"),
        ("use_sliding_window", json!(true), "use_sliding_window is true"),
        ("use_qk_norm", json!(false), "use_qk_norm is false"),
        ("shared_expert_intermediate_size", json!(512), "shared_expert_intermediate_size is 512"),
        ("norm_topk_prob", Value::Null, "norm_topk_prob is missing"),
        ("num_experts", Value::Null, "num_experts is missing"),
        ("num_experts_per_tok", json!(129), "num_experts_per_tok is 129"),
        ("num_attention_heads", json!(30), "num_attention_heads is 30, no multiple of"),
        ("head_dim", json!(127), "head_dim is 127; dimensions rotate in pairs"),
        ("torch_dtype", json!("float16"), "torch_dtype is \"float16\"; kilotok knows bfloat16"),
        ("mlp_only_layers", json!([48]), "mlp_only_layers is 48"),
        ("rope_scaling", json!({"rope_type": "linear"}), "rope_scaling.rope_type is \"linear\""),
        ("rope_scaling", json!({"factor": 4.0}), "rope_scaling.type is missing"),
        ("rope_scaling", yarn("factor", json!(0.5)), "rope_scaling.factor is 0.5, not a number"),
        ("rope_scaling", yarn("mscale", json!(1.0)), "rope_scaling.mscale = 1.0 is a field"),
        (
            "rope_scaling",
            yarn("original_max_position_embeddings", Value::Null),
            "rope_scaling.original_max_position_embeddings is missing",
        ),
        ("num_nextn_predict_layers", json!(1), "num_nextn_predict_layers = 1 is a field"),
    ] {
        refuses_config(configs::qwen3_moe(), &[(name, bad)], wanted);
    }
    let both = json!({"rope_type": "default", "rope_theta": 1e6});
    refuses_config(
        configs::qwen3_moe(),
        &[("rope_parameters", both.clone()), ("rope_scaling", both)],
        "rope_parameters stands beside rope_scaling",
    );
    let other = json!({"rope_type": "default", "rope_theta": 1e7});
    let wanted = "rope_theta is 1000000.0; kilotok knows only 10000000.0";
    refuses_config(configs::qwen3_moe(), &[("rope_parameters", other)], wanted);
    refuses_config(
        configs::qwen3_coder_fp8(),
        &[(
            "quantization_config.modules_to_not_convert",
            json!(["model.layers.0.self_attn.o_proj"]),
        )],
        "has \"model.layers.0.self_attn.o_proj\", which kilotok reads as FP8",
    );
}
