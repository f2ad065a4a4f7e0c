"""Trains the drafter on text that the target wrote.

    python train_drafter.py FOLDER NAME --minutes 9 [--wall 500]

reads FOLDER/target.pt and FOLDER/NAME.pt (see generate.py), writes FOLDER/draft.pt and
draft_log.jsonl. Anchors are drawn at random; a slot's label is the target's own distribution there,
and slots count by how likely a draft is to be right up to them (D-PACE), so that the loss follows
the acceptance length.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import optim
from drafter import Draft
from generate import load_model
from shape import SEED, Drafter
from target import flex_attends, flex_masks, plain_attends

ROWS, ANCHORS = 32, 96
SMOOTH = 0.5


class Reader:
    """What the drafter reads of the target: residual streams and distributions."""

    def __init__(self, model, rows, length, device):
        self.model, self.device = model, device
        self.rounded = [[[w.detach() for w in part] for part in pair] for pair in model.rounded()]
        document = torch.zeros(rows, length, dtype=torch.long, device=device)
        if device.type == "cuda":
            from torch.nn.attention.flex_attention import create_block_mask

            masks = flex_masks(model.shape, document, create_block_mask)
            self.attends = flex_attends(model.shape, document, masks)
            self.run = torch.compile(self.read, dynamic=False)
        else:
            self.attends, self.run = plain_attends(model.shape, document), self.read

    @torch.no_grad()
    def read(self, tokens):
        taps = Drafter().taps
        hidden, tapped, _ = self.model(tokens, self.attends, self.rounded, taps)
        return hidden, tapped

    def __call__(self, tokens):
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            return self.run(tokens)


def importance(right, valid):
    """D-PACE: w_j = sum over m >= j of the chance that slots 1..m are right, smoothed."""
    chance = ((1 - SMOOTH) * right + SMOOTH) * valid
    survival = chance.cumprod(-1)
    return survival.flip(-1).cumsum(-1).flip(-1) * valid


def draft_loss(draft, model, tokens, hidden, taps, starts, lengths, dtype):
    """Loss, accepted drafts of each anchor, and how many slots each has."""
    slots = draft.shape.rows - 1
    anchors = F.embedding(tokens.gather(1, starts), model.embed)
    states = draft(anchors, starts, taps, dtype)
    logits = F.linear(states, model.head.to(dtype)).float()
    place = starts.unsqueeze(-1) + torch.arange(1, slots + 1, device=tokens.device)
    valid = (place < lengths[:, None, None]).float()
    place = place.clamp_max(tokens.shape[1] - 1)
    labels = tokens.gather(1, place.flatten(1)).view_as(place)
    rows = torch.arange(len(tokens), device=tokens.device)[:, None, None]
    with torch.no_grad():
        truth = F.linear(hidden[rows, place - 1].to(dtype), model.head.to(dtype)).float()
        truth = truth.softmax(-1)
    log_chance = logits.log_softmax(-1)
    cross = -(truth * log_chance).sum(-1)
    with torch.no_grad():
        right = log_chance.gather(-1, labels.unsqueeze(-1)).squeeze(-1).exp()
        weight = importance(right, valid)
        weight = weight / weight.sum()
        accepted = ((logits.argmax(-1) == labels) * valid).cumprod(-1).sum(-1)
    return (weight * cross).sum(), accepted, valid.sum(-1)


def optimizers_of(draft, hidden, muon_lr, adam_lr):
    cuts = {draft.fc: optim.stacked_columns(hidden)}
    for layer in draft.layers:
        for weight in (layer.q, layer.k, layer.v, layer.out, layer.gate, layer.up, layer.down):
            cuts[weight] = optim.whole(weight)
    vectors = [p for p in draft.parameters() if p not in cuts]
    return optim.optimizers(cuts, [(vectors, 1.0)], muon_lr, adam_lr)


class Texts:
    def __init__(self, path, device):
        data = torch.load(path)
        long = data["length"] > data["prompt"] + 2
        self.tokens = data["tokens"][long].to(device)
        self.prompt, self.length = (data[name][long].to(device) for name in ("prompt", "length"))

    def draw(self, rows, anchors, generator):
        device = self.tokens.device
        row = torch.randint(len(self.tokens), (rows,), generator=generator, device=device)
        prompt, length = self.prompt[row, None], self.length[row, None]
        share = torch.rand(rows, anchors, generator=generator, device=device)
        # An anchor is a token of the reply with at least one after it.
        starts = prompt + (share * (length - 1 - prompt)).long()
        return self.tokens[row].long(), starts, length.squeeze(1)


def train(arguments):
    folder, device = Path(arguments.folder), torch.device(arguments.device)
    torch.manual_seed(SEED)
    torch.set_float32_matmul_precision("high")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = load_model(folder, device)
    texts = Texts(folder / f"{arguments.name}.pt", device)
    reader = Reader(model, ROWS, texts.tokens.shape[1], device)
    draft = Draft(Drafter(), model.shape.hidden).to(device)
    draft.mask.data.copy_(model.embed.mean(0))
    loss_of = torch.compile(draft_loss, dynamic=False) if device.type == "cuda" else draft_loss
    rates = optimizers_of(draft, model.shape.hidden, arguments.muon, arguments.adam)
    generator = torch.Generator(device).manual_seed(SEED)
    log = (folder / "draft_log.jsonl").open("w")
    start = begun = time.monotonic()
    step, now, sums = 0, 0.0, torch.zeros(3, device=device)
    while now < 60 * arguments.minutes and time.monotonic() - start < arguments.wall:
        optim.set_rate(rates, optim.schedule(now / (60 * arguments.minutes), 0.02, 0.3))
        tokens, starts, lengths = texts.draw(ROWS, ANCHORS, generator)
        hidden, taps = reader(tokens)
        loss, accepted, slots = loss_of(draft, model, tokens, hidden, taps, starts, lengths, dtype)
        loss.backward()
        for optimizer in rates:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        whole = slots == draft.shape.rows - 1
        mean = (accepted * whole).sum() / whole.sum()
        sums += torch.stack((loss.detach(), mean, torch.ones_like(mean)))
        step += 1
        if step % 20 == 0:
            torch.cuda.synchronize() if device.type == "cuda" else None
            if step == 20:
                begun = time.monotonic() - 1
            now = time.monotonic() - begun
        if step % arguments.every == 0:
            loss, mean, count = sums.tolist()
            entry = {"step": step, "seconds": round(now, 1), "loss": round(loss / count, 4)}
            # For random anchors, not for those with which rounds begin.
            entry["length_anywhere"] = round(1 + mean / count, 4)
            print(json.dumps(entry), flush=True)
            log.write(json.dumps(entry) + "\n")
            log.flush()
            sums.zero_()
    torch.save(draft.state_dict(), folder / "draft.pt")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("name")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--wall", type=float, default=1e9, help="seconds, compilation included")
    parser.add_argument("--muon", type=float, default=0.02)
    parser.add_argument("--adam", type=float, default=2e-3)
    parser.add_argument("--every", type=int, default=500)
    parser.add_argument("--device", default="cuda")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
