"""SGLang's router before two servers, started as configs/sglang_router.sh does."""

import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from conftest import KEY, MODEL, call, told

RECIPE = Path(__file__).parents[3] / "configs/sglang_router.sh"
URLS = os.environ["KILOTOK_URL"].split()


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


@pytest.fixture(scope="module")
def router():
    port, metrics_port = free_ports(2)
    command = [RECIPE, "--worker-urls", *URLS, "--api-key", KEY, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--prometheus-port", str(metrics_port)]
    command += ["--prometheus-host", "127.0.0.1", "--log-level", "warn"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, env=os.environ | {"PATH": path}) as process:
        try:
            wait_for_workers(url)
            yield url
        finally:
            process.terminate()


def workers(url):
    reply = httpx.get(f"{url}/workers", headers={"authorization": f"Bearer {KEY}"})
    return reply.json()["workers"]


def wait_for_workers(url):
    for _ in range(200):
        try:
            if sum(worker["is_healthy"] for worker in workers(url)) == len(URLS):
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    pytest.fail("the router does not find its workers")


@pytest.fixture(scope="module")
def client(router):
    with openai.OpenAI(base_url=f"{router}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def served():
    """Replies of each server so far."""
    counts = []
    for url in URLS:
        lines = httpx.get(f"{url}/metrics").text.splitlines()
        found = [line for line in lines if line.startswith("vllm:request_success_total")]
        counts.append(sum(float(line.split()[-1]) for line in found))
    return counts


def test_it_names_the_model(router, client):
    assert [worker["model_id"] for worker in workers(router)] == [MODEL] * 2
    assert MODEL in [model.id for model in client.models.list().data]


def ask(client, messages, topic):
    messages.append({"role": "user", "content": f"say:{topic} {len(messages)}"})
    reply = client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
    assert reply.choices[0].message.content == f"{topic} {len(messages) - 1}"
    messages.append(reply.choices[0].message.to_dict())
    return reply.usage.prompt_tokens_details.cached_tokens


def test_a_conversation_stays_where_its_prefix_is(client):
    talks = [(f"topic {n}", [{"role": "system", "content": f"{n} " * 200}]) for n in range(16)]
    before = served()
    # An idle router sends every new prefix to the same server; a busy one to the least loaded.
    with ThreadPoolExecutor(len(talks)) as threads:
        list(threads.map(lambda talk: ask(client, talk[1], talk[0]), talks))
    after = served()
    assert all(now > then for now, then in zip(after, before, strict=True)), (before, after)
    for topic, messages in talks:
        assert min(ask(client, messages, topic) for _ in range(2)) > 300


def test_streams_and_calls_come_through(client):
    number = {"type": "integer"}
    parameters = {"type": "object", "properties": {"a": number, "b": number}}
    tool = {"type": "function", "function": {"name": "add", "parameters": parameters}}
    with client.chat.completions.stream(
        model=MODEL,
        messages=[{"role": "user", "content": told("Sum." + call("add", a=1, b=2))}],
        tools=[tool],
        stream_options={"include_usage": True},
    ) as stream:
        final = stream.get_final_completion()
    message = final.choices[0].message
    assert message.content == "Sum."
    assert json.loads(message.tool_calls[0].function.arguments) == {"a": 1, "b": 2}
    assert final.usage.completion_tokens > 0


def test_completions_and_responses_come_through(client):
    completion = client.completions.create(model=MODEL, prompt="say:hello\n", max_tokens=9)
    assert completion.choices[0].text == "hello"
    response = client.responses.create(model=MODEL, input="say:hello")
    assert response.output_text == "hello"


def test_errors_come_through(client):
    messages = [{"role": "user", "content": "say:hello"}]
    with pytest.raises(openai.BadRequestError, match="logit_bias"):
        client.chat.completions.create(model=MODEL, messages=messages, logit_bias={"999": 1})
