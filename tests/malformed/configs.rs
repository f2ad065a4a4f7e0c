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
        ("hidden_size", json!(u64::MAX), "hidden_size is 18446744073709551615, not an integer"),
        ("num_hidden_layers", json!(3), "hybrid_layer_pattern has 2 entries for 3 layers"),
        ("n_routed_experts", json!(1_000_000), "n_routed_experts is 1000000"),
        ("new_field", json!(1), "new_field = 1 is a field kilotok does not know"),
        ("quantization_config.store_dtype", json!("nf4"), "store_dtype is \"nf4\""),
    ] {
        let mut model = Model::good();
        set(&mut model.config, path, value);
        refuses(&model.files(), &["config.json: ", reason]);
    }
}

#[test]
fn drafters() {
    for (path, value, reason) in [
        ("num_hidden_layers", json!(1_000_000), "num_hidden_layers is 1000000"),
        ("dflash_config.target_layer_ids", json!([0, 2]), "target_layer_ids is 2"),
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
    for (bytes, reason) in [
        (&b""[..], "is not JSON"),
        (b"{\"a\": \"\xff\"}", "is not UTF-8"),
        (&long, "has more than 1048576 bytes"),
    ] {
        for file in ["config.json", "dflash/config.json"] {
            let mut files = Model::good().files();
            files.insert(file.to_owned(), bytes.to_vec());
            refuses(&files, &[&format!("{file}: "), reason]);
        }
    }
}
