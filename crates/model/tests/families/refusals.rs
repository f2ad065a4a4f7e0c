//! Configs that kilotok must not run: each is refused, and the message names the field.

use kilotok_model::{Knobs, read_config, read_drafter};
use serde_json::{Value, json};

use crate::configs;
use crate::published::spec;

/// Sets fields by dotted path; null in `changes` removes the field.
pub(crate) fn changed(mut config: Value, changes: &[(&str, Value)]) -> String {
    for (path, value) in changes {
        let (mut at, mut name) = (&mut config, *path);
        while let Some((outer, inner)) = name.split_once('.') {
            (at, name) = (&mut at[outer], inner);
        }
        let map = at.as_object_mut().expect("the path of a field");
        if value.is_null() {
            map.remove(name);
        } else {
            map.insert(name.to_owned(), value.clone());
        }
    }
    config.to_string()
}

#[track_caller]
fn refuses(changes: &[(&str, Value)], wanted: &str) {
    refuses_config(configs::pro_fp4(), changes, wanted);
}

#[track_caller]
pub(crate) fn refuses_config(config: Value, changes: &[(&str, Value)], wanted: &str) {
    let text = changed(config, changes);
    let error = read_config("config.json", &text, &Knobs::default());
    let error = error.expect_err(wanted).to_string();
    assert!(error.starts_with("config.json: ") && error.contains(wanted), "{wanted}\n{error}");
}

#[track_caller]
fn refuses_drafter(changes: &[(&str, Value)], wanted: &str) {
    let text = changed(configs::pro_drafter(), changes);
    let target = spec(&configs::pro_fp4());
    let error = read_drafter("dflash/config.json", &text, &target, &Knobs::default());
    let error = error.expect_err(wanted).to_string();
    assert!(
        error.starts_with("dflash/config.json: ") && error.contains(wanted),
        "{wanted}\n{error}"
    );
}

/// Every field that a config must have.
#[test]
fn missing_fields() {
    let optional = [
        "auto_map",
        "rope_scaling",
        "sliding_window_size",
        "attention_chunk_size",
        "attention_value_scale",
        "n_shared_experts",
        "routed_scaling_factor",
        "pad_token_id",
        "torch_dtype",
        "quantization_config",
    ];
    let config = configs::pro_fp4();
    for name in config.as_object().unwrap().keys() {
        let text = changed(config.clone(), &[(name, Value::Null)]);
        let result = read_config("config.json", &text, &Knobs::default());
        if optional.contains(&name.as_str()) {
            result.unwrap();
        } else if name == "model_type" {
            assert!(result.unwrap_err().to_string().contains("model_type is missing"));
        } else {
            let error = result.expect_err(name).to_string();
            assert!(error.contains(&format!("{name} is missing")), "{error}");
        }
    }
    for name in
        ["quant_method", "fmt", "activation_scheme", "weight_block_size", "mxfp4_block_size"]
    {
        let name = format!("quantization_config.{name}");
        refuses(&[(&name, Value::Null)], &format!("{name} is missing"));
    }
}

#[test]
fn sizes() {
    let names = [
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "v_head_dim",
        "swa_num_attention_heads",
        "swa_num_key_value_heads",
        "swa_head_dim",
        "swa_v_head_dim",
        "intermediate_size",
        "moe_intermediate_size",
        "n_routed_experts",
        "num_experts_per_tok",
        "max_position_embeddings",
        "sliding_window",
    ];
    for name in names {
        for bad in
            [json!(0), json!(-1), json!(128.0), json!("128"), json!([128]), json!(1_u64 << 40)]
        {
            refuses(&[(name, bad.clone())], &format!("{name} is {bad}, not an integer from 1 to"));
        }
    }
}

