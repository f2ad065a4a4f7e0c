"""LangChain: its models of OpenAI's two APIs and of Anthropic's, alone and in an agent."""

import pytest
from conftest import KEY, MODEL, call, told
from langchain.agents import create_agent
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Sum(BaseModel):
    """A sum and its terms."""

    terms: list[int]
    total: int


SUM = '{"terms": [1, 2], "total": 3}'


@tool
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@pytest.fixture(params=["chat", "responses", "messages"])
def model(request, url):
    options = {"model": MODEL, "api_key": KEY, "temperature": 0, "max_retries": 0}
    if request.param == "messages":
        return ChatAnthropic(base_url=url, max_tokens=400, **options)
    options["use_responses_api"] = request.param == "responses"
    return ChatOpenAI(base_url=f"{url}/v1", stream_usage=True, **options)


def test_a_reply_and_its_usage(model):
    reply = model.invoke(told("hello there"))
    assert reply.text == "hello there"
    assert reply.usage_metadata["output_tokens"] == len("hello there") + 1
    assert reply.usage_metadata["input_tokens"] > 0


def test_a_stream(model):
    chunks = list(model.stream(told("hello there")))
    assert "".join(chunk.text for chunk in chunks) == "hello there"
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.usage_metadata["output_tokens"] == len("hello there") + 1


@pytest.mark.parametrize("streams", [False, True])
def test_a_tool_and_its_result(model, streams):
    bound = model.bind_tools([add])
    turns = [HumanMessage(told("Adding." + call("add", a=1, b=2), "It is three."))]
    reply = sum_of(bound.stream(turns)) if streams else bound.invoke(turns)
    assert reply.text == "Adding."
    [asked] = reply.tool_calls
    assert (asked["name"], asked["args"]) == ("add", {"a": 1, "b": 2})
    turns += [reply, ToolMessage("3", tool_call_id=asked["id"])]
    assert bound.invoke(turns).text == "It is three."


def sum_of(chunks):
    first, *others = chunks
    for chunk in others:
        first += chunk
    return first


def test_structured_output_as_json(model):
    structured = model.with_structured_output(Sum, method="json_schema")
    assert structured.invoke(told(SUM)) == Sum(terms=[1, 2], total=3)


def test_structured_output_as_a_call(model):
    structured = model.with_structured_output(Sum, method="function_calling")
    found = structured.invoke(told(call("Sum", terms="[1, 2]", total=3)))
    assert found == Sum(terms=[1, 2], total=3)


def test_an_agent_calls_its_tools(model):
    agent = create_agent(model, [add], system_prompt="Be brief.")
    task = told(call("add", a=1, b=2), call("add", a=3, b=3), "Three and six.")
    messages = agent.invoke({"messages": [HumanMessage(task)]})["messages"]
    assert messages[-1].text == "Three and six."
    assert [m.content for m in messages if isinstance(m, ToolMessage)] == ["3", "6"]
