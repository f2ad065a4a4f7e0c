"""The shape of the demo model and of its drafter, and the two config files that say it."""

import json
from dataclasses import dataclass
from pathlib import Path

SEED = 20261121

# The vocabulary's first entries. The first four are never shown to a reader; the others are markup
# that a parser of the server looks for, so they stay visible.
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>"]
MARKUP = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
]
END_OF_TEXT, IM_START, IM_END, MASK = range(4)
THINK, THINK_END, TOOL_CALL, TOOL_CALL_END = range(4, 8)


@dataclass(frozen=True)
class Target:
    """Sizes of the target. Every fused projection has a chunk per K/V head."""

    vocab: int = 4096
    hidden: int = 384
    window_layers: tuple = (0, 1, 1, 0, 1, 0)
    q_heads: int = 8
    kv_heads: int = 8
    qk_dim: int = 48
    v_dim: int = 32
    rotary_dims: int = 16
    rope_base: float = 100_000.0
    window_rope_base: float = 10_000.0
    window: int = 128
    value_scale: float = 0.612
    dense_width: int = 1024
    expert_width: int = 256
    experts: int = 8
    top_k: int = 4
    eps: float = 1e-5
    positions: int = 2048

    @property
    def layers(self):
        return len(self.window_layers)

    @property
    def group(self):
        """Query heads that share a K/V head."""
        return self.q_heads // self.kv_heads

    @property
    def chunk_rows(self):
        return self.group * self.qk_dim + self.qk_dim + self.v_dim


@dataclass(frozen=True)
class Drafter:
    """Sizes of the drafter. It has the target's hidden size, embedding and head."""

    layers: int = 3
    heads: int = 8
    head_dim: int = 32
    rotary_dims: int = 16
    rope_base: float = 10_000.0
    value_scale: float = 0.612
    width: int = 384
    rows: int = 8
    taps: tuple = (1, 3, 5)
    window: int = 512
    eps: float = 1e-5


def target_config(shape):
    """config.json, in the words of the published checkpoints."""
    names = [f"model.layers.{i}.self_attn.o_proj" for i in range(shape.layers)]
    return {
        "architectures": ["MiMoV2ForCausalLM"],
        "model_type": "mimo_v2",
        "attention_projection_layout": "fused_qkv",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "vocab_size": shape.vocab,
        "tie_word_embeddings": False,
        "num_attention_heads": shape.q_heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.qk_dim,
        "v_head_dim": shape.v_dim,
        "swa_num_attention_heads": shape.q_heads,
        "swa_num_key_value_heads": shape.kv_heads,
        "swa_head_dim": shape.qk_dim,
        "swa_v_head_dim": shape.v_dim,
        "partial_rotary_factor": 0.334,
        "rope_theta": shape.rope_base,
        "swa_rope_theta": shape.window_rope_base,
        "sliding_window": shape.window,
        "sliding_window_size": shape.window,
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
        "attention_value_scale": shape.value_scale,
        "attention_bias": False,
        "intermediate_size": shape.dense_width,
        "moe_intermediate_size": shape.expert_width,
        "n_routed_experts": shape.experts,
        "num_experts_per_tok": shape.top_k,
        "n_shared_experts": None,
        "n_group": 1,
        "topk_group": 1,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "norm_topk_prob": True,
        "routed_scaling_factor": None,
        "layernorm_epsilon": shape.eps,
        "hidden_act": "silu",
        "max_position_embeddings": shape.positions,
        "moe_layer_freq": [0] + [1] * (shape.layers - 1),
        "hybrid_layer_pattern": list(shape.window_layers),
        "eos_token_id": IM_END,
        "pad_token_id": END_OF_TEXT,
        "torch_dtype": "bfloat16",
        "quantization_config": {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
            "store_dtype": "mxfp4",
            "mxfp4_block_size": 32,
            "ignored_layers": names,
        },
    }


def drafter_config(shape, target):
    """dflash/config.json, in the words of the published checkpoints."""
    return {
        "architectures": ["DFlashDraftModel"],
        "model_type": "qwen3",
        "hidden_size": target.hidden,
        "intermediate_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "head_dim": shape.head_dim,
        "v_head_dim": shape.head_dim,
        "partial_rotary_factor": shape.rotary_dims / shape.head_dim,
        "rope_theta": shape.rope_base,
        "rms_norm_eps": shape.eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "block_size": shape.rows,
        "sliding_window": shape.window,
        "dflash_config": {
            "target_layer_ids": list(shape.taps),
            "mask_token_id": MASK,
            "use_swa": True,
            "swa_window_size": shape.window,
            "attention_sink_bias": True,
            "attention_value_scale": shape.value_scale,
        },
        "num_target_layers": target.layers,
        "vocab_size": target.vocab,
        "max_position_embeddings": target.positions,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }


def write_json(path, value):
    Path(path).write_text(json.dumps(value, indent=1) + "\n")
