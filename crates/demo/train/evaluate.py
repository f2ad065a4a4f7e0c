"""Measures the trained model on held-out prompts.

    python evaluate.py FOLDER [--count 384]
    python evaluate.py --checkpoint CHECKPOINT --prompts FILE [--replies FILE]

prints, and writes FOLDER/figures.json, or beside FILE: how much of what it writes is valid, and the
acceptance length of the drafter. The target writes a reply; at every position of the reply the
drafter proposes; then the rounds are walked as an engine does: the reply's own tokens judge the
drafts, because a target that chooses (or samples, its numbers keyed by position) writes the same
reply with drafts or without. A round emits the accepted drafts and one token of the target's own;
the mean is the acceptance length. The rate of slot k is the share of rounds that accept at least k
drafts. The prompts are what held.py writes; only acceptance is measured on them. Replies are what
`tests/demo` had from a server and how many drafts it accepted in each round: PyTorch then judges
the same text, so that no draw differs, and must find the same.
"""

import argparse
import json
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import stored
from choose import code_of, parses
from drafter import Draft
from generate import generate, load_model, load_prompts
from held import LENGTH, text_of
from shape import END_OF_TEXT, IM_END, SEED, Drafter, write_json
from train_drafter import Reader

SETS = {
    "code": ["code"],
    "functions": ["write"],
    "code requests": ["write", "named", "complete", "document", "rename"],
    "chat": ["arithmetic", "structured", "tool_call", "greeting", "question", "explain", "basic"],
}
MODES = {
    "greedy": (0.0, 1.0),
    "temperature 1": (1.0, 1.0),
    "temperature 1, top_p 0.95": (1.0, 0.95),
}
ROWS = 16
# Rates of a server and of PyTorch on the same text differ by ties that rounding decides.
GAP = 0.02


@torch.no_grad()
def drafts_everywhere(draft, model, reader, tokens, dtype):
    """What the drafter proposes at every position, [b, positions, rows - 1]."""
    _, taps = reader(tokens)
    count = tokens.shape[1]
    starts = torch.arange(count, device=tokens.device).expand(len(tokens), -1)
    found = []
    for part in starts.split(128, 1):
        anchors = F.embedding(tokens.gather(1, part), model.embed)
        states = draft(anchors, part, taps, dtype)
        found.append(F.linear(states, model.head.to(dtype)).argmax(-1))
    return torch.cat(found, 1)


def walk(tokens, drafts, prompt, length):
    """Accepted drafts of every round. Tokens and drafts are lists; the prompt's pass has already
    given the first token of the reply. A round that meets the end of the reply is not counted."""
    anchor, rounds = prompt, []
    slots = len(drafts[0])
    while anchor + slots + 1 <= length:
        accepted = 0
        while accepted < slots and drafts[anchor][accepted] == tokens[anchor + 1 + accepted]:
            accepted += 1
        rounds.append(accepted)
        anchor += accepted + 1
    return rounds


def rounds_of(draft, model, reader, replies, device, dtype):
    """Accepted drafts of the rounds of every reply."""
    tokens = replies["tokens"].long()
    found = []
    for first in range(0, len(tokens), ROWS):
        part = tokens[first : first + ROWS]
        padded = F.pad(part, (0, 0, 0, ROWS - len(part))).to(device)
        drafts = drafts_everywhere(draft, model, reader, padded, dtype).tolist()
        for i, row in enumerate(part.tolist()):
            prompt, length = (
                replies["prompt"][first + i].item(),
                replies["length"][first + i].item(),
            )
            found.append(walk(row, drafts[i], prompt, length))
    return found


def summary(found, slots):
    rounds = [accepted for reply in found for accepted in reply]
    rates = [sum(r >= k for r in rounds) / len(rounds) for k in range(1, slots + 1)]
    return {
        "length": round(1 + sum(rates), 3),
        "rates": [round(rate, 3) for rate in rates],
        "rounds": len(rounds),
    }


def validity(replies, texts, wanted):
    """Per kind, the share of replies that are what was asked for."""
    good, of = {}, {}
    for text, kind, want, tokens, length in zip(
        texts, replies["kind"].tolist(), wanted, replies["tokens"], replies["length"], strict=True
    ):
        kind = replies["kinds"][kind]
        ended = tokens[length - 1].item() == IM_END
        of[kind] = of.get(kind, 0) + 1
        good[kind] = good.get(kind, 0) + bool(ended and fits(kind, text.strip(), want))
    return {kind: round(good[kind] / of[kind], 3) for kind in sorted(of)}


def fits(kind, text, want):
    text = text.rpartition("</think>")[2]
    if kind in ("write", "named", "complete", "document", "rename", "basic"):
        code = code_of(text)
        return code is not None and parses(code)
    if kind == "structured":
        try:
            json.loads(text)
        except ValueError:
            return False
        return True
    if kind == "tool_call" and want.startswith("<tool_call>"):
        return text == want
    return text == want if kind == "arithmetic" else bool(text)


def references(folder, prompts, tokenizer):
    """The corpus's own reply to every prompt, by the prompt's text."""
    data = torch.load(folder / "chat_held.pt")
    starts = (data["flags"] & 2).nonzero().flatten().tolist() + [len(data["tokens"])]
    found = {}
    for first, last in pairwise(starts):
        tokens, learn = data["tokens"][first:last].tolist(), data["flags"][first:last] & 1
        begin = learn.nonzero().flatten()[0].item()
        end = tokens.index(IM_END, begin)
        found[tuple(tokens[:begin])] = tokenizer.decode(tokens[begin:end])
    return [
        found.get(tuple(tokens.tolist()), "").rpartition("</think>")[2] for _, tokens in prompts
    ]


