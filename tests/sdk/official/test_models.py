"""`/v1/models` as both SDKs read it."""

from conftest import MODEL


def test_openai(client):
    first, *_ = client.models.list()
    assert (first.id, first.object) == (MODEL, "model")
    assert client.models.retrieve(MODEL).created == first.created


def test_anthropic(claude):
    models = list(claude.models.list(limit=1))
    assert models[0].id == MODEL and len(models) > 1, "the pages follow each other"
    one = claude.models.retrieve(MODEL)
    assert (one.type, one.display_name, one.lifecycle) == ("model", MODEL, "active")
    assert one.created_at.year > 2000
