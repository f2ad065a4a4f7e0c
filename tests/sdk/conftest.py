"""A running server is named by KILOTOK_URL. Its model repeats what it is told: the reply to a turn
with `say:` in it is what follows. Told nothing, it babbles, always the same for the same seed."""

import os

import anthropic
import httpx
import openai
import pytest

MODEL = "parrot"
KEY = "test-key"


@pytest.fixture(scope="session")
def url():
    return os.environ["KILOTOK_URL"]


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
