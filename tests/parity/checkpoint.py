"""Small checkpoints of the MiMo-V2 family: random, stored as the hub stores them, and read back.

What is expected of a checkpoint is always computed on its *float twin*: the same model with every
quantised tensor multiplied out and every fused one split. The twin is the only description of the
numbers: a quantised directory and a float one that share a twin expect the same file.
"""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

FIXTURES = Path(__file__).parent / "fixtures"
TILE = 128  # rows, and columns, that share one FP8 scale
GROUP = 32  # input columns that share one MXFP4 scale
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


# ---- as floats -----------------------------------------------------------------------------------


def hub_config(pattern, **fields):
    """config.json as published. `pattern` has an entry per layer: 0 sees everything, 1 a window."""
    config = {
        "architectures": ["MiMoV2FlashForCausalLM"],
        "model_type": "mimo_v2_flash",
        "hidden_size": 32,
        "num_hidden_layers": len(pattern),
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 12,
        "v_head_dim": 8,
        "partial_rotary_factor": 0.334,
        "rope_theta": 5000000,
        "swa_rope_theta": 10000,
        "sliding_window": 8,
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
        "attention_value_scale": 0.707,
        "attention_bias": False,
        "intermediate_size": 16,
        "moe_intermediate_size": 8,
        "n_routed_experts": 6,
        "num_experts_per_tok": 2,
        "n_shared_experts": None,
        "n_group": 1,
        "topk_group": 1,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "norm_topk_prob": True,
        "routed_scaling_factor": None,
        "layernorm_epsilon": 1e-5,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "moe_layer_freq": [0] + [1] * (len(pattern) - 1),
        "hybrid_layer_pattern": pattern,
        "vocab_size": 96,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    } | fields
    for name in ("num_attention_heads", "num_key_value_heads", "head_dim", "v_head_dim"):
        config.setdefault(f"swa_{name}", config[name])
    config["sliding_window_size"] = config["attention_chunk_size"] = config["sliding_window"]
    config["eos_token_id"] = config["vocab_size"] - 1
    config["pad_token_id"] = config["vocab_size"] - 2
    return config


def fused_config(pattern, store_dtype=None, **fields):
    """config.json of V2.5 and Pro: q, k and v fused and stored in FP8, like dense layers, and like
    experts unless `store_dtype` says that these are in MXFP4."""
    quantisation = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [TILE, TILE],
        "ignored_layers": [f"model.layers.{i}.self_attn.o_proj" for i in range(len(pattern))]
        + ["model.decoder.self_attn.o_proj"],
    }
    if store_dtype == "mxfp4":
        quantisation |= {"store_dtype": store_dtype, "mxfp4_block_size": GROUP}
    return hub_config(
        pattern,
        architectures=["MiMoV2ForCausalLM"],
        model_type="mimo_v2",
        attention_projection_layout="fused_qkv",
        **fields,
        quantization_config=quantisation,
    )


def has_mxfp4(config):
    return config.get("quantization_config", {}).get("store_dtype") == "mxfp4"


def kv_heads(config, layer):
    windowed = config["hybrid_layer_pattern"][layer]
    return config["swa_num_key_value_heads" if windowed else "num_key_value_heads"]


