"""/v1/completions, /v1/models and the token endpoints."""

import pytest
from conftest import MODEL


def create(client, words, **options):
    options = {"temperature": 0, "max_tokens": 50} | options
    return client.completions.create(model=MODEL, prompt=words, **options)


def test_a_completion(client):
    reply = create(client, "say:hello\n")
    assert reply.object == "text_completion"
    assert reply.choices[0].text == "hello"
    assert reply.choices[0].finish_reason == "stop"


def test_a_stream_adds_up(client):
    chunks = list(create(client, "say:hello there\n", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == "hello there"


def test_many_prompts(client, http):
    tokens = http.post("/tokenize", json={"model": MODEL, "prompt": "say:c\n"}).json()["tokens"]
    reply = create(client, ["say:a\n", "say:b\n"])
    assert [choice.text for choice in reply.choices] == ["a", "b"]
    assert [choice.index for choice in reply.choices] == [0, 1]
    assert create(client, tokens).choices[0].text == "c"
    assert [choice.text for choice in create(client, [tokens, tokens]).choices] == ["c", "c"]


def test_echo_scores_the_prompt(client):
    """What evaluation harnesses do to get the likelihood of a text."""
    reply = create(client, "say:ab\n", echo=True, logprobs=2, max_tokens=1)
    scores = reply.choices[0].logprobs
    assert reply.choices[0].text == "say:ab\na"
    assert scores.tokens == list("say:ab\na")
    assert scores.text_offset == list(range(8))
    assert scores.token_logprobs[0] is None
    assert all(value <= 0 for value in scores.token_logprobs[1:])
    assert scores.token_logprobs[-1] > -0.01
    assert scores.top_logprobs[0] is None and len(scores.top_logprobs[1]) >= 2
    only = create(client, "say:ab\n", echo=True, logprobs=2, max_tokens=0)
    assert only.choices[0].logprobs.token_logprobs == scores.token_logprobs[:-1]


def test_several_choices(client):
    reply = create(client, "babble", n=2, seed=1, temperature=1, max_tokens=20)
    assert len({choice.text for choice in reply.choices}) == 2


def test_models(client):
    models = client.models.list().data
    assert models[0].id == MODEL and models[0].object == "model"
    assert models[0].model_extra["max_model_len"] > 0
    assert client.models.retrieve(MODEL).id == MODEL


@pytest.mark.parametrize("text", ["hello", "héllo 🦜", "", " \n\t"])
def test_tokens_there_and_back(http, text):
    body = http.post("/tokenize", json={"model": MODEL, "prompt": text}).json()
    assert body["count"] == len(body["tokens"]) and body["max_model_len"] > 0
    back = http.post("/detokenize", json={"model": MODEL, "tokens": body["tokens"]})
    assert back.json()["prompt"] == text


def test_a_conversation_is_rendered(http, client):
    conversation = {"model": MODEL, "messages": [{"role": "user", "content": "say:x"}]}
    rendered = http.post("/v1/chat/completions/render", json=conversation).json()
    reply = client.chat.completions.create(**conversation, max_tokens=1)
    assert len(rendered["token_ids"]) == reply.usage.prompt_tokens
    tokens = http.post("/tokenize", json=conversation).json()["tokens"]
    assert tokens == rendered["token_ids"]


def test_pages_for_operators(http):
    assert http.get("/health").status_code == 200
    assert http.get("/ready").status_code == 200
    assert http.get("/live").status_code == 200
    assert http.get("/version").json()["version"]
    assert "vllm:num_requests_running" in http.get("/metrics").text
    assert "/v1/chat/completions" in http.get("/openapi.json").json()["paths"]
    assert "<html" in http.get("/").text
