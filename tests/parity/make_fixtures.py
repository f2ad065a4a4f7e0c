"""Small random checkpoints of the MiMo-V2 family, with what transformers computes on them.

    pip install -r tests/parity/requirements.txt
    python tests/parity/make_fixtures.py               # rewrites tests/parity/fixtures/<name>/
    python tests/parity/make_fixtures.py --self-check  # reads them back and breaks them on purpose

Every fixture is a model directory as the hub has it (config.json, safetensors) plus
expected.safetensors:

    tokens          I32 [n]           the prompt
    hidden.0        F32 [n, hidden]   embedding output
    hidden.i        F32 [n, hidden]   residual stream after layer i - 1, the last one before the
                                      final norm
    logits          F32 [n, vocab]
    greedy          I32 [16]          greedy continuation of the prompt

Its one metadata entry, window_keys, is how many keys a window layer sees, the query's own included.
The field sliding_window of config.json does not settle that: engines read it as W or as W + 1.

All of it is computed in float32 on the float twin of the checkpoint. So the expected values carry
no rounding but float32's own, and an engine's distance from them is the engine's.
"""

import argparse

import torch
from transformers import MiMoV2FlashForCausalLM

from checkpoint import (
    FIXTURES,
    TILE,
    chunk_rows,
    float_twin,
    fp8_to_float,
    fused_config,
    has_mxfp4,
    hub_config,
    quantised_form,
    random_weights,
    read_expected,
    read_model,
    replaced,
    report,
    stored_form,
    unfuse,
    write_model,
    write_tensors,
)
from reference import TWIN_AGREEMENT, Twin, apart, expected, first_suitable, transformers_config

# ---- the fixtures --------------------------------------------------------------------------------

# name -> (config, prompt length, window_keys, shards)
PLAIN = {
    # A KV head for each query head. This is the only fixture whose file is float32.
    "plain_f32": (
        hub_config(
            [0, 1, 1],
            num_attention_heads=2,
            num_key_value_heads=2,
            moe_layer_freq=[0, 1, 0],
            torch_dtype="float32",
        ),
        *(40, 8, 1),
    ),
    # V2-Flash's proportions: window layers have twice the KV heads of global ones. 12 keys are not
    # a power of two.
    "plain_gqa4": (
        hub_config([0, 1, 0], swa_num_key_value_heads=2, sliding_window=12, intermediate_size=32),
        *(48, 12, 1),
    ),
    # Pro's groups of 16, base and value scale. 8 * 0.8 is 6.4: the number of rotary dims is rounded
    # down, here to 6.
    "plain_gqa16": (
        hub_config(
            [0, 1, 1],
            num_attention_heads=16,
            head_dim=8,
            partial_rotary_factor=0.8,
            rope_theta=10000000,
            attention_value_scale=0.612,
            moe_layer_freq=[0, 0, 1],
        ),
        *(40, 8, 1),
    ),
    # Two shards, more than ten experts of which three are chosen, and one key more than the
    # config's number.
    "plain_sharded": (
        hub_config(
            [0, 1, 1, 0],
            swa_num_key_value_heads=2,
            rope_theta=10000000,
            n_routed_experts=12,
            num_experts_per_tok=3,
            moe_layer_freq=[0, 0, 1, 0],
        ),
        *(40, 9, 2),
    ),
}

QUANTISED = {
    # A small V2.5-Pro with FP4 experts. Its 8 KV heads load on 1, 2, 4 or 8 ranks. A qkv chunk has
    # 136 rows, so the last 8 rows of V are alone under the chunk's second scale row; on 8 ranks, a
    # rank's 64 columns of the dense down_proj are half a tile.
    "fp4_pro": (
        fused_config(
            [0, 1],
            store_dtype="mxfp4",
            hidden_size=64,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=24,
            v_head_dim=16,
            rope_theta=10000000,
            attention_value_scale=0.612,
            intermediate_size=512,
            moe_intermediate_size=256,
            n_routed_experts=4,
        ),
        *(40, 8, 1),
    ),
    # V2.5's proportions: window layers have twice the KV heads of global ones and as many chunks. A
    # chunk has 200 rows or, with a window, exactly two tiles of them. On 8 ranks, two share a
    # global KV head, and a rank's 20 columns of an expert's down_proj lie in two tiles.
    "fp8_v25": (
        fused_config(
            [0, 1],
            num_attention_heads=16,
            num_key_value_heads=4,
            swa_num_key_value_heads=8,
            head_dim=36,
            v_head_dim=20,
            rope_theta=10000000,
            intermediate_size=256,
            moe_intermediate_size=160,
            n_routed_experts=4,
        ),
        *(40, 8, 1),
    ),
}


def make_fixture(name, config, prompt_length, window_keys, shards):
    def make(generator):
        stored = stored_form(config, random_weights(config, generator))
        stored = quantised_form(config, stored, generator)
        tokens = torch.randint(config["pad_token_id"], (prompt_length,), generator=generator)
        twin = float_twin(config, stored)
        return stored, expected(config, twin, window_keys, tokens.tolist())

    seed, (stored, outputs) = first_suitable(make)
    write_model(FIXTURES / name, config, stored, shards)
    write_tensors(FIXTURES / name / "expected.safetensors", outputs, window_keys=str(window_keys))
    report(FIXTURES / name, seed, outputs["logits"].std())


