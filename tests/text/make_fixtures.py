"""What transformers makes of our own templates and two small tokenizers: prompts, tokens, texts.

    pip install -r tests/text/requirements.txt
    python tests/text/make_fixtures.py     # rewrites tests/text/fixtures/

Each folder of `fixtures/` is the text half of a checkpoint, plus `expected.json`:

    conversations   name -> prompt and tokens, or the error of the template
    texts           text, and its tokens with and without special tokens recognised
    decodes         tokens, and their text with and without special tokens

`fixtures/conversations.json` has the conversations, `fixtures/jinja.json` what Python's Jinja makes
of single expressions. Tokens are written as hexadecimal digits, three for each.
"""

import datetime
import json
import pathlib
import random
import shutil

import jinja2
import tokenizers
from conversations import CONVERSATIONS
from expressions import EXPRESSIONS, TEMPLATES, VARIABLES
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

HERE = pathlib.Path(__file__).parent
FIXTURES = HERE / "fixtures"

# 2026-11-20 17:04:09 UTC
NOW = 1795194249

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MARKUP = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
RESPONSE = ["<tool_response>", "</tool_response>"]

# Contractions, words, single digits, signs with line ends, line ends, and spaces except the last
# one.
PIECES = (
    r"(?i:'(?:s|t|re|ve|m|ll|d))|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class FixedClock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(NOW, datetime.UTC).replace(tzinfo=None)


chat_template_utils.datetime = FixedClock


# ---- tokenizers ----------------------------------------------------------------------------------


def byte_characters():
    """The character that stands for each byte, in the order of bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def finished(tokenizer):
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def add_tokens(tokenizer, markup):
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in markup])
    return tokenizer


def bytes_tokenizer(markup):
    """Token b is the byte b; what follows them are special tokens and markup."""
    vocab = {character: byte for byte, character in enumerate(byte_characters())}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    return add_tokens(finished(tokenizer), markup)


def merging_tokenizer(markup, texts, vocab_size):
    tokenizer = finished(tokenizers.Tokenizer(models.BPE()))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(byte_characters()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return add_tokens(tokenizer, markup)


# ---- what transformers makes of it ---------------------------------------------------------------


def hexadecimal(tokens):
    return "".join(f"{token:03x}" for token in tokens)


def rendered(tokenizer, messages, arguments):
    try:
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, **arguments)
    except (jinja2.TemplateError, ValueError) as error:
        return {"error": str(error)}
    tokens = tokenizer.apply_chat_template(messages, return_dict=False, **arguments)
    return {"prompt": prompt, "tokens": hexadecimal(tokens)}


TEXTS = [
    "",
    "Hello world",
    " a  b\n\n c\t\r\n",
    "it's we'll I'D 1234 a1b2",
    "<|im_start|>user\nhi<|im_end|><think></think>",
    "<|im_start|<|im_end|>>  <tool_call> </tool_call>",
    "e\u0301 \u1e9b\u0323 \ufb01 Å",
    "世界 👩‍👩‍👧‍👦 \u0000 \U0010ffff",
]


def plain(tokenizer, text):
    """As if the tokenizer had no added tokens."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = []
    return tokenizers.Tokenizer.from_str(json.dumps(state)).encode(text).ids


def sequences(rng, tokenizer):
    """Tokens to decode: at random, and broken UTF-8 in every way."""
    count = len(tokenizer)
    for length in (0, 1, 2, 5, 20, 60):
        yield [rng.randrange(count) for _ in range(length)]
    byte = {b: tokenizer.convert_tokens_to_ids(c) for b, c in enumerate(byte_characters())}
    starts = [0x61, 0xC3, 0xE4, 0xED, 0xF0, 0xF4, 0x80, 0xC0, 0xFF]
    for _ in range(60):
        pool = [*starts, 0xA9, 0xB8, 0x96, 0x9F, 0x98, 0x80, 0xBF, 0xA0]
        tokens = [byte[rng.choice(pool)] for _ in range(rng.randrange(1, 9))]
        if rng.random() < 0.3:
            tokens.insert(rng.randrange(len(tokens)), count - rng.randrange(1, 8))
        yield tokens
    yield [byte[b] for b in "é世😀\U0010ffff".encode()]
    yield [count + 5, byte[0x61], count]


def expected(tokenizer, rng):
    recognised = [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    texts = [
        [text, hexadecimal(tokens), hexadecimal(plain(tokenizer, text))]
        for text, tokens in zip(TEXTS, recognised)
    ]
    decodes = [
        [hexadecimal(tokens), *(decoded(tokenizer, tokens, skip) for skip in (False, True))]
        for tokens in sequences(rng, tokenizer)
    ]
    conversations = {
        name: rendered(tokenizer, *conversation) for name, conversation in CONVERSATIONS.items()
    }
    return {"conversations": conversations, "texts": texts, "decodes": decodes}


def decoded(tokenizer, tokens, skip_special):
    return tokenizer.decode(
        tokens, skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
    )


def jinja():
    """Template, and what it renders to; null where Python refuses."""
    wrapped = ["{{ " + expression + " }}" for expression in EXPRESSIONS]
    table = []
    for template in wrapped + TEMPLATES:
        try:
            result = chat_template_utils._compile_jinja_template(template).render(**VARIABLES)
        except (jinja2.TemplateError, TypeError):
            result = None
        table.append([template, result])
    return {"now": NOW, "variables": VARIABLES, "table": table}


# ---- writing -------------------------------------------------------------------------------------


def write_json(path, value, indent=None):
    separators = None if indent else (",", ":")
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators)
    path.write_text(text + "\n", encoding="utf-8")


def write_rows(path, value):
    """One entry a line, so that a change shows as the lines that it changes."""
    dumps = lambda part: json.dumps(part, ensure_ascii=False)
    parts = []
    for key, entries in value.items():
        if isinstance(entries, dict):
            rows = [f"{dumps(name)}: {dumps(entry)}" for name, entry in entries.items()]
            parts.append(f"{dumps(key)}: {{\n" + ",\n".join(rows) + "\n}")
        elif isinstance(entries, list):
            parts.append(f"{dumps(key)}: [\n" + ",\n".join(map(dumps, entries)) + "\n]")
        else:
            parts.append(f"{dumps(key)}: {dumps(entries)}")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def write(name, tokenizer, model_type, template_in, generation):
    folder = FIXTURES / name
    folder.mkdir(parents=True)
    template = (HERE / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    config = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **config)
    config = {**config, "tokenizer_class": "PreTrainedTokenizerFast"}
    match template_in:
        case "chat_template.jinja":
            (folder / template_in).write_text(template, encoding="utf-8")
        case "chat_template.json":
            write_json(folder / template_in, {"chat_template": template}, 1)
        case "tokenizer_config.json":
            config["chat_template"] = [{"name": "default", "template": template}]
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    write_json(folder / "tokenizer_config.json", config, 1)
    write_json(folder / "generation_config.json", generation, 1)
    write_json(folder / "config.json", {"model_type": model_type, "vocab_size": len(fast)}, 1)
    write_rows(folder / "expected.json", expected(fast, random.Random(name)))


def main():
    shutil.rmtree(FIXTURES, ignore_errors=True)
    FIXTURES.mkdir()
    markup = MARKUP + RESPONSE
    templates = [p.read_text(encoding="utf-8") for p in sorted((HERE / "templates").iterdir())]
    texts = [*templates, json.dumps(CONVERSATIONS), json.dumps(CONVERSATIONS, ensure_ascii=False)]
    mimo = bytes_tokenizer(markup)
    ends = [mimo.token_to_id("<|im_end|>"), mimo.token_to_id("<|endoftext|>")]
    sampling = {"do_sample": True, "temperature": 1.0, "top_p": 0.95}
    write("mimo", mimo, "mimo_v2", "chat_template.jinja", {"eos_token_id": ends[0], **sampling})
    coder = merging_tokenizer(MARKUP[2:], texts, 640)
    ends = [coder.token_to_id("<|im_end|>"), coder.token_to_id("<|endoftext|>")]
    sampling = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    generation = {"eos_token_id": ends, **sampling}
    write("qwen3_coder", coder, "qwen3_moe", "chat_template.json", generation)
    hermes = merging_tokenizer(markup, texts[::-1], 480)
    write("hermes", hermes, "qwen3_moe", "tokenizer_config.json", {})
    write_rows(FIXTURES / "conversations.json", {"now": NOW, "conversations": CONVERSATIONS})
    write_rows(FIXTURES / "jinja.json", jinja())


if __name__ == "__main__":
    main()
