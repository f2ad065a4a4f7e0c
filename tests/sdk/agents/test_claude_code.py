"""Claude Code works on a folder: it reads a file, edits it, runs a command, replies, goes on."""

import sys
from pathlib import Path

import pytest
from conftest import KEY, MODEL, call, told
from unattended import Counts, run

THERE = Path(__file__).parents[3] / "target/sdk"
PROGRAM = THERE / "node_modules/@anthropic-ai/claude-code/cli-wrapper.cjs"


@pytest.fixture
def work(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.fixture
def claude_code(url, tmp_path, work):
    environment = {
        "HOME": str(tmp_path),
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_AUTH_TOKEN": KEY,
        "ANTHROPIC_MODEL": MODEL,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": MODEL,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    node = Path(sys.executable).parent / "node"
    command = [node, PROGRAM, "--print", "--verbose", "--output-format", "stream-json"]
    command += ["--permission-mode", "acceptEdits", "--allowedTools", "Bash", "WebSearch"]
    return lambda prompt, *flags: run([*command, *flags, "--", prompt], work, environment)


def parts(events, kind):
    """What of that kind stands in the messages."""
    messages = [event["message"]["content"] for event in events if "message" in event]
    return [part for message in messages for part in message if part["type"] == kind]


def test_a_folder_is_worked_on(claude_code, http, work):
    counts = Counts(http)
    notes = work / "notes.txt"
    notes.write_text("one\ntow\n")
    prompt = told(
        "<think>First I look.</think>I read the notes." + call("Read", file_path=notes),
        call("Edit", file_path=notes, old_string="tow", new_string="two"),
        call("Bash", command="wc -l < notes.txt > count.txt", description="Count lines"),
        "The notes are right.",
    )
    events = claude_code(prompt)
    assert notes.read_text() == "one\ntwo\n"
    assert (work / "count.txt").read_text().strip() == "2"
    assert [part["name"] for part in parts(events, "tool_use")] == ["Read", "Edit", "Bash"]
    assert not any(part.get("is_error") for part in parts(events, "tool_result"))
    assert [part["text"] for part in parts(events, "text")][0] == "I read the notes."
    result = events[-1]
    assert (result["result"], result["num_turns"]) == ("The notes are right.", 4)

    usage = result["usage"]
    found, asked = usage["cache_read_input_tokens"], usage["input_tokens"]
    # Of four prompts, each a little longer than the one before, the last three are mostly cached.
    assert found > 2 * asked
    assert counts.sum("vllm:prefix_cache_hits_total") == found
    assert counts.sum("vllm:prompt_tokens_total") == found + asked

    more = claude_code(told(call("Write", file_path=work / "new.txt", content="3"), "Done."), "-c")
    assert (work / "new.txt").read_text() == "3"
    assert more[-1]["result"] == "Done."
    assert more[-1]["usage"]["cache_read_input_tokens"] > found / 3
    assert counts.sum("http_requests_total", 'handler="/v1/messages"', '"2xx"') == 6
    assert counts.sum("http_requests_total", '"4xx"') == 0
    assert counts.sum("http_requests_total", '"5xx"') == 0
