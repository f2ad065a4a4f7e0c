"""Small random checkpoints of Qwen3-MoE and gpt-oss, with what transformers computes on them.

    pip install -r tests/parity/requirements.txt
    python tests/parity/make_families.py               # rewrites tests/parity/fixtures/<name>/
    python tests/parity/make_families.py --self-check  # reads them back and breaks them on purpose

A fixture is a model directory as the hub has it plus expected.safetensors, whose tensors
make_fixtures.py describes. Checkpoints are stored as published: Qwen3-MoE in BF16 with three
matrices an expert, or with the experts of a layer stacked; gpt-oss with its experts in MXFP4, rows
of gate and up in turn, blocks and scales apart.
"""

import argparse

import torch
from transformers import GptOssConfig, GptOssForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from checkpoint import (
    FIXTURES,
    GROUP,
    mxfp4_to_float,
    read_expected,
    read_model,
    report,
    write_model,
    write_tensors,
)
from reference import (
    GREEDY_COUNT,
    LOGIT_GAP_MIN,
    ROUTE_GAP_MIN,
    TWIN_AGREEMENT,
    apart,
    first_suitable,
    require,
)

EAGER = {"attn_implementation": "eager", "experts_implementation": "eager"}

# ---- the fixtures --------------------------------------------------------------------------------

QWEN3 = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 94,
    "decoder_sparse_step": 1,
    "eos_token_id": 95,
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "max_position_embeddings": 4096,
    "max_window_layers": 3,
    "mlp_only_layers": [1],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 16,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts": 12,
    "num_experts_per_tok": 3,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "output_router_logits": False,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 96,
}

GPT_OSS = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": 95,
    "experts_per_token": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initial_context_length": 64,
    "initializer_range": 0.02,
    "intermediate_size": 64,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "max_position_embeddings": 2048,
    "model_type": "gpt_oss",
    "num_attention_heads": 8,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "output_router_logits": False,
    "pad_token_id": 94,
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
    # The prompt goes beyond the original positions, and both ends of the ramp (0.6 and 1.6 of 8
    # pairs) are not whole numbers.
    "rope_scaling": {
        "beta_fast": 4.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 64,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 12,
    # So small that many values are clipped.
    "swiglu_limit": 1.5,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 96,
}

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}

# name -> (config, prompt length, whether the experts of a layer are stacked)
FIXTURE_LIST = {
    "qwen3_moe": (QWEN3, 48, False),
    # Experts are stacked and in all layers; routing weights are not normalised; and YaRN is as
    # Qwen's model cards recommend for long texts.
    "qwen3_stacked": (
        QWEN3
        | {"mlp_only_layers": [], "norm_topk_prob": False, "num_hidden_layers": 2}
        | {"num_experts": 6, "rope_scaling": YARN, "rope_theta": 10000.0}
        | {"max_position_embeddings": 256},
        *(72, True),
    ),
    "gpt_oss": (GPT_OSS, 72, True),
}


def is_gpt_oss(config):
    return config["model_type"] == "gpt_oss"


def is_sparse(config, layer):
    return layer not in config.get("mlp_only_layers", [])


