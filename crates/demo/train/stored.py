"""The trained modules, read back from the checkpoint that export.py wrote. Rounding what is already
rounded changes nothing, so they compute what they computed when they were exported."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from drafter import Draft
from export import NAMES
from quant import GROUP, TILE
from shape import Drafter, Target
from target import Dense, Model

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def read(folder):
    files = set(
        json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"].values()
    )
    found = {}
    for file in sorted(files):
        found |= load_file(folder / file)
    return found


def fp8(tensors, name, chunk_rows):
    codes, scales = tensors[name].float(), tensors[name + "_scale_inv"]
    row = torch.arange(len(codes))
    tiles = -(-chunk_rows // TILE)
    scale_row = row // chunk_rows * tiles + row % chunk_rows // TILE
    return codes * scales[scale_row].repeat_interleave(TILE, 1)[:, : codes.shape[1]]


def mxfp4(tensors, name):
    codes, scales = tensors[name], tensors[name + "_scale"]
    nibbles = torch.stack((codes & 15, codes >> 4), -1).flatten(-2).int()
    values = torch.where(nibbles < 8, E2M1[nibbles % 8], -E2M1[nibbles % 8])
    return values * torch.exp2(scales.float() - 127).repeat_interleave(GROUP, 1)


@torch.no_grad()
def target(folder):
    tensors, model = read(Path(folder)), Model(Target())
    shape = model.shape
    model.embed.copy_(tensors["model.embed_tokens.weight"])
    model.head.copy_(tensors["lm_head.weight"])
    model.norm.weight.copy_(tensors["model.norm.weight"])
    for index, layer in enumerate(model.layers):
        prefix = f"model.layers.{index}."
        attention, mlp = layer.attention, layer.mlp
        layer.input_norm.weight.copy_(tensors[prefix + "input_layernorm.weight"])
        layer.post_norm.weight.copy_(tensors[prefix + "post_attention_layernorm.weight"])
        name = prefix + "self_attn."
        attention.qkv.copy_(fp8(tensors, name + "qkv_proj.weight", shape.chunk_rows))
        attention.out.copy_(tensors[name + "o_proj.weight"])
        if attention.windowed:
            attention.sinks.copy_(tensors[name + "attention_sink_bias"])
        for part, weight in (("gate", mlp.gate), ("up", mlp.up), ("down", mlp.down)):
            if isinstance(mlp, Dense):
                weight.copy_(fp8(tensors, f"{prefix}mlp.{part}_proj.weight", weight.shape[0]))
                continue
            names = [f"{prefix}mlp.experts.{e}.{part}_proj.weight" for e in range(shape.experts)]
            experts = [mxfp4(tensors, name) for name in names]
            weight.copy_(torch.cat(experts, 1 if part == "down" else 0))
        if not isinstance(mlp, Dense):
            mlp.router.copy_(tensors[prefix + "mlp.gate.weight"])
            mlp.bias.copy_(tensors[prefix + "mlp.gate.e_score_correction_bias"])
    return model.eval().requires_grad_(False)


@torch.no_grad()
def drafter(folder):
    folder = Path(folder) / "dflash"
    tensors = load_file(folder / "dflash_draft_model.safetensors")
    draft = Draft(Drafter(), Target().hidden)
    state = {
        "fc": tensors["fc.weight"],
        "context_norm.weight": tensors["hidden_norm.weight"],
        "norm.weight": tensors["norm.weight"],
        "mask": torch.load(folder / "mask_embedding.pt")["embedding"],
    }
    for index in range(Drafter().layers):
        for ours, theirs in NAMES.items():
            state[f"layers.{index}.{ours}"] = tensors[f"layers.{index}.{theirs}"]
    draft.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return draft.eval().requires_grad_(False)