def random_weights(config, generator):
    """name -> float32, in the split form, scaled so that a few layers stay healthy: scores of
    order one, logits of deviation about two. A matrix is [out, in]."""

    def normal(*shape, gain=1.0):
        return torch.randn(shape, generator=generator) * (gain * shape[-1] ** -0.5)

    def norm():
        return 1 + 0.2 * torch.randn(config["hidden_size"], generator=generator)

    def gated(prefix, width):
        weights[prefix + "gate_proj.weight"] = normal(width, hidden)
        weights[prefix + "up_proj.weight"] = normal(width, hidden)
        weights[prefix + "down_proj.weight"] = normal(hidden, width, gain=1.5)

    hidden, vocab = config["hidden_size"], config["vocab_size"]
    heads, qk_dim, v_dim = config["num_attention_heads"], config["head_dim"], config["v_head_dim"]
    weights = {"model.embed_tokens.weight": torch.randn(vocab, hidden, generator=generator)}
    for layer, windowed in enumerate(config["hybrid_layer_pattern"]):
        prefix = f"model.layers.{layer}."
        kv = kv_heads(config, layer)
        weights[prefix + "input_layernorm.weight"] = norm()
        weights[prefix + "self_attn.q_proj.weight"] = normal(heads * qk_dim, hidden, gain=1.2)
        weights[prefix + "self_attn.k_proj.weight"] = normal(kv * qk_dim, hidden, gain=1.2)
        weights[prefix + "self_attn.v_proj.weight"] = normal(kv * v_dim, hidden)
        weights[prefix + "self_attn.o_proj.weight"] = normal(hidden, heads * v_dim, gain=1.5)
        if windowed:
            sinks = 0.5 + torch.randn(heads, generator=generator)
            weights[prefix + "self_attn.attention_sink_bias"] = sinks
        weights[prefix + "post_attention_layernorm.weight"] = norm()
        if config["moe_layer_freq"][layer]:
            experts = config["n_routed_experts"]
            weights[prefix + "mlp.gate.weight"] = normal(experts, hidden, gain=1.5)
            bias = 0.3 * torch.randn(experts, generator=generator)
            weights[prefix + "mlp.gate.e_score_correction_bias"] = bias
            for expert in range(experts):
                gated(prefix + f"mlp.experts.{expert}.", config["moe_intermediate_size"])
        else:
            gated(prefix + "mlp.", config["intermediate_size"])
    weights["model.norm.weight"] = norm()
    weights["lm_head.weight"] = normal(vocab, hidden, gain=2.0)
    return weights


def stored_form(config, weights):
    """The tensors as a file holds them. The router stays float32, as in released checkpoints."""
    dtype = getattr(torch, config["torch_dtype"])
    return {
        name: weight if ".mlp.gate." in name else weight.to(dtype)
        for name, weight in weights.items()
    }


# ---- as released, quantised ----------------------------------------------------------------------


