"""What requests that are made to hurt cost others: a bystander's latency and the server's memory.

    python benches/hostile.py target/release/kilotok --out benches/results/hostile.md
    python benches/hostile.py target/release/kilotok --memory-gib 4

Needs Linux, `prlimit` for --memory-gib, and nothing else but Python. Starts `kilotok serve` with
the demo model on the CPU anew for each attack. Beside it a bystander asks for replies of one token,
and another asks /health; every one of their waits counts. Resident memory is sampled ten times a
second: before, at its peak, and some seconds after the last attacker has gone. Returns 1 if the
server ended, if a bystander was not answered, or if an attacker was left without an answer.
"""

import argparse
import http.client
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

WAIT_S = 180  # for one answer: some attacks are much work, all together
SETTLE_S = 5  # after which memory that is given back has been given back
SAMPLE_S = 0.1
PAUSE_S = 0.02  # between two requests of a bystander
ONE_TOKEN = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def chat(**more):
    return json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, **more})


def repeated(before, what, size, after):
    """A body of about so many bytes; JSON libraries would take gigabytes to make it."""
    return (before + what * (size // len(what)) + after).encode()


def bad_words():
    return chat(bad_words=["%04d" % number + "x y" * 84 for number in range(1024)]).encode()


def kwargs(size):
    return repeated(chat()[:-1] + ',"chat_template_kwargs":{"a":[0', ",0", size, "]}}")


def tools(size):
    tool = ',{"type":"function","function":{"name":"f","parameters":{"a":{"b":{"c":{}}}}}}'
    return repeated(chat()[:-1] + ',"tools":[' + tool[1:], tool, size, "]}")


def unknown(size):
    return repeated(chat()[:-1], ',"z":0', size, "}")


def arguments(size):
    call = '{"id":"c","type":"function","function":{"name":"f","arguments":"{\\"a\\":[0'
    messages = '{"messages":[{"role":"assistant","content":"","tool_calls":[' + call
    return repeated(messages, ",0", size, ']}"}}]},{"role":"user","content":"Hi"}],"max_tokens":1}')


def tokens(size):
    return repeated('{"tokens":[1', ",1", size, "]}")


def text(field, size):
    return repeated('{"%s":"' % field, "some words ", size, '"}')


def messages(count):
    many = [{"role": "user", "content": "Hi"}] * count
    return json.dumps({"messages": many, "max_tokens": 1}).encode()


def copies():
    return chat(n=128, max_tokens=200, ignore_eos=True).encode()


MIB = 1 << 20
# Row of the table of bounds, name, path, body, how many of them at once.
ATTACKS = [
    (0, "nothing", None, None, 0),
    (1, "bad_words: 64 of 0.27 MB", CHAT, bad_words, 64),
    (1, "/detokenize: 4 of 30 MB", "/detokenize", lambda: tokens(30 * MIB), 4),
    (1, "unknown fields: 4 of 30 MB", CHAT, lambda: unknown(30 * MIB), 4),
    (2, "/tokenize: 4 of 30 MB", "/tokenize", lambda: text("prompt", 30 * MIB), 4),
    (2, "chat_template_kwargs: 4 of 30 MB", CHAT, lambda: kwargs(30 * MIB), 4),
    (2, "chat_template_kwargs: 8 of 0.9 MB", CHAT, lambda: kwargs(900_000), 8),
    (2, "tools: 8 of 4 MB", CHAT, lambda: tools(4 * MIB), 8),
    (2, "tools: 16 of 1.5 MB", CHAT, lambda: tools(1_500_000), 16),
    (2, "arguments as text: 4 of 30 MB", CHAT, lambda: arguments(30 * MIB), 4),
    (2, "100 that hold 31 MB", CHAT, "hold", 100),
    (4, "prompts too long: 4 of 10 MB", COMPLETIONS, lambda: text("prompt", 10 * MIB), 4),
    (4, "prompts: 16 of 3 MB", COMPLETIONS, lambda: text("prompt", 3 * MIB), 16),
    (4, "16,000 messages: 4", CHAT, lambda: messages(16_000), 4),
    (5, "n of 128, 200 tokens each: 1", CHAT, copies, 1),
]


class Server:
    """`kilotok serve`, and its memory."""

    def __init__(self, program, memory_gib, flags):
        command = [program, "serve", "--port", "0", "--engine", "cpu", *flags]
        if memory_gib:
            command = ["prlimit", "--as=%d" % (memory_gib << 30), *command]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, text=True, **pipes)
        self.address = None
        for line in self.process.stdout:
            found = re.match(r"\s+API\s+http://(\S+)/v1", line)
            self.address = self.address or (found and found[1])
            if line.startswith("curl"):
                break
        if not self.address:
            sys.exit("the server did not start")
        self.peak = 0
        self.over = threading.Event()
        threading.Thread(target=self.sample, daemon=True).start()

    def resident(self):
        """MiB, 0 once it has ended."""
        try:
            status = pathlib.Path("/proc/%d/status" % self.process.pid).read_text()
        except OSError:
            return 0
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        return int(found[1]) // 1024 if found else 0

    def sample(self):
        while not self.over.wait(SAMPLE_S):
            self.peak = max(self.peak, self.resident())

    def ask(self, method, path, body=None):
        connection = http.client.HTTPConnection(self.address, timeout=WAIT_S)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            response.read()
            return response.status
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__
        finally:
            connection.close()

    def end(self):
        self.over.set()
        ended = self.process.poll()
        if ended is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                ended = "it did not end by SIGTERM"
        return ended


class Bystander(threading.Thread):
    """Asks the same again and again until it is told to stop."""

    def __init__(self, server, method, path, body):
        super().__init__(daemon=True)
        self.asked = (method, path, body)
        self.server = server
        self.waits, self.failures = [], []
        self.over = threading.Event()

    def run(self):
        while not self.over.wait(PAUSE_S):
            start = time.monotonic()
            status = self.server.ask(*self.asked)
            self.waits.append(1000 * (time.monotonic() - start))
            if status != 200:
                self.failures.append(status)

    def end(self):
        self.over.set()
        self.join()

    def figures(self):
        waits = sorted(self.waits)
        at = lambda part: waits[min(int(part * len(waits)), len(waits) - 1)]
        return "%.1f | %.1f | %.0f" % (at(0.5), at(0.99), waits[-1])


def hold(server, answers):
    """All of a body but its end, until the server no longer wants it."""
    connection = http.client.HTTPConnection(server.address, timeout=20)
    try:
        connection.putrequest("POST", CHAT)
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(31 * MIB + 1))
        connection.endheaders()
        for _ in range(31):
            connection.send(b" " * MIB)
        connection.sock.settimeout(10)
        answers.append(connection.getresponse().status)
    except TimeoutError:
        answers.append("held")
    except (OSError, http.client.HTTPException) as error:
        answers.append(type(error).__name__)
    finally:
        connection.close()


