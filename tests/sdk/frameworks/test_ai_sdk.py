"""The Vercel AI SDK with each of its providers that speaks to servers like this one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import KEY, MODEL

THERE = Path(__file__).parents[3] / "target/sdk"


@pytest.mark.parametrize("provider", ["responses", "chat", "compatible", "messages"])
def test_text_streams_tools_and_objects(url, provider):
    node = Path(sys.executable).parent / "node"
    command = [node, "ai.mjs", url, KEY, MODEL, provider]
    options = {"cwd": THERE, "capture_output": True, "text": True, "timeout": 60}
    run = subprocess.run(command, check=False, **options)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == {
        "text": "hello there",
        "finish": "stop",
        "usage": len("hello there") + 1,
        "deltas": "hello there",
        "streamUsage": len("hello there") + 1,
        "results": [3, 6],
        "final": "Three and six.",
        "streamResults": [3, 6],
        "streamFinal": "Three and six.",
        "object": {"a": 1, "b": 2},
    }
