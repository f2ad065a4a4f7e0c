"""Trains the target.

    python train_target.py FOLDER --minutes 8 --of 20     # a part of a 20-minute training
    python train_target.py FOLDER --minutes 8 --of 20     # its next part

The time spent decides the schedule: a machine twice as fast sees twice as much text. FOLDER holds
what tokens.py wrote; target.pt (weights), target_state.pt (to go on) and target_log.jsonl are put
beside it. With --tune the training starts from the weights alone, with low rates, and reads
chosen_train.pt (what choose.py kept of the model's own replies) among the conversations.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import optim
from shape import END_OF_TEXT, IM_END, SEED, Target
from target import Experts, Model, flex_attends, flex_masks, plain_attends
from tokens import LEARN, START

ROWS, COUNT = 32, 2048
BALANCE_RATE = 1e-3
EVALUATE_EVERY = 500
# Shares of source, of conversations, and of the model's own texts.
TUNE_SHARES = (0.05, 0.25, 0.7)


class Pool:
    """A pool of documents on the device, cut at random places."""

    def __init__(self, path, device):
        data = torch.load(path)
        self.tokens, self.flags = data["tokens"].to(device), data["flags"].to(device)

    def cut(self, rows, count, generator):
        """tokens, labels (-1: not to be learnt) and documents, [rows, count] each."""
        device = self.tokens.device
        last = len(self.tokens) - count - 1
        start = torch.randint(last, (rows, 1), generator=generator, device=device)
        place = start + torch.arange(count + 1, device=device)
        tokens, flags = self.tokens[place].long(), self.flags[place]
        document = ((flags & START) > 0).cumsum(1)
        # A conversation whose beginning is cut off is not used for training; source may begin
        # anywhere.
        source = (flags & LEARN).amin(1, keepdim=True) > 0
        learnt = ((flags & LEARN) > 0) & ((document > 0) | source)
        learnt[:, 1:] &= document[:, 1:] == document[:, :-1]
        labels = torch.where(learnt, tokens, -1)
        return tokens[:, :-1], labels[:, 1:], document[:, :-1]


def batch(pools, shares, rows, count, generator):
    counts = [round(share * rows) for share in shares]
    counts[0] += rows - sum(counts)
    parts = [pool.cut(n, count, generator) for pool, n in zip(pools, counts, strict=True) if n]
    return [torch.cat(part) for part in zip(*parts, strict=True)]


def loss_of(model, tokens, labels, attends):
    """Mean cross entropy of the learnt positions, and the experts' loads."""
    hidden, _, loads = model(tokens, attends)
    logits = model.logits(hidden.flatten(0, 1)).float()
    loss = F.cross_entropy(logits, labels.flatten(), ignore_index=-1)
    return loss, torch.stack(loads)


class Trainer:
    def __init__(self, model, device, flex):
        self.model, self.device, self.flex = model, device, flex
        if flex:
            from torch.nn.attention.flex_attention import create_block_mask

            self.create = torch.compile(create_block_mask, dynamic=False)
        self.run = torch.compile(self.flexible, dynamic=False) if flex else self.plain

    def flexible(self, tokens, labels, document, masks):
        attends = flex_attends(self.model.shape, document, masks)
        return loss_of(self.model, tokens, labels, attends)

    def plain(self, tokens, labels, document, masks):
        return loss_of(self.model, tokens, labels, plain_attends(self.model.shape, document))

    def loss(self, tokens, labels, document):
        masks = flex_masks(self.model.shape, document, self.create) if self.flex else None
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            return self.run(tokens, labels, document, masks)

    def settle(self, part):
        """Tries the fast attention on a batch; where it does not run, the plain one is compiled."""
        try:
            loss, _ = self.loss(*part)
            loss.backward()
            with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16):
                plain, _ = self.plain(*part, None)
            print(f"fast attention: loss {loss.item():.4f}, written out {plain.item():.4f}")
        except Exception as error:  # noqa: BLE001 a compiler may raise anything
            print("fast attention does not run:", repr(error)[:600])
            self.flex, self.run = False, torch.compile(self.plain, dynamic=False)
        self.model.zero_grad(set_to_none=True)


def optimizers_of(model, muon_lr, adam_lr):
    cuts, vectors = {}, []
    for layer in model.layers:
        attention, mlp = layer.attention, layer.mlp
        cuts[attention.qkv] = optim.whole(attention.qkv)
        cuts[attention.out] = optim.whole(attention.out)
        if isinstance(mlp, Experts):
            width = model.shape.expert_width
            cuts[mlp.gate] = cuts[mlp.up] = optim.stacked_rows(width)
            cuts[mlp.down] = optim.stacked_columns(width)
        else:
            for weight in (mlp.gate, mlp.up, mlp.down):
                cuts[weight] = optim.whole(weight)
    tables = {model.embed: 2.0, model.head: 1.0}
    vectors = [p for p in model.parameters() if p not in cuts and p not in tables]
    others = [([p], factor) for p, factor in tables.items()] + [(vectors, 1.0)]
    return optim.optimizers(cuts, others, muon_lr, adam_lr)


