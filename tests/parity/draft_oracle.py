"""A float64 DFlash drafter, and what it proposes round after round on small random models.

    pip install -r tests/parity/requirements.txt
    python tests/parity/draft_oracle.py               # rewrites tests/parity/fixtures/draft_*/
    python tests/parity/draft_oracle.py --self-check  # reads them back and breaks them on purpose

Every fixture is a model directory with a drafter inside, as the hub has it:

    config.json, model.safetensors          the target
    dflash/config.json
    dflash/dflash_draft_model.safetensors   BF16, without embedding and head: the target's serve
    dflash/mask_embedding.pt                instead of the mask token's row of the embedding

expected.safetensors follows one greedy sequence. Round 0 is the state after the prompt; in every
later round the target verifies the drafts it is given, whatever the drafter proposed:

    prompt                   I32 [n]
    round.r.drafts_in        I32 [rows - 1]          the drafts verified; absent for r = 0
    round.r.emitted          I32 [1 + accepted]      accepted drafts, then the target's own token
    round.r.draft_logits     F32 [rows - 1, vocab]   what the drafter then says, from row 1 on
    round.r.draft_tokens     I32 [rows - 1]          their argmax
    round.r.context_kv_last  F32 [layers, 2, kv_heads * head_dim]
                             K (normed, rotated) and V (scaled) of the newest position with context

Where the target is quantised there are also the tensors that make_fixtures.py expects of a target,
for the same prompt.

`rows` is the config's block_size: the rows of one draft. In a round `start` positions have context,
the draft's rows are the newest token at `start` and masks after it, and the row at a position
proposes the token of that same position.

Window: a query at position q sees a key at position p if q - p < window, that is `window - 1` to
the left. Nothing limits it to the right, where only the rest of its own draft is. The rule is the
same for keys of context and draft, though a draft no longer than the window never feels it.

The target is transformers' model, run on float64 weights. Everything here is arithmetic written
from the drafter's definition alone, so it shares no code, and no mistake, with an engine.
"""

import argparse
import json

import torch
from safetensors.torch import load_file

from checkpoint import (
    FIXTURES,
    float_twin,
    fused_config,
    hub_config,
    quantised_form,
    random_weights,
    read_expected,
    read_model,
    replaced,
    report,
    stored_form,
    write_json,
    write_model,
    write_tensors,
)
from reference import LOGIT_GAP_MIN, TWIN_AGREEMENT, Twin, apart, first_suitable, require
from reference import expected as expected_of_target

DRAFT_GAP_MIN = 0.01


# ---- the drafter ---------------------------------------------------------------------------------


