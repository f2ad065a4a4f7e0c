"""/v1/chat/completions through the official Python SDK: every feature, whole and streamed."""

import asyncio
import json

import openai
import pytest
from conftest import MODEL

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
CALL = (
    "<tool_call>\n<function=get_weather>\n<parameter=city>Paris</parameter>\n"
    "<parameter=days>3</parameter>\n</function>\n</tool_call>"
)
WITH_THINKING = {"chat_template_kwargs": {"enable_thinking": True}}
WITHOUT_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}


def told(words):
    return [{"role": "user", "content": f"say:{words}"}]


def create(client, words, **options):
    options = {"temperature": 0, "max_tokens": 500} | options
    return client.chat.completions.create(model=MODEL, messages=told(words), **options)


def joined(chunks):
    """What the chunks of a stream with one choice add up to."""
    whole = {"content": "", "reasoning": "", "calls": [], "finish": None, "usage": None}
    for chunk in chunks:
        whole["usage"] = chunk.usage or whole["usage"]
        for choice in chunk.choices:
            whole["finish"] = choice.finish_reason or whole["finish"]
            whole["content"] += choice.delta.content or ""
            whole["reasoning"] += getattr(choice.delta, "reasoning", None) or ""
            for call in choice.delta.tool_calls or []:
                if call.index == len(whole["calls"]):
                    whole["calls"].append({"id": call.id, "name": call.function.name, "text": ""})
                whole["calls"][call.index]["text"] += call.function.arguments or ""
    return whole


def test_a_reply_and_its_usage(client):
    reply = create(client, "hello there")
    choice = reply.choices[0]
    assert reply.object == "chat.completion" and reply.model == MODEL
    assert choice.message.role == "assistant"
    assert choice.message.content == "hello there"
    assert choice.message.tool_calls is None
    assert choice.finish_reason == "stop"
    assert reply.usage.completion_tokens == len("hello there") + 1
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    metrics = reply.model_extra["metrics"]
    assert metrics["time_to_first_token_ms"] > 0
    assert metrics["speculative_decoding"]["mean_acceptance_length"] > 1


def test_a_stream_adds_up(client):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(create(client, "héllo 🦜 there", **options))
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(c.delta.role is None for chunk in chunks[1:] for c in chunk.choices)
    assert chunks[-1].choices == []
    whole = joined(chunks)
    assert whole["content"] == "héllo 🦜 there" and whole["finish"] == "stop"
    assert whole["usage"].completion_tokens == len("héllo 🦜 there".encode()) + 1
    # Each chunk has the tokens of a step. With accepted drafts there are fewer chunks than tokens.
    assert len(chunks) < whole["usage"].completion_tokens


def test_no_scalar_is_split(client):
    for chunk in create(client, "🦜🦜🦜🦜é", stream=True):
        for choice in chunk.choices:
            assert "\ufffd" not in (choice.delta.content or "")


async def test_async_and_many_at_once(async_client):
    async def one(index):
        stream = await create(async_client, f"number {index}", stream=True)
        return joined([chunk async for chunk in stream])["content"]

    replies = await asyncio.gather(*(one(index) for index in range(24)))
    assert replies == [f"number {index}" for index in range(24)]


async def test_leaving_a_stream_frees_its_place(async_client, http):
    stream = await async_client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "babble"}],
        stream=True,
        extra_body={"ignore_eos": True},
    )
    async for _ in stream:
        break
    await stream.close()
    for _ in range(100):
        if http.get("/load").json()["server_load"] == 0:
            return
        await asyncio.sleep(0.05)
    pytest.fail("the request still runs")


def test_reasoning_comes_apart(client):
    reply = create(client, "<think>let me see</think>yes", extra_body=WITH_THINKING)
    message = reply.choices[0].message
    assert message.content == "yes"
    assert message.model_extra["reasoning"] == "let me see"
    assert message.model_extra["reasoning_content"] == "let me see"
    assert reply.usage.completion_tokens_details.reasoning_tokens >= len("let me see")
    words = "<think>let me see</think>yes"
    whole = joined(create(client, words, stream=True, extra_body=WITH_THINKING))
    assert (whole["reasoning"], whole["content"]) == ("let me see", "yes")


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_tool_call(client, choice):
    words = f"Sure. {CALL}" if choice == "auto" else CALL
    reply = create(client, words, tools=[WEATHER], tool_choice=choice)
    message = reply.choices[0].message
    assert reply.choices[0].finish_reason == "tool_calls"
    assert message.tool_calls[0].id.startswith("call_")
    assert message.tool_calls[0].function.name == "get_weather"
    arguments = json.loads(message.tool_calls[0].function.arguments)
    if choice == "auto":
        assert message.content.strip() == "Sure."
    assert arguments == {"city": "Paris", "days": 3}