def tiles(extent):
    return -(-extent // TILE)


def quantised_form(config, stored, generator):
    """Puts fused FP8 qkv, FP8 dense layers and FP8 or MXFP4 experts in place of the plain
    projections, where the config calls for it.

    Codes and scales are drawn, not rounded from floats: every code then takes part, and
    neighbouring scales differ by a factor of two to five, so that no wrong scale looks like
    rounding.
    """

    def fp8(rows, columns, scale_rows):
        codes = 64 * torch.randn(rows, columns, generator=generator)
        low, high = 0.4 + 0.2 * torch.rand(2, scale_rows, tiles(columns), generator=generator)
        checker = torch.arange(scale_rows)[:, None] + torch.arange(tiles(columns))
        # One random bit for each pair of rows, so that either row of a fused chunk may have the
        # large scales.
        coin = torch.randint(2, (scale_rows, 1), generator=generator)[torch.arange(scale_rows) // 2]
        scale = torch.where((checker + coin) % 2 == 1, 3 * high, low)
        return codes.clamp(-448, 448).to(torch.float8_e4m3fn), scale * columns**-0.5 / 64

    def mxfp4(rows, columns):
        # With this exponent, the standard deviation of the weights is near columns^-1/2.
        exponent = -2 - columns.bit_length() // 2
        codes = torch.randint(256, (rows, columns // 2), generator=generator, dtype=torch.uint8)
        spread = torch.randint(-2, 3, (rows, columns // GROUP), generator=generator)
        return codes, (127 + exponent + spread).to(torch.uint8)

    def gated(width):
        yield "gate_proj.weight", width, hidden
        yield "up_proj.weight", width, hidden
        yield "down_proj.weight", hidden, width

    if "quantization_config" not in config:
        return stored
    hidden = config["hidden_size"]
    for layer, sparse in enumerate(config["moe_layer_freq"]):
        attention, mlp = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp."
        for name in ("q_proj", "k_proj", "v_proj"):
            del stored[attention + name + ".weight"]
        chunks, rows = config["num_key_value_heads"], sum(chunk_rows(config, layer))
        name = attention + "qkv_proj.weight"
        fused = fp8(chunks * rows, hidden, chunks * tiles(rows))
        stored[name], stored[name + "_scale_inv"] = fused
        width = config["moe_intermediate_size" if sparse else "intermediate_size"]
        experts = [f"experts.{expert}." for expert in range(config["n_routed_experts"])]
        for expert in experts if sparse else [""]:
            for name, rows, columns in gated(width):
                name = mlp + expert + name
                if sparse and has_mxfp4(config):
                    stored[name], stored[name + "_scale"] = mxfp4(rows, columns)
                else:
                    stored[name], stored[name + "_scale_inv"] = fp8(rows, columns, tiles(rows))
    return stored


def chunk_rows(config, layer):
    """Rows of Q, K and V in a chunk of a fused projection. There is a chunk per global KV head."""
    chunks, kv = config["num_key_value_heads"], kv_heads(config, layer)
    q = config["num_attention_heads"] // chunks * config["head_dim"]
    return q, kv // chunks * config["head_dim"], kv // chunks * config["v_head_dim"]


def fp8_to_float(codes, scale, scale_row):
    """[rows, columns] with row r under scale row scale_row[r]; the scale multiplies."""
    return codes.float() * scale[scale_row].repeat_interleave(TILE, 1)[:, : codes.shape[1]]


def mxfp4_to_float(codes, scales):
    """Bytes [rows, columns / 2]: the low nibble is the even column, its bit 3 the sign."""
    nibbles = torch.stack((codes & 15, codes >> 4), -1).flatten(-2).int()
    signed = torch.where(nibbles < 8, E2M1[nibbles % 8], -E2M1[nibbles % 8])
    return signed * torch.exp2(scales.float() - 127).repeat_interleave(GROUP, 1)


def unfuse(config, layer, codes, scale):
    """Q, K, V of a fused projection. Every chunk is [Q | K | V] of its own heads, and its scale
    rows are counted from the chunk's first row: the last scale row of a chunk is not full."""
    parts = chunk_rows(config, layer)
    row = torch.arange(codes.shape[0])
    chunk, inside = row // sum(parts), row % sum(parts)
    weight = fp8_to_float(codes, scale, chunk * tiles(sum(parts)) + inside // TILE)
    return [part.flatten(0, 1) for part in weight.unflatten(0, (-1, sum(parts))).split(parts, 1)]


def float_twin(config, stored):
    """name -> float32 in the split form, whatever form the file has."""
    twin = {}
    for name, tensor in stored.items():
        if name.endswith("qkv_proj.weight"):
            layer = int(name.split(".")[2])
            parts = unfuse(config, layer, tensor, stored[name + "_scale_inv"])
            for letter, part in zip("qkv", parts):
                twin[name.replace("qkv", letter)] = part
        elif name + "_scale_inv" in stored:
            scale_row = torch.arange(tensor.shape[0]) // TILE
            twin[name] = fp8_to_float(tensor, stored[name + "_scale_inv"], scale_row)
        elif name + "_scale" in stored:
            twin[name] = mxfp4_to_float(tensor, stored[name + "_scale"])
        elif "weight_scale" not in name:
            twin[name] = tensor.float()
    return twin


def replaced(stored, ending, change):
    """With every tensor changed whose name ends so."""
    return {
        name: change(tensor) if name.endswith(ending) else tensor for name, tensor in stored.items()
    }


# ---- files ---------------------------------------------------------------------------------------


def write_tensors(path, tensors, **metadata):
    # Only one metadata entry per file, because safetensors writes several in random order.
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, path, metadata or {"format": "pt"})


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n")


def write_model(directory, config, stored, shards=1):
    """Two shards share the experts in turn, and hold them in string order (10 before 2)."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", config)
    if shards == 1:
        return write_tensors(directory / "model.safetensors", stored)
    index = {}
    for name in sorted(stored):
        expert = name.partition(".experts.")[2].partition(".")[0]
        index[name] = f"model_pp0_ep{int(expert or 0) % shards}_shard0.safetensors"
    for file in sorted(set(index.values())):
        share = {name: stored[name] for name in index if index[name] == file}
        write_tensors(directory / file, share)
    total = {"total_size": sum(tensor.nbytes for tensor in stored.values())}
    index = {"metadata": total, "weight_map": index}
    write_json(directory / "model.safetensors.index.json", index)


def read_model(directory):
    """config, and name -> tensor in stored form."""
    config = json.loads((directory / "config.json").read_text())
    index = directory / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if index.exists():
        files = json.loads(index.read_text())["weight_map"].values()
    stored = {}
    for file in sorted(set(files)):
        stored |= load_file(directory / file)
    return config, stored


def read_expected(directory):
    """tensors and window_keys."""
    path = directory / "expected.safetensors"
    with safe_open(path, "pt") as file:
        return load_file(path), int(file.metadata()["window_keys"])


def report(directory, seed, deviation):
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    print(f"{directory.name:14} {size:7} bytes   seed {seed:3}   logits' deviation {deviation:.2f}")
