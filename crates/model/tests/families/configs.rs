//! The published configs, field by field.

use serde_json::{Value, json};

/// A target's config; `size` holds what differs between the sizes, `quantized` how it is stored.
fn mimo(size: Value, quantized: Value, layers: usize, global: &[usize]) -> Value {
    let pattern: Vec<_> = (0..layers).map(|layer| u8::from(!global.contains(&layer))).collect();
    let sparse: Vec<_> = (0..layers).map(|layer| u8::from(layer > 0)).collect();
    let common = json!({
        "model_type": "mimo_v2",
        "architectures": ["MiMoV2ForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_mimo_v2.MiMoV2Config"},
        "attention_projection_layout": "fused_qkv",
        "num_hidden_layers": layers,
        "vocab_size": 152_576,
        "tie_word_embeddings": false,
        "head_dim": 192,
        "v_head_dim": 128,
        "swa_head_dim": 192,
        "swa_v_head_dim": 128,
        "partial_rotary_factor": 0.334,
        "rope_theta": 10_000_000,
        "swa_rope_theta": 10_000,
        "rope_scaling": null,
        "sliding_window": 128,
        "sliding_window_size": 128,
        "attention_chunk_size": 128,
        "add_swa_attention_sink_bias": true,
        "add_full_attention_sink_bias": false,
        "attention_bias": false,
        "intermediate_size": 16384,
        "moe_intermediate_size": 2048,
        "num_experts_per_tok": 8,
        "n_shared_experts": null,
        "n_group": 1,
        "topk_group": 1,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "norm_topk_prob": true,
        "routed_scaling_factor": null,
        "layernorm_epsilon": 1e-5,
        "hidden_act": "silu",
        "max_position_embeddings": 1_048_576,
        "eos_token_id": 151_645,
        "pad_token_id": 151_643,
        "hybrid_layer_pattern": pattern,
        "moe_layer_freq": sparse,
        "torch_dtype": "bfloat16",
        "quantization_config": quantization(quantized, layers),
    });
    merge(common, size)
}

fn quantization(quantized: Value, layers: usize) -> Value {
    let mut ignored: Vec<_> =
        (0..layers).map(|layer| format!("model.layers.{layer}.self_attn.o_proj")).collect();
    ignored.push("model.decoder.self_attn.o_proj".to_owned());
    let common = json!({
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "ignored_layers": ignored,
    });
    merge(common, quantized)
}

/// The fields of both; the second one counts.
fn merge(base: Value, other: Value) -> Value {
    let (Value::Object(mut map), Value::Object(other)) = (base, other) else {
        panic!("configs are objects");
    };
    map.extend(other);
    map.into()
}

pub(crate) fn pro_fp4() -> Value {
    pro(json!({"store_dtype": "mxfp4", "mxfp4_block_size": 32}))
}

pub(crate) fn pro_fp8() -> Value {
    pro(json!({"store_dtype": "fp8"}))
}

fn pro(quantized: Value) -> Value {
    let size = json!({
        "hidden_size": 6144,
        "num_attention_heads": 128,
        "num_key_value_heads": 8,
        "swa_num_attention_heads": 128,
        "swa_num_key_value_heads": 8,
        "attention_value_scale": 0.612,
        "n_routed_experts": 384,
    });
    mimo(size, quantized, 70, &[0, 7, 15, 23, 31, 39, 47, 55, 62, 69])
}

const GLOBAL_48: &[usize] = &[0, 5, 11, 17, 23, 29, 35, 41, 47];

fn size_48() -> Value {
    json!({
        "hidden_size": 4096,
        "num_attention_heads": 64,
        "num_key_value_heads": 4,
        "swa_num_attention_heads": 64,
        "swa_num_key_value_heads": 8,
        "attention_value_scale": 0.707,
        "n_routed_experts": 256,
    })
}

pub(crate) fn v2_5() -> Value {
    let towers = json!({"vision_config": {"depth": 32}, "audio_config": {"layers": 12}});
    mimo(merge(size_48(), towers), json!({"store_dtype": "fp8"}), 48, GLOBAL_48)
}

pub(crate) fn v2_flash() -> Value {
    let flash = json!({
        "model_type": "mimo_v2_flash",
        "architectures": ["MiMoV2FlashForCausalLM"],
        "attention_projection_layout": null,
        "rope_theta": 5_000_000,
        "max_position_embeddings": 262_144,
    });
    mimo(merge(size_48(), flash), json!({}), 48, GLOBAL_48)
}

fn drafter(size: Value, mask_token: usize, taps: [usize; 5]) -> Value {
    let common = json!({
        "architectures": ["DFlashDraftModel"],
        "model_type": "qwen3",
        "intermediate_size": 16384,
        "num_hidden_layers": 5,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "v_head_dim": 128,
        "partial_rotary_factor": 0.5,
        "rope_theta": 10_000,
        "rope_scaling": null,
        "hidden_act": "silu",
        "attention_bias": false,
        "block_size": 8,
        "sliding_window": 1024,
        "max_position_embeddings": 262_144,
        "tie_word_embeddings": false,
        "torch_dtype": "bfloat16",
        "dflash_config": {
            "target_layer_ids": taps,
            "mask_token_id": mask_token,
            "use_swa": true,
            "swa_window_size": 1024,
            "attention_sink_bias": true,
            "attention_value_scale": 0.612,
            "backbone_rotary_base": 5_000_000,
            "num_anchors": 4096,
            "loss_decay_gamma": 7.0,
        },
    });
    merge(common, size)
}

pub(crate) fn pro_drafter() -> Value {
    let size = json!({
        "hidden_size": 6144,
        "num_attention_heads": 128,
        "rms_norm_eps": 1e-5,
        "num_target_layers": 70,
        "vocab_size": 152_064,
    });
    drafter(size, 151_669, [0, 15, 31, 47, 69])
}

pub(crate) fn v2_5_drafter() -> Value {
    let size = json!({
        "hidden_size": 4096,
        "num_attention_heads": 64,
        "rms_norm_eps": 1e-6,
        "num_target_layers": 48,
        "vocab_size": 152_576,
    });
    drafter(size, 151_675, [0, 11, 23, 35, 47])
}
