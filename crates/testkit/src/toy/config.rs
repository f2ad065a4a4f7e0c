//! The configs of the toys, as on the hub: the same fields and the same oddities, with small
//! numbers.

use serde_json::{Value, json};

use crate::with_fields;

/// The fields that all toys share.
fn base(windows: &[u8]) -> Value {
    let dense_first: Vec<u8> = (0..windows.len()).map(|layer| u8::from(layer > 0)).collect();
    json!({
        "num_hidden_layers": windows.len(),
        "hybrid_layer_pattern": windows,
        "moe_layer_freq": dense_first,
        "vocab_size": 256,
        "partial_rotary_factor": 0.334,
        "swa_rope_theta": 10000,
        "sliding_window": 16,
        "sliding_window_size": 16,
        "attention_chunk_size": 16,
        "add_swa_attention_sink_bias": true,
        "add_full_attention_sink_bias": false,
        "attention_bias": false,
        "num_experts_per_tok": 2,
        "n_shared_experts": null,
        "n_group": 1,
        "topk_group": 1,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "norm_topk_prob": true,
        "routed_scaling_factor": null,
        "layernorm_epsilon": 1e-5,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "tie_word_embeddings": false,
        "torch_dtype": "bfloat16",
        "eos_token_id": 250,
        "pad_token_id": 251,
    })
}

pub(super) fn flash() -> Value {
    let own = json!({
        "architectures": ["MiMoV2FlashForCausalLM"],
        "model_type": "mimo_v2_flash",
        "hidden_size": 64,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "v_head_dim": 16,
        "swa_num_attention_heads": 8,
        "swa_num_key_value_heads": 4,
        "swa_head_dim": 24,
        "swa_v_head_dim": 16,
        "rope_theta": 5_000_000,
        "attention_value_scale": 0.707,
        "intermediate_size": 96,
        "moe_intermediate_size": 32,
        "n_routed_experts": 12,
    });
    with_fields(base(&[0, 1, 1, 0, 1]), &own)
}

/// V2-Flash's form with a dense network in every layer.
pub(super) fn dense() -> Value {
    without_experts(flash())
}

fn without_experts(mut config: Value) -> Value {
    let layers = config["moe_layer_freq"].as_array().map_or(0, Vec::len);
    config["moe_layer_freq"] = json!(vec![0; layers]);
    config
}

/// The same with networks that are wider than the first share of any CTA.
pub(super) fn wide() -> Value {
    with_fields(dense(), &json!({ "intermediate_size": WIDE }))
}

/// The dense form with layers of different widths, not all of which are a multiple of a matrix
/// step: attention of 512 in full layers and 320 in others, networks of 512. The wide pass has no
/// windows with value heads of 40.
pub(super) fn uneven() -> Value {
    let own = json!({
        "num_attention_heads": 16,
        "v_head_dim": 32,
        "swa_v_head_dim": 40,
        "intermediate_size": 512,
    });
    with_fields(dense(), &own)
}

/// The drafter of `uneven`, whose networks have a width of 320.
pub(super) fn uneven_drafter() -> Value {
    with_fields(flash_drafter(), &json!({ "intermediate_size": 320 }))
}

/// Three tiles of 8 rows for each of the 132 CTAs of an H100, and a few more rows.
const WIDE: usize = 3232;

/// V2.5-Pro's form with a dense network in every layer.
pub(super) fn pro_dense() -> Value {
    without_experts(pro_fp4())
}

/// V2.5-Pro's form with experts so wide that the down projection takes three steps, while a page of
/// the kernels' ring holds two steps of each of four experts.
pub(super) fn wide_experts() -> Value {
    with_fields(pro_fp4(), &json!({ "moe_intermediate_size": 640, "num_experts_per_tok": 4 }))
}

