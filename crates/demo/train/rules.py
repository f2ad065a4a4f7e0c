"""Acceptance lengths of both rules that verify drafts, by replies that are written in rounds.

    python rules.py CHECKPOINT PROMPTS [--times 16] [--temperatures 0.6 1] [--replies FILE]

prints them, and writes them beside PROMPTS. Nothing here is the engine's: distributions are over
the whole vocabulary, and the rules are written as their papers have them. By `match` drafts are the
drafter's likeliest tokens, and the target's own draws accept them. By `rejection` drafts are drawn
from the drafter's distribution and judged by block verification (Sun et al., arXiv 2403.10444).

With --replies, what `tests/demo` had from a server by rejection sampling is judged too: from the
beginning of each served round PyTorch drafts and verifies for itself. Of the same texts both must
accept as much, and whole texts, which differ, do not add to the error.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import stored
from evaluate import fixed_prompts
from held import LENGTH, text_of
from shape import END_OF_TEXT, IM_END, SEED, write_json
from target import with_sink

# Number of tokens that a draft may be, as in the engine; all others get no probability.
CANDIDATES = 64
# Temperature of drafts in rejection sampling, times the request's: the server's default.
DRAFT_TEMPERATURE = 0.4
# Number of positions that are computed at a time when many tokens are known.
CHUNK = 32
BUCKET = 64
# Number of served replies that are judged at a time.
REPLIES = 128
# Largest difference of served and own acceptance, in standard errors.
ERRORS_MAX = 3.0


class Decoder:
    """The target with a cache for sequences at positions of their own, and its taps."""

    def __init__(self, model, taps, count, length, device):
        shape = model.shape
        self.model, self.taps = model, taps
        with torch.no_grad():
            self.rounded = model.rounded()
        self.tables = model.tables(length, device)
        self.keys, self.values = (
            torch.zeros(shape.layers, count, shape.kv_heads, length, dim, device=device)
            for dim in (shape.qk_dim, shape.v_dim)
        )
        self.streams = [torch.zeros(count, length, shape.hidden, device=device) for _ in taps]

    def keep(self, rows):
        """Keeps these sequences alone."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self.streams = [stream[rows] for stream in self.streams]

    def attend(self, index, q, k, v, positions):
        """q, k and v are [n, count, heads, ..], at `positions` [n, count]."""
        attention, shape = self.model.layers[index].attention, self.model.shape
        rows = torch.arange(len(q), device=q.device)[:, None]
        self.keys[index][rows, :, positions] = k
        self.values[index][rows, :, positions] = v
        end = bucket(positions.max().item() + 1, self.keys.shape[3])
        keys, values = self.keys[index, :, :, :end], self.values[index, :, :, :end]
        keys, values = (x.repeat_interleave(shape.group, 1) for x in (keys, values))
        scores = q.transpose(1, 2) @ keys.transpose(-1, -2) * shape.qk_dim**-0.5
        back = positions[:, None, :, None] - torch.arange(end, device=q.device)
        unseen = back < 0
        if attention.windowed:
            unseen = unseen | (back >= shape.window)
        scores = scores.masked_fill(unseen, float("-inf"))
        attended = scores.softmax(-1) @ values
        sinks = attention.sinks if attention.windowed else None
        attended = with_sink(attended, scores.logsumexp(-1), sinks)
        return attended.transpose(1, 2).flatten(2)

    def __call__(self, tokens, positions):
        """Logits [n, count, vocab] after `tokens` [n, count]."""
        model, rows = self.model, torch.arange(len(tokens), device=tokens.device)[:, None]
        x = F.embedding(tokens, model.embed)
        for index, layer in enumerate(model.layers):
            (qkv, out), mlp = self.rounded[index]
            tables = [table[positions] for table in self.tables[model.shape.window_layers[index]]]
            q, k, v = layer.attention.project(layer.input_norm(x, x.dtype), qkv, tables)
            x = x + F.linear(self.attend(index, q, k, v, positions), out)
            x, _ = layer.feed_forward(x, mlp, x.dtype)
            if index in self.taps:
                self.streams[self.taps.index(index)][rows, positions] = x
        return model.logits(model.norm(x, x.dtype))


