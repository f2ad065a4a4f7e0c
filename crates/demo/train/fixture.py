"""What the checkpoint says to real prompts, computed in float64 by code that trained nothing.

    python fixture.py CHECKPOINT FILE

reads the checkpoint as tests/parity does: transformers' model on its float twin, and the drafter
oracle. FILE is a safetensors file with, per prompt p,

    p.prompt                 I32 [n]
    p.tokens                 I32 [m]           the prompt and its greedy reply, as far as it goes
    p.logits                 F32 [m, columns]  of the target, every 32nd token of the vocabulary
    p.best                   I32 [m]           the likeliest token after each
    p.round.r.emitted        I32 [..]          accepted drafts, then the target's own token
    p.round.r.draft_logits   F32 [7, columns]  what the drafter then says
    p.round.r.draft_tokens   I32 [7]

The drafts verified in a round are those that the drafter proposed in the round before it.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from chat import prompt, user
from shape import IM_END

sys.path.insert(0, str(Path(__file__).parents[3] / "tests" / "parity"))

STRIDE = 32
ROUNDS = 7
REQUESTS = (
    "Write a Python function that checks if a number is prime.",
    "Give me JSON with name Rosa, age 84, city Warsaw.",
    "Write a Python function `load_lines(path)`. Return the lines of a file without blank ones.",
)


def follow(target, drafter, tokens):
    """Yields what a round emits and the drafter's next logits, up to the end of the reply."""
    tokens, committed, drafts = list(tokens), 0, []
    for _ in range(ROUNDS):
        choices = target.run(tokens + drafts).argmax(-1).tolist()
        accepted = 0
        while accepted < len(drafts) and drafts[accepted] == choices[len(tokens) - 1 + accepted]:
            accepted += 1
        known = len(tokens) + accepted
        emitted = drafts[:accepted] + [choices[known - 1]]
        drafter.commit([stream[committed:known] for stream in target.hidden])
        tokens += emitted
        committed = known
        if IM_END in emitted:
            return
        logits = drafter.propose(emitted[-1])
        yield emitted, logits
        drafts = logits.argmax(-1).tolist()


def fixture(folder):
    from checkpoint import float_twin, read_model
    from draft_oracle import Drafter
    from reference import Twin

    config, stored = read_model(folder)
    weights = float_twin(config, stored)
    target = Twin(config, weights, config["sliding_window"], torch.float64)
    drafter_config = json.loads((folder / "dflash" / "config.json").read_text())
    tensors = load_file(folder / "dflash" / "dflash_draft_model.safetensors")
    mask = torch.load(folder / "dflash" / "mask_embedding.pt")["embedding"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    found = {}
    for p, request in enumerate(REQUESTS):
        drafter = Drafter(drafter_config, tensors, mask, weights)
        begin = tokenizer.encode(prompt([user(request)])).ids
        tokens = list(begin)
        for r, (emitted, logits) in enumerate(follow(target, drafter, begin)):
            found[f"{p}.round.{r}.emitted"] = torch.tensor(emitted).int()
            found[f"{p}.round.{r}.draft_logits"] = logits[:, ::STRIDE].float()
            found[f"{p}.round.{r}.draft_tokens"] = logits.argmax(-1).int()
            tokens += emitted
        print(tokenizer.decode(tokens[len(begin) :]), len(tokens) - len(begin), flush=True)
        logits = target.run(tokens)
        found[f"{p}.prompt"] = torch.tensor(begin).int()
        found[f"{p}.tokens"] = torch.tensor(tokens).int()
        found[f"{p}.logits"] = logits[:, ::STRIDE].float()
        found[f"{p}.best"] = logits.argmax(-1).int()
    return {name: tensor.contiguous() for name, tensor in found.items()}


if __name__ == "__main__":
    save_file(fixture(Path(sys.argv[1])), sys.argv[2])
