"""Pydantic AI: agents on OpenAI's two APIs and on Anthropic's."""

import pytest
from anthropic import AsyncAnthropic
from conftest import KEY, MODEL, call, told
from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, ModelRetry, NativeOutput, ToolOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.profiles.anthropic import AnthropicModelProfile
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider


class Sum(BaseModel):
    terms: list[int]
    total: int


SUM = Sum(terms=[1, 2], total=3)


def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@pytest.fixture(params=["chat", "responses", "messages"])
def model(request, url):
    if request.param == "messages":
        client = AsyncAnthropic(base_url=url, api_key=KEY, max_retries=0)
        # The package knows which of Anthropic's models take schemas; for others it must be told.
        profile = AnthropicModelProfile(supports_json_schema_output=True)
        provider = AnthropicProvider(anthropic_client=client)
        return AnthropicModel(MODEL, provider=provider, profile=profile)
    client = AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
    kind = OpenAIChatModel if request.param == "chat" else OpenAIResponsesModel
    return kind(MODEL, provider=OpenAIProvider(openai_client=client))


async def test_a_reply_and_its_usage(model):
    result = await Agent(model).run(told("hello there"))
    assert result.output == "hello there"
    assert result.usage.output_tokens == len("hello there") + 1
    assert result.usage.input_tokens > 0


async def test_a_stream(model):
    async with Agent(model).run_stream(told("hello there")) as stream:
        deltas = [delta async for delta in stream.stream_text(delta=True)]
    assert "".join(deltas) == "hello there"


async def test_tools_and_their_results(model):
    agent = Agent(model, tools=[add], instructions="Be brief.")
    task = told("Adding." + call("add", a=1, b=2), call("add", a=3, b=3), "Three and six.")
    result = await agent.run(task)
    assert result.output == "Three and six."
    parts = [part for message in result.all_messages() for part in message.parts]
    assert [part.content for part in parts if part.part_kind == "tool-return"] == [3, 6]
    again = await agent.run(told("Still six."), message_history=result.all_messages())
    assert again.output == "Still six."


async def test_output_by_a_tool(model):
    agent = Agent(model, output_type=ToolOutput(Sum))

    @agent.output_validator
    def check(output: Sum) -> Sum:
        if sum(output.terms) != output.total:
            raise ModelRetry("Add again.")
        return output

    wrong, right = (call("final_result", terms="[1, 2]", total=total) for total in (4, 3))
    assert (await agent.run(told(right))).output == SUM
    assert (await agent.run(told(wrong, right))).output == SUM


async def test_output_by_a_schema(model):
    agent = Agent(model, output_type=NativeOutput(Sum))
    assert (await agent.run(told('{"terms": [1, 2], "total": 3}'))).output == SUM
