//! gpt-oss as published, and configs of it that must not run.

use kilotok_model::{
    Activation, FeedForwardSpec, Knobs, LayerWeight, ModelSpec, Part, Ranks, RouterScores,
    WeightDecl, WeightFormat, WeightId, check_ranks, declare, read_config, read_drafter,
};
use serde_json::{Value, json};

use crate::configs;
use crate::published::{spec, stored_totals, with_drafter};
use crate::refusals::{changed, refuses_config};

#[test]
fn gpt_oss_is_what_its_card_says() {
    let spec = spec(&configs::gpt_oss_120b());
    assert_eq!((spec.layers.len(), spec.hidden_size, spec.vocab_size), (36, 2880, 201_088));
    for (index, layer) in spec.layers.iter().enumerate() {
        let attention = &layer.attention;
        assert_eq!(attention.window(), index.is_multiple_of(2).then_some(128));
        assert_eq!((attention.q_heads, attention.kv_heads), (64, 8));
        assert_eq!((attention.qk_dim, attention.v_dim, attention.rope.dims), (64, 64, 64));
        assert!(attention.sinks && attention.bias && attention.qk_norm_eps.is_none());
        assert_eq!((attention.rope.base, attention.rope.magnitude()), (150_000.0, 1.346_573_6));
        let yarn = attention.rope.yarn.unwrap();
        assert_eq!((yarn.factor, yarn.original_positions, yarn.truncate), (32.0, 4096, false));
        let FeedForwardSpec::Experts(experts) = &layer.feed_forward else { panic!("experts") };
        assert_eq!((experts.count, experts.top_k, experts.width), (128, 4, 2880));
        assert_eq!(experts.format, WeightFormat::Mxfp4);
        assert_eq!(experts.activation, Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0 });
        assert_eq!(experts.router.scores, RouterScores::Softmax);
        assert!(experts.bias && experts.router.bias && experts.router.normalise);
    }
}

/// As the indices of both checkpoints say.
#[test]
fn gpt_oss_adds_up_to_its_files() {
    assert_eq!(stored_totals(&spec(&configs::gpt_oss_20b())), (459, 13_761_264_768));
    assert_eq!(stored_totals(&spec(&configs::gpt_oss_120b())), (687, 65_248_815_744));
}

#[test]
fn its_tensors_have_their_names_and_shapes() {
    let stored: Vec<_> = declare(&spec(&configs::gpt_oss_20b()))
        .iter()
        .flat_map(WeightDecl::stored)
        .filter(|tensor| tensor.name.starts_with("model.layers.3."))
        .collect();
    for (name, shape) in [
        ("self_attn.sinks", &[64][..]),
        ("self_attn.q_proj.bias", &[4096]),
        ("self_attn.k_proj.bias", &[512]),
        ("self_attn.o_proj.bias", &[2880]),
        ("mlp.router.weight", &[32, 2880]),
        ("mlp.router.bias", &[32]),
        ("mlp.experts.gate_up_proj_blocks", &[32, 5760, 90, 16]),
        ("mlp.experts.gate_up_proj_scales", &[32, 5760, 90]),
        ("mlp.experts.gate_up_proj_bias", &[32, 5760]),
        ("mlp.experts.down_proj_blocks", &[32, 2880, 90, 16]),
        ("mlp.experts.down_proj_scales", &[32, 2880, 90]),
        ("mlp.experts.down_proj_bias", &[32, 2880]),
    ] {
        let name = format!("model.layers.3.{name}");
        let tensor = stored.iter().find(|tensor| tensor.name == name);
        assert_eq!(tensor.map(|tensor| &tensor.shape[..]), Some(shape), "{name}");
    }
}

/// Even rows of the fused tensor are gate's, odd ones up's.
#[test]
fn gate_and_up_take_turns() {
    let decls = declare(&spec(&configs::gpt_oss_20b()));
    let find = |id| decls.iter().find(|decl| decl.id == id).unwrap();
    let expert = |weight| find(WeightId::Expert(0, 5, weight));
    let first = 5 * 5760;
    let rows = |weight| [0, 1, 2879].map(|row| expert(weight).stored_row(row) - first);
    assert_eq!(rows(LayerWeight::Gate), [0, 2, 5758]);
    assert_eq!(rows(LayerWeight::Up), [1, 3, 5759]);
    assert_eq!(expert(LayerWeight::Down).stored_row(7), 5 * 2880 + 7);
    let bias = |weight| find(WeightId::Layer(Part::Target, 0, weight));
    assert_eq!(bias(LayerWeight::UpBias).stored_col(3), 7);
    assert_eq!(bias(LayerWeight::GateBias).stored_row(31), 31);
}

/// What ranks add up has its bias from the first one alone.
#[test]
fn biases_of_sums_belong_to_the_first_rank() {
    let decls = declare(&spec(&configs::gpt_oss_20b()));
    for rank in 0..2 {
        let ranks = Ranks { rank, count: 2 };
        let part = |weight| {
            let id = WeightId::Layer(Part::Target, 1, weight);
            let slice = decls.iter().find(|decl| decl.id == id).unwrap().slice(ranks);
            (slice.row_count(), slice.cols)
        };
        let own = usize::from(rank == 0);
        assert_eq!(part(LayerWeight::OutputBias), (own, 0..2880));
        assert_eq!(part(LayerWeight::DownBias), (own * 32, 0..2880));
        assert_eq!(part(LayerWeight::RouterBias), (1, 0..32));
        assert_eq!(part(LayerWeight::QueryBias), (1, rank * 2048..(rank + 1) * 2048));
        assert_eq!(part(LayerWeight::KeyBias), (1, rank * 256..(rank + 1) * 256));
        assert_eq!(part(LayerWeight::GateBias), (32, rank * 1440..(rank + 1) * 1440));
    }
}

