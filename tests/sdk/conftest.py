"""Running servers are named by KILOTOK_URL, divided by spaces. Their model repeats what it is told:
the reply to a turn with `say:` in it is what follows. A turn may tell several replies, each after a
line that begins with `next:`. Told nothing, it babbles, always the same for the same seed."""

import os

import anthropic
import httpx
import openai
import pytest

MODEL = "parrot"
KEY = "test-key"


def told(*replies):
    """A prompt that is answered by these replies, one for each turn of the model."""
    return "say:" + "\nnext:".join(replies)


def call(name, **arguments):
    """A reply that calls a tool."""
    fields = "".join(f"<parameter={key}>{arguments[key]}</parameter>\n" for key in arguments)
    return f"<tool_call>\n<function={name}>\n{fields}</function>\n</tool_call>"


@pytest.fixture(scope="session")
def url():
    return os.environ["KILOTOK_URL"].split()[0]


@pytest.fixture(scope="session")
def http(url):
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {KEY}"}) as client:
        yield client


@pytest.fixture(scope="session")
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(url):
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def claude(url):
    with anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0) as client:
        yield client