def rms_norm(x, weight, eps):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rotate(x, positions, config):
    """Rope on [rows, heads, head_dim]: dims i and i + half turn, those from 2 * half on stay."""
    half = int(config["head_dim"] * config["partial_rotary_factor"]) // 2
    frequency = config["rope_theta"] ** -(torch.arange(half, dtype=x.dtype) / half)
    angle = positions[:, None, None].to(x.dtype) * frequency
    low, high, rest = x.split([half, half, x.shape[-1] - 2 * half], -1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((low * cos - high * sin, high * cos + low * sin, rest), -1)


class Drafter:
    """The drafter of one sequence. `context` holds, per layer, K and V of every committed
    position, each [positions, kv_heads, head_dim]; it only ever grows at the end."""

    def __init__(self, config, weights, mask_row, target_weights):
        self.config, self.mask_row = config, mask_row.double()
        self.weights = {
            name.removeprefix("model."): weight.double() for name, weight in weights.items()
        }
        self.embedding = target_weights["model.embed_tokens.weight"].double()
        self.head = target_weights["lm_head.weight"].double()
        self.context = [None] * config["num_hidden_layers"]
        self.start = 0

    def norm(self, x, name):
        return rms_norm(x, self.weights[name + ".weight"], self.config["rms_norm_eps"])

    def keys_values(self, layer, x, positions):
        """K and V of rows x [rows, hidden], the same for context and draft."""
        attention, head_dim = f"layers.{layer}.self_attn.", self.config["head_dim"]
        k = (x @ self.weights[attention + "k_proj.weight"].T).unflatten(-1, (-1, head_dim))
        v = (x @ self.weights[attention + "v_proj.weight"].T).unflatten(-1, (-1, head_dim))
        k = rotate(self.norm(k, attention + "k_norm"), positions, self.config)
        return k, v * self.config["dflash_config"]["attention_value_scale"]

    def commit(self, residuals):
        """Appends the next positions: `residuals` [rows, hidden] per boundary of the target."""
        layers = self.config["dflash_config"]["target_layer_ids"]
        taps = torch.cat([residuals[layer + 1] for layer in layers], -1)
        fused = self.norm(taps @ self.weights["fc.weight"].T, "hidden_norm")
        positions = torch.arange(self.start, self.start + len(fused))
        for layer, old in enumerate(self.context):
            new = self.keys_values(layer, self.context_rows(layer, fused), positions)
            self.context[layer] = new if old is None else tuple(map(torch.cat, zip(old, new)))
        self.start += len(fused)

    def context_rows(self, layer, fused):
        """What a layer projects for context: no input_layernorm, that is for the draft's stream."""
        return fused

    def propose(self, anchor):
        """Logits [rows - 1, vocab] for the tokens that follow `anchor`. Leaves no trace."""
        rows = self.config["block_size"]
        positions = torch.arange(self.start, self.start + rows)
        x = torch.stack([self.embedding[anchor]] + [self.mask_row] * (rows - 1))
        for layer, context in enumerate(self.context):
            prefix = f"layers.{layer}."
            x = x + self.attend(layer, self.norm(x, prefix + "input_layernorm"), positions, context)
            h = self.norm(x, prefix + "post_attention_layernorm")
            gate, up, down = (
                self.weights[f"{prefix}mlp.{name}_proj.weight"].T for name in ("gate", "up", "down")
            )
            x = x + (torch.nn.functional.silu(h @ gate) * (h @ up)) @ down
        return self.norm(x, "norm")[1:] @ self.head.T

    def sees(self, query, key):
        """Which positions a query's position sees; a key past it can only be of its own draft."""
        return query - key < self.config["dflash_config"]["swa_window_size"]

    def attend(self, layer, h, positions, context):
        """h [rows, hidden] over context ++ draft; a sink weighs in the sum and adds no value."""
        config, attention = self.config, f"layers.{layer}.self_attn."
        q = h @ self.weights[attention + "q_proj.weight"].T
        q = q.unflatten(-1, (-1, config["head_dim"]))
        q = rotate(self.norm(q, attention + "q_norm"), positions, config)
        k, v = map(torch.cat, zip(context, self.keys_values(layer, h, positions)))
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) * config["head_dim"] ** -0.5
        seen = self.sees(positions[:, None], torch.arange(len(k)))
        scores = scores.masked_fill(~seen, float("-inf"))
        sink = self.weights[attention + "attention_sink_bias"][:, None, None].expand(-1, len(q), 1)
        weights = torch.cat((scores, sink), -1).softmax(-1)[..., :-1]
        attended = torch.einsum("hqk,khd->qhd", weights, v).flatten(1)
        return attended @ self.weights[attention + "o_proj.weight"].T


# ---- the rounds ----------------------------------------------------------------------------------


def given_drafts(truth, right, vocab):
    """Drafts that follow the target for `right` tokens, miss one, and then are right again: an
    engine must stop at the miss, not count matches."""
    drafts = list(truth)
    if right < len(drafts):
        drafts[right] = (drafts[right] + 1) % vocab
    return drafts


def follow(target, drafter, prompt, plan):
    """Yields a dict per round. `plan` has, per round after 0, how many given drafts are right."""
    rows, vocab = drafter.config["block_size"], len(drafter.head)
    emitted, gap = target.greedy(prompt, 1)
    require(gap > LOGIT_GAP_MIN, "a greedy token leads by too little")
    drafter.commit(target.hidden)
    tokens, verified = list(prompt), {}
    for right in [*plan, None]:
        draft_logits = drafter.propose(emitted[-1])
        yield {
            **verified,
            "emitted": emitted,
            "draft_logits": draft_logits,
            "draft_tokens": draft_logits.argmax(-1),
            "context_kv_last": torch.stack(
                [torch.stack((k[-1], v[-1])).flatten(1) for k, v in drafter.context]
            ),
        }
        if right is None:
            return
        tokens += emitted
        truth, gap = target.greedy(tokens, rows)
        require(gap > LOGIT_GAP_MIN, "a greedy token leads by too little")
        drafts = given_drafts(truth[:-1], right, vocab)
        # The first row is the newest token, which has no context yet; row i verifies draft i + 1.
        choices = target.run(tokens + drafts)[-rows:].argmax(-1).tolist()
        accepted = next((i for i, draft in enumerate(drafts) if draft != choices[i]), rows - 1)
        assert accepted == min(right, rows - 1)
        committed = slice(len(tokens) - 1, len(tokens) + accepted)
        drafter.commit([stream[committed] for stream in target.hidden])
        verified, emitted = {"drafts_in": drafts}, choices[: accepted + 1]
        assert emitted[:-1] == drafts[:accepted]