#[test]
fn it_is_shared_by_2_ranks_and_not_by_4() {
    let spec = spec(&configs::gpt_oss_20b());
    check_ranks(&spec, 2).unwrap();
    for count in [4, 8] {
        let error = check_ranks(&spec, count).unwrap_err().to_string();
        assert!(error.contains("layer 0: expert width 2880 splits a group of 32"), "{error}");
    }
}

fn read(changes: &[(&str, Value)]) -> Result<ModelSpec, String> {
    let text = changed(configs::gpt_oss_20b(), changes);
    read_config("config.json", &text, &Knobs::default()).map_err(|error| error.to_string())
}

/// The published files have `rope_scaling`, and what transformers 5 saves has `rope_parameters`;
/// an engine that reads one of them alone fails on long prompts of the other.
#[test]
fn yarn_is_read_wherever_it_stands() {
    let rope = |spec: &ModelSpec| spec.layers[0].attention.rope;
    let published = spec(&configs::gpt_oss_20b());
    let mut parameters = configs::gpt_oss_20b()["rope_scaling"].clone();
    parameters["rope_theta"] = json!(150_000.0);
    let changes = [
        ("rope_scaling", Value::Null),
        ("rope_theta", Value::Null),
        ("rope_parameters", parameters),
        ("swiglu_alpha", json!(1.702)),
    ];
    assert_eq!(rope(&read(&changes).unwrap()), rope(&published));
}

/// 0.785 G parameters, and its mask token is one of the target's.
#[test]
fn its_drafter_has_biases_yarn_and_no_mask() {
    let spec = with_drafter(&configs::gpt_oss_20b(), &configs::gpt_oss_20b_drafter());
    let drafter = spec.drafter.as_ref().unwrap();
    assert_eq!((drafter.rows, drafter.mask_token, drafter.own_mask), (8, 200_000, false));
    assert_eq!(drafter.taps, [1, 6, 11, 16, 21]);
    for layer in &drafter.layers {
        let attention = &layer.attention;
        assert!(attention.bias && !attention.sinks && attention.window().is_none());
        assert_eq!(attention.rope, spec.layers[0].attention.rope);
        assert_eq!((attention.qk_norm_eps, attention.value_scale), (Some(1e-5), 1.0));
        assert_eq!(layer.feed_forward.activation(), Activation::SiluMul);
    }
    let own: Vec<_> =
        declare(&spec).into_iter().filter(|decl| decl.part == Part::Drafter).collect();
    assert!(own.iter().all(|decl| decl.id != WeightId::DraftMask));
    let values: usize = own.iter().map(|decl| decl.rows() * decl.cols()).sum();
    assert_eq!((values + 500_000) / 1_000_000, 785);
    let mut windowed = configs::gpt_oss_20b_drafter();
    windowed["layer_types"][3] = json!("sliding_attention");
    let text = windowed.to_string();
    let error = read_drafter("config.json", &text, &spec, &Knobs::default()).unwrap_err();
    assert!(error.to_string().contains("layer_types is"), "{error}");
}

#[test]
fn refusals() {
    for (name, bad, wanted) in [
        ("architectures", json!(["Qwen3MoeForCausalLM"]), "architectures is"),
        ("attention_bias", json!(false), "attention_bias is false; kilotok knows only true"),
        ("swiglu_limit", Value::Null, "swiglu_limit is missing"),
        ("swiglu_alpha", json!(1.0), "swiglu_alpha is 1.0; kilotok knows only 1.702"),
        ("layer_types", Value::Null, "layer_types is missing"),
        ("layer_types", json!(["full_attention"]), "layer_types has 1 entries for 24 layers"),
        (
            "layer_types",
            json!(vec!["linear_attention"; 24]),
            "layer_types has \"linear_attention\"",
        ),
        ("sliding_window", Value::Null, "sliding_window is missing"),
        ("num_local_experts", json!(0), "num_local_experts is 0"),
        ("num_experts_per_tok", json!(33), "num_experts_per_tok is 33"),
        ("hidden_size", json!(2890), "hidden_size is 2890, not in MXFP4 groups of 32"),
        ("intermediate_size", json!(2890), "intermediate_size is 2890, not in MXFP4 groups of 32"),
        (
            "rope_scaling.truncate",
            json!("no"),
            "rope_scaling.truncate is \"no\", not true or false",
        ),
        ("rope_scaling.rope_type", json!("longrope"), "rope_scaling.rope_type is \"longrope\""),
        ("quantization_config", Value::Null, "quantization_config is missing; kilotok reads MXFP4"),
        ("quantization_config.quant_method", json!("fp8"), "quantization_config.quant_method is"),
        (
            "quantization_config.modules_to_not_convert",
            json!(["lm_head"]),
            "modules_to_not_convert lacks model.layers.*.self_attn, which kilotok reads as BF16",
        ),
        ("tie_word_embeddings", json!(true), "tie_word_embeddings is true"),
        ("eos_token_id", json!(201_088), "eos_token_id is 201088"),
        ("some_new_switch", json!(true), "some_new_switch = true is a field"),
    ] {
        refuses_config(configs::gpt_oss_20b(), &[(name, bad)], wanted);
    }
}
