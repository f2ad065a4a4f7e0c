"""From texts to tokens: trains the tokenizer and packs what the training reads.

    python tokens.py FOLDER

reads FOLDER/{train,held}.jsonl and writes

    tokenizer.json                      byte-level BPE, 4096 entries with the markup
    code_{train,held}.pt                files of source, one after the other
    chat_{train,held}.pt                conversations, one after the other
    prompts_{train,held}.pt             what stands before a first reply, to generate from

A pool is `tokens` (int16) and `flags` (uint8): bit 0, the token is to be learnt; bit 1, a document
starts here.
"""

import hashlib
import json
import os
import random
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy
import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    trainers,
)
from tokenizers import pre_tokenizers as pre

from chat import pieces
from made import conversation
from mined import conversations
from shape import END_OF_TEXT, MARKUP, SEED, SPECIAL, Target

LEARN, START = 1, 2
MADE = {"train": 200_000, "held": 2_000}
TOKENIZER_BYTES = 90_000_000
CHAT_TOKENS_MAX = 700
PROMPT_TOKENS = {"chat": 300, "code": 256}
CODE_PROMPTS = {"train": 100_000, "held": 2_000}
# The pre-tokenizer pattern of the Qwen2 tokenizers, which the published models use.
CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read_files(path):
    with open(path) as lines:
        return [json.loads(line) for line in lines]


