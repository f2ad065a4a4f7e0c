"""The target: a small MiMo-V2, as it is trained and as it generates.

The weights that train are float32; every forward pass sees them rounded as the checkpoint stores
them. All experts of a layer are computed as one wide feed-forward, and the router's weights, zero
for those not chosen, multiply its inner activations: the same sum as expert by expert.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from quant import fp8_value, mxfp4_value, straight_through
from shape import Target


def rope_tables(positions, dims, base, device):
    """Cosines and sines, [positions, dims / 2]."""
    frequency = base ** -(torch.arange(dims // 2, device=device) * 2 / dims)
    angle = torch.arange(positions, device=device)[:, None] * frequency
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    """Dims i and i + half turn, the rest stay. Tables broadcast against [..., half]."""
    half = cos.shape[-1]
    low, high, rest = x.split([half, half, x.shape[-1] - 2 * half], -1)
    turned = (low * cos - high * sin, high * cos + low * sin)
    return torch.cat([part.to(x.dtype) for part in turned] + [rest], -1)


class Norm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x, dtype):
        return F.rms_norm(x.float(), x.shape[-1:], self.weight, self.eps).to(dtype)


def matrix(rows, columns, gain=1.0):
    return nn.Parameter(torch.randn(rows, columns) * gain * columns**-0.5)


class Attention(nn.Module):
    def __init__(self, shape, windowed):
        super().__init__()
        self.shape, self.windowed = shape, bool(windowed)
        self.qkv = matrix(shape.kv_heads * shape.chunk_rows, shape.hidden)
        self.out = matrix(shape.hidden, shape.q_heads * shape.v_dim, 0.2)
        if windowed:
            self.sinks = nn.Parameter(torch.zeros(shape.q_heads))

    def rounded(self):
        chunk_rows = self.shape.chunk_rows
        return straight_through(self.qkv, fp8_value(self.qkv, chunk_rows)), self.out

    def project(self, h, qkv, tables):
        """q [b, s, heads, qk], k and v [b, s, kv, ..]. A chunk holds its own heads' q, k and v."""
        s = self.shape
        chunks = F.linear(h, qkv.to(h.dtype)).unflatten(-1, (s.kv_heads, s.chunk_rows))
        q, k, v = chunks.split([s.group * s.qk_dim, s.qk_dim, s.v_dim], -1)
        cos, sin = (table.unsqueeze(-2) for table in tables)
        q = rotate(q.unflatten(-1, (s.group, s.qk_dim)).flatten(-3, -2), cos, sin)
        return q, rotate(k, cos, sin), v * s.value_scale

    def forward(self, h, weights, tables, attend):
        qkv, out = weights
        q, k, v = (x.transpose(1, 2) for x in self.project(h, qkv, tables))
        attended = attend(q, k, v, self.sinks if self.windowed else None)
        return F.linear(attended.transpose(1, 2).flatten(2), out.to(h.dtype))


class Dense(nn.Module):
    def __init__(self, shape):
        super().__init__()
        width, hidden = shape.dense_width, shape.hidden
        self.gate, self.up = matrix(width, hidden), matrix(width, hidden)
        self.down = matrix(hidden, width, 0.2)

    def rounded(self):
        weights = (self.gate, self.up, self.down)
        return [straight_through(w, fp8_value(w, w.shape[0])) for w in weights]

    def forward(self, h, weights):
        gate, up, down = (w.to(h.dtype) for w in weights)
        return F.linear(F.silu(F.linear(h, gate)) * F.linear(h, up), down)


class Experts(nn.Module):
    """`gate` and `up` hold the experts' rows one after the other, `down` their columns."""

    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        width, hidden = shape.experts * shape.expert_width, shape.hidden
        self.router = matrix(shape.experts, hidden)
        self.register_buffer("bias", torch.zeros(shape.experts))
        self.register_buffer("load", torch.zeros(shape.experts))
        self.gate, self.up = matrix(width, hidden), matrix(width, hidden)
        self.down = nn.Parameter(torch.randn(hidden, width) * 0.2 * shape.expert_width**-0.5)

    def rounded(self):
        return [straight_through(w, mxfp4_value(w)) for w in (self.gate, self.up, self.down)]

    def route(self, h):
        """Weight of every expert for every token, zero for those not chosen; and who is chosen.
        The bias takes part in choosing, the weights come from the scores without it."""
        with torch.autocast(h.device.type, enabled=False):
            scores = F.linear(h.float(), self.router).sigmoid()
        best = (scores + self.bias).topk(self.shape.top_k, -1).indices
        chosen = torch.zeros_like(scores).scatter(-1, best, 1.0)
        kept = scores * chosen
        return kept / (kept.sum(-1, keepdim=True) + 1e-20), chosen

    def forward(self, h, weights):
        gate, up, down = (w.to(h.dtype) for w in weights)
        routes, chosen = self.route(h)
        inner = F.silu(F.linear(h, gate)) * F.linear(h, up)
        inner = inner.unflatten(-1, (self.shape.experts, -1)) * routes.to(h.dtype).unsqueeze(-1)
        return F.linear(inner.flatten(-2), down), chosen