def test_tool_calls_stream(client):
    stream = create(client, f"Two. {CALL}\n{CALL}", tools=[WEATHER], stream=True)
    whole = joined(stream)
    assert whole["finish"] == "tool_calls"
    assert [call["name"] for call in whole["calls"]] == ["get_weather"] * 2
    assert whole["calls"][0]["id"] != whole["calls"][1]["id"]
    assert [json.loads(call["text"]) for call in whole["calls"]] == [
        {"city": "Paris", "days": 3}
    ] * 2


def test_the_stream_helper_of_the_sdk(client):
    arguments = {"model": MODEL, "messages": told(f"Well. {CALL}"), "tools": [WEATHER]}
    with client.chat.completions.stream(**arguments, temperature=0) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.done" in kinds
    assert final.choices[0].message.tool_calls[0].function.name == "get_weather"


def test_one_call_where_parallel_calls_are_off(client):
    words = f"{CALL}\n{CALL}"
    reply = create(client, words, tools=[WEATHER], parallel_tool_calls=False)
    assert len(reply.choices[0].message.tool_calls) == 1


def test_a_named_tool_is_called(client):
    named = {"type": "function", "function": {"name": "get_weather"}}
    # The random text that the model writes in place of "no call at all" must end.
    city = {"type": "string", "enum": ["Paris", "Rome"]}
    schema = {"type": "object", "properties": {"city": city}, "required": ["city"]}
    schema["additionalProperties"] = False
    function = WEATHER["function"] | {"parameters": schema}
    tools = [WEATHER | {"function": function}]
    options = {"tools": tools, "tool_choice": named, "extra_body": WITHOUT_THINKING}
    reply = create(client, "no call at all", **options)
    call = reply.choices[0].message.tool_calls[0]
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in city["enum"]


def test_no_tools_when_they_are_off(client):
    reply = create(client, "plain", tools=[WEATHER], tool_choice="none")
    assert reply.choices[0].message.content == "plain"


def test_results_of_tools_are_read(client):
    call = {"id": "call_1", "type": "function"}
    call["function"] = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        {"role": "user", "content": [{"type": "text", "text": "say:take an umbrella"}]},
    ]
    reply = client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
    assert reply.choices[0].message.content == "take an umbrella"


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", range(8))
def test_a_schema_holds(client, seed):
    form = {"type": "json_schema", "json_schema": {"name": "p", "schema": SCHEMA, "strict": True}}
    reply = create(
        client, "no json", response_format=form, seed=seed, temperature=1, max_tokens=900
    )
    assert reply.choices[0].finish_reason == "stop"
    value = json.loads(reply.choices[0].message.content)
    assert set(value) == {"name", "age"} and isinstance(value["age"], int)


def test_json_object_and_words_of_the_model(client):
    reply = create(client, '{"a": [1, 2]}', response_format={"type": "json_object"})
    assert json.loads(reply.choices[0].message.content) == {"a": [1, 2]}


@pytest.mark.parametrize(
    "constraint",
    [{"regex": "[ab]{3}c"}, {"choice": ["aaac", "bbbc"]}, {"grammar": 'start: /[ab]{3}/ "c"'}],
    ids=lambda constraint: next(iter(constraint)),
)
def test_other_constraints(client, constraint):
    body = {"structured_outputs": constraint}
    text = create(client, "nothing of it", extra_body=body).choices[0].message.content
    assert len(text) == 4 and text[3] == "c" and set(text[:3]) <= set("ab")


def test_a_schema_after_reasoning(client):
    form = {"type": "json_schema", "json_schema": {"name": "p", "schema": SCHEMA, "strict": True}}
    words = '<think>not {json</think>{"name": "Al", "age": 7}'
    reply = create(client, words, response_format=form, extra_body=WITH_THINKING)
    assert reply.choices[0].message.model_extra["reasoning"] == "not {json"
    assert json.loads(reply.choices[0].message.content) == {"name": "Al", "age": 7}


