"""Runs a coding agent without a user who answers its questions, and counts what the server did."""

import json
import os
import subprocess

TIMEOUT_S = 80


def run(command, work, environment):
    """The events that a program prints, a line of JSON each."""
    environment = {"PATH": os.environ["PATH"]} | environment
    options = {"cwd": work, "env": environment, "stdin": subprocess.DEVNULL}
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=TIMEOUT_S, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


class Counts:
    """What the server has counted since this was made."""

    def __init__(self, http):
        self.http = http
        self.before = {}
        self.before = self.now()

    def now(self):
        lines = self.http.get("/metrics").text.splitlines()
        series = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
        return {name: float(value) - self.before.get(name, 0) for name, value in series}

    def sum(self, name, *labels):
        """Of all series of that name that have these labels."""
        found = [
            value
            for series, value in self.now().items()
            if series.split("{")[0] == name and all(label in series for label in labels)
        ]
        return sum(found)
