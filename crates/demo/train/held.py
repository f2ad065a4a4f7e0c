"""A fixed set of held-out prompts, so that an engine can be measured on what PyTorch was.

    python held.py FOLDER FILE

reads FOLDER/held.jsonl and the checkpoint's tokenizer and writes FILE, a JSON object to a line:
`set` is code, functions or chat; `prompt` is raw text to go on with, or `messages` (and `tools`,
`enable_thinking`) are for the chat template; `max_tokens` leaves 512 tokens in all; `from` is the
file that a prompt is taken from.
"""

import json
import random
import re
import sys
from pathlib import Path

from tokenizers import Tokenizer

from chat import TEMPLATE, prompt
from made import conversation
from mined import conversations
from shape import SEED
from tokens import MADE, read_files

COUNT = 128
LENGTH = 512


def code(files, chance):
    """Some lines of a file, from its beginning or from anywhere."""
    while True:
        file = chance.choice(files)
        lines = file["text"].splitlines(keepends=True)
        first = 0 if chance.random() < 0.4 else chance.randrange(len(lines))
        text = "".join(lines[first : first + chance.randrange(4, 25)]).rstrip() + "\n"
        # Such notes in other people's code would look like notes in ours.
        if not re.search(r"\b(FIX" r"ME|TO" r"DO|XX" r"X)\b", text):
            yield {"set": "code", "prompt": text, "from": file["name"]}


def functions(files, chance):
    for file in chance.sample(files, len(files)):
        found = [c for c in conversations(file["text"], file["name"]) if c["kind"] == "write"]
        for one in found[:3]:
            yield {"set": "functions", "messages": one["messages"][:1], "from": file["name"]}


def chats():
    """The next conversations of the generator after those that training held out."""
    for seed in range(10**9 + MADE["held"], 10**9 + MADE["held"] + 10**6):
        made = conversation(seed)
        messages = made["messages"]
        last = next(i for i, message in enumerate(messages) if message["role"] == "assistant")
        found = {"set": "chat", "messages": messages[:last]}
        if "tools" in made:
            found["tools"] = made["tools"]
        if messages[last].get("reasoning_content"):
            found["enable_thinking"] = True
        yield found


def text_of(one):
    """What the target reads."""
    if "prompt" in one:
        return one["prompt"]
    return prompt(one["messages"], one.get("tools"), one.get("enable_thinking", False))


def main(folder, path):
    tokenizer = Tokenizer.from_file(str(TEMPLATE.parent / "tokenizer.json"))
    chance = random.Random(SEED)
    files = read_files(folder / "held.jsonl")
    with Path(path).open("w") as out:
        for some in (code(files, chance), functions(files, chance), chats()):
            count = 0
            for one in some:
                size = len(tokenizer.encode(text_of(one)).ids)
                if 24 <= size <= 256:
                    one["max_tokens"] = LENGTH - size
                    out.write(json.dumps(one) + "\n")
                    count += 1
                if count == COUNT:
                    break


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