def bucket(count, most):
    """A few different sizes, since each is allocated anew."""
    return min(most, -(-count // BUCKET) * BUCKET)


@dataclass
class Rule:
    """`factor` times the request's temperature is that of the drafts; None is sample and match."""

    name: str
    factor: float | None

    def draft(self, logits, temperature):
        """Drafts [n, slots] and the distributions [n, slots, vocab] that they are drawn from."""
        if self.factor is None:
            return logits.argmax(-1), None
        best, places = logits.topk(CANDIDATES, -1)
        chances = (best / (temperature * self.factor)).softmax(-1)
        chosen = draw(chances).unsqueeze(-1)
        q = torch.zeros_like(logits).scatter_(-1, places, chances)
        return places.gather(-1, chosen).squeeze(-1), q

    def verify(self, drafts, q, p):
        """How many drafts are kept, and the token after them. `p` [n, slots + 1, vocab] is the
        target's, after each draft."""
        return match(drafts, p) if self.factor is None else judge(drafts, q, p)


RULES = [Rule("match", None), Rule("rejection", DRAFT_TEMPERATURE)]


def draw(weights):
    """An index of each distribution [..., vocab], which need not add up to 1."""
    flat = weights.flatten(0, -2)
    return torch.multinomial(flat, 1).view(weights.shape[:-1])


def match(drafts, p):
    chosen = draw(p)
    kept = (chosen[:, :-1] == drafts).cumprod(-1).sum(-1)
    return kept, chosen.gather(1, kept[:, None]).squeeze(1)


def judge(drafts, q, p):
    """Block verification: the longest prefix whose own uniform number accepts it, then a token of
    what the target has more than the drafter."""
    count, slots = drafts.shape
    mass = torch.ones(count, dtype=torch.double, device=drafts.device)
    kept, kept_mass = torch.zeros_like(drafts[:, 0]), mass
    q, p = q.double(), p.double()
    for i in range(slots):
        ratio = (p[:, i] / q[:, i]).gather(1, drafts[:, i : i + 1]).squeeze(1)
        mass = (mass * ratio).clamp_max(1.0)
        accepts = mass
        if i + 1 < slots:
            more = (mass[:, None] * p[:, i + 1] - q[:, i + 1]).clamp_min(0).sum(-1)
            # This is 0 / 0 where both distributions are equal: the next draft is then accepted
            # anyway.
            accepts = (more / (more + 1 - mass)).nan_to_num(1.0)
        yes = torch.rand_like(mass) <= accepts
        kept = torch.where(yes, i + 1, kept)
        kept_mass = torch.where(yes, mass, kept_mass)
    rows = torch.arange(count, device=drafts.device)
    # If all drafts are accepted, the next token is drawn from the target's distribution.
    q = torch.cat((q, torch.zeros_like(q[:, :1])), 1)
    left = torch.where(
        (kept < slots)[:, None], kept_mass[:, None] * p[rows, kept] - q[rows, kept], p[rows, kept]
    ).clamp_min(0)
    left = torch.where(left.sum(-1, keepdim=True) > 0, left, p[rows, kept])
    return kept, draw(left.float())


class Rounds:
    """Sequences of `tokens` [n, LENGTH], whose newest tokens are at `anchors` [n]."""

    def __init__(self, model, draft, tokens, anchors):
        self.model, self.draft = model, draft
        self.tokens, self.anchors = tokens, anchors
        self.slots = draft.shape.rows - 1
        count, length = tokens.shape
        self.decoder = Decoder(model, draft.shape.taps, count, length, tokens.device)
        # Values for later tokens are computed again before anything reads them.
        for first in range(0, anchors.max().item(), CHUNK):
            positions = torch.arange(first, min(length, first + CHUNK), device=tokens.device)
            self.decoder(tokens[:, positions], positions.expand(count, -1))

    def positions(self):
        offsets = torch.arange(self.slots + 1, device=self.anchors.device)
        return self.anchors[:, None] + offsets

    def first(self, temperature):
        """Chooses the first token of each reply, which comes with the prompt."""
        rows, last = torch.arange(len(self.tokens), device=self.tokens.device), self.anchors - 1
        logits = self.decoder(self.tokens[rows, last][:, None], last[:, None])
        self.tokens[rows, self.anchors] = draw((logits[:, 0] / temperature).softmax(-1))

    def run(self, rule, temperature):
        """Drafts at every anchor and verifies: drafts, how many are kept, and the next token."""
        anchors, positions = self.anchors[:, None], self.positions()
        known = self.tokens.gather(1, anchors)
        end = bucket(self.anchors.max().item(), self.tokens.shape[1])
        streams = [stream[:, :end] for stream in self.decoder.streams]
        embedded = F.embedding(known, self.model.embed)
        states = self.draft(embedded, anchors, streams, embedded.dtype)
        drafts, q = rule.draft(self.model.logits(states[:, 0]), temperature)
        logits = self.decoder(torch.cat((known, drafts), 1), positions)
        return drafts, *rule.verify(drafts, q, (logits / temperature).softmax(-1))

    def keep(self, rows):
        self.decoder.keep(rows)
        self.tokens, self.anchors = self.tokens[rows], self.anchors[rows]


def walk(model, draft, prompts, rule, temperature, device):
    """Accepted drafts of every round of a reply to each prompt. A round whose drafts reach beyond
    the end of the reply is not counted, as in evaluate.py."""
    slots = draft.shape.rows - 1
    tokens = padded([prompt.tolist() for prompt in prompts], slots).to(device)
    anchors = torch.tensor([len(prompt) for prompt in prompts], device=device)
    rounds = Rounds(model, draft, tokens, anchors)
    rounds.first(temperature)
    ended = is_end(rounds.tokens.gather(1, anchors[:, None])).squeeze(1)
    who, offsets = torch.arange(len(prompts), device=device), torch.arange(slots + 1, device=device)
    found, lengths = [[] for _ in prompts], [LENGTH] * len(prompts)
    while True:
        going = ~ended & (rounds.anchors < LENGTH)
        if not going.any():
            break
        if going.sum() < 0.8 * len(going):
            rounds.keep(going)
            who, ended = who[going], ended[going]
            continue
        drafts, kept, following = rounds.run(rule, temperature)
        said = F.pad(drafts, (0, 1)).scatter(1, kept[:, None], following[:, None])
        ends = is_end(said) & (offsets <= kept[:, None])
        ends_at = rounds.anchors + 1 + ends.int().argmax(1)
        rounds.tokens.scatter_(1, rounds.anchors[:, None] + 1 + offsets, said)
        columns = (who, rounds.anchors, kept, ends_at, going, ends.any(1))
        for row, anchor, accepted, end, counts, last in zip(
            *(column.tolist() for column in columns), strict=True
        ):
            if counts:
                found[row].append((anchor, accepted))
            if counts and last:
                lengths[row] = min(LENGTH, end + 1)
        ended = ended | ends.any(1)
        rounds.anchors = torch.where(going, rounds.anchors + kept + 1, rounds.anchors)
    return [
        [accepted for anchor, accepted in some if anchor + slots + 1 <= length]
        for some, length in zip(found, lengths, strict=True)
    ]


def padded(sequences, slots):
    """With room for two rounds behind the last position."""
    tokens = torch.full((len(sequences), LENGTH + 2 * slots + 2), END_OF_TEXT)
    for row, sequence in zip(tokens, sequences, strict=True):
        row[: len(sequence)] = torch.tensor(sequence)
    return tokens


def is_end(tokens):
    return (tokens == IM_END) | (tokens == END_OF_TEXT)


def summary(found):
    """Length with its standard error. Rounds of a reply are alike, so replies are the sample."""
    accepted = torch.tensor([sum(reply) for reply in found], dtype=torch.double)
    counts = torch.tensor([len(reply) for reply in found], dtype=torch.double)
    mean = (accepted.sum() / counts.sum()).item()
    spread = ((accepted - mean * counts) ** 2).sum() * len(found) / (len(found) - 1)
    error = spread.sqrt() / counts.sum()
    return {
        "length": round(1 + mean, 3),
        "error": round(error.item(), 3),
        "rounds": int(counts.sum()),
        "replies": len(found),
    }


def served(model, draft, replies, prompts, rule, temperature, device):
    """Of each round that a server counted, the drafts that it accepted less those that PyTorch
    accepts after the same tokens."""
    parts = [replies[first : first + REPLIES] for first in range(0, len(replies), REPLIES)]
    gains = [gains_of(model, draft, some, prompts, rule, temperature, device) for some in parts]
    gains = torch.cat(gains)
    count = sum(len(one["accepted"]) for one in replies)
    return gains.sum().item() / count, (gains**2).sum().sqrt().item() / count, count


def gains_of(model, draft, replies, prompts, rule, temperature, device):
    """The same of each reply, added up over its rounds."""
    whole = [prompts[one["prompt"]] + one["tokens"] for one in replies]
    tokens = padded(whole, draft.shape.rows - 1).to(device)
    last = torch.full((len(replies),), LENGTH - 1, device=device)
    rounds, gains = Rounds(model, draft, tokens, last), torch.zeros(len(replies))
    starts = [len(prompts[one["prompt"]]) for one in replies]
    rounds.anchors = torch.tensor(starts, device=device)
    counts = torch.tensor([len(one["accepted"]) for one in replies])
    who = torch.arange(len(replies))
    for turn in range(counts.max().item()):
        going = counts[who] > turn
        if not going.all():
            rounds.keep(going.to(device))
            who = who[going]
        theirs = torch.tensor([replies[one]["accepted"][turn] for one in who.tolist()])
        _, kept, _ = rounds.run(rule, temperature)
        # The drafts were computed at the positions of the reply's own tokens; compute those again.
        positions = rounds.positions()
        rounds.decoder(rounds.tokens.gather(1, positions), positions)
        gains[who] += theirs - kept.cpu()
        rounds.anchors = rounds.anchors + theirs.to(device) + 1
    return gains


def compare(arguments, model, draft, tokenizer, device):
    """Fails if a server accepts more or less than PyTorch after the same tokens."""
    lines = Path(arguments.prompts).read_text().splitlines()
    prompts = [tokenizer.encode(text_of(json.loads(line))).ids for line in lines]
    groups, worst = {}, 0.0
    for line in Path(arguments.replies).read_text().splitlines():
        one = json.loads(line)
        groups.setdefault((one["set"], float(one["temperature"]), one["rule"]), []).append(one)
    for (name, temperature, rule), some in groups.items():
        by = next(one for one in RULES if one.name == rule)
        more, error, count = served(model, draft, some, prompts, by, temperature, device)
        print(f"{name} | {temperature} | {rule} | {more:+.3f} ± {error:.3f} of {count} rounds")
        worst = max(worst, abs(more) / max(error, 1e-9))
    if worst > ERRORS_MAX:
        raise SystemExit(f"{worst:.1f} standard errors apart")


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("prompts")
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.6, 1.0])
    parser.add_argument("--replies")
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_float32_matmul_precision("high")
    folder, device = Path(arguments.checkpoint), torch.device(arguments.device)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model, draft = stored.target(folder).to(device), stored.drafter(folder).to(device)
    if arguments.replies:
        compare(arguments, model, draft, tokenizer, device)
        return
    path, figures = Path(arguments.prompts), {}
    for name, some in fixed_prompts(path, tokenizer).items():
        prompts = [tokens for _, tokens in some] * arguments.times
        for temperature in arguments.temperatures:
            for rule in RULES:
                found = summary(walk(model, draft, prompts, rule, temperature, device))
                figures.setdefault(name, {}).setdefault(str(temperature), {})[rule.name] = found
                print(f"{name} | {temperature} | {rule.name} | {json.dumps(found)}", flush=True)
    write_json(path.with_suffix(".rules.json"), figures)


if __name__ == "__main__":
    main()
