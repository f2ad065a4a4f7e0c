"""LiteLLM, by the names under which it knows servers like this one."""

import asyncio
import json

import litellm
import pytest
from conftest import KEY, MODEL, call, told

TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"total": {"type": "integer"}},
    "required": ["total"],
    "additionalProperties": False,
}


@pytest.fixture(params=["openai", "hosted_vllm", "anthropic"])
def complete(request, url):
    base = url if request.param == "anthropic" else f"{url}/v1"
    model = f"{request.param}/{MODEL}"
    options = {"model": model, "api_base": base, "api_key": KEY, "num_retries": 0}

    def complete(messages, **more):
        messages = user(messages) if isinstance(messages, str) else messages
        return litellm.completion(messages=messages, max_tokens=400, **options, **more)

    return complete


def user(text):
    return [{"role": "user", "content": text}]


def test_a_reply_and_its_usage(complete):
    reply = complete(told("hello there"))
    assert reply.choices[0].message.content == "hello there"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.completion_tokens == len("hello there") + 1


def test_a_stream(complete):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(complete(told("hello there"), **options))
    deltas = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(deltas) == "hello there"
    assert chunks[-1].usage.completion_tokens == len("hello there") + 1


@pytest.mark.parametrize("streams", [False, True])
def test_a_tool_and_its_result(complete, streams):
    messages = user(told("Adding." + call("add", a=1, b=2), "It is three."))
    reply = complete(messages, tools=[TOOL], stream=streams)
    if streams:
        reply = litellm.stream_chunk_builder(list(reply), messages=messages)
    message = reply.choices[0].message
    assert reply.choices[0].finish_reason == "tool_calls"
    [asked] = message.tool_calls
    assert asked.function.name == "add"
    assert json.loads(asked.function.arguments) == {"a": 1, "b": 2}
    messages += [message, {"role": "tool", "tool_call_id": asked.id, "content": "3"}]
    assert complete(messages, tools=[TOOL]).choices[0].message.content == "It is three."


def test_structured_output(complete, request):
    # For models that the package does not know, it asks Anthropic's API for a tool call.
    by_tool = request.node.callspec.params["complete"] == "anthropic"
    written = call("json_tool_call", total=3) if by_tool else '{"total": 3}'
    schema = {"name": "sum", "strict": True, "schema": SCHEMA}
    form = {"type": "json_schema", "json_schema": schema}
    reply = complete(told(written), response_format=form)
    assert json.loads(reply.choices[0].message.content) == {"total": 3}


async def test_at_once(url):
    options = {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": KEY}
    asked = [litellm.acompletion(messages=user(told(word)), **options) for word in "abc"]
    replies = await asyncio.gather(*asked)
    assert [reply.choices[0].message.content for reply in replies] == ["a", "b", "c"]


def test_responses(url):
    options = {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": KEY}
    reply = litellm.responses(input=told("hello there"), **options)
    assert reply.output[-1].content[0].text == "hello there"
