//! Configs that must be refused, in a folder that is otherwise good. Reading configs is tested
//! where it is implemented; these tests check that it happens, and that errors name the file.

use serde_json::{Value, json};

use crate::good::Model;
use crate::refuses;

/// Sets a field by its dotted path; null removes it.
fn set(config: &mut Value, path: &str, value: Value) {
    let (mut at, mut name) = (config, path);
    while let Some((outer, inner)) = name.split_once('.') {
        (at, name) = (&mut at[outer], inner);
    }
    let map = at.as_object_mut().unwrap();
    if value.is_null() {
        map.remove(name);
    } else {
        map.insert(name.to_owned(), value);
    }
}

#[test]
fn targets() {
    for (path, value, reason) in [
        ("hidden_size", Value::Null, "hidden_size is missing"),
        ("hidden_size", json!("64"), "hidden_size is \"64\", not an integer"),
        ("hidden_size", json!(-64), "hidden_size is -64, not an integer"),
        ("hidden_size", json!(0), "hidden_size is 0, not an integer"),
        ("hidden_size", json!(64.0), "hidden_size is 64.0, not an integer"),
        ("hidden_size", json!(u64::MAX), "hidden_size is 18446744073709551615, not an integer"),
        ("num_hidden_layers", json!(1_000_000_000), "num_hidden_layers is 1000000000"),
        ("num_hidden_layers", json!(3), "hybrid_layer_pattern has 2 entries for 3 layers"),
        ("n_routed_experts", json!(1_000_000), "n_routed_experts is 1000000"),
        ("vocab_size", json!(1_u64 << 40), "vocab_size is 1099511627776"),
        ("num_experts_per_tok", json!(4), "num_experts_per_tok is 4, not an integer from 1 to 3"),
        ("sliding_window_size", json!(9), "sliding_window_size is 9, but sliding_window is 8"),
        ("hidden_act", json!("gelu"), "hidden_act is \"gelu\""),
        ("new_field", json!(1), "new_field = 1 is a field kilotok does not know"),
        ("rope_scaling", json!({"factor": 2}), "rope_scaling is"),
        ("n_shared_experts", json!(1), "n_shared_experts is 1"),
        ("n_group", json!(2), "n_group is 2"),
        ("tie_word_embeddings", json!(true), "tie_word_embeddings is true"),
        ("attention_projection_layout", Value::Null, "attention_projection_layout is missing"),
        ("partial_rotary_factor", json!(0.21), "partial_rotary_factor 0.21 rotates 5 of 24"),
        ("eos_token_id", json!(96), "eos_token_id is 96"),
        ("model_type", json!("llama"), "model_type is \"llama\""),
        ("quantization_config.quant_method", json!("awq"), "quantization_config.quant_method is"),
        ("quantization_config.weight_block_size", json!([64, 64]), "weight_block_size is [64,64]"),
        ("quantization_config.store_dtype", json!("nf4"), "store_dtype is \"nf4\""),
        ("quantization_config.ignored_layers", json!([]), "ignored_layers lacks model.layers.0"),
    ] {
        let mut model = Model::good();
        set(&mut model.config, path, value);
        refuses(&model.files(), &["config.json: ", reason]);
    }
}

#[test]
fn drafters() {
    for (path, value, reason) in [
        ("hidden_size", json!(128), "hidden_size is 128; kilotok knows only 64"),
        ("num_target_layers", json!(3), "num_target_layers is 3; kilotok knows only 2"),
        ("block_size", json!(1), "block_size leaves nothing to draft"),
        ("num_hidden_layers", json!(1_000_000), "num_hidden_layers is 1000000"),
        ("dflash_config", Value::Null, "dflash_config is missing"),
        ("dflash_config.target_layer_ids", json!([0, 2]), "target_layer_ids is 2"),
        ("dflash_config.mask_token_id", json!(96), "mask_token_id is 96"),
    ] {
        let mut model = Model::good();
        set(&mut model.draft_config, path, value);
        refuses(&model.files(), &["dflash/config.json: ", reason]);
    }
}

/// A config may be valid in itself and still not match these tensors.
#[test]
fn another_models() {
    for (path, value, parts) in [
        (
            "hidden_size",
            json!(96),
            ["layers.0.input_layernorm.weight", "has the shape [64], not [96]"],
        ),
        ("n_routed_experts", json!(4), ["experts.3.gate_proj.weight", "is missing"]),
        ("n_routed_experts", json!(2), ["experts.2.gate_proj.weight", "is not part of the model"]),
        ("quantization_config", Value::Null, ["qkv_proj.weight", "has the type F8_E4M3, not BF16"]),
        (
            "quantization_config.store_dtype",
            json!("fp8"),
            ["quantization_config", "mxfp4_block_size"],
        ),
        (
            "add_full_attention_sink_bias",
            json!(true),
            ["layers.0.self_attn.attention_sink_bias", "is missing"],
        ),
        ("moe_layer_freq", json!([1, 1]), ["layers.0.mlp.gate.weight", "is missing"]),
    ] {
        let mut model = Model::good();
        set(&mut model.config, path, value);
        let mut files = model.files();
        files.retain(|name, _| !name.starts_with("dflash"));
        refuses(&files, &parts);
    }
}

#[test]
fn texts_that_are_no_config() {
    let long = [&b"{"[..], &vec![b' '; 2 << 20], b"}"].concat();
    let deep = "[".repeat(100_000);
    for (bytes, reason) in [
        (&b""[..], "is not JSON"),
        (b"{\"hidden_size\": 64", "is not JSON"),
        (b"\"config\"", "is \"config\", not an object"),
        (b"{\"a\": \"\xff\"}", "is not UTF-8"),
        (b"{\"a\": 1, \"a\": 2}", "a stands twice"),
        (&long, "has more than 1048576 bytes"),
        (deep.as_bytes(), "is not JSON"),
    ] {
        for file in ["config.json", "dflash/config.json"] {
            let mut files = Model::good().files();
            files.insert(file.to_owned(), bytes.to_vec());
            refuses(&files, &[&format!("{file}: "), reason]);
        }
    }
}
