"""Writes the checkpoint: config files, tokenizer, template, the target's shards and the drafter.

    python export.py FOLDER DESTINATION

FOLDER holds target.pt, draft.pt and tokenizer.json. Everything that was rounded in training is
stored as it was rounded; nothing else is quantised.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from chat import TEMPLATE
from quant import fp8_codes, mxfp4_codes
from shape import (
    END_OF_TEXT,
    IM_END,
    MARKUP,
    MASK,
    SPECIAL,
    Drafter,
    Target,
    drafter_config,
    target_config,
    write_json,
)
from target import Dense, Model

SHARD_BYTES = 12_000_000
# Ours and the published names, within a layer of the drafter.
NAMES = {
    "input_norm.weight": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "out": "self_attn.o_proj.weight",
    "q_norm.weight": "self_attn.q_norm.weight",
    "k_norm.weight": "self_attn.k_norm.weight",
    "sinks": "self_attn.attention_sink_bias",
    "post_norm.weight": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}


def fp8(tensors, name, weight, chunk_rows):
    tensors[name], tensors[name + "_scale_inv"] = fp8_codes(weight, chunk_rows)


def mxfp4(tensors, name, weight):
    tensors[name], tensors[name + "_scale"] = mxfp4_codes(weight)


def target_tensors(model):
    """name -> tensor, in the order of the model."""
    shape, found = model.shape, {"model.embed_tokens.weight": model.embed.bfloat16()}
    for index, layer in enumerate(model.layers):
        prefix = f"model.layers.{index}."
        attention = prefix + "self_attn."
        found[prefix + "input_layernorm.weight"] = layer.input_norm.weight.bfloat16()
        fp8(found, attention + "qkv_proj.weight", layer.attention.qkv, shape.chunk_rows)
        found[attention + "o_proj.weight"] = layer.attention.out.bfloat16()
        if layer.attention.windowed:
            found[attention + "attention_sink_bias"] = layer.attention.sinks.bfloat16()
        found[prefix + "post_attention_layernorm.weight"] = layer.post_norm.weight.bfloat16()
        mlp = layer.mlp
        parts = {"gate_proj": mlp.gate, "up_proj": mlp.up, "down_proj": mlp.down}
        if isinstance(mlp, Dense):
            for name, weight in parts.items():
                fp8(found, f"{prefix}mlp.{name}.weight", weight, weight.shape[0])
            continue
        found[prefix + "mlp.gate.weight"] = mlp.router.float()
        found[prefix + "mlp.gate.e_score_correction_bias"] = mlp.bias.float()
        for expert in range(shape.experts):
            rows = slice(expert * shape.expert_width, (expert + 1) * shape.expert_width)
            for name, weight in parts.items():
                own = weight[:, rows] if name == "down_proj" else weight[rows]
                mxfp4(found, f"{prefix}mlp.experts.{expert}.{name}.weight", own)
    found["model.norm.weight"] = model.norm.weight.bfloat16()
    found["lm_head.weight"] = model.head.bfloat16()
    return found


def drafter_tensors(state):
    found = {
        "fc.weight": state["fc"],
        "hidden_norm.weight": state["context_norm.weight"],
        "norm.weight": state["norm.weight"],
    }
    for index in range(Drafter().layers):
        for ours, theirs in NAMES.items():
            found[f"layers.{index}.{theirs}"] = state[f"layers.{index}.{ours}"]
    return {name: tensor.bfloat16() for name, tensor in found.items()}


def save_shards(tensors, folder):
    """Files of at most SHARD_BYTES and the index that says which tensor is in which."""
    shards, size = [{}], 0
    for name, tensor in tensors.items():
        if size + tensor.nbytes > SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor.contiguous().clone()
        size += tensor.nbytes
    index = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / file, {"format": "pt"})
        index |= dict.fromkeys(shard, file)
    total = {"total_size": sum(tensor.nbytes for tensor in tensors.values())}
    index = {"metadata": total, "weight_map": dict(sorted(index.items()))}
    write_json(folder / "model.safetensors.index.json", index)


def tokenizer_config(positions):
    names = SPECIAL + MARKUP
    added = {
        str(number): {"content": name, "special": name in SPECIAL, "normalized": False}
        | dict.fromkeys(("lstrip", "rstrip", "single_word"), False)
        for number, name in enumerate(names)
    }
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": added,
        "add_bos_token": False,
        "bos_token": None,
        "eos_token": SPECIAL[IM_END],
        "pad_token": SPECIAL[END_OF_TEXT],
        "unk_token": None,
        "model_max_length": positions,
        "clean_up_tokenization_spaces": False,
    }


@torch.no_grad()
def export(source, destination):
    shape = Target()
    model = Model(shape)
    model.load_state_dict(torch.load(source / "target.pt", map_location="cpu"))
    (destination / "dflash").mkdir(parents=True, exist_ok=True)
    write_json(destination / "config.json", target_config(shape))
    generation = {
        "eos_token_id": [IM_END, END_OF_TEXT],
        "pad_token_id": END_OF_TEXT,
        "do_sample": True,
        "temperature": 1.0,
        "top_p": 0.95,
    }
    write_json(destination / "generation_config.json", generation)
    write_json(destination / "tokenizer_config.json", tokenizer_config(shape.positions))
    for file in (source / "tokenizer.json", TEMPLATE):
        if file.resolve() != (destination / file.name).resolve():
            shutil.copy(file, destination / file.name)
    save_shards(target_tensors(model), destination)
    if (source / "draft.pt").exists():
        state = torch.load(source / "draft.pt", map_location="cpu")
        write_json(destination / "dflash" / "config.json", drafter_config(Drafter(), shape))
        tensors = {name: t.contiguous().clone() for name, t in drafter_tensors(state).items()}
        file = destination / "dflash" / "dflash_draft_model.safetensors"
        save_file(tensors, file, {"format": "pt"})
        mask = {"mask_token_id": MASK, "embedding": state["mask"].bfloat16().clone()}
        torch.save(mask, destination / "dflash" / "mask_embedding.pt")
    sizes = {str(f.relative_to(destination)): f.stat().st_size for f in destination.rglob("*.*")}
    print(json.dumps(sizes, indent=1))


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]))