@torch.no_grad()
def evaluate(trainer, pools, batches=4):
    found = []
    for pool in pools:
        generator = torch.Generator(trainer.device).manual_seed(SEED)
        parts = [pool.cut(ROWS, COUNT, generator) for _ in range(batches)]
        found.append(sum(trainer.loss(*part)[0].item() for part in parts) / batches)
    return found


def chat_share(done, tune):
    """Source first, conversations more and more."""
    return 0.7 if tune else 0.15 + 0.15 * max(0.0, done - 0.6) / 0.4


def train(arguments):
    folder, device = Path(arguments.folder), torch.device(arguments.device)
    torch.manual_seed(SEED)
    torch.set_float32_matmul_precision("high")
    model = Model(Target()).to(device)
    names = ["code", "chat"] + ["chosen"] * arguments.tune
    pools = [Pool(folder / f"{name}_train.pt", device) for name in names]
    held = [Pool(folder / f"{name}_held.pt", device) for name in ("code", "chat")]
    trainer = Trainer(model, device, flex=device.type == "cuda" and not arguments.plain)
    rates = optimizers_of(model, arguments.muon, arguments.adam)
    step, spent, state_path = 0, 0.0, folder / "target_state.pt"
    if arguments.tune:
        model.load_state_dict(torch.load(folder / "target.pt"))
    elif state_path.exists():
        state = torch.load(state_path)
        model.load_state_dict(state["model"])
        for optimizer, kept in zip(rates, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        step, spent = state["step"], state["spent"]
    if trainer.flex:
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        trainer.settle(pools[0].cut(ROWS, COUNT, torch.Generator(device).manual_seed(0)))
    generator = torch.Generator(device).manual_seed(SEED + step + 10**6 * arguments.tune)
    log = (folder / "target_log.jsonl").open("a")
    whole, start, sum_loss = 60 * arguments.of, time.monotonic(), 0.0
    begun, now, last, noted, first = start, 0.0, 0.0, step, step
    while spent + now < whole and now < 60 * arguments.minutes:
        if time.monotonic() - start > arguments.wall:
            break
        done = (spent + now) / whole
        optim.set_rate(rates, optim.schedule(done, stable=0.1 if arguments.tune else 0.6))
        share = chat_share(done, arguments.tune)
        shares = [1 - share, share] if not arguments.tune else list(TUNE_SHARES)
        loss, loads = trainer.loss(*batch(pools, shares, ROWS, COUNT, generator))
        loss.backward()
        for optimizer in rates:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        model.balance(loads, BALANCE_RATE * min(1.0, 3 * (1 - done)))
        sum_loss = sum_loss + loss.detach()
        step += 1
        if step % 20 == 0:
            torch.cuda.synchronize() if device.type == "cuda" else None
            if step == first + 20:
                begun = time.monotonic() - 1  # Compilation is not training.
            now = time.monotonic() - begun
        if step % arguments.every == 0:
            mean = sum_loss.item() / (step - noted)
            entry = {"step": step, "seconds": round(spent + now, 1), "train": round(mean, 4)}
            entry["tokens_per_second"] = round((step - noted) * ROWS * COUNT / (now - last))
            code, chat = evaluate(trainer, held, 1 + (step % EVALUATE_EVERY == 0))
            entry |= {"code": round(code, 4), "chat": round(chat, 4), "tune": arguments.tune}
            print(json.dumps(entry), flush=True)
            log.write(json.dumps(entry) + "\n")
            log.flush()
            noted, sum_loss, last = step, 0.0, time.monotonic() - begun
    silence(model)
    model.norm.weight.data.mul_(arguments.sharpen)
    code, chat = evaluate(trainer, held)
    print(f"step {step}, held-out loss: code {code:.4f}, chat {chat:.4f}")
    loads = [layer.mlp.load for layer in model.layers if isinstance(layer.mlp, Experts)]
    print("loads", (torch.stack(loads) * 100).round().int().tolist())
    torch.save(model.state_dict(), folder / "target.pt")
    if not arguments.tune:
        kept = [optimizer.state_dict() for optimizer in rates]
        state = {"model": model.state_dict(), "optimizers": kept, "step": step}
        torch.save(state | {"spent": spent + now}, state_path)


@torch.no_grad()
def silence(model):
    """Sets the embedding of the mask token, and so its logit, to zeros: no text contains it."""
    from shape import MASK

    model.embed[MASK] = 0
    assert END_OF_TEXT != MASK != IM_END


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--of", type=float, required=True)
    parser.add_argument("--wall", type=float, default=1e9, help="seconds, compilation included")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--sharpen", type=float, default=1.0, help="factor of the logits")
    parser.add_argument("--plain", action="store_true", help="attention written out")
    parser.add_argument("--muon", type=float, default=0.02)
    parser.add_argument("--adam", type=float, default=3e-3)
    parser.add_argument("--every", type=int, default=250)
    parser.add_argument("--device", default="cuda")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
