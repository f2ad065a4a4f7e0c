"""Text by the target: replies to prompts, many at a time.

    python generate.py FOLDER NAME --count 40000 --temperatures 0 0.7 1 [--kinds write code]

writes FOLDER/NAME.pt: tokens [n, length] (int16, padded), prompt and total lengths, kinds and
temperatures. All sequences of a batch move one position at a time through a cache; a step is a CUDA
graph, one for each size of the part of the cache that it looks at.
"""

import argparse
import random
from pathlib import Path

import torch

from shape import END_OF_TEXT, IM_END, SEED, Target
from target import Decoder, Model

LENGTH = 512
BATCH = 4096
BUCKET = 64


def load_model(folder, device):
    model = Model(Target()).to(device)
    model.load_state_dict(torch.load(Path(folder) / "target.pt", map_location=device))
    return model.eval().requires_grad_(False)


def load_prompts(folder, split, kinds=None):
    """(kind, tokens) in the file's order."""
    data = torch.load(Path(folder) / f"prompts_{split}.pt")
    parts = data["tokens"].split(data["lengths"].tolist())
    names = [data["kinds"][k] for k in data["kind"].tolist()]
    found = list(zip(names, parts, strict=True))
    return [pair for pair in found if kinds is None or pair[0] in kinds]


def nucleus(logits, share):
    """Logits without the tail: the smallest set of tokens that has `share` of the chance."""
    ordered, places = logits.sort(-1, descending=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    ordered = ordered.masked_fill(before >= share, float("-inf"))
    return torch.empty_like(logits).scatter_(-1, places, ordered)


def shared(prompts, shares, count):
    """So many prompts of source, of requests for code, and of the rest; mixed."""
    requests = {"write", "named", "complete", "document", "rename", "strip"}
    sets = [[], [], []]
    for pair in prompts:
        sets[0 if pair[0] == "code" else 1 if pair[0] in requests else 2].append(pair)
    found = []
    for some, share in zip(sets, shares, strict=True):
        found += some[: round(share * count)]
    random.Random(SEED).shuffle(found)
    return found


class Generator:
    def __init__(self, model, batch, length, dtype=torch.bfloat16):
        self.decoder = Decoder(model, batch, length, dtype)
        self.device = model.embed.device
        self.length, self.graphs = length, {}
        self.token = torch.zeros(batch, dtype=torch.long, device=self.device)
        self.position = torch.zeros(1, dtype=torch.long, device=self.device)

    def step(self, position):
        count = min(self.length, (position // BUCKET + 1) * BUCKET)
        self.position.fill_(position)
        if self.device.type != "cuda":
            return self.decoder.step(self.token, self.position, count)
        if count not in self.graphs:
            self.graphs[count] = self.capture(count)
        graph, logits = self.graphs[count]
        graph.replay()
        return logits

    def capture(self, count):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(2):
                self.decoder.step(self.token, self.position, count)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self.decoder.step(self.token, self.position, count)
        return graph, logits

    @torch.no_grad()
    def run(self, prompts, temperatures, top_p=1.0):
        """tokens [n, length] and total lengths, on the CPU."""
        n = len(prompts)
        tokens = torch.full((len(self.token), self.length), END_OF_TEXT, device=self.device)
        lengths = torch.ones(len(self.token), dtype=torch.long)
        for i, prompt in enumerate(prompts):
            lengths[i] = len(prompt)
        together = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True).long()
        tokens[:n, : together.shape[1]] = together.to(self.device)
        lengths, heat = lengths.to(self.device), torch.zeros(len(self.token), 1, device=self.device)
        heat[:n, 0] = temperatures.to(self.device)
        done = torch.arange(len(self.token), device=self.device) >= n
        ends = torch.where(done, 1, self.length)
        for position in range(self.length - 1):
            self.token.copy_(tokens[:, position])
            logits = self.step(position)
            logits = logits / heat.clamp_min(1e-4)
            if top_p < 1:
                logits = nucleus(logits, top_p)
            noise = -torch.log(-torch.log(torch.rand_like(logits).clamp(1e-10, 1 - 1e-7)))
            chosen = (logits + noise * (heat > 0)).argmax(-1)
            free = (lengths <= position + 1) & ~done
            tokens[:, position + 1] = torch.where(free, chosen, tokens[:, position + 1])
            ended = free & ((chosen == IM_END) | (chosen == END_OF_TEXT))
            ends = torch.where(ended, position + 2, ends)
            done |= ended
            if position % 32 == 0 and done.all():
                break
        return tokens[:n].to(torch.int16).cpu(), ends[:n].cpu()


def generate(model, prompts, temperatures, top_p=1.0, dtype=torch.bfloat16):
    """A dict of tokens, prompt and total lengths, kinds, temperatures."""
    batch = min(BATCH, len(prompts))
    generator = Generator(model, batch, LENGTH, dtype)
    heat = torch.tensor([temperatures[i % len(temperatures)] for i in range(len(prompts))])
    found = []
    for first in range(0, len(prompts), batch):
        some = [tokens for _, tokens in prompts[first : first + batch]]
        found.append(generator.run(some, heat[first : first + batch], top_p))
    tokens, ends = (torch.cat(part) for part in zip(*found, strict=True))
    kinds = sorted({kind for kind, _ in prompts})
    return {
        "tokens": tokens,
        "prompt": torch.tensor([len(tokens) for _, tokens in prompts]),
        "length": ends,
        "kinds": kinds,
        "kind": torch.tensor([kinds.index(kind) for kind, _ in prompts]),
        "temperature": heat,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("name")
    parser.add_argument("--split", default="train")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--shares", type=float, nargs=3, help="of code, code requests, chat")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0])
    parser.add_argument("--kinds", nargs="*")
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    model = load_model(arguments.folder, arguments.device)
    prompts = load_prompts(arguments.folder, arguments.split, arguments.kinds)
    if arguments.shares:
        prompts = shared(prompts, arguments.shares, arguments.count)
    prompts = prompts[: arguments.count]
    found = generate(model, prompts, arguments.temperatures)
    torch.save(found, Path(arguments.folder) / f"{arguments.name}.pt")
    replies = (found["length"] - found["prompt"]).sum().item()
    print(f"{arguments.name}: {len(prompts)} replies, {replies} tokens")


if __name__ == "__main__":
    main()
