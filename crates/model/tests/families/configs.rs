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

/// V2.6-Pro: V2.5-Pro with towers and routers in BF16.
pub(crate) fn v2_6_pro() -> Value {
    merge(merge(pro_fp4(), towers()), json!({"moe_router_dtype": "bfloat16"}))
}

fn towers() -> Value {
    json!({"vision_config": {"depth": 32}, "audio_config": {"layers": 12}})
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
    mimo(merge(size_48(), towers()), json!({"store_dtype": "fp8"}), 48, GLOBAL_48)
}

/// V2.6-Flash: V2.5 with experts in MXFP4 and routers in BF16.
pub(crate) fn v2_6_flash() -> Value {
    let router = json!({"moe_router_dtype": "bfloat16", "layernorm_epsilon": 1e-6});
    let mut config = merge(v2_5(), router);
    let quantized = json!({"store_dtype": "mxfp4", "mxfp4_block_size": 32});
    config["quantization_config"] = quantization(quantized, 48);
    config
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

/// Qwen3-30B-A3B.
pub(crate) fn qwen3_moe() -> Value {
    json!({
        "architectures": ["Qwen3MoeForCausalLM"],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": 151_643,
        "decoder_sparse_step": 1,
        "eos_token_id": 151_645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 6144,
        "max_position_embeddings": 40960,
        "max_window_layers": 48,
        "mlp_only_layers": [],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 768,
        "norm_topk_prob": true,
        "num_attention_heads": 32,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 48,
        "num_key_value_heads": 4,
        "output_router_logits": false,
        "rms_norm_eps": 1e-6,
        "rope_scaling": null,
        "rope_theta": 1_000_000.0,
        "router_aux_loss_coef": 0.001,
        "sliding_window": null,
        "tie_word_embeddings": false,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0",
        "use_cache": true,
        "use_sliding_window": false,
        "vocab_size": 151_936,
    })
}

/// Qwen3-Coder-30B-A3B-Instruct-FP8.
pub(crate) fn qwen3_coder_fp8() -> Value {
    let coder = json!({
        "intermediate_size": 5472,
        "max_position_embeddings": 262_144,
        "max_window_layers": 28,
        "qkv_bias": false,
        "rope_theta": 10_000_000,
        "shared_expert_intermediate_size": 0,
        "use_qk_norm": true,
        "quantization_config": {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "modules_to_not_convert": [
                "lm_head",
                "model.layers.0.input_layernorm",
                "model.layers.0.mlp.gate",
                "model.layers.0.post_attention_layernorm",
            ],
            "quant_method": "fp8",
            "weight_block_size": [128, 128],
        },
    });
    merge(qwen3_moe(), coder)
}

/// z-lab's drafter of Qwen3-Coder-30B-A3B-Instruct. Published of it are the number of rows, the
/// taps, the number of layers and some 0.5 G parameters; the other fields are the target's.
pub(crate) fn qwen3_coder_drafter() -> Value {
    json!({
        "architectures": ["DFlashDraftModel"],
        "attention_bias": false,
        "block_size": 16,
        "dflash_config": {"mask_token_id": 151_669, "target_layer_ids": [1, 12, 23, 34, 45]},
        "dtype": "bfloat16",
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "layer_types": vec!["full_attention"; 8],
        "max_position_embeddings": 262_144,
        "model_type": "qwen3",
        "num_attention_heads": 32,
        "num_hidden_layers": 8,
        "num_key_value_heads": 4,
        "num_target_layers": 48,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000_000,
        "tie_word_embeddings": false,
        "vocab_size": 151_936,
    })
}

pub(crate) fn gpt_oss_20b() -> Value {
    gpt_oss(24, 32)
}

pub(crate) fn gpt_oss_120b() -> Value {
    gpt_oss(36, 128)
}

/// z-lab's drafter of gpt-oss-20b.
pub(crate) fn gpt_oss_20b_drafter() -> Value {
    json!({
        "architectures": ["DFlashDraftModel"],
        "attention_bias": true,
        "attention_dropout": 0.0,
        "block_size": 8,
        "dflash_config": {"mask_token_id": 200_000, "target_layer_ids": [1, 6, 11, 16, 21]},
        "dtype": "bfloat16",
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 2880,
        "intermediate_size": 7680,
        "layer_types": vec!["full_attention"; 8],
        "max_position_embeddings": 131_072,
        "model_type": "qwen3",
        "num_attention_heads": 64,
        "num_hidden_layers": 8,
        "num_key_value_heads": 8,
        "num_target_layers": 24,
        "rms_norm_eps": 1e-5,
        "rope_scaling": gpt_oss(24, 32)["rope_scaling"],
        "rope_theta": 150_000,
        "sliding_window": null,
        "tie_word_embeddings": false,
        "use_sliding_window": false,
        "vocab_size": 201_088,
    })
}

fn gpt_oss(layers: usize, experts: usize) -> Value {
    let types = ["sliding_attention", "full_attention"];
    let types: Vec<_> = (0..layers).map(|layer| types[layer % 2]).collect();
    json!({
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": true,
        "attention_dropout": 0.0,
        "eos_token_id": 200_002,
        "experts_per_token": 4,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 2880,
        "initial_context_length": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 2880,
        "layer_types": types,
        "max_position_embeddings": 131_072,
        "model_type": "gpt_oss",
        "num_attention_heads": 64,
        "num_experts_per_tok": 4,
        "num_hidden_layers": layers,
        "num_key_value_heads": 8,
        "num_local_experts": experts,
        "output_router_logits": false,
        "pad_token_id": 199_999,
        "quantization_config": {
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
            "quant_method": "mxfp4",
        },
        "rms_norm_eps": 1e-5,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": false,
        },
        "rope_theta": 150_000,
        "router_aux_loss_coef": 0.9,
        "sliding_window": 128,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": false,
        "transformers_version": "4.55.0.dev0",
        "use_cache": true,
        "vocab_size": 201_088,
    })
}