class Layer(nn.Module):
    def __init__(self, shape, index):
        super().__init__()
        self.input_norm = Norm(shape.hidden, shape.eps)
        self.attention = Attention(shape, shape.window_layers[index])
        self.post_norm = Norm(shape.hidden, shape.eps)
        self.mlp = Experts(shape) if index else Dense(shape)

    def feed_forward(self, x, weights, dtype):
        h = self.post_norm(x, dtype)
        if isinstance(self.mlp, Dense):
            return x + self.mlp(h, weights), None
        out, chosen = self.mlp(h, weights)
        return x + out, chosen


class Model(nn.Module):
    def __init__(self, shape=None):
        super().__init__()
        self.shape = shape = shape or Target()
        self.embed = nn.Parameter(torch.randn(shape.vocab, shape.hidden) * 0.5)
        self.layers = nn.ModuleList(Layer(shape, index) for index in range(shape.layers))
        self.norm = Norm(shape.hidden, shape.eps)
        self.head = nn.Parameter(torch.randn(shape.vocab, shape.hidden) * 0.02)

    def tables(self, count, device):
        """Rope tables of global and of window layers."""
        shape = self.shape
        bases = (shape.rope_base, shape.window_rope_base)
        return [rope_tables(count, shape.rotary_dims, base, device) for base in bases]

    def rounded(self):
        """Every layer's weights as an engine sees them."""
        return [(layer.attention.rounded(), layer.mlp.rounded()) for layer in self.layers]

    def forward(self, tokens, attends, rounded=None, taps=()):
        """Final hidden states [b, s, hidden], normed; residual streams after the layers `taps`; and
        how often each layer's experts were chosen. `attends` is attention for global and for
        window layers, see `flex_attends` and `plain_attends`."""
        rounded = rounded or self.rounded()
        tables = self.tables(tokens.shape[1], tokens.device)
        x = F.embedding(tokens, self.embed)
        dtype = torch.bfloat16 if torch.is_autocast_enabled(x.device.type) else x.dtype
        tapped, loads = [], []
        for index, layer in enumerate(self.layers):
            kind = self.shape.window_layers[index]
            attention, mlp = rounded[index]
            h = layer.input_norm(x, dtype)
            x = x + layer.attention(h, attention, tables[kind], attends[kind])
            x, chosen = layer.feed_forward(x, mlp, dtype)
            if chosen is not None:
                loads.append(chosen.float().mean((0, 1)))
            if index in taps:
                tapped.append(x)
        return self.norm(x, dtype), tapped, loads

    def logits(self, hidden):
        return F.linear(hidden, self.head.to(hidden.dtype))

    @torch.no_grad()
    def balance(self, loads, rate):
        """Moves the routers' biases towards equal use of the experts."""
        experts = [layer.mlp for layer in self.layers if isinstance(layer.mlp, Experts)]
        for mlp, load in zip(experts, loads, strict=True):
            mlp.bias += rate * torch.sign(load.mean() - load)
            mlp.load.lerp_(load, 0.01)


# ---- attention -----------------------------------------------------------------------------------


def with_sink(attended, log_sum, sinks):
    """The sink takes its share of a softmax and adds no value."""
    if sinks is None:
        return attended
    share = torch.sigmoid(log_sum.float() - sinks[:, None])
    return attended * share.unsqueeze(-1).to(attended.dtype)


def seen(document, window):
    """[b, 1, s, s]: which keys a query sees. Documents are numbered along a row."""
    position = torch.arange(document.shape[1], device=document.device)
    back = position[:, None] - position
    mask = (back >= 0) & (document[:, :, None] == document[:, None])
    if window:
        mask = mask & (back < window)
    return mask.unsqueeze(1)


