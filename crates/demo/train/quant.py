"""Rounding to the formats of the checkpoint, in training (straight through) and in export.

MXFP4: 32 input columns share a scale that is a power of two; values are 0, 0.5, 1, 1.5, 2, 3, 4, 6
and their negatives. FP8: E4M3 under a float32 scale per tile of 128 x 128; the tiles of a fused
projection start anew with every chunk of rows. Training multiplies by exactly what export stores.
"""

import torch

GROUP = 32
TILE = 128
FP8_MAX = 448.0
E8M0_BIAS = 127


def mxfp4_parts(weight):
    """Multiples of the scale, [rows, groups, 32], and the scale's exponent, [rows, groups, 1].
    The exponent is the smallest that lets the largest value of the group fit."""
    groups = weight.float().unflatten(-1, (-1, GROUP))
    largest = groups.abs().amax(-1, keepdim=True).clamp_min(2.0**-60)
    exponent = torch.ceil(torch.log2(largest / 6.0))
    scaled = groups * torch.exp2(-exponent)
    size = scaled.abs()
    step = torch.where(size < 2.0, 0.5, torch.where(size < 4.0, 1.0, 2.0))
    rounded = (torch.round(size / step) * step).clamp_max(6.0)
    return torch.copysign(rounded, scaled), exponent


def mxfp4_value(weight):
    """The weight as an engine sees it, float32."""
    multiples, exponent = mxfp4_parts(weight)
    return (multiples * torch.exp2(exponent)).flatten(-2)


def mxfp4_codes(weight):
    """Bytes [rows, columns / 2], low nibble first, and e8m0 scales [rows, columns / 32]."""
    multiples, exponent = mxfp4_parts(weight)
    table = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    size = multiples.abs().flatten(-2)
    code = torch.bucketize(size, table) + 8 * (multiples.flatten(-2) < 0)
    pairs = code.to(torch.uint8).unflatten(-1, (-1, 2))
    return pairs[..., 0] | pairs[..., 1] << 4, (exponent[..., 0] + E8M0_BIAS).to(torch.uint8)


def tile_scales(weight, chunk_rows):
    """A scale per tile, [chunks, tiles of a chunk, tiles of a row]."""
    chunks = weight.float().abs().unflatten(0, (-1, chunk_rows))
    pad = (0, -weight.shape[1] % TILE, 0, -chunk_rows % TILE)
    tiles = torch.nn.functional.pad(chunks, pad)
    tiles = tiles.unflatten(2, (-1, TILE)).unflatten(1, (-1, TILE))
    return tiles.amax((2, 4)).clamp_min(1e-12) / FP8_MAX


def spread(scales, chunk_rows, columns):
    """The scale of every weight."""
    rows = scales.repeat_interleave(TILE, 1)[:, :chunk_rows]
    return rows.repeat_interleave(TILE, 2)[:, :, :columns].flatten(0, 1)


def fp8_value(weight, chunk_rows):
    """The weight as an engine sees it, float32."""
    scale = spread(tile_scales(weight, chunk_rows), chunk_rows, weight.shape[1])
    return (weight.float() / scale).to(torch.float8_e4m3fn).float() * scale


def fp8_codes(weight, chunk_rows):
    """E4M3 codes [rows, columns] and scales [chunks * tiles of a chunk, tiles of a row]."""
    scales = tile_scales(weight, chunk_rows)
    codes = (weight.float() / spread(scales, chunk_rows, weight.shape[1])).to(torch.float8_e4m3fn)
    return codes, scales.flatten(0, 1)


def straight_through(weight, value):
    """`value` forward, the gradient of `weight` backward."""
    return weight + (value - weight).detach()