def named(prompt, rounds):
    """The tensors of expected.safetensors."""

    def tensor(value):
        value = torch.as_tensor(value)
        return value.float() if value.is_floating_point() else value.int()

    tensors = {
        f"round.{r}.{name}": tensor(value)
        for r, round in enumerate(rounds)
        for name, value in round.items()
    }
    return tensors | {"prompt": tensor(prompt)}


# ---- the fixtures --------------------------------------------------------------------------------


def draft_config(target, **fields):
    """dflash/config.json as published; `fields` go where the published file has them."""
    inner = {
        "target_layer_ids": None,
        "mask_token_id": 70,
        "use_swa": True,
        "swa_window_size": None,
        "attention_sink_bias": True,
        "attention_value_scale": 0.612,
        "backbone_rotary_base": 5000000,  # published, and used by no engine: rope_theta is the base
    }
    config = {
        "architectures": ["DFlashDraftModel"],
        "model_type": "qwen3",
        "hidden_size": target["hidden_size"],
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "v_head_dim": 16,
        "partial_rotary_factor": 0.5,
        "rope_theta": 10000,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "attention_bias": False,
        "block_size": 8,
        "dflash_config": inner | {name: fields.pop(name) for name in list(fields) if name in inner},
        "num_target_layers": target["num_hidden_layers"],
        "vocab_size": target["vocab_size"],
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    } | fields
    config["sliding_window"] = config["dflash_config"]["swa_window_size"]
    return config


def random_drafter(config, generator):
    """name -> float32; a matrix is [out, in]."""

    def normal(*shape, gain=1.0):
        return torch.randn(shape, generator=generator) * (gain * shape[-1] ** -0.5)

    def norm(size):
        return 1 + 0.2 * torch.randn(size, generator=generator)

    hidden, width, head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    weights = {
        "fc.weight": normal(hidden, len(config["dflash_config"]["target_layer_ids"]) * hidden),
        "hidden_norm.weight": norm(hidden),
        "norm.weight": norm(hidden),
    }
    for layer in range(config["num_hidden_layers"]):
        weights |= {
            f"layers.{layer}.{name}": weight
            for name, weight in {
                "input_layernorm.weight": norm(hidden),
                "self_attn.q_proj.weight": normal(heads * head_dim, hidden),
                "self_attn.k_proj.weight": normal(kv * head_dim, hidden),
                "self_attn.v_proj.weight": normal(kv * head_dim, hidden, gain=1.5),
                "self_attn.o_proj.weight": normal(hidden, heads * head_dim, gain=2.0),
                "self_attn.q_norm.weight": 1.2 * norm(head_dim),
                "self_attn.k_norm.weight": 1.2 * norm(head_dim),
                "self_attn.attention_sink_bias": 0.5 + torch.randn(heads, generator=generator),
                "post_attention_layernorm.weight": norm(hidden),
                "mlp.gate_proj.weight": normal(width, hidden),
                "mlp.up_proj.weight": normal(width, hidden),
                "mlp.down_proj.weight": normal(hidden, width, gain=1.5),
            }.items()
        }
    return weights


PLAIN = hub_config([0, 1, 1, 0], swa_num_key_value_heads=2, moe_layer_freq=[0, 1, 0, 1])