#[test]
fn architecture() {
    for (name, bad, wanted) in [
        (
            "model_type",
            json!("llama"),
            "model_type is \"llama\"; kilotok knows mimo_v2_flash, mimo_v2, qwen3_moe, gpt_oss",
        ),
        ("model_type", json!(3), "model_type is missing or not a string"),
        ("architectures", json!(["LlamaForCausalLM"]), "architectures is"),
        ("hidden_act", json!("gelu"), "hidden_act is \"gelu\"; kilotok knows only \"silu\""),
        ("attention_bias", json!(true), "attention_bias is true; kilotok knows only false"),
        ("tie_word_embeddings", json!(true), "tie_word_embeddings is true"),
        ("rope_scaling", json!({"type": "yarn"}), "rope_scaling is {\"type\":\"yarn\"}"),
        ("attention_projection_layout", json!("split"), "attention_projection_layout is \"split\""),
        ("scoring_func", json!("softmax"), "scoring_func is \"softmax\""),
        ("topk_method", json!("greedy"), "topk_method is \"greedy\""),
        ("n_group", json!(2), "n_group is 2; kilotok knows only 1"),
        ("topk_group", json!(2), "topk_group is 2"),
        ("n_shared_experts", json!(1), "n_shared_experts is 1; kilotok knows only 0"),
        (
            "num_experts_per_tok",
            json!(385),
            "num_experts_per_tok is 385, not an integer from 1 to 384",
        ),
        (
            "moe_router_dtype",
            json!("float16"),
            "moe_router_dtype is \"float16\"; kilotok knows float32, bfloat16",
        ),
        ("norm_topk_prob", json!(1), "norm_topk_prob is 1, not true or false"),
        ("routed_scaling_factor", json!(0), "routed_scaling_factor is 0, not a number from"),
        ("layernorm_epsilon", json!(0), "layernorm_epsilon is 0, not a number from"),
        ("layernorm_epsilon", json!("1e-5"), "layernorm_epsilon is \"1e-5\", not a number"),
        ("rope_theta", json!(-1), "rope_theta is -1, not a number from"),
        ("attention_value_scale", json!(-0.6), "attention_value_scale is -0.6, not a number from"),
        ("partial_rotary_factor", json!(1.5), "partial_rotary_factor is 1.5, not a number from 0"),
        (
            "partial_rotary_factor",
            json!(0.34),
            "partial_rotary_factor 0.34 rotates 65 of 192 dimensions",
        ),
        ("partial_rotary_factor", json!(0), "partial_rotary_factor 0 rotates 0 of 192"),
        ("eos_token_id", json!(152_576), "eos_token_id is 152576, not an integer from 0 to 152575"),
        ("eos_token_id", json!([151_645, -1]), "eos_token_id is -1"),
        ("eos_token_id", json!([]), "eos_token_id names no token"),
        ("some_new_switch", json!(true), "some_new_switch = true is a field kilotok does not know"),
    ] {
        refuses(&[(name, bad)], wanted);
    }
}

#[test]
fn contradictions() {
    refuses(
        &[("sliding_window_size", json!(129))],
        "sliding_window_size is 129, but sliding_window is 128",
    );
    refuses(
        &[("hybrid_layer_pattern", json!(vec![1; 69]))],
        "hybrid_layer_pattern has 69 entries for 70 layers",
    );
    refuses(&[("hybrid_layer_pattern", json!(vec![2; 70]))], "hybrid_layer_pattern is 2");
    refuses(
        &[("moe_layer_freq", json!(vec![1; 71]))],
        "moe_layer_freq has 71 entries for 70 layers",
    );
    refuses(&[("moe_layer_freq", json!(1))], "moe_layer_freq has 1 entries for 70 layers");
    refuses(
        &[("num_attention_heads", json!(100))],
        "num_attention_heads is 100, no multiple of num_key_value_heads 8",
    );
    refuses(
        &[("swa_num_key_value_heads", json!(4))],
        "swa_num_key_value_heads is 4, not shared evenly by 8 chunks",
    );
    refuses(&[("hidden_size", json!(6160))], "hidden_size is 6160, not in MXFP4 groups of 32");
    refuses(
        &[("moe_intermediate_size", json!(2000))],
        "moe_intermediate_size is 2000, not in MXFP4 groups",
    );
    refuses(
        &[
            ("num_hidden_layers", json!(1024)),
            ("hybrid_layer_pattern", json!(vec![0; 1024])),
            ("moe_layer_freq", json!(vec![1; 1024])),
            ("n_routed_experts", json!(4096)),
            ("quantization_config", Value::Null),
        ],
        "n_routed_experts is 4096 in each of 1024 layers, more than 131072 in all",
    );
    let knobs = Knobs { window_keys: Some(127), ..Knobs::default() };
    let error = read_config("config.json", &configs::pro_fp4().to_string(), &knobs).unwrap_err();
    assert!(error.to_string().contains("window_keys says 127"), "{error}");
}

