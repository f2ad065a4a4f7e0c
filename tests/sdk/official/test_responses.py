"""/v1/responses through the openai SDK and /v1/messages through the anthropic SDK."""

import json

import anthropic
import openai
import pytest
from conftest import MODEL

CALL = (
    "<tool_call>\n<function=add>\n<parameter=a>1</parameter>\n"
    "<parameter=b>2</parameter>\n</function>\n</tool_call>"
)
NUMBERS = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    "required": ["a", "b"],
}


def test_a_response(client):
    reply = client.responses.create(model=MODEL, input="say:hello", temperature=0)
    assert reply.status == "completed" and reply.output_text == "hello"
    assert reply.usage.output_tokens == len("hello") + 1


def test_a_response_streams(client):
    with client.responses.stream(model=MODEL, input="say:hello there", temperature=0) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert events[0].type == "response.created" and events[-1].type == "response.completed"
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == "hello there" == final.output_text


def test_a_response_calls_a_function(client):
    tool = {"type": "function", "name": "add", "parameters": NUMBERS, "strict": False}
    arguments = {"model": MODEL, "input": f"say:{CALL}", "tools": [tool], "temperature": 0}
    reply = client.responses.create(**arguments)
    call = next(item for item in reply.output if item.type == "function_call")
    assert call.name == "add" and json.loads(call.arguments) == {"a": 1, "b": 2}
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "3"}
    turns = [{"role": "user", "content": "1+2?"}, call.to_dict(), result]
    turns.append({"role": "user", "content": "say:three"})
    reply = client.responses.create(model=MODEL, input=turns, temperature=0)
    assert reply.output_text == "three"


def test_nothing_is_kept_between_responses(client):
    with pytest.raises(openai.BadRequestError):
        client.responses.create(model=MODEL, input="x", previous_response_id="resp_1")


def told(words):
    return [{"role": "user", "content": f"say:{words}"}]


def test_a_message(claude):
    reply = claude.messages.create(
        model=MODEL, max_tokens=50, system="be brief", messages=told("hello")
    )
    assert reply.role == "assistant" and reply.stop_reason == "end_turn"
    assert reply.content[0].text == "hello"
    assert reply.usage.input_tokens > 0 and reply.usage.output_tokens == len("hello") + 1


def test_a_message_streams(claude):
    arguments = {"model": MODEL, "max_tokens": 50, "messages": told("hello there")}
    with claude.messages.stream(**arguments) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == "hello there" == final.content[0].text


def test_a_message_uses_a_tool(claude):
    tool = {"name": "add", "description": "adds", "input_schema": NUMBERS}
    arguments = {"model": MODEL, "max_tokens": 200, "tools": [tool], "messages": told(CALL)}
    with claude.messages.stream(**arguments) as stream:
        final = stream.get_final_message()
    use = next(part for part in final.content if part.type == "tool_use")
    assert final.stop_reason == "tool_use" and use.name == "add" and use.input == {"a": 1, "b": 2}
    turns = told("x") + [{"role": "assistant", "content": [use.to_dict()]}]
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "3"}
    turns.append({"role": "user", "content": [result, {"type": "text", "text": "say:three"}]})
    reply = claude.messages.create(model=MODEL, max_tokens=50, messages=turns, tools=[tool])
    assert reply.content[0].text == "three"


def test_messages_stop_and_count(claude):
    arguments = {"model": MODEL, "messages": told("one two three")}
    reply = claude.messages.create(**arguments, max_tokens=50, stop_sequences=["two"])
    assert reply.content[0].text == "one "
    assert (reply.stop_reason, reply.stop_sequence) == ("stop_sequence", "two")
    count = claude.messages.count_tokens(**arguments).input_tokens
    assert count == reply.usage.input_tokens + (reply.usage.cache_read_input_tokens or 0)
    with pytest.raises(anthropic.BadRequestError):
        claude.messages.create(**arguments, max_tokens=-1)
