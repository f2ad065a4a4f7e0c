"""What OpenAI's package makes of conversations and replies in harmony, the format of gpt-oss.

    pip install -r tests/text/requirements.txt
    python tests/text/make_harmony.py o200k_base.tiktoken   # rewrites tests/text/fixtures/harmony/

The file of ranks is that of tiktoken; js-tiktoken, published on npm, has the same ranks. The folder
that is written is the text half of a checkpoint, plus `expected.json`:

    conversations   name -> the conversation, and the tokens of its prompt
    replies         name -> the tokens of a reply, and the messages that the package finds in it;
                    where it finds none, or other than ours, the events that are right

The vocabulary has the published ids, but only those tokens that come of these texts: for each word
every token that its merges go through, and all single bytes.
"""

import base64
import datetime
import hashlib
import json
import os
import pathlib
import sys

import regex
from harmony_tables import CONVERSATIONS, REPLIES, TOOLS

HERE = pathlib.Path(__file__).parent
FOLDER = HERE / "fixtures" / "harmony"

RANKS_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"

# 2026-11-20 17:04:09 UTC
NOW = 1795194249

UPPER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"
LOWER = r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PIECES = "|".join(
    [
        rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]*[{LOWER}]+{ENDING}",
        rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]+[{LOWER}]*{ENDING}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)

NAMED = {
    199998: "<|startoftext|>",
    199999: "<|endoftext|>",
    200002: "<|return|>",
    200003: "<|constrain|>",
    200005: "<|channel|>",
    200006: "<|start|>",
    200007: "<|end|>",
    200008: "<|message|>",
    200012: "<|call|>",
    200018: "<|endofprompt|>",
}
SPECIAL = {id: NAMED.get(id, f"<|reserved_{id}|>") for id in range(199998, 200019)}


# ---- the package ---------------------------------------------------------------------------------


def package(ranks):
    os.environ["TIKTOKEN_ENCODINGS_BASE"] = str(ranks.parent)
    import openai_harmony

    return openai_harmony, openai_harmony.load_harmony_encoding("HarmonyGptOss")


def system(harmony, variables):
    content = harmony.SystemContent.new()
    today = datetime.datetime.fromtimestamp(NOW, datetime.UTC).strftime("%Y-%m-%d")
    content = content.with_conversation_start_date(today)
    effort = variables.get("reasoning_effort", "medium")
    content = content.with_reasoning_effort(harmony.ReasoningEffort(effort.capitalize()))
    if "model_identity" in variables:
        content = content.with_model_identity(variables["model_identity"])
    return harmony.Message.from_role_and_content(harmony.Role.SYSTEM, content)


def developer(harmony, instructions, tools):
    content = harmony.DeveloperContent.new()
    if instructions is not None:
        content = content.with_instructions(instructions)
    if tools:
        new = harmony.ToolDescription.new
        functions = [new(t["name"], t.get("description", ""), t.get("parameters")) for t in tools]
        content = content.with_function_tools(functions)
    return harmony.Message.from_role_and_content(harmony.Role.DEVELOPER, content)


def assistant(harmony, message, reasons, names):
    def said(channel, text):
        message = harmony.Message.from_role_and_content(harmony.Role.ASSISTANT, text)
        return message.with_channel(channel)

    if reasons and message.get("reasoning"):
        yield said("analysis", message["reasoning"])
    calls = message.get("tool_calls", [])
    if message.get("content"):
        yield said("commentary" if calls else "final", message["content"])
    for call in calls:
        names[call["id"]] = call["name"]
        arguments = json.dumps(call["arguments"], ensure_ascii=False, separators=(",", ":"))
        yield (
            said("commentary", arguments)
            .with_recipient("functions." + call["name"])
            .with_content_type("<|constrain|>json")
        )


def is_final(message):
    answers = message["role"] == "assistant" and message.get("content")
    return answers and not message.get("tool_calls")


def messages(harmony, conversation):
    """The package's messages for a conversation of the chat API."""
    given, tools = conversation["messages"], conversation.get("tools", [])
    leading = 0
    while leading < len(given) and given[leading]["role"] == "system":
        leading += 1
    yield system(harmony, conversation.get("variables", {}))
    instructions = "\n\n".join(message["content"] for message in given[:leading])
    if leading or tools:
        yield developer(harmony, instructions if leading else None, tools)
    finals = [index for index, message in enumerate(given) if is_final(message)]
    names = {}
    for index, message in enumerate(given[leading:], leading):
        match message["role"]:
            case "assistant":
                # The package drops the reasoning before the first answer; the format's guide drops
                # that before the last.
                reasons = not finals or index > finals[-1]
                yield from assistant(harmony, message, reasons, names)
            case "tool":
                author = harmony.Author.new(
                    harmony.Role.TOOL, "functions." + names[message["tool_call_id"]]
                )
                result = harmony.Message.from_author_and_content(author, message["content"])
                yield result.with_recipient("assistant").with_channel("commentary")
            case "system":
                yield developer(harmony, message["content"], [])
            case "user":
                author = harmony.Author(role=harmony.Role.USER, name=message.get("name"))
                yield harmony.Message.from_author_and_content(author, message["content"])


