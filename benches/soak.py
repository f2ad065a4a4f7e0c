"""Whether requests are answered alike, bit for bit: alone, among many others, and alone again.

    python benches/soak.py http://127.0.0.1:8000 --seconds 60 --users 24

Needs nothing but Python. Others come with prompts of all lengths, some leave in the midst of a
reply, some are refused. Says which of the requests got another answer, and what the server counts
in the end; returns 1 if any did, or if anything failed that should not.
"""

import argparse
import collections
import http.client
import json
import random
import threading
import time
import urllib.parse

WAIT_S = 300  # for one reply, when all users wait for the same GPU
WORDS = "one of the users asks what a page, a key or an expert is, and 12 + 30 makes 42. ".split()
MODES = [
    {"temperature": 0},
    {"temperature": 1, "seed": 7},
    {"temperature": 0.8, "top_p": 0.9, "seed": 11},
    {"temperature": 1.2, "top_k": 20, "min_p": 0.02, "seed": 3},
    {"temperature": 0, "repetition_penalty": 1.3, "presence_penalty": 0.5},
    {"temperature": 0.7, "frequency_penalty": 0.8, "seed": 99},
]
REFUSED = [{"max_tokens": -1}, {"temperature": "hot"}, {"prompt": [10**7]}]
COUNTED = ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:num_preemptions_total",
           "kilotok:pages_used", "kilotok:plans_refused_total"]


def text(draw, words):
    return " ".join(draw.choice(WORDS) for _ in range(words))


def requests(longest):
    """Of all ways to choose tokens, from prompts of some words up to the longest."""
    draw = random.Random(9)
    for number, mode in enumerate(MODES * 3):
        words = [5, longest // 8, longest][number // len(MODES)]
        logprobs = [None, 3][number % 2]
        yield {"prompt": text(draw, words), "max_tokens": 60, "logprobs": logprobs, **mode}
        scored = {"max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
        yield {"prompt": text(draw, words), **scored}
    yield {"prompt": [text(draw, 9), text(draw, 20)], "max_tokens": 30, "n": 2, **MODES[1]}


class Server:
    def __init__(self, url):
        self.address = urllib.parse.urlsplit(url).netloc

    def ask(self, method, path, body=None, leave_after=None):
        """Status and body; of a reply that is left, nothing."""
        connection = http.client.HTTPConnection(self.address, timeout=WAIT_S)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request(method, path, body and json.dumps(body), headers)
            response = connection.getresponse()
            if leave_after is not None:
                response.read(leave_after)
                return None, None
            return response.status, response.read()
        finally:
            connection.close()

    def complete(self, body):
        status, answer = self.ask("POST", "/v1/completions", body)
        if status != 200:
            return status, answer.decode()
        answer = json.loads(answer)
        return status, json.dumps([answer["choices"], answer["usage"]["completion_tokens"]])


def user(server, number, until, wanted, counts, wrong):
    draw = random.Random(number)
    while time.monotonic() < until:
        kind = draw.random()
        if kind < 0.6:
            index = draw.randrange(len(wanted))
            body, answer = wanted[index]
            if server.complete(body) != answer:
                wrong.append(f"request {index}, among others")
            counts["compared"] += 1
        elif kind < 0.8:
            body = {"prompt": text(draw, 40), "max_tokens": 200, "ignore_eos": True, "stream": True}
            server.ask("POST", "/v1/completions", body, leave_after=draw.choice([0, 200, 5000]))
            counts["left"] += 1
        elif kind < 0.9:
            status, answer = server.complete({"prompt": "x", **draw.choice(REFUSED)})
            if status != 400:
                wrong.append(f"status {status} where 400 is wanted: {answer}")
            counts["refused"] += 1
        else:
            words, copies = draw.choice([2, 50, 300]), draw.choice([1, 2, 4])
            body = {"prompt": text(draw, words), "max_tokens": 100, "n": copies, "temperature": 1}
            status, answer = server.complete(body)
            if status not in (200, 400):
                wrong.append(f"status {status}: {answer}")
            counts["others"] += 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--users", type=int, default=24)
    parser.add_argument("--longest", type=int, default=200, help="words of the longest prompts")
    arguments = parser.parse_args()
    server = Server(arguments.url)
    wanted = [(body, server.complete(body)) for body in requests(arguments.longest)]
    for body, (status, answer) in wanted:
        assert status == 200, answer
    counts, wrong = collections.Counter(), []
    until = time.monotonic() + arguments.seconds
    users = [threading.Thread(target=user, args=(server, number, until, wanted, counts, wrong))
             for number in range(arguments.users)]
    for thread in users:
        thread.start()
    for thread in users:
        thread.join()
    for index, (body, answer) in enumerate(wanted):
        if server.complete(body) != answer:
            wrong.append(f"request {index}, alone")
    print(f"{len(wanted)} requests, {dict(counts)}")
    _, metrics = server.ask("GET", "/metrics")
    for line in metrics.decode().splitlines():
        if line.startswith(tuple(COUNTED)):
            print(" ", line)
    for what, count in collections.Counter(wrong).most_common():
        print(f"WRONG {count} times: {what}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
