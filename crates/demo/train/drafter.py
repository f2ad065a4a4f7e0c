"""The DFlash drafter, as it is trained: many drafts of a sequence at once.

A draft has its anchor (the newest token, whose features the drafter does not have yet) and masks
after it. Its rows see the context strictly before the anchor and all rows of their own draft. The
context's keys and values come from the target's residual streams, not through the input norms.
"""

import torch
import torch.nn.functional as F
from torch import nn

from target import Norm, matrix, rope_tables, rotate


class DraftLayer(nn.Module):
    def __init__(self, shape, hidden):
        super().__init__()
        inner = shape.heads * shape.head_dim
        self.shape = shape
        self.input_norm, self.post_norm = Norm(hidden, shape.eps), Norm(hidden, shape.eps)
        self.q_norm, self.k_norm = Norm(shape.head_dim, shape.eps), Norm(shape.head_dim, shape.eps)
        self.q, self.k, self.v = (matrix(inner, hidden) for _ in range(3))
        self.out = matrix(hidden, inner, 0.2)
        self.sinks = nn.Parameter(torch.zeros(shape.heads))
        self.gate, self.up = matrix(shape.width, hidden), matrix(shape.width, hidden)
        self.down = matrix(hidden, shape.width, 0.2)

    def heads(self, x, weight, norm, tables, dtype):
        """[..., hidden] to [..., heads, head_dim], normed and rotated."""
        h = F.linear(x, weight.to(dtype)).unflatten(-1, (self.shape.heads, -1))
        cos, sin = (table.unsqueeze(-2) for table in tables)
        return rotate(norm(h, dtype), cos, sin)

    def keys_values(self, x, tables, dtype):
        v = F.linear(x, self.v.to(dtype)).unflatten(-1, (self.shape.heads, -1))
        return self.heads(x, self.k, self.k_norm, tables, dtype), v * self.shape.value_scale

    def forward(self, x, context, unseen, tables, context_tables, dtype):
        """x [b, drafts, rows, hidden], context [b, s, hidden], unseen [b, drafts, rows, s]."""
        h = self.input_norm(x, dtype)
        q = self.heads(h, self.q, self.q_norm, tables, dtype)
        own_k, own_v = self.keys_values(h, tables, dtype)
        k, v = self.keys_values(context, context_tables, dtype)
        scale = self.shape.head_dim**-0.5
        scores = torch.einsum("bnrhd,bshd->bhnrs", q, k).float() * scale
        scores = scores.masked_fill(unseen.unsqueeze(1), float("-inf"))
        own = torch.einsum("bnrhd,bnthd->bhnrt", q, own_k).float() * scale
        sink = self.sinks[:, None, None, None].expand(*own.shape[:-1], 1)
        weights = torch.cat((scores, own, sink), -1).softmax(-1).to(dtype)
        count = context.shape[1]
        attended = torch.einsum("bhnrs,bshd->bnrhd", weights[..., :count], v)
        attended = attended + torch.einsum("bhnrt,bnthd->bnrhd", weights[..., count:-1], own_v)
        x = x + F.linear(attended.flatten(-2), self.out.to(dtype))
        h = self.post_norm(x, dtype)
        gate, up, down = (w.to(dtype) for w in (self.gate, self.up, self.down))
        return x + F.linear(F.silu(F.linear(h, gate)) * F.linear(h, up), down)


class Draft(nn.Module):
    def __init__(self, shape, hidden):
        super().__init__()
        self.shape = shape
        self.fc = matrix(hidden, len(shape.taps) * hidden)
        self.context_norm, self.norm = Norm(hidden, shape.eps), Norm(hidden, shape.eps)
        self.mask = nn.Parameter(torch.randn(hidden) * 0.3)
        self.layers = nn.ModuleList(DraftLayer(shape, hidden) for _ in range(shape.layers))

    def forward(self, anchors, starts, taps, dtype):
        """Hidden states [b, drafts, rows - 1, hidden] for the head. `anchors` are embeddings of the
        tokens at positions `starts`, [b, drafts, hidden] and [b, drafts]."""
        shape, device = self.shape, anchors.device
        fused = F.linear(torch.cat(taps, -1).to(dtype), self.fc.to(dtype))
        context = self.context_norm(fused, dtype)
        count = context.shape[1]
        tables = rope_tables(count + shape.rows, shape.rotary_dims, shape.rope_base, device)
        positions = starts.unsqueeze(-1) + torch.arange(shape.rows, device=device)
        place = torch.arange(count, device=device)
        unseen = (place >= starts[:, :, None, None]) | (
            positions.unsqueeze(-1) - place >= shape.window
        )
        masks = self.mask.expand(*anchors.shape[:2], shape.rows - 1, -1)
        x = torch.cat((anchors.unsqueeze(2).float(), masks), 2)
        own, context_tables = [t[positions] for t in tables], [t[:count] for t in tables]
        for layer in self.layers:
            x = layer(x, context, unseen, own, context_tables, dtype)
        return self.norm(x[:, :, 1:], dtype)