#[test]
fn quantization() {
    for (name, bad, wanted) in [
        ("quant_method", json!("awq"), "quant_method is \"awq\"; kilotok knows only \"fp8\""),
        ("fmt", json!("e5m2"), "fmt is \"e5m2\""),
        ("activation_scheme", json!("static"), "activation_scheme is \"static\""),
        (
            "weight_block_size",
            json!([64, 64]),
            "weight_block_size is [64,64]; kilotok knows only [128,128]",
        ),
        ("mxfp4_block_size", json!(16), "mxfp4_block_size is 16; kilotok knows only 32"),
        ("store_dtype", json!("int4"), "store_dtype is \"int4\"; kilotok knows fp8, mxfp4"),
        ("ignored_layers", Value::Null, "ignored_layers lacks model.layers.0.self_attn.o_proj"),
        ("ignored_layers", json!("all"), "ignored_layers lacks model.layers.0.self_attn.o_proj"),
        (
            "kv_cache_scheme",
            json!("fp8"),
            "kv_cache_scheme = \"fp8\" is a field kilotok does not know",
        ),
    ] {
        let name = format!("quantization_config.{name}");
        refuses(&[(&name, bad)], &format!("quantization_config.{wanted}"));
    }
    refuses(
        &[("quantization_config", json!("fp8"))],
        "quantization_config is \"fp8\", not an object",
    );
    let mut ignored = configs::pro_fp4()["quantization_config"]["ignored_layers"].clone();
    ignored.as_array_mut().unwrap().push("lm_head".into());
    refuses(
        &[("quantization_config.ignored_layers", ignored)],
        "ignored_layers has \"lm_head\", which kilotok reads as FP8",
    );
}

#[test]
fn drafters() {
    for (name, bad, wanted) in [
        ("architectures", json!(["Qwen3ForCausalLM"]), "architectures is"),
        ("model_type", json!("llama"), "model_type is \"llama\""),
        ("hidden_size", json!(4096), "hidden_size is 4096; kilotok knows only 6144"),
        ("num_target_layers", json!(48), "num_target_layers is 48; kilotok knows only 70"),
        ("num_hidden_layers", json!(0), "num_hidden_layers is 0"),
        ("num_attention_heads", json!(100), "num_attention_heads is 100, no multiple of"),
        ("block_size", json!(1), "block_size leaves nothing to draft"),
        ("block_size", json!(65), "block_size is 65, not an integer from 1 to 64"),
        ("rms_norm_eps", Value::Null, "rms_norm_eps is missing"),
        ("hidden_act", json!("gelu"), "hidden_act is \"gelu\""),
        ("attention_bias", json!(true), "attention_bias is true"),
        ("rope_scaling", json!({"type": "yarn"}), "rope_scaling is"),
        ("partial_rotary_factor", json!(0.51), "partial_rotary_factor 0.51 rotates 65 of 128"),
        ("is_causal", json!(true), "is_causal is true"),
        ("layer_types", json!(["full_attention"]), "layer_types is"),
        ("dflash_config", Value::Null, "dflash_config is missing"),
        ("dflash_config", json!(3), "dflash_config is 3, not an object"),
        ("dflash_config.target_layer_ids", json!([0, 70]), "dflash_config.target_layer_ids is 70"),
        (
            "dflash_config.target_layer_ids",
            json!([]),
            "dflash_config.target_layer_ids names no layer",
        ),
        (
            "dflash_config.target_layer_ids",
            json!([0, 31, 15, 31]),
            "dflash_config.target_layer_ids names layer 31 twice",
        ),
        ("dflash_config.mask_token_id", json!(152_576), "dflash_config.mask_token_id is 152576"),
        ("dflash_config.mask_token_id", json!(-1), "dflash_config.mask_token_id is -1"),
        (
            "dflash_config.attention_sink_bias",
            Value::Null,
            "dflash_config.attention_sink_bias is missing",
        ),
        (
            "dflash_config.swa_window_size",
            json!(512),
            "dflash_config.swa_window_size is 512, but sliding_window is 1024",
        ),
        ("dflash_config.conv", json!(4), "dflash_config.conv = 4 is a field kilotok does not know"),
    ] {
        refuses_drafter(&[(name, bad)], wanted);
    }
}

#[test]
fn texts_that_are_no_config() {
    for (text, wanted) in [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("{} {}", "is not JSON"),
        ("[1]", "is [1], not an object"),
        ("{\"model_type\": \"mimo_v2\", \"model_type\": \"llama\"}", "model_type stands twice"),
        ("{\"a\": {\"b\": [{\"c\": 1, \"c\": 2}]}}", "c stands twice"),
        (&"[".repeat(100_000), "is not JSON: recursion limit"),
    ] {
        let error = read_config("config.json", text, &Knobs::default()).unwrap_err().to_string();
        assert!(error.starts_with("config.json: ") && error.contains(wanted), "{error}");
    }
}

/// One look at the message is enough.
#[test]
fn all_problems_are_told_at_once() {
    let changes = [
        ("hidden_act", json!("gelu")),
        ("n_group", json!(2)),
        ("quantization_config.fmt", json!("e5m2")),
    ];
    for wanted in ["hidden_act", "n_group", "quantization_config.fmt"] {
        refuses(&changes, wanted);
    }
}
