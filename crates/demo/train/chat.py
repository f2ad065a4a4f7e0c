"""Conversations as text: the checkpoint's own template, and which parts a model is to learn."""

import json
from functools import cache
from pathlib import Path

from jinja2.sandbox import ImmutableSandboxedEnvironment

TEMPLATE = Path(__file__).parent.parent / "checkpoint" / "chat_template.jinja"


@cache
def template():
    """The template under the settings that transformers uses."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(TEMPLATE.read_text())


def prompt(messages, tools=None, thinking=False):
    """What stands before a reply."""
    return template().render(
        messages=messages, tools=tools, enable_thinking=thinking, add_generation_prompt=True
    )


def pieces(conversation):
    """(text, whether it is a reply) in turn; together the whole conversation. A reply begins where
    a server's prompt ends, so its first token is never joined to what stands before."""
    messages, tools = conversation["messages"], conversation.get("tools")
    done, found = "", []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        thinking = bool(message.get("reasoning_content"))
        before = prompt(messages[:i], tools, thinking)
        whole = template().render(messages=messages[: i + 1], tools=tools)
        if not (before.startswith(done) and whole.startswith(before)):
            raise ValueError("the template does not only append")
        found += [(before[len(done) :], False), (whole[len(before) :], True)]
        done = whole
    return found


def user(text):
    return {"role": "user", "content": text}


def reply(text, reasoning=None, calls=()):
    message = {"role": "assistant", "content": text}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [
            {"type": "function", "function": {"name": name, "arguments": arguments}}
            for name, arguments in calls
        ]
    return message


def fenced(code):
    return f"```python\n{code.rstrip()}\n```"
