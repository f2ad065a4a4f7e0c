"""A small gpt-oss with a drafter in the form that z-lab publishes for other models than MiMo.

    python tests/parity/make_family_drafts.py   # rewrites tests/parity/fixtures/gpt_oss_draft/

Such a drafter has biases and the target's rotation, YaRN included; it has neither sinks nor
a window nor a scale of values, and its mask token is a row of the target's table. The rest is the
definition in draft_oracle.py, which also says what expected.safetensors holds.
"""

import math

import torch

from checkpoint import FIXTURES, report, write_json, write_model, write_tensors
from draft_oracle import DRAFT_GAP_MIN, Drafter, follow, named
from make_families import GPT_OSS, Twin, random_stored
from reference import first_suitable, require

NAME = "gpt_oss_draft"
MASK = 93
PROMPT_LENGTH = 70
PLAN = [7, 2, 0, 7]

TARGET = GPT_OSS | {"num_hidden_layers": 2, "layer_types": GPT_OSS["layer_types"][:2]}

CONFIG = {
    "architectures": ["DFlashDraftModel"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "block_size": 8,
    "dflash_config": {"mask_token_id": MASK, "target_layer_ids": [0, 1]},
    "dtype": "bfloat16",
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 48,
    "layer_types": ["full_attention", "full_attention"],
    "max_position_embeddings": 2048,
    "model_type": "qwen3",
    "num_attention_heads": 8,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "num_target_layers": 2,
    "rms_norm_eps": 1e-5,
    "rope_scaling": GPT_OSS["rope_scaling"],
    "rope_theta": GPT_OSS["rope_theta"],
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 96,
}


def rotate(x, positions, config):
    """YaRN (arXiv 2309.00071) on [rows, heads, dim], dims i and i + half together."""
    half, base, yarn = x.shape[-1] // 2, config["rope_theta"], config["rope_scaling"]
    pair = torch.arange(half, dtype=x.dtype)

    def at(turns):
        period = yarn["original_max_position_embeddings"] / (turns * 2 * math.pi)
        return half * math.log(period) / math.log(base)

    low, high = at(yarn["beta_fast"]), at(yarn["beta_slow"])
    stretched = ((pair - low) / (high - low)).clamp(0, 1)
    frequency = base ** -(pair / half) * (1 - stretched + stretched / yarn["factor"])
    magnitude = 0.1 * math.log(yarn["factor"]) + 1
    angle = positions[:, None, None].to(x.dtype) * frequency
    cos, sin = angle.cos() * magnitude, angle.sin() * magnitude
    a, b = x.split(half, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Biased(Drafter):
    def linear(self, x, name):
        return x @ self.weights[name + ".weight"].T + self.weights[name + ".bias"]

    def heads(self, x, name):
        return self.linear(x, name).unflatten(-1, (-1, self.config["head_dim"]))

    def keys_values(self, layer, x, positions):
        attention = f"layers.{layer}.self_attn."
        k = self.norm(self.heads(x, attention + "k_proj"), attention + "k_norm")
        return rotate(k, positions, self.config), self.heads(x, attention + "v_proj")

    def attend(self, layer, h, positions, context):
        attention = f"layers.{layer}.self_attn."
        q = self.norm(self.heads(h, attention + "q_proj"), attention + "q_norm")
        q = rotate(q, positions, self.config)
        k, v = map(torch.cat, zip(context, self.keys_values(layer, h, positions)))
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        weights = (torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5).softmax(-1)
        attended = torch.einsum("hqk,khd->qhd", weights, v).flatten(1)
        return self.linear(attended, attention + "o_proj")


class Target(Twin):
    def greedy(self, prompt, count):
        """The continuation, and the smallest lead of a chosen token over the runner-up."""
        tokens, gap = list(prompt), float("inf")
        for _ in range(count):
            best = self.run(tokens)[-1].topk(2)
            gap = min(gap, (best.values[0] - best.values[1]).item())
            tokens.append(best.indices[0].item())
        return tokens[len(prompt) :], gap


def random_drafter(generator):
    def near(center, deviation, *shape):
        return (center + deviation * torch.randn(shape, generator=generator)).bfloat16()

    def linear(name, rows, columns, bias=False, gain=1.0):
        weights[name + ".weight"] = near(0, gain * columns**-0.5, rows, columns)
        if bias:
            weights[name + ".bias"] = near(0, 0.3, rows)

    hidden, width, dim = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["head_dim"]
    heads, kv = CONFIG["num_attention_heads"] * dim, CONFIG["num_key_value_heads"] * dim
    weights = {"hidden_norm.weight": near(1, 0.2, hidden), "norm.weight": near(1, 0.2, hidden)}
    linear("fc", hidden, len(CONFIG["dflash_config"]["target_layer_ids"]) * hidden)
    for layer in range(CONFIG["num_hidden_layers"]):
        prefix = f"layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{prefix}{norm}.weight"] = near(1, 0.2, hidden)
        for norm in ("q_norm", "k_norm"):
            weights[f"{prefix}self_attn.{norm}.weight"] = near(1.2, 0.2, dim)
        linear(prefix + "self_attn.q_proj", heads, hidden, bias=True)
        linear(prefix + "self_attn.k_proj", kv, hidden, bias=True)
        linear(prefix + "self_attn.v_proj", kv, hidden, bias=True, gain=1.5)
        linear(prefix + "self_attn.o_proj", hidden, heads, bias=True, gain=2.0)
        linear(prefix + "mlp.gate_proj", width, hidden)
        linear(prefix + "mlp.up_proj", width, hidden)
        linear(prefix + "mlp.down_proj", hidden, width, gain=1.5)
    return weights


def make(generator):
    stored = random_stored(TARGET, True, generator)
    drafter = random_drafter(generator)
    prompt = torch.randint(MASK, (PROMPT_LENGTH,), generator=generator).tolist()
    target = Target(TARGET, stored, torch.float64)
    mask_row = stored["model.embed_tokens.weight"][MASK]
    drafts = Biased(CONFIG, drafter, mask_row, stored)
    outputs = named(prompt, follow(target, drafts, prompt, PLAN))
    for r in range(len(PLAN) + 1):
        best = outputs[f"round.{r}.draft_logits"].topk(2).values
        require((best[:, 0] - best[:, 1]).min() > DRAFT_GAP_MIN, "a draft leads by too little")
        said = [*outputs[f"round.{r}.emitted"], *outputs.get(f"round.{r}.drafts_in", [])]
        require({MASK, 94, 95}.isdisjoint(map(int, said)), "the text ends, or shows a mask")
    return stored, drafter, outputs


def main():
    torch.set_num_threads(1)
    seed, (stored, drafter, outputs) = first_suitable(make)
    directory = FIXTURES / NAME
    write_model(directory, TARGET, stored)
    (directory / "dflash").mkdir(exist_ok=True)
    write_json(directory / "dflash" / "config.json", CONFIG)
    write_tensors(directory / "dflash" / "model.safetensors", drafter)
    window_keys = str(TARGET["sliding_window"])
    write_tensors(directory / "expected.safetensors", outputs, window_keys=window_keys)
    report(directory, seed, outputs["round.0.draft_logits"].std())


if __name__ == "__main__":
    main()
