"""Keeps those of the model's own replies that Python can parse and that do not repeat themselves.

    python choose.py FOLDER NAME

reads FOLDER/NAME.pt (see generate.py) and writes FOLDER/chosen_train.pt, a pool for
`train_target.py --tune`: the model learns again what it already wrote well.
"""

import ast
import re
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from tokenizers import Tokenizer

from shape import IM_END
from tokens import LEARN, START

CODE = {"write", "named", "complete", "document", "rename", "strip", "basic"}
FENCED = re.compile(r"```python\n(.*?)\n```\Z", re.DOTALL)


def code_of(reply):
    """The code of a reply that is one fence, or None."""
    found = FENCED.fullmatch(reply.strip())
    return found and found[1]


def parses(code):
    """Whether it is Python and has a function."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in tree.body)


def repeats(text):
    """Whether a line of some length comes again and again."""
    lines = [line.strip() for line in text.splitlines() if len(line.strip()) > 8]
    most = Counter(lines).most_common(1)
    return bool(most) and most[0][1] > max(2, len(lines) // 4)


def good(item):
    kind, text, ended = item
    if kind == "code":
        return not repeats(text)
    if not ended:
        return False
    code = code_of(text)
    return code is not None and parses(code) and not repeats(code)


def main(folder, name):
    data = torch.load(folder / f"{name}.pt")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = list(zip(data["tokens"], data["prompt"].tolist(), data["length"].tolist(), strict=True))
    kinds = [data["kinds"][kind] for kind in data["kind"].tolist()]
    ended = [tokens[length - 1].item() == IM_END for tokens, _, length in rows]
    replies = [
        tokens[prompt : length - e].tolist()
        for (tokens, prompt, length), e in zip(rows, ended, strict=True)
    ]
    texts = tokenizer.decode_batch(replies, skip_special_tokens=True)
    with ProcessPoolExecutor() as pool:
        keep = list(pool.map(good, zip(kinds, texts, ended, strict=True), chunksize=256))
    kept, of = Counter(), Counter(kinds)
    documents = []
    for kind, fine, (tokens, prompt, length) in zip(kinds, keep, rows, strict=True):
        if fine:
            flags = torch.zeros(length, dtype=torch.uint8)
            flags[prompt:] = LEARN
            flags[0] |= START
            documents.append((tokens[:length], flags))
            kept[kind] += 1
    tokens, flags = (torch.cat(part) for part in zip(*documents, strict=True))
    torch.save({"tokens": tokens, "flags": flags}, folder / "chosen_train.pt")
    shares = {kind: f"{kept[kind]} of {of[kind]}" for kind in sorted(of)}
    print(f"chosen: {len(tokens)} tokens, {shares}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