def test_stop_strings(client):
    reply = create(client, "one two three", stop=["two", "zzz"])
    assert reply.choices[0].message.content == "one "
    assert reply.choices[0].finish_reason == "stop"
    assert reply.choices[0].model_extra["stop_reason"] == "two"
    body = {"include_stop_str_in_output": True}
    kept = create(client, "one two three", stop="two", extra_body=body)
    assert kept.choices[0].message.content == "one two"
    whole = joined(create(client, "one twin two three", stop="two", stream=True))
    assert whole["content"] == "one twin "


def test_a_stop_token(client, http):
    token = http.post("/tokenize", json={"model": MODEL, "prompt": "x"}).json()["tokens"][-1]
    reply = create(client, "abxcd", extra_body={"stop_token_ids": [token]})
    assert reply.choices[0].message.content.startswith("ab")
    assert reply.choices[0].model_extra["stop_reason"] == token


def test_length_ends_a_reply(client):
    reply = create(client, "one two three", max_completion_tokens=5)
    assert reply.choices[0].message.content == "one t"
    assert reply.choices[0].finish_reason == "length"


def test_logprobs_spell_the_reply(client):
    reply = create(client, "héé", logprobs=True, top_logprobs=3)
    entries = reply.choices[0].logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in entries[:-1]).decode() == "héé"
    for entry in entries:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob


def test_several_choices(client):
    babble = [{"role": "user", "content": "babble"}]
    arguments = {"model": MODEL, "messages": babble, "n": 3, "seed": 7, "max_tokens": 30}
    reply = client.chat.completions.create(**arguments)
    texts = [choice.message.content for choice in reply.choices]
    assert [choice.index for choice in reply.choices] == [0, 1, 2] and len(set(texts)) == 3
    again = client.chat.completions.create(**arguments)
    assert [choice.message.content for choice in again.choices] == texts
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(**arguments, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_biases_and_penalties_are_heard(client, http):
    token = http.post("/tokenize", json={"model": MODEL, "prompt": "a"}).json()["tokens"][-1]
    reply = create(client, "banana", logit_bias={str(token): -100})
    assert reply.choices[0].message.content[:2] not in ("ba", "")
    options = {"frequency_penalty": 2, "presence_penalty": 2}
    body = {"repetition_penalty": 1.3, "min_p": 0.05, "top_k": 20}
    babble = [{"role": "user", "content": "babble"}]
    arguments = {"model": MODEL, "messages": babble, "seed": 3, "max_tokens": 60}
    plain = client.chat.completions.create(**arguments)
    other = client.chat.completions.create(**arguments, **options, extra_body=body)
    assert plain.choices[0].message.content != other.choices[0].message.content


def test_continuing_the_last_message(client):
    messages = [*told("one two three"), {"role": "assistant", "content": "one "}]
    body = {"continue_final_message": True, "add_generation_prompt": False}
    reply = client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, extra_body=body
    )
    assert reply.choices[0].message.content == "two three"


def test_token_ids_are_returned(client, http):
    reply = create(client, "abc", extra_body={"return_token_ids": True})
    ids = reply.choices[0].model_extra["token_ids"]
    body = {"model": MODEL, "tokens": ids[:-1]}
    assert http.post("/detokenize", json=body).json()["prompt"] == "abc"
    assert len(reply.model_extra["prompt_token_ids"]) == reply.usage.prompt_tokens


def test_the_second_turn_finds_the_first_cached(client):
    history = told("a first turn of some length, so that it fills pages")
    first = client.chat.completions.create(model=MODEL, messages=history, temperature=0)
    history += [{"role": "assistant", "content": first.choices[0].message.content}, *told("b")]
    second = client.chat.completions.create(model=MODEL, messages=history, temperature=0)
    assert second.usage.prompt_tokens_details.cached_tokens > 0


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": 5}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"extra_body": {"min_p": 7}}, "min_p"),
        ({"extra_body": {"structured_outputs": {"regex": "("}}}, "structured_outputs"),
    ],
    ids=str,
)
def test_senseless_values_are_refused_by_name(client, options, param):
    with pytest.raises(openai.BadRequestError) as refused:
        create(client, "x", **options)
    assert param in refused.value.param


def test_other_errors(client, url):
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody", messages=told("x"))
    with pytest.raises(openai.BadRequestError) as long:
        create(client, "x" * 100_000)
    assert "tokens" in str(long.value)
    wrong = openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        create(wrong, "x")