pub(super) fn pro_fp4() -> Value {
    let windows = [0, 1, 1, 0];
    let attention = |layer: usize| format!("model.layers.{layer}.self_attn.o_proj");
    let mut ignored: Vec<_> = (0..windows.len()).map(attention).collect();
    ignored.push("model.decoder.self_attn.o_proj".into());
    let own = json!({
        "architectures": ["MiMoV2ForCausalLM"],
        "model_type": "mimo_v2",
        "attention_projection_layout": "fused_qkv",
        "hidden_size": 128,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 48,
        "v_head_dim": 32,
        "swa_num_attention_heads": 16,
        "swa_num_key_value_heads": 8,
        "swa_head_dim": 48,
        "swa_v_head_dim": 32,
        "rope_theta": 10_000_000,
        "attention_value_scale": 0.612,
        "intermediate_size": 512,
        "moe_intermediate_size": 256,
        "n_routed_experts": 8,
        "moe_router_dtype": "bfloat16",
        "quantization_config": {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
            "ignored_layers": ignored,
            "store_dtype": "mxfp4",
            "mxfp4_block_size": 32,
        },
    });
    with_fields(base(&windows), &own)
}

/// V2.6-Flash's form: projections fused in as many chunks as there are global K/V heads, which is
/// half of the K/V heads in window layers; towers for images and audio. Its vocabulary has room for
/// a tokenizer. Alone among the toys, it has more than eight query heads for each global K/V head.
pub(super) fn v2_6_flash() -> Value {
    let own = json!({
        "vision_config": { "depth": 2 },
        "audio_config": { "layers": 2 },
        "vocab_size": 320,
        "num_attention_heads": 40,
        "num_key_value_heads": 4,
        "layernorm_epsilon": 1e-6,
        "attention_value_scale": 0.707,
    });
    with_fields(pro_fp4(), &own)
}

/// In the form of Qwen's FP8 files.
pub(super) fn qwen3_moe() -> Value {
    json!({
        "architectures": ["Qwen3MoeForCausalLM"],
        "attention_bias": false,
        "bos_token_id": 252,
        "decoder_sparse_step": 1,
        "eos_token_id": 250,
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": 128,
        "intermediate_size": 384,
        "max_position_embeddings": 4096,
        "max_window_layers": 4,
        "mlp_only_layers": [2],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 192,
        "norm_topk_prob": true,
        "num_attention_heads": 16,
        "num_experts": 12,
        "num_experts_per_tok": 3,
        "num_hidden_layers": 4,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_scaling": null,
        "rope_theta": 1_000_000.0,
        "sliding_window": null,
        "tie_word_embeddings": false,
        "torch_dtype": "bfloat16",
        "use_sliding_window": false,
        "vocab_size": 320,
        "quantization_config": {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.gate", "model.norm"],
            "quant_method": "fp8",
            "weight_block_size": [128, 128],
        },
    })
}

/// The same with experts in every layer, and heads of 64.
pub(super) fn qwen3_experts() -> Value {
    with_fields(qwen3_moe(), &json!({ "mlp_only_layers": [], "head_dim": 64 }))
}

/// The same with a dense network in every layer.
pub(super) fn qwen3_dense() -> Value {
    with_fields(qwen3_moe(), &json!({ "mlp_only_layers": [0, 1, 2, 3] }))
}

/// In the form that z-lab publishes, with attention like that of gpt-oss's drafters. It has two
/// tiles of rows, and another epsilon than the target.
pub(super) fn qwen3_drafter() -> Value {
    let own = json!({
        "block_size": 16,
        "dflash_config": { "mask_token_id": 253, "target_layer_ids": [0, 1, 3] },
        "head_dim": 32,
        "hidden_size": 128,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "rms_norm_eps": 0.01,
    });
    with_fields(gpt_oss_drafter(), &own)
}

pub(super) fn gpt_oss() -> Value {
    json!({
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": true,
        "attention_dropout": 0.0,
        "eos_token_id": 250,
        "experts_per_token": 4,
        "head_dim": 16,
        "hidden_act": "silu",
        "hidden_size": 64,
        "initial_context_length": 128,
        "intermediate_size": 64,
        "layer_types": [
            "sliding_attention", "full_attention", "sliding_attention", "full_attention",
        ],
        "max_position_embeddings": 4096,
        "model_type": "gpt_oss",
        "num_attention_heads": 8,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 8,
        "pad_token_id": 251,
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
            "original_max_position_embeddings": 128,
            "rope_type": "yarn",
            "truncate": false,
        },
        "rope_theta": 150_000,
        "sliding_window": 16,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": false,
        "vocab_size": 320,
    })
}