def train_tokenizer(texts, path):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    cut = pre.Split(Regex(CUT), behavior="isolated", invert=False)
    tokenizer.pre_tokenizer = pre.Sequence([cut, pre.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokens = [AddedToken(text, special=True, normalized=False) for text in SPECIAL]
    tokens += [AddedToken(text, special=False, normalized=False) for text in MARKUP]
    trainer = trainers.BpeTrainer(
        vocab_size=Target().vocab,
        special_tokens=tokens,
        initial_alphabet=pre.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=24,
    )
    tokenizer.train_from_iterator(texts, trainer)
    mark_visible(tokenizer, path)


def mark_visible(tokenizer, path):
    """The trainer makes all its special tokens special; the markup is to be read by clients."""
    data = json.loads(tokenizer.to_str())
    for token in data["added_tokens"]:
        token["special"] = token["content"] in SPECIAL
    Path(path).write_text(json.dumps(data, ensure_ascii=False, indent=0) + "\n")


class Packer:
    """Encodes in a worker process."""

    tokenizer = None

    @classmethod
    def load(cls, path):
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        cls.tokenizer = Tokenizer.from_file(path)

    @classmethod
    def source(cls, text):
        tokens = cls.tokenizer.encode(text).ids + [END_OF_TEXT]
        flags = numpy.full(len(tokens), LEARN, numpy.uint8)
        flags[0] |= START
        return numpy.array(tokens, numpy.int16), flags

    @classmethod
    def chat(cls, conversation):
        """Tokens, flags and the prompt of the first reply; None if too long."""
        parts = pieces(conversation)
        ids = [part.ids for part in cls.tokenizer.encode_batch([text for text, _ in parts])]
        flags = [
            numpy.full(len(i), LEARN * r, numpy.uint8) for i, (_, r) in zip(ids, parts, strict=True)
        ]
        tokens, flags = numpy.concatenate(ids).astype(numpy.int16), numpy.concatenate(flags)
        if len(tokens) > CHAT_TOKENS_MAX:
            return None
        flags[0] |= START
        prompt = numpy.array(ids[0], numpy.int16)
        return tokens, flags, prompt if len(prompt) <= PROMPT_TOKENS["chat"] else None


def digest(text):
    return hashlib.blake2b(" ".join(text.split()).encode(), digest_size=8).digest()


def pack_files(files):
    """Of some files: packed source, and packed conversations with kind and digest of their code."""
    sources, chats = [], []
    for file in files:
        sources.append(Packer.source(file["text"]))
        try:
            for found in conversations(file["text"], file["name"]):
                packed = Packer.chat(found)
                if packed:
                    chats.append((found["kind"], digest(found["code"]), packed))
        except (SyntaxError, RecursionError, ValueError):
            continue
    return sources, chats


def pack_made(seeds):
    found = [conversation(seed) for seed in seeds]
    return [(one["kind"], b"", packed) for one in found if (packed := Packer.chat(one))]


def portions(items, size):
    return [items[i : i + size] for i in range(0, len(items), size)]


def save_pool(path, documents):
    tokens, flags = (numpy.concatenate(part) for part in zip(*documents, strict=True))
    torch.save({"tokens": torch.from_numpy(tokens), "flags": torch.from_numpy(flags)}, path)
    return len(tokens), int((flags & LEARN).sum())


def code_prompts(documents, count, chance):
    """Beginnings of files, and pieces from a line's start on."""
    found = []
    for _ in range(count):
        tokens = chance.choice(documents)[0]
        start = 0 if chance.random() < 0.4 else chance.randrange(max(1, len(tokens) - 100))
        length = chance.randrange(24, PROMPT_TOKENS["code"])
        piece = tokens[start : start + length]
        if len(piece) >= 24 and piece[-1] != END_OF_TEXT:
            found.append(("code", piece))
    return found


def save_prompts(path, prompts):
    kinds = sorted({kind for kind, _ in prompts})
    torch.save(
        {
            "kinds": kinds,
            "kind": torch.tensor([kinds.index(kind) for kind, _ in prompts], dtype=torch.uint8),
            "lengths": torch.tensor([len(tokens) for _, tokens in prompts]),
            "tokens": torch.from_numpy(numpy.concatenate([tokens for _, tokens in prompts])),
        },
        path,
    )


def pack_split(pool, folder, split, taken):
    """Writes a split's files. `taken` are digests of code that another split has."""
    chance = random.Random(f"{SEED} {split}")
    files = read_files(folder / f"{split}.jsonl")
    chance.shuffle(files)
    first = 0 if split == "train" else 10**9
    sources, chats, fresh = [], [], set()
    made = pool.map(pack_made, portions(range(first, first + MADE[split]), 500))
    for some_sources, some_chats in pool.map(pack_files, portions(files, 16)):
        sources += some_sources
        for kind, code, packed in some_chats:
            if code not in taken and (kind, code) not in fresh:
                chats.append((kind, packed))
        fresh.update((kind, code) for kind, code, _ in some_chats)
        taken_here.update(code for _, code, _ in some_chats)
    for some in made:
        chats += [(kind, packed) for kind, _, packed in some]
    chance.shuffle(chats)
    counts = dict(Counter(kind for kind, _ in chats))
    print(split, "code", save_pool(folder / f"code_{split}.pt", sources), flush=True)
    print(split, "chat", save_pool(folder / f"chat_{split}.pt", [p[:2] for _, p in chats]), counts)
    prompts = [(kind, packed[2]) for kind, packed in chats if packed[2] is not None]
    prompts += code_prompts(sources, CODE_PROMPTS[split], chance)
    chance.shuffle(prompts)
    save_prompts(folder / f"prompts_{split}.pt", prompts)


# Digests of the code in the splits that have been packed so far.
taken_here = set()


def main(folder):
    path = str(folder / "tokenizer.json")
    texts, size = [], 0
    files = read_files(folder / "train.jsonl")
    random.Random(SEED).shuffle(files)
    for file in files:
        if size > TOKENIZER_BYTES:
            break
        texts.append(file["text"])
        size += len(file["text"])
    for seed in range(20_000):
        texts.append("\n".join(text for text, _ in pieces(conversation(seed))))
    if not Path(path).exists():
        train_tokenizer(texts, path)
        print("tokenizer trained on", size, "bytes of source", flush=True)
    del files, texts
    with ProcessPoolExecutor(initializer=Packer.load, initargs=(path,)) as pool:
        pack_split(pool, folder, "held", set())
        pack_split(pool, folder, "train", set(taken_here))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