def attack(program, options, row, name, path, make, count):
    """A line of the table, and whether all was well."""
    server = Server(program, options.memory_gib, options.flags)
    body = make() if callable(make) else None
    server.ask("POST", CHAT, json.dumps(ONE_TOKEN))
    before = server.resident()
    replies = Bystander(server, "POST", CHAT, json.dumps(ONE_TOKEN))
    bystanders = [replies, Bystander(server, "GET", "/health", None)]
    for bystander in bystanders:
        bystander.start()
    answers = []
    start = time.monotonic()
    if make == "hold":
        work = lambda: hold(server, answers)
    else:
        work = lambda: answers.append(server.ask("POST", path, body))
    attackers = [threading.Thread(target=work) for _ in range(count)]
    for attacker in attackers:
        attacker.start()
    for attacker in attackers:
        attacker.join()
    if not attackers:
        time.sleep(SETTLE_S)
    took = time.monotonic() - start
    for bystander in bystanders:
        bystander.end()
    time.sleep(SETTLE_S)
    after = server.resident()
    ended = server.end()
    kinds = sorted(set(answers), key=str)
    told = ", ".join("%d x %s" % (answers.count(kind), kind) for kind in kinds)
    well = ended is None and not any(bystander.failures for bystander in bystanders)
    well = well and all(isinstance(answer, int) or make == "hold" for answer in answers)
    figures = " | ".join(bystander.figures() for bystander in bystanders)
    trouble = "" if well else " (%s)" % (ended or [b.failures[:3] for b in bystanders])
    line = "| %s | %s | %s%s | %.1f | %s | %d | %d | %d |" % (
        row or "", name, told or "-", trouble, took, figures, before, server.peak, after)
    return line, well


HEAD = """\
| row | attack | answers | s | reply p50 ms | p99 | most \
| /health p50 ms | p99 | most | MiB before | peak | after |
|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"""


def main():
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("program")
    parser.add_argument("--memory-gib", type=int, help="address space that the server may have")
    parser.add_argument("--only", default="", help="attacks whose names have this in them")
    parser.add_argument("--out", help="a file for the table; it is printed anyway")
    parser.add_argument("flags", nargs="*", help="for `kilotok serve`, after --")
    options = parser.parse_args()
    limit = " under `prlimit --as` of %d GiB" % options.memory_gib if options.memory_gib else ""
    said = "%s, %d cores, the demo model on the CPU%s.\n\n%s" % (
        time.strftime("%Y-%m-%d"), os.cpu_count(), limit, HEAD)
    print(said, flush=True)
    all_well = True
    for row in ATTACKS:
        if options.only not in row[1]:
            continue
        line, well = attack(options.program, options, *row)
        print(line, flush=True)
        said += "\n" + line
        all_well &= well
    if options.out:
        pathlib.Path(options.out).write_text("# Hostile requests\n\n" + said + "\n")
    return 0 if all_well else 1


sys.exit(main())