# A small V2.5-Pro with FP4 experts. It and its drafter load on 1, 2, 4 or 8 ranks.
FP4_PRO = fused_config(
    [0, 1, 0],
    store_dtype="mxfp4",
    num_attention_heads=16,
    num_key_value_heads=8,
    rope_theta=10000000,
    attention_value_scale=0.612,
    intermediate_size=64,
    moe_intermediate_size=256,
    n_routed_experts=4,
)

# name -> (target's config, drafter's, prefix of its tensors' names, prompt length, right drafts per
# round)
DRAFTERS = {
    # The window is shorter than the prompt. The drafter's vocabulary size differs, as in V2.5-Pro.
    "draft_a": (
        PLAIN,
        draft_config(PLAIN, target_layer_ids=[1, 2], swa_window_size=20, vocab_size=88),
        *("", 30, [7, 2, 0, 7, 2]),
    ),
    # The first and the last layer are tapped; everything fits into the window.
    "draft_b": (
        PLAIN,
        draft_config(
            PLAIN,
            target_layer_ids=[0, 2, 3],
            swa_window_size=1024,
            num_key_value_heads=2,
            block_size=4,
            rms_norm_eps=1e-6,
            mask_token_id=11,
        ),
        *("model.", 29, [3, 2, 0, 3, 1]),
    ),
    # Both files of a release together. From 4 ranks on, several ranks share a drafter's KV head.
    "draft_fp4": (
        FP4_PRO,
        draft_config(
            FP4_PRO,
            target_layer_ids=[0, 2],
            swa_window_size=24,
            num_hidden_layers=2,
            num_attention_heads=8,
            num_key_value_heads=2,
        ),
        *("", 30, [7, 3, 0, 7, 1]),
    ),
}


def make_fixture(name, target, config, prefix, prompt_length, plan):
    mask_id, window_keys = config["dflash_config"]["mask_token_id"], target["sliding_window"]

    def make(generator):
        weights = random_weights(target, generator)
        # An embedding row that training has not touched, and the one with which the drafter was
        # trained.
        untouched = torch.randn(target["hidden_size"], generator=generator)
        mask_row = torch.randn(target["hidden_size"], generator=generator)
        weights["model.embed_tokens.weight"][mask_id] = 1e-6 * untouched
        mask_row = (1.5 * mask_row / mask_row.norm()).bfloat16()
        stored = quantised_form(target, stored_form(target, weights), generator)
        drafter = {prefix + n: w.bfloat16() for n, w in random_drafter(config, generator).items()}
        plain = target["pad_token_id"]
        steps = torch.randint(1, plain, (prompt_length,), generator=generator)
        prompt = ((mask_id + steps) % plain).tolist()  # never the mask
        twin = float_twin(target, stored)
        outputs = expected(target, twin, config, drafter, mask_row, prompt, plan)
        for r in range(len(plan) + 1):
            best = outputs[f"round.{r}.draft_logits"].topk(2).values
            require((best[:, 0] - best[:, 1]).min() > DRAFT_GAP_MIN, "a draft leads by too little")
            said = [*outputs[f"round.{r}.emitted"], *outputs.get(f"round.{r}.drafts_in", [])]
            special = {mask_id, target["eos_token_id"]}
            require(special.isdisjoint(map(int, said)), "the text ends, or shows a mask")
        from_table = weights["model.embed_tokens.weight"][mask_id].bfloat16()
        wrong = expected(target, twin, config, drafter, from_table, prompt, plan)
        changed = torch.cat([outputs[n] != wrong[n] for n in outputs if n.endswith("draft_tokens")])
        assert changed.float().mean() > 0.3, "the table's mask row would pass"
        if "quantization_config" in target:
            outputs |= expected_of_target(target, twin, window_keys, prompt)
        return stored, drafter, mask_row, outputs

    seed, (stored, drafter, mask_row, outputs) = first_suitable(make)
    directory, dflash = FIXTURES / name, FIXTURES / name / "dflash"
    write_model(directory, target, stored)
    dflash.mkdir(exist_ok=True)
    write_json(dflash / "config.json", config)
    write_tensors(dflash / "dflash_draft_model.safetensors", drafter)
    mask = {"mask_token_id": mask_id, "embedding": mask_row}
    torch.save(mask, dflash / "mask_embedding.pt")
    write_tensors(directory / "expected.safetensors", outputs, window_keys=str(window_keys))
    report(directory, seed, outputs["round.0.draft_logits"].std())