/// In the form that z-lab publishes, with as many rows as gpt-oss-120b's: no multiple of a tile.
pub(super) fn gpt_oss_drafter() -> Value {
    json!({
        "architectures": ["DFlashDraftModel"],
        "attention_bias": true,
        "attention_dropout": 0.0,
        "block_size": 10,
        "dflash_config": { "mask_token_id": 252, "target_layer_ids": [1, 2] },
        "dtype": "bfloat16",
        "head_dim": 16,
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 96,
        "layer_types": ["full_attention", "full_attention"],
        "max_position_embeddings": 4096,
        "model_type": "qwen3",
        "num_attention_heads": 8,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "num_target_layers": 4,
        "rms_norm_eps": 1e-5,
        "rope_scaling": gpt_oss()["rope_scaling"],
        "rope_theta": 150_000,
        "sliding_window": null,
        "tie_word_embeddings": false,
        "use_sliding_window": false,
        "vocab_size": 320,
    })
}

/// The same model with floats only.
pub(super) fn unquantised(config: Value) -> Value {
    without_field(config, "quantization_config")
}

/// The same model in the form with separate q, k and v projections.
pub(super) fn split(config: Value) -> Value {
    let names = json!({
        "architectures": ["MiMoV2FlashForCausalLM"], "model_type": "mimo_v2_flash",
    });
    with_fields(without_field(config, "attention_projection_layout"), &names)
}

/// In the form of V2.5 and V2.5-Pro. Its vocabulary size is wrong, like theirs.
pub(super) fn pro_drafter() -> Value {
    let own = json!({
        "hidden_size": 128,
        "num_target_layers": 4,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 32,
        "v_head_dim": 32,
        "intermediate_size": 256,
        "rms_norm_eps": 1e-5,
        "vocab_size": 240,
        "dflash_config": {
            "target_layer_ids": [0, 2, 3],
            "mask_token_id": 252,
            "use_swa": true,
            "swa_window_size": 24,
            "attention_sink_bias": true,
            "attention_value_scale": 0.612,
            "backbone_rotary_base": 5_000_000,
            "num_anchors": 4096,
            "loss_decay_gamma": 7.0,
        },
    });
    with_fields(drafter(), &own)
}

/// The drafter of V2.6-Flash, which has the types of its layers in place of `use_swa`.
pub(super) fn v2_6_drafter() -> Value {
    let own = json!({
        "rms_norm_eps": 1e-6,
        "vocab_size": 320,
        "layer_types": ["sliding_attention", "sliding_attention"],
        "is_causal": false,
        "dflash_config": {
            "target_layer_ids": [0, 2, 3],
            "mask_token_id": 252,
            "swa_window_size": 24,
            "attention_sink_bias": true,
            "attention_value_scale": 0.707,
            "num_anchors": 4096,
            "loss_decay_gamma": 7.0,
        },
    });
    with_fields(pro_drafter(), &own)
}

/// In the form of V2.6.
pub(super) fn flash_drafter() -> Value {
    let own = json!({
        "hidden_size": 64,
        "num_target_layers": 5,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 16,
        "intermediate_size": 96,
        "rms_norm_eps": 1e-6,
        "layer_types": ["sliding_attention", "sliding_attention"],
        "is_causal": false,
        "dflash_config": {
            "target_layer_ids": [1, 2, 4],
            "mask_token_id": 253,
            "attention_sink_bias": true,
            "attention_value_scale": 0.707,
        },
    });
    with_fields(drafter(), &own)
}

fn drafter() -> Value {
    json!({
        "architectures": ["DFlashDraftModel"],
        "model_type": "qwen3",
        "num_hidden_layers": 2,
        "partial_rotary_factor": 0.5,
        "rope_theta": 10000,
        "hidden_act": "silu",
        "attention_bias": false,
        "block_size": 8,
        "sliding_window": 24,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": false,
        "dtype": "bfloat16",
    })
}

fn without_field(mut config: Value, name: &str) -> Value {
    config.as_object_mut().expect("a config is an object").remove(name);
    config
}