def plain_attends(shape, document):
    """Attention written out, for any device."""

    def attend_within(mask):
        def attend(q, k, v, sinks):
            k, v = (x.repeat_interleave(shape.group, 1) for x in (k, v))
            scores = (q @ k.transpose(-1, -2)).float() * shape.qk_dim**-0.5
            scores = scores.masked_fill(~mask, -math.inf)
            attended = scores.softmax(-1).to(v.dtype) @ v
            return with_sink(attended, scores.logsumexp(-1), sinks)

        return attend

    return [attend_within(seen(document, window)) for window in (0, shape.window)]


def flex_attends(shape, document, masks):
    """The same by flex attention; `masks` come from `flex_masks` for the same documents."""
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    def attend_within(mask):
        def attend(q, k, v, sinks):
            lse, shared = AuxRequest(lse=True), shape.group > 1
            attended, aux = flex_attention(
                q, k, v, block_mask=mask, return_aux=lse, enable_gqa=shared
            )
            return with_sink(attended, aux.lse, sinks)

        return attend

    return [attend_within(mask) for mask in masks]


def flex_masks(shape, document, create):
    """`create` is torch's create_block_mask, perhaps compiled."""
    batch, count = document.shape
    window = shape.window

    def causal(b, h, q, k):
        return (q >= k) & (document[b, q] == document[b, k])

    def windowed(b, h, q, k):
        return (q >= k) & (q - k < window) & (document[b, q] == document[b, k])

    device = document.device
    return [create(mask, batch, None, count, count, device=device) for mask in (causal, windowed)]


# ---- generation ----------------------------------------------------------------------------------


class Decoder:
    """The rounded model with a cache, one token of every sequence at a time. All sequences are at
    the same position; prompts are fed like everything else."""

    def __init__(self, model, batch, length, dtype=torch.bfloat16):
        self.shape, self.length = model.shape, length
        device = model.embed.device
        with torch.no_grad():
            self.rounded = [
                [[w.detach().to(dtype) for w in weights] for weights in pair]
                for pair in model.rounded()
            ]
        self.model, self.dtype = model, dtype
        shape = self.shape
        self.tables = model.tables(length, device)
        self.keys, self.values = (
            torch.zeros(
                shape.layers, batch, shape.kv_heads, length, dim, device=device, dtype=dtype
            )
            for dim in (shape.qk_dim, shape.v_dim)
        )
        self.slots = torch.arange(length, device=device)

    def attend(self, index, q, k, v, position, count):
        """q [b, heads, qk] over the first `count` slots, those after `position` unseen."""
        layer, shape = self.model.layers[index], self.shape
        self.keys[index].index_copy_(2, position, k.unsqueeze(2))
        self.values[index].index_copy_(2, position, v.unsqueeze(2))
        keys, values = self.keys[index, :, :, :count], self.values[index, :, :, :count]
        q = q.unflatten(1, (shape.kv_heads, shape.group))
        scores = (q @ keys.transpose(-1, -2)).float() * shape.qk_dim**-0.5
        back = position - self.slots[:count]
        unseen = back < 0
        if layer.attention.windowed:
            unseen = unseen | (back >= shape.window)
        scores = scores.masked_fill(unseen, -math.inf)
        attended = scores.softmax(-1).to(self.dtype) @ values
        if layer.attention.windowed:
            log_sum = scores.logsumexp(-1).flatten(1)
            attended = with_sink(
                attended.flatten(1, 2).unsqueeze(2), log_sum.unsqueeze(-1), layer.attention.sinks
            )
        return attended.reshape(len(attended), -1)

    @torch.no_grad()
    def step(self, tokens, position, count):
        """Logits [b, vocab] after `tokens` [b] at `position` [1], looking at `count` slots."""
        x = self.model.embed[tokens]
        for index, layer in enumerate(self.model.layers):
            kind = self.shape.window_layers[index]
            (qkv, out), mlp = self.rounded[index]
            tables = [table[position] for table in self.tables[kind]]
            q, k, v = layer.attention.project(layer.input_norm(x, self.dtype), qkv, tables)
            x = x + F.linear(self.attend(index, q, k, v, position, count), out)
            x, _ = layer.feed_forward(x, mlp, self.dtype)
        return self.model.logits(self.model.norm(x, self.dtype)).float()