def fixed_prompts(path, tokenizer):
    """Set, prompts as generate() takes them."""
    found = {}
    for line in path.read_text().splitlines():
        one = json.loads(line)
        tokens = torch.tensor(tokenizer.encode(text_of(one)).ids, dtype=torch.int16)
        found.setdefault(one["set"], []).append((one["set"], tokens))
    return found


def measure(arguments, model, draft, sets, tokenizer, report):
    """Figures of every set and mode. `report` sees the texts."""
    device, figures = torch.device(arguments.device), {}
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    reader = Reader(model, ROWS, LENGTH, device) if draft else None
    for name, (prompts, wanted) in sets.items():
        figures[name] = {}
        for mode, (temperature, top_p) in MODES.items():
            torch.manual_seed(SEED)
            replies = generate(model, prompts, [temperature], top_p, dtype)
            spans = zip(replies["tokens"], replies["prompt"], replies["length"], strict=True)
            said = [row[a:b].tolist() for row, a, b in spans]
            texts = tokenizer.decode_batch(said, skip_special_tokens=True)
            found = figures[name][mode] = {}
            if draft:
                rounds = rounds_of(draft, model, reader, replies, device, dtype)
                found |= summary(rounds, draft.shape.rows - 1)
            if wanted:
                found["valid"] = validity(replies, texts, wanted)
            print(name, "|", mode, "|", json.dumps(found), flush=True)
            report(name, temperature, prompts, texts)
    return figures


def of_checkpoint(arguments):
    folder, path, device = Path(arguments.checkpoint), Path(arguments.prompts), arguments.device
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model, draft = stored.target(folder).to(device), stored.drafter(folder).to(device)
    if arguments.replies:
        return of_replies(arguments, model, draft, tokenizer)
    sets = {n: (p, None) for n, p in fixed_prompts(path, tokenizer).items()}
    figures = measure(arguments, model, draft, sets, tokenizer, lambda *_: None)
    write_json(path.with_suffix(".figures.json"), figures)


def judged(some, prompts):
    """What a server said, as generate() has it."""
    tokens = torch.full((len(some), LENGTH), END_OF_TEXT)
    for row, one in zip(tokens, some, strict=True):
        whole = prompts[one["prompt"]] + one["tokens"]
        row[: len(whole)] = torch.tensor(whole)
    starts = torch.tensor([len(prompts[one["prompt"]]) for one in some])
    counts = torch.tensor([len(one["tokens"]) for one in some])
    return {"tokens": tokens, "prompt": starts, "length": starts + counts}


def of_replies(arguments, model, draft, tokenizer):
    device, slots, worst = torch.device(arguments.device), draft.shape.rows - 1, 0.0
    reader = Reader(model, ROWS, LENGTH, device)
    lines = Path(arguments.prompts).read_text().splitlines()
    prompts = [tokenizer.encode(text_of(json.loads(line))).ids for line in lines]
    groups = {}
    for line in Path(arguments.replies).read_text().splitlines():
        one = json.loads(line)
        groups.setdefault((one["set"], one["mode"]), []).append(one)
    for (name, mode), some in groups.items():
        ours = rounds_of(draft, model, reader, judged(some, prompts), device, torch.float32)
        served = [one["accepted"] for one in some]
        there, here = summary(served, slots), summary(ours, slots)
        gap = max(abs(a - b) for a, b in zip(there["rates"], here["rates"], strict=True))
        same = sum(a == b for a, b in zip(served, ours, strict=True))
        print(f"{name} | {mode} | served {there['length']} | PyTorch {here['length']}", flush=True)
        print(f"  the same rounds in {same} of {len(some)} replies; rates {gap:.3f} apart")
        if name == "functions":
            good = 0
            for one in some:
                text = tokenizer.decode(one["tokens"]).strip()
                good += one["tokens"][-1] == IM_END and fits("write", text, None)
            print(f"  {good / len(some):.0%} are one fence of Python that parses")
        worst = max(worst, gap)
    if worst > GAP:
        raise SystemExit(f"rates differ by {worst:.3f}")


def of_training(arguments):
    folder, device = Path(arguments.folder), arguments.device
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model, draft = load_model(folder, device), None
    if (folder / "draft.pt").exists():
        draft = Draft(Drafter(), model.shape.hidden).to(device)
        draft.load_state_dict(torch.load(folder / "draft.pt", map_location=device))
        draft.eval().requires_grad_(False)
    sets = {}
    for name, kinds in SETS.items():
        prompts = load_prompts(folder, "held", kinds)[: arguments.count]
        sets[name] = (prompts, name != "code" and references(folder, prompts, tokenizer))

    def report(name, temperature, prompts, texts):
        shown = [
            tokenizer.decode(tokens.tolist(), skip_special_tokens=False) + "\n>>>>>\n" + text
            for (_, tokens), text in list(zip(prompts, texts, strict=True))[:40]
        ]
        path = folder / f"said_{name.replace(' ', '_')}_{temperature:.0f}.txt"
        path.write_text("\n=====\n".join(shown))

    write_json(folder / "figures.json", measure(arguments, model, draft, sets, tokenizer, report))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--checkpoint")
    parser.add_argument("--prompts")
    parser.add_argument("--replies")
    parser.add_argument("--count", type=int, default=384)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    (of_checkpoint if arguments.checkpoint else of_training)(arguments)


if __name__ == "__main__":
    main()