# ---- self-check ----------------------------------------------------------------------------------


def read_as_qkv(config, stored):
    """The fused matrix split as if it were [Q; K; V]."""
    twin = float_twin(config, stored)
    for layer in range(config["num_hidden_layers"]):
        names = [f"model.layers.{layer}.self_attn.{letter}_proj.weight" for letter in "qkv"]
        chunks = [twin[name].unflatten(0, (config["num_key_value_heads"], -1)) for name in names]
        fused = torch.cat(chunks, 1).flatten(0, 1)
        twin |= zip(names, fused.split([twin[name].shape[0] for name in names]))
    return twin


def with_uncut_scale_rows(config, stored):
    """The fused matrix under scale row r // 128, as if chunks did not start a new one."""
    twin = float_twin(config, stored)
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}.self_attn.qkv_proj.weight"
        scale, parts = stored[name + "_scale_inv"], chunk_rows(config, layer)
        weight = fp8_to_float(stored[name], scale, torch.arange(stored[name].shape[0]) // TILE)
        for letter, part in zip("qkv", weight.unflatten(0, (-1, sum(parts))).split(parts, 1)):
            twin[name.replace("qkv", letter)] = part.flatten(0, 1)
    return twin


def with_chunks_of_own_kv_heads(config, stored):
    """The fused matrix of a window layer in a chunk per KV head of its own, not of a global one."""
    twin = float_twin(config, stored)
    own = config | {"num_key_value_heads": config["swa_num_key_value_heads"]}
    for layer, windowed in enumerate(config["hybrid_layer_pattern"]):
        if windowed:
            name = f"model.layers.{layer}.self_attn.qkv_proj.weight"
            parts = unfuse(own, layer, stored[name], stored[name + "_scale_inv"])
            twin |= zip([name.replace("qkv", letter) for letter in "qkv"], parts)
    return twin


def mistakes(config, stored, window_keys):
    """(what an engine could get wrong, its config, its tensors, its window_keys)"""

    def changed(ending, change):
        return config, replaced(stored, ending, change), window_keys

    def nibbles_swapped(codes):
        return codes << 4 | codes >> 4 if codes.dtype == torch.uint8 else codes

    yield "one key more", config, stored, window_keys + 1
    yield "one key less", config, stored, window_keys - 1
    yield "no sinks", *changed("attention_sink_bias", lambda t: t - 1e9)
    yield "no value scale", config | {"attention_value_scale": 1.0}, stored, window_keys
    yield "one rope base", config | {"swa_rope_theta": config["rope_theta"]}, stored, window_keys
    yield "all dims rotate", config | {"partial_rotary_factor": 1.0}, stored, window_keys
    yield "no routing bias", *changed("correction_bias", torch.zeros_like)
    if "quantization_config" in config:
        other_row = changed("qkv_proj.weight_scale_inv", lambda t: t[torch.arange(len(t)) ^ 1])
        yield "other row's scale", *other_row
        yield "other column's scale", *changed("down_proj.weight_scale_inv", lambda t: t.roll(1, 1))
        yield "scale rows uncut", config, with_uncut_scale_rows(config, stored), window_keys
        yield "read as [Q;K;V]", config, read_as_qkv(config, stored), window_keys
        if config["swa_num_key_value_heads"] != config["num_key_value_heads"]:
            own = with_chunks_of_own_kv_heads(config, stored)
            yield "chunks of own KV heads", config, own, window_keys
    if has_mxfp4(config):
        yield "nibbles swapped", *changed("proj.weight", nibbles_swapped)
        yield "next group's scale", *changed("weight_scale", lambda t: t.roll(1, 1))


def self_check(directory):
    config, stored = read_model(directory)
    outputs, window_keys = read_expected(directory)
    tokens = outputs["tokens"].tolist()

    def error(config, stored, window_keys):
        logits = Twin(config, float_twin(config, stored), window_keys).run(tokens)
        return apart(logits, outputs["logits"])

    as_written = error(config, stored, window_keys)
    print(f"{directory.name}: as written {as_written:.1e}")
    assert as_written < TWIN_AGREEMENT
    plain = "quantization_config" not in config
    if plain and config["swa_num_key_value_heads"] == 2 * config["num_key_value_heads"]:
        # The only shape that transformers can load by itself: its loader must agree about every
        # name.
        model, info = MiMoV2FlashForCausalLM.from_pretrained(
            directory,
            config=transformers_config(config, window_keys),
            dtype=torch.float32,
            output_loading_info=True,
        )
        assert not any(info.values()), info
        with torch.no_grad():
            loaded = apart(model(input_ids=torch.tensor([tokens])).logits[0], outputs["logits"])
        print(f"    {'through from_pretrained':24} {loaded:.1e}")
        assert loaded < TWIN_AGREEMENT
    for mistake, *model in mistakes(config, stored, window_keys):
        found = error(*model)
        print(f"    {mistake:24} {found:.1e}")
        assert found > 100 * TWIN_AGREEMENT, "this mistake would pass"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--self-check", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the order of a sum must not depend on the machine's cores
    for name, description in (PLAIN | QUANTISED).items():
        if arguments.self_check:
            self_check(FIXTURES / name)
        else:
            make_fixture(name, *description)


if __name__ == "__main__":
    main()