def expected(target, twin, config, drafter, mask_row, prompt, plan):
    model = Twin(target, twin, target["sliding_window"], torch.float64)
    return named(prompt, follow(model, Drafter(config, drafter, mask_row, twin), prompt, plan))


# ---- self-check ----------------------------------------------------------------------------------


class TapsBefore(Drafter):
    def commit(self, residuals):
        super().commit([None, *residuals[:-1]])


class CausalDrafts(Drafter):
    def sees(self, query, key):
        return super().sees(query, key) & (key <= query)


class NormedContext(Drafter):
    def context_rows(self, layer, fused):
        return self.norm(fused, f"layers.{layer}.input_layernorm")


def mistakes(config, weights, mask_row, target_weights):
    """(what an engine could get wrong, its class, config, tensors and mask row)"""
    inner = config["dflash_config"]

    def with_inner(**fields):
        return config | {"dflash_config": inner | fields}

    table_row = target_weights["model.embed_tokens.weight"][inner["mask_token_id"]]
    no_sinks = replaced(weights, "attention_sink_bias", lambda sink: sink.float() - 1e9)
    backwards = with_inner(target_layer_ids=inner["target_layer_ids"][::-1])
    yield "mask row of the table", Drafter, config, weights, table_row
    yield "taps before the layer", TapsBefore, config, weights, mask_row
    yield "taps in other order", Drafter, backwards, weights, mask_row
    yield "context normed", NormedContext, config, weights, mask_row
    yield "causal drafts", CausalDrafts, config, weights, mask_row
    yield "no sinks", Drafter, config, no_sinks, mask_row
    yield "no value scale", Drafter, with_inner(attention_value_scale=1.0), weights, mask_row
    yield "all dims rotate", Drafter, config | {"partial_rotary_factor": 1.0}, weights, mask_row
    backbone = config | {"rope_theta": inner["backbone_rotary_base"]}
    yield "backbone's rope base", Drafter, backbone, weights, mask_row
    if inner["swa_window_size"] < 1024:
        for difference, name in ((1, "one key more"), (-1, "one key less")):
            window = inner["swa_window_size"] + difference
            yield name, Drafter, with_inner(swa_window_size=window), weights, mask_row


def self_check(directory):
    target_config, stored = read_model(directory)
    config = json.loads((directory / "dflash" / "config.json").read_text())
    weights = load_file(directory / "dflash" / "dflash_draft_model.safetensors")
    mask = torch.load(directory / "dflash" / "mask_embedding.pt")
    outputs, window_keys = read_expected(directory)
    assert mask["mask_token_id"] == config["dflash_config"]["mask_token_id"]
    target_weights = float_twin(target_config, stored)
    target = Twin(target_config, target_weights, window_keys, torch.float64)
    if "logits" in outputs:
        assert apart(target.run(outputs["tokens"].tolist()), outputs["logits"]) < TWIN_AGREEMENT
    rounds = sum(name.endswith("emitted") for name in outputs)
    plan = [len(outputs[f"round.{r}.emitted"]) - 1 for r in range(1, rounds)]

    def error(kind, config, weights, mask_row):
        drafter = kind(config, weights, mask_row, target_weights)
        found = named(outputs["prompt"], follow(target, drafter, outputs["prompt"].tolist(), plan))
        for name in outputs:
            if name.endswith(("drafts_in", "emitted")):
                assert found[name].equal(outputs[name])
        logits = [name for name in outputs if name.endswith("draft_logits")]
        return max(apart(found[name], outputs[name]) for name in logits)

    as_written = error(Drafter, config, weights, mask["embedding"])
    print(f"{directory.name}: as written {as_written:.1e}")
    assert as_written < TWIN_AGREEMENT
    for mistake, *drafter in mistakes(config, weights, mask["embedding"], target_weights):
        found = error(*drafter)
        print(f"    {mistake:24} {found:.1e}")
        assert found > 100 * TWIN_AGREEMENT, "this mistake would pass"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--self-check", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the order of a sum must not depend on the machine's cores
    for name, description in DRAFTERS.items():
        if arguments.self_check:
            self_check(FIXTURES / name)
        else:
            make_fixture(name, *description)


if __name__ == "__main__":
    main()
