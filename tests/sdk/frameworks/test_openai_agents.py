"""OpenAI's Agents SDK on both of OpenAI's APIs: tools, handoffs, structured output, streams."""

import agents
import pytest
from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner
from conftest import KEY, MODEL, call, told
from openai import AsyncOpenAI
from pydantic import BaseModel

agents.set_tracing_disabled(True)


class Sum(BaseModel):
    terms: list[int]
    total: int


@agents.function_tool
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@pytest.fixture(params=[OpenAIChatCompletionsModel, OpenAIResponsesModel])
def model(request, url):
    client = AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
    return request.param(model=MODEL, openai_client=client)


def make(model, **options):
    settings = ModelSettings(temperature=0, include_usage=True)
    return Agent(name="Adder", instructions="Be brief.", model=model, model_settings=settings,
                 **options)


async def test_a_reply_and_its_usage(model):
    result = await Runner.run(make(model), told("hello there"))
    assert result.final_output == "hello there"
    assert result.context_wrapper.usage.output_tokens == len("hello there") + 1


async def test_tools_and_their_results(model):
    task = told("Adding." + call("add", a=1, b=2), call("add", a=3, b=3), "Three and six.")
    result = await Runner.run(make(model, tools=[add]), task)
    assert result.final_output == "Three and six."
    outputs = [item.output for item in result.new_items if item.type == "tool_call_output_item"]
    assert outputs == [3, 6]
    turns = [*result.to_input_list(), {"role": "user", "content": told("Still six.")}]
    assert (await Runner.run(make(model, tools=[add]), turns)).final_output == "Still six."


async def test_a_stream(model):
    task = told(call("add", a=1, b=2), "It is three.")
    stream = Runner.run_streamed(make(model, tools=[add]), task)
    events = [event async for event in stream.stream_events()]
    raw = [event.data for event in events if event.type == "raw_response_event"]
    deltas = [data.delta for data in raw if data.type == "response.output_text.delta"]
    assert "".join(deltas) == "It is three." == stream.final_output
    assert stream.context_wrapper.usage.requests == 2


async def test_structured_output(model):
    agent = make(model, output_type=Sum)
    result = await Runner.run(agent, told('{"terms": [1, 2], "total": 3}'))
    assert result.final_output == Sum(terms=[1, 2], total=3)


async def test_a_handoff(model):
    other = Agent(name="Other", instructions="Be kind.", model=model)
    task = told(call("transfer_to_other"), "Now you talk to me.")
    result = await Runner.run(make(model, handoffs=[other]), task)
    assert result.final_output == "Now you talk to me."
    assert result.last_agent is other
