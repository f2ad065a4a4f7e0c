"""Codex works on a folder: it reads a file, patches it, runs a command, replies, goes on."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import KEY, MODEL, call, told
from unattended import Counts, run

THERE = Path(__file__).parents[3] / "target/sdk"
CODEX = [Path(sys.executable).parent / "node", THERE / "node_modules/@openai/codex/bin/codex.js"]
CONFIG = """
model = "{model}"
model_provider = "kilotok"
{more}
[model_providers.kilotok]
name = "kilotok"
base_url = "{url}/v1"
wire_api = "responses"
env_key = "KILOTOK_API_KEY"
[analytics]
enabled = false
"""
PATCH = """*** Begin Patch
*** Update File: notes.txt
@@
 one
-tow
+two
*** End Patch
"""


class Codex:
    def __init__(self, folder, url):
        self.url = url
        self.work, self.home = folder / "work", folder / "home"
        self.work.mkdir()
        self.home.mkdir()
        self.environment = {"HOME": self.home, "CODEX_HOME": self.home, "KILOTOK_API_KEY": KEY}
        self.configure("")

    def configure(self, more):
        config = CONFIG.format(model=MODEL, url=self.url, more=more)
        (self.home / "config.toml").write_text(config)

    def exec(self, *arguments):
        command = [*CODEX, "exec", "--json", "--skip-git-repo-check"]
        command += ["--dangerously-bypass-approvals-and-sandbox", *arguments]
        return run(command, self.work, self.environment)

    def know_the_model(self):
        """Describes the model as Codex describes one of OpenAI's that patches by a tool."""
        listed = subprocess.check_output([*CODEX, "debug", "models"], env=self.environment)
        [known] = [model for model in json.loads(listed)["models"] if model["slug"] == "gpt-5.5"]
        assert known["apply_patch_tool_type"] == "freeform"
        catalog = self.home / "models.json"
        catalog.write_text(json.dumps({"models": [known | {"slug": MODEL}]}))
        self.configure(f'model_catalog_json = "{catalog}"')


@pytest.fixture
def codex(url):
    # Codex does not store its own programs in temporary folders.
    with tempfile.TemporaryDirectory(dir=THERE) as folder:
        yield Codex(Path(folder), url)


def items(events, kind):
    done = [event["item"] for event in events if event["type"] == "item.completed"]
    return [item for item in done if item["type"] == kind]


def work_on_notes(codex, http, patch):
    counts = Counts(http)
    notes = codex.work / "notes.txt"
    notes.write_text("one\ntow\n")
    prompt = told(
        "<think>First I look.</think>I read the notes." + call("exec_command", cmd="cat notes.txt"),
        patch,
        call("exec_command", cmd="wc -l < notes.txt > count.txt"),
        "The notes are right.",
    )
    events = codex.exec(prompt)
    assert notes.read_text() == "one\ntwo\n"
    assert (codex.work / "count.txt").read_text().strip() == "2"
    read, count = items(events, "command_execution")
    assert (read["aggregated_output"], read["exit_code"]) == ("one\ntow\n", 0)
    [change] = items(events, "file_change")
    assert change["status"] == "completed"
    said = [item["text"] for item in items(events, "agent_message")]
    assert said == ["I read the notes.", "The notes are right."]

    usage = events[-1]["usage"]
    found = usage["cached_input_tokens"]
    # Of four prompts, each a little longer than the one before, the last three are mostly cached.
    assert found > usage["input_tokens"] / 2
    assert counts.sum("vllm:prefix_cache_hits_total") == found
    assert counts.sum("vllm:prompt_tokens_total") == usage["input_tokens"]

    prompt = told(call("exec_command", cmd="echo 3 > new.txt"), "Done.")
    more = codex.exec("resume", "--last", prompt)
    assert (codex.work / "new.txt").read_text() == "3\n"
    assert items(more, "agent_message")[-1]["text"] == "Done."
    assert counts.sum("http_requests_total", 'handler="/v1/responses"', '"2xx"') == 6
    assert counts.sum("http_requests_total", '"4xx"') == 0
    assert counts.sum("http_requests_total", '"5xx"') == 0


def test_a_model_that_codex_does_not_know(codex, http):
    """It patches by a command that Codex takes for itself."""
    work_on_notes(codex, http, call("exec_command", cmd=f"apply_patch <<'EOF'\n{PATCH}EOF\n"))


def test_a_model_that_patches_by_a_tool(codex, http):
    """The tool takes plain text, with a grammar of patches."""
    codex.know_the_model()
    work_on_notes(codex, http, call("apply_patch", input=PATCH))


def test_a_tool_in_a_namespace(codex):
    """Codex runs its own tool of that name, and finds no such agent."""
    target = "00000000-0000-7000-8000-000000000000"
    events = codex.exec(told(call("multi_agent_v1__close_agent", target=target), "It was gone."))
    [item] = items(events, "collab_tool_call")
    assert (item["tool"], item["receiver_thread_ids"]) == ("close_agent", [target])
    assert items(events, "agent_message")[-1]["text"] == "It was gone."


def test_a_model_of_openais(codex):
    """Its tools come as an item of the conversation, and one of them runs a script."""
    script = 'text(await tools.exec_command({cmd: "echo 3 > new.txt; cat new.txt"}));'
    events = codex.exec("-m", "gpt-6-astra", told(call("functions__exec", input=script), "Done."))
    assert (codex.work / "new.txt").read_text() == "3\n"
    assert items(events, "agent_message")[-1]["text"] == "Done."
