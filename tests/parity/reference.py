"""What transformers computes on a float twin, and which of it is fit to be expected."""

import torch
from torch import nn
from transformers import MiMoV2FlashConfig, MiMoV2FlashForCausalLM

from checkpoint import kv_heads

GREEDY_COUNT = 16

# A fixture is kept only if none of its choices is close: an engine that rounds to BF16 between
# layers must still choose the same tokens, and one that does not must choose the same experts.
LOGIT_GAP_MIN = 0.05
ROUTE_GAP_MIN = 1e-3
TWIN_AGREEMENT = 1e-4


class Unsuitable(Exception):
    """This seed gives a fixture that would test luck; the next one is tried."""


def require(condition, why):
    if not condition:
        raise Unsuitable(why)


def first_suitable(make):
    """make(generator) for seed 0, 1, ... until one is suitable; returns the seed too."""
    for seed in range(1000):
        try:
            return seed, make(torch.Generator().manual_seed(seed))
        except Unsuitable:
            continue
    raise SystemExit("no seed below 1000 is suitable")


def transformers_config(config, window_keys):
    """transformers reads neither the layer lists nor the window count of the hub's file as kilotok
    means them, so they are said in its own words."""

    def rope(theta):
        factor = config["partial_rotary_factor"]
        return {"rope_type": "default", "rope_theta": float(theta), "partial_rotary_factor": factor}

    same = [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "v_head_dim",
        "attention_value_scale",
        "attention_bias",
        "intermediate_size",
        "moe_intermediate_size",
        "n_routed_experts",
        "num_experts_per_tok",
        "n_group",
        "topk_group",
        "norm_topk_prob",
        "routed_scaling_factor",
        "hidden_act",
        "vocab_size",
        "max_position_embeddings",
        "eos_token_id",
        "pad_token_id",
        "tie_word_embeddings",
    ]
    return MiMoV2FlashConfig(
        **{name: config[name] for name in same},
        rms_norm_eps=config["layernorm_epsilon"],
        sliding_window=window_keys,
        layer_types=[
            ("full_attention", "sliding_attention")[w] for w in config["hybrid_layer_pattern"]
        ],
        mlp_layer_types=[("dense", "sparse")[m] for m in config["moe_layer_freq"]],
        rope_parameters={
            "full_attention": rope(config["rope_theta"]),
            "sliding_attention": rope(config["swa_rope_theta"]),
        },
        attn_implementation="eager",
        experts_implementation="eager",
    )


class Twin:
    """transformers' model on float weights. It normalises, rotates and routes in float32 even when
    the rest is float64, so float64 runs are good to about 1e-6, not to 1e-15."""

    def __init__(self, config, weights, window_keys, dtype=torch.float32):
        hf = transformers_config(config, window_keys)
        self.model = MiMoV2FlashForCausalLM(hf)
        hidden, state = config["hidden_size"], {}
        for layer, module in enumerate(self.model.model.layers):
            # transformers gives window layers twice the KV heads of global ones, whatever the
            # config says.
            attention, kv = module.self_attn, kv_heads(config, layer)
            attention.k_proj = nn.Linear(hidden, kv * config["head_dim"], bias=False)
            attention.v_proj = nn.Linear(hidden, kv * config["v_head_dim"], bias=False)
            attention.num_key_value_groups = config["num_attention_heads"] // kv
            if config["moe_layer_freq"][layer]:
                module.mlp.gate.register_forward_hook(self._note_route)
                prefix = f"model.layers.{layer}.mlp.experts."
                experts = range(config["n_routed_experts"])
                gate, up, down = (
                    torch.stack([weights[f"{prefix}{e}.{name}_proj.weight"] for e in experts])
                    for name in ("gate", "up", "down")
                )
                state[prefix + "gate_up_proj"] = torch.cat((gate, up), 1)
                state[prefix + "down_proj"] = down
            module.register_forward_hook(self._note_hidden)
        self.model.model.embed_tokens.register_forward_hook(self._note_hidden)
        for name, weight in weights.items():
            if ".experts." not in name:
                state[name.replace("attention_sink_bias", "sinks")] = weight
        self.model.load_state_dict(state)
        self.model.to(dtype).eval()

    def _note_hidden(self, module, inputs, output):
        self.hidden.append(output[0])

    def _note_route(self, router, inputs, output):
        scores = output[0].double().sigmoid()
        biased = scores + router.e_score_correction_bias
        best = biased.topk(router.top_k + 1).values
        self.route_gap = min(self.route_gap, (best[:, -2] - best[:, -1]).min().item())
        unbiased_choice = scores.topk(router.top_k).indices.sort().values
        self.bias_matters.append((output[2].sort().values != unbiased_choice).any(-1))

    @torch.no_grad()
    def run(self, tokens):
        """logits [n, vocab]; leaves residual streams in self.hidden, [n, hidden] per boundary."""
        self.hidden, self.route_gap, self.bias_matters = [], 1.0, []
        return self.model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0]

    def greedy(self, prompt, count):
        """The continuation, and the smallest lead of a chosen token over the runner-up."""
        tokens, gap = list(prompt), float("inf")
        for _ in range(count):
            best = self.run(tokens)[-1].topk(2)
            gap = min(gap, (best.values[0] - best.values[1]).item())
            tokens.append(best.indices[0].item())
        return tokens[len(prompt) :], gap


def apart(a, b):
    """Largest difference, relative to the largest value."""
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


def expected(config, weights, window_keys, tokens):
    """The tensors of expected.safetensors, or Unsuitable."""
    twin = Twin(config, weights, window_keys)
    logits = twin.run(tokens)
    hidden = twin.hidden
    require(twin.route_gap > ROUTE_GAP_MIN, "a token is torn between two experts")
    bias_matters = torch.cat(twin.bias_matters).float().mean()
    require(bias_matters > 0.3, "the routing bias changes too few choices")
    require(0.8 < logits.std() < 4, "logits are out of scale")
    greedy, gap = twin.greedy(tokens, GREEDY_COUNT)
    require(gap > LOGIT_GAP_MIN, "a greedy token leads by too little")
    require(config["eos_token_id"] not in greedy, "the greedy text ends")
    double = Twin(config, weights, window_keys, torch.float64)
    for a, b in zip([logits, *hidden], [double.run(tokens), *double.hidden], strict=True):
        require(apart(a, b) < TWIN_AGREEMENT, "float32 is not enough")
    return {
        "tokens": torch.tensor(tokens, dtype=torch.int32),
        "logits": logits,
        "greedy": torch.tensor(greedy, dtype=torch.int32),
    } | {f"hidden.{i}": h for i, h in enumerate(hidden)}