def random_stored(config, stacked, generator):
    """name -> tensor as a file holds it. Vectors that an engine could forget are large."""

    def normal(*shape, gain=1.0):
        weight = torch.randn(shape, generator=generator) * (gain * shape[-1] ** -0.5)
        return weight.bfloat16()

    def near(center, deviation, *shape):
        return (center + deviation * torch.randn(shape, generator=generator)).bfloat16()

    def linear(name, *shape, gain=1.0):
        stored[name + ".weight"] = normal(*shape, gain=gain)
        if is_gpt_oss(config):
            stored[name + ".bias"] = near(0, 0.3, shape[0])

    def mxfp4(name, count, rows, columns):
        exponent = -2 - columns.bit_length() // 2
        shape = (count, rows, columns // GROUP)
        blocks = torch.randint(256, (*shape, GROUP // 2), generator=generator, dtype=torch.uint8)
        spread = torch.randint(-2, 3, shape, generator=generator)
        stored[name + "_blocks"] = blocks
        stored[name + "_scales"] = (127 + exponent + spread).to(torch.uint8)
        stored[name + "_bias"] = near(0, 0.3, count, rows)

    def gated(prefix, width):
        stored[prefix + "gate_proj.weight"] = normal(width, hidden)
        stored[prefix + "up_proj.weight"] = normal(width, hidden)
        stored[prefix + "down_proj.weight"] = normal(hidden, width, gain=1.5)

    def feed_forward(prefix, layer):
        if is_gpt_oss(config):
            count, width = config["num_local_experts"], config["intermediate_size"]
            linear(prefix + "router", count, hidden, gain=1.5)
            mxfp4(prefix + "experts.gate_up_proj", count, 2 * width, hidden)
            mxfp4(prefix + "experts.down_proj", count, hidden, width)
            return
        if not is_sparse(config, layer):
            return gated(prefix, config["intermediate_size"])
        count, width = config["num_experts"], config["moe_intermediate_size"]
        linear(prefix + "gate", count, hidden, gain=1.5)
        if stacked:
            stored[prefix + "experts.gate_up_proj"] = normal(count, 2 * width, hidden)
            stored[prefix + "experts.down_proj"] = normal(count, hidden, width, gain=1.5)
            return
        for expert in range(count):
            gated(f"{prefix}experts.{expert}.", width)

    hidden, vocab, dim = config["hidden_size"], config["vocab_size"], config["head_dim"]
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    stored = {"model.embed_tokens.weight": near(0, 1, vocab, hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        attention = prefix + "self_attn."
        stored[prefix + "input_layernorm.weight"] = near(1, 0.2, hidden)
        stored[prefix + "post_attention_layernorm.weight"] = near(1, 0.2, hidden)
        linear(attention + "q_proj", heads * dim, hidden, gain=1.2)
        linear(attention + "k_proj", kv * dim, hidden, gain=1.2)
        linear(attention + "v_proj", kv * dim, hidden)
        linear(attention + "o_proj", hidden, heads * dim, gain=1.5)
        if is_gpt_oss(config):
            stored[attention + "sinks"] = near(0.5, 1, heads)
        else:
            stored[attention + "q_norm.weight"] = near(1, 0.2, dim)
            stored[attention + "k_norm.weight"] = near(1, 0.2, dim)
        feed_forward(prefix + "mlp.", layer)
    stored["model.norm.weight"] = near(1, 0.2, hidden)
    stored["lm_head.weight"] = normal(vocab, hidden, gain=2.0)
    return stored


# ---- what transformers makes of it ---------------------------------------------------------------


def unpacked(blocks, scales):
    """[experts, rows, columns] of [experts, rows, groups, 16] and [experts, rows, groups]."""
    experts = zip(blocks.flatten(2), scales)
    return torch.stack([mxfp4_to_float(codes, scale) for codes, scale in experts])


def transformers_state(config, stored):
    """The tensors under transformers' own names, in its own layout, as floats."""
    state = {}
    for name, tensor in stored.items():
        if name.endswith("_blocks"):
            scales = stored[name.replace("_blocks", "_scales")]
            # transformers multiplies from the right, so its matrices are transposed.
            state[name.removesuffix("_blocks")] = unpacked(tensor, scales).transpose(1, 2)
        elif not name.endswith("_scales") and ".experts.0." not in name:
            state[name] = tensor.float()
    for layer in range(config["num_hidden_layers"]):
        experts = f"model.layers.{layer}.mlp.experts."
        if experts + "0.gate_proj.weight" in stored:
            numbers = range(config["num_experts"])
            gate, up, down = (
                torch.stack([stored[f"{experts}{e}.{name}_proj.weight"].float() for e in numbers])
                for name in ("gate", "up", "down")
            )
            state = {n: t for n, t in state.items() if not n.startswith(experts)}
            state[experts + "gate_up_proj"] = torch.cat((gate, up), 1)
            state[experts + "down_proj"] = down
    return state


class Twin:
    """transformers' model on the checkpoint's numbers."""

    def __init__(self, config, stored, dtype=torch.float32):
        if is_gpt_oss(config):
            self.config, model = GptOssConfig(**config, **EAGER), GptOssForCausalLM
            del self.config.quantization_config
        else:
            self.config, model = Qwen3MoeConfig(**config, **EAGER), Qwen3MoeForCausalLM
        self.model = model(self.config)
        self.model.load_state_dict(transformers_state(config, stored))
        self.model.to(dtype).eval()
        self.model.model.embed_tokens.register_forward_hook(self._note_hidden)
        for layer in self.model.model.layers:
            layer.register_forward_hook(self._note_hidden)
            router = getattr(layer.mlp, "router", getattr(layer.mlp, "gate", None))
            if router is not None:
                router.register_forward_hook(self._note_route)

    def _note_hidden(self, module, inputs, output):
        self.hidden.append(output[0])

    def _note_route(self, router, inputs, output):
        best = output[0].topk(router.top_k + 1).values
        self.route_gap = min(self.route_gap, (best[:, -2] - best[:, -1]).min().item())

    @torch.no_grad()
    def run(self, tokens):
        """logits [n, vocab]; leaves residual streams in self.hidden, [n, hidden] per boundary."""
        self.hidden, self.route_gap = [], 1.0
        return self.model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0]


def expected(config, stored, tokens):
    """The tensors of expected.safetensors, or Unsuitable."""
    twin = Twin(config, stored)
    logits = twin.run(tokens)
    hidden = twin.hidden
    require(twin.route_gap > ROUTE_GAP_MIN, "a token is torn between two experts")
    require(0.8 < logits.std() < 4, "logits are out of scale")
    greedy = []
    for _ in range(GREEDY_COUNT):
        best = twin.run(tokens + greedy)[-1].topk(2)
        require(best.values[0] - best.values[1] > LOGIT_GAP_MIN, "a token leads by too little")
        greedy.append(best.indices[0].item())
    require(config["eos_token_id"] not in greedy, "the greedy text ends")
    double = Twin(config, stored, torch.float64)
    for a, b in zip([logits, *hidden], [double.run(tokens), *double.hidden], strict=True):
        require(apart(a, b) < TWIN_AGREEMENT, "float32 is not enough")
    return {
        "tokens": torch.tensor(tokens, dtype=torch.int32),
        "logits": logits,
        "greedy": torch.tensor(greedy, dtype=torch.int32),
    } | {f"hidden.{i}": h for i, h in enumerate(hidden)}


def make_fixture(name, config, prompt_length, stacked):
    def make(generator):
        stored = random_stored(config, stacked, generator)
        tokens = torch.randint(config["vocab_size"] - 2, (prompt_length,), generator=generator)
        return stored, expected(config, stored, tokens.tolist())

    seed, (stored, outputs) = first_suitable(make)
    write_model(FIXTURES / name, config, stored)
    # Only gpt-oss has windows, and its config states the number of keys correctly.
    window_keys = config["sliding_window"] or 0
    write_tensors(FIXTURES / name / "expected.safetensors", outputs, window_keys=str(window_keys))
    report(FIXTURES / name, seed, outputs["logits"].std())


# ---- self-check ----------------------------------------------------------------------------------


def activations():
    """Mistakes in gpt-oss's activation, as replacements of transformers' own."""

    def gated(gate, up, limit, shift=1, alpha=1.702):
        return (up.clamp(-limit, limit) + shift) * gate * torch.sigmoid(gate * alpha)

    def halves(both):
        return both[..., ::2], both[..., 1::2]

    def lower_clamp(self, both):
        gate, up = halves(both)
        return gated(gate.clamp(-self.limit, self.limit), up, self.limit)

    def without_one(self, both):
        gate, up = halves(both)
        return gated(gate.clamp(max=self.limit), up, self.limit, shift=0)

    def plain_alpha(self, both):
        gate, up = halves(both)
        return gated(gate.clamp(max=self.limit), up, self.limit, alpha=1)

    def not_interleaved(self, both):
        gate, up = both.chunk(2, -1)
        return gated(gate.clamp(max=self.limit), up, self.limit)

    return [lower_clamp, without_one, plain_alpha, not_interleaved]


def self_check(name):
    config, stored = read_model(FIXTURES / name)
    outputs, _ = read_expected(FIXTURES / name)
    tokens = outputs["tokens"].tolist()

    def error():
        return apart(Twin(config, stored).run(tokens), outputs["logits"])

    as_written = error()
    print(f"{name}: as written {as_written:.1e}")
    assert as_written < TWIN_AGREEMENT
    right = GptOssExperts._apply_gate
    for mistake in activations() if is_gpt_oss(config) else []:
        GptOssExperts._apply_gate = mistake
        found = error()
        GptOssExperts._apply_gate = right
        print(f"    {mistake.__name__:24} {found:.1e}")
        assert found > 100 * TWIN_AGREEMENT, "this mistake would pass"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--self-check", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the order of a sum must not depend on the machine's cores
    for name, description in FIXTURE_LIST.items():
        if arguments.self_check:
            self_check(name)
        else:
            make_fixture(name, *description)


if __name__ == "__main__":
    main()
