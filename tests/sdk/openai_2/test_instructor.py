"""Instructor in the modes that its users choose, on OpenAI's chat and Anthropic's messages."""

import json

import instructor
import pytest
from conftest import MODEL, call, told
from instructor import Mode
from pydantic import BaseModel


class Sum(BaseModel):
    terms: list[int]
    total: int


SUM = {"terms": [1, 2], "total": 3}
JSON = json.dumps(SUM)
CALL = call("Sum", terms="[1, 2]", total=3)

# The form in which each mode has the model write.
MODES = [
    (Mode.TOOLS, CALL),
    (Mode.TOOLS_STRICT, CALL),
    (Mode.JSON, JSON),
    (Mode.JSON_SCHEMA, JSON),
    (Mode.MD_JSON, f"```json\n{JSON}\n```"),
]


def user(*replies):
    return [{"role": "user", "content": told(*replies)}]


@pytest.mark.parametrize(("mode", "reply"), MODES)
def test_openai(client, mode, reply):
    made = instructor.from_openai(client, mode=mode)
    arguments = {"model": MODEL, "response_model": Sum, "temperature": 0, "max_retries": 0}
    assert made.chat.completions.create(messages=user(reply), **arguments).model_dump() == SUM


@pytest.mark.parametrize(
    ("mode", "reply"),
    [(Mode.TOOLS, CALL.replace("Sum", "PartialSum")), (Mode.JSON_SCHEMA, JSON)],
)
def test_openai_streams(client, mode, reply):
    made = instructor.from_openai(client, mode=mode)
    arguments = {"model": MODEL, "response_model": Sum, "temperature": 0}
    parts = list(made.chat.completions.create_partial(messages=user(reply), **arguments))
    assert parts[-1].model_dump() == SUM


def test_what_does_not_validate_is_asked_again(client):
    made = instructor.from_openai(client, mode=Mode.JSON)
    arguments = {"model": MODEL, "response_model": Sum, "temperature": 0, "max_retries": 2}
    messages = user('{"terms": []}', JSON)
    assert made.chat.completions.create(messages=messages, **arguments).model_dump() == SUM


@pytest.mark.parametrize(
    ("mode", "reply"), [(Mode.ANTHROPIC_TOOLS, CALL), (Mode.ANTHROPIC_JSON, JSON)]
)
def test_anthropic(claude, mode, reply):
    made = instructor.from_anthropic(claude, mode=mode)
    arguments = {"model": MODEL, "response_model": Sum, "max_tokens": 400, "max_retries": 0}
    assert made.messages.create(messages=user(reply), **arguments).model_dump() == SUM