def rendered(harmony, encoding, conversation):
    whole = harmony.Conversation.from_messages(list(messages(harmony, conversation)))
    tokens = encoding.render_conversation_for_completion(whole, harmony.Role.ASSISTANT)
    return {**conversation, "tokens": tokens}


def parsed(harmony, encoding, tokens):
    """The messages of a reply as the package reads it, or its error."""
    parser = harmony.StreamableParser(encoding, harmony.Role.ASSISTANT)
    try:
        for token in tokens:
            parser.process(token)
        parser.process_eos()
    except harmony.HarmonyError as error:
        return {"error": str(error)}
    keys = ("channel", "recipient")
    return {
        "messages": [
            {key: getattr(message, key) for key in keys} | {"text": message.content[0].text}
            for message in parser.messages
        ]
    }


def read(harmony, encoding, reply):
    tokens = []
    for part in reply["parts"]:
        tokens += [part] if isinstance(part, int) else encoding.encode(part, allowed_special="all")
    row = {"tokens": tokens} | parsed(harmony, encoding, tokens)
    if "events" in reply:
        row["events"] = reply["events"]
    elif "error" in row:
        raise SystemExit(f"say what is right: {reply}: {row['error']}")
    return row


# ---- the vocabulary ------------------------------------------------------------------------------


def byte_names():
    """The character that stands for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def merged(word, ranks, pairs):
    """The tokens of a word; every merge on the way is added to the pairs."""
    parts = [word[at : at + 1] for at in range(len(word))]
    if word in ranks:
        return [word], parts + list(merges_of(parts, ranks, pairs))
    seen = parts + list(merges_of(parts, ranks, pairs))
    return parts, seen


def merges_of(parts, ranks, pairs):
    while True:
        candidates = [
            (ranks[left + right], at)
            for at, (left, right) in enumerate(zip(parts, parts[1:]))
            if left + right in ranks
        ]
        if not candidates:
            return
        _, at = min(candidates)
        left, right = parts[at], parts[at + 1]
        pairs.add((left, right))
        parts[at : at + 2] = [left + right]
        yield left + right


def vocabulary(ranks, texts, tokens):
    by_id = {id: token for token, id in ranks.items()}
    kept = {bytes([byte]) for byte in range(256)} | {by_id[id] for id in tokens if id in by_id}
    pairs = set()
    for text in texts:
        for word in regex.findall(PIECES, text):
            whole, seen = merged(word.encode(), ranks, pairs)
            kept.update(whole, seen)
    for token in list(kept):
        kept.update(merged(token, ranks, pairs)[1])
    return kept, pairs


def tokenizer(ranks, kept, pairs):
    names = byte_names()
    name = lambda token: "".join(names[byte] for byte in token)
    merges = sorted(pairs, key=lambda pair: (ranks[pair[0] + pair[1]], len(pair[0])))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    split = {"type": "Split", "pattern": {"Regex": PIECES}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": id, "content": text} | flags | {"special": True} for id, text in SPECIAL.items()
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [split, level | {"use_regex": False}],
        },
        "post_processor": level | {"add_prefix_space": True, "use_regex": True},
        "decoder": level | {"add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            # Special tokens are included: otherwise an added token would get the next free id,
            # which equals the published one only after a full vocabulary.
            "vocab": {name(token): ranks[token] for token in sorted(kept, key=ranks.get)}
            | {text: id for id, text in SPECIAL.items()},
            "merges": [[name(left), name(right)] for left, right in merges],
        },
    }


def write(name, value):
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    (FOLDER / name).write_text(text + "\n")


def main():
    path = pathlib.Path(sys.argv[1])
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != RANKS_SHA256:
        raise SystemExit(f"{path} is not the file of o200k_base")
    lines = (line.split() for line in data.splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    harmony, encoding = package(path)

    conversations = {
        name: rendered(harmony, encoding, conversation)
        for name, conversation in CONVERSATIONS.items()
    }
    replies = {name: read(harmony, encoding, reply) for name, reply in REPLIES.items()}
    rows = [*conversations.values(), *replies.values()]
    tokens = {token for row in rows for token in row["tokens"]}
    special = regex.compile("|".join(regex.escape(text) for text in SPECIAL.values()))
    prompts = [encoding.decode(row["tokens"]) for row in conversations.values()]
    texts = [text for prompt in prompts for text in special.split(prompt)]
    # Texts that are encoded on their own, and special tokens that conversations spell out.
    texts += ["assistant", "user", "system", "developer", "json", " ", *SPECIAL.values()]
    kept, pairs = vocabulary(ranks, texts, tokens)

    FOLDER.mkdir(parents=True, exist_ok=True)
    write("tokenizer.json", tokenizer(ranks, kept, pairs))
    write(
        "tokenizer_config.json",
        {"bos_token": "<|startoftext|>", "eos_token": "<|return|>", "pad_token": "<|endoftext|>"},
    )
    write("generation_config.json", {"eos_token_id": [200002, 199999, 200012], "do_sample": True})
    write("config.json", {"model_type": "gpt_oss", "eos_token_id": 200002})
    table = {"now": NOW, "tools": TOOLS, "conversations": conversations, "replies": replies}
    write("expected.json", table)


if __name__ == "__main__":
    main()
