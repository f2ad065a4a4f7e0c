"""A stand-in for the server: gives out the page and streams replies that are written here, one
chunk per step with usage and metrics in each. What it answers depends on the last message."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PAGE = Path(__file__).parents[2] / "crates/server/src/page/index.html"
MODEL = "mock-1t"
KEY = "sesame"
# Pause between chunks, so that the page draws more than once.
STEP_SECONDS = 0.004

RICH = """Here is **what** you asked for, with `code` and a [link](https://example.org/a_(b)).

## A list

1. first *thing*
   - nested
2. second

```rust
fn main() {
    println!("<b>not bold</b>");
}
```

| engine | tok/s |
|---|---:|
| kilotok | 1024 |
| other | 280 |

> quoted <script>window.broken = true</script>

[bad](javascript:window.broken=1) <img src=x onerror="window.broken=1"> snake_case_name 2*3*4
"""
WORDS = "Drafts are proposed in one go and verified together so each step brings several tokens. "


class Mock:
    """Runs until closed. `seen` are the bodies of requests; `gone` counts streams that the client
    closed before their end. `examples` are questions that the page offers."""

    def __init__(self):
        self.seen = []
        self.gone = 0
        self.failures = 0
        self.examples = []
        self.needs_key = False
        handler = type("Handler", (Handler,), {"mock": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    mock: Mock

    def log_message(self, *_):
        pass

    def answer(self, status, kind, body, **headers):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status, message, **headers):
        body = {"error": {"message": message, "type": "error", "param": None, "code": status}}
        self.answer(status, "application/json", json.dumps(body).encode(), **headers)

    def allowed(self):
        wanted = f"Bearer {KEY}"
        return not self.mock.needs_key or self.headers.get("Authorization") == wanted

    def do_GET(self):
        if self.path == "/":
            examples = json.dumps(self.mock.examples).replace("<", "\\u003c")
            page = PAGE.read_text().replace('"examples">[]', f'"examples">{examples}')
            return self.answer(200, "text/html; charset=utf-8", page.encode())
        if self.path != "/v1/models":
            return self.refuse(404, "there is nothing here")
        if not self.allowed():
            return self.refuse(401, "The API key is missing or wrong.")
        model = {"id": MODEL, "object": "model", "owned_by": "kilotok", "max_model_len": 131072}
        body = {"object": "list", "data": [model]}
        return self.answer(200, "application/json", json.dumps(body).encode())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.mock.seen.append(body)
        last = body["messages"][-1]["content"]
        if not self.allowed():
            return self.refuse(401, "The API key is missing or wrong.")
        if "busy" in last and self.mock.failures == 0:
            self.mock.failures += 1
            return self.refuse(429, "64 requests are waiting, no more may.", Retry_After="2")
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            self.stream(Stream(self.wfile), body, last)
        except OSError:
            self.mock.gone += 1
        self.close_connection = True

    def stream(self, out, body, last):
        out.chunk({"role": "assistant", "content": ""}, 0)
        if "silence" in last:
            return out.end("stop")
        if "think" in last or "muse" in last:
            for word in ("Let me ", "see what ", "this is about."):
                out.chunk({"reasoning": word, "reasoning_content": word}, 3)
        if "muse" in last:
            return out.end("length" if "too long" in last else "stop")
        if "break" in last:
            out.chunk({"content": "Half of"}, 2)
            out.send({"error": {"message": "rank 3 timed out in phase experts", "code": 500}})
            return out.write("data: [DONE]\n\n")
        if "vanish" in last:
            return out.chunk({"content": "And then"}, 2)
        if "weather" in last and body.get("tools"):
            function = {"name": "weather", "arguments": ""}
            call = {"index": 0, "id": "call_1", "type": "function", "function": function}
            out.chunk({"tool_calls": [call]}, 4)
            for part in ('{"city": ', '"Lisbon"}'):
                out.chunk({"tool_calls": [{"index": 0, "function": {"arguments": part}}]}, 3)
            return out.end("tool_calls")
        if "forever" in last:
            while True:
                out.chunk({"content": WORDS}, 5)
        text = RICH if "rich" in last else WORDS * 6
        counts = [1, 5, 3, 8, 2, 6, 4]
        while text:
            count = counts[out.steps % len(counts)]
            out.chunk({"content": text[: 4 * count]}, count)
            text = text[4 * count :]
        return out.end("stop")


class Stream:
    """Writes chunks, and counts what their usage and metrics say."""

    def __init__(self, file):
        self.file, self.tokens, self.steps, self.start = file, 0, 0, time.monotonic()

    def write(self, text):
        self.file.write(text.encode())
        self.file.flush()

    def send(self, body):
        self.write(f"data: {json.dumps(body)}\n\n")

    def chunk(self, delta, count, finish=None, choices=True):
        self.tokens += count
        self.steps += count > 0
        spent = time.monotonic() - self.start
        mean = self.tokens / max(self.steps, 1)
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        usage = {
            "prompt_tokens": 31,
            "completion_tokens": self.tokens,
            "total_tokens": 31 + self.tokens,
            "prompt_tokens_details": {"cached_tokens": 16},
        }
        metrics = {
            "time_to_first_token_ms": 12.5,
            "tokens_per_second": self.tokens / spent,
            "speculative_decoding": {
                "mean_acceptance_length": mean,
                "verification": "rejection",
            },
        }
        shape = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0}
        choices = [choice] if choices else []
        body = {"model": MODEL, "choices": choices, "usage": usage, "metrics": metrics}
        self.send(shape | body)
        time.sleep(STEP_SECONDS)

    def end(self, reason):
        self.chunk({}, 0, reason)
        self.chunk({}, 0, choices=False)
        self.write(": keep-alive\n\ndata: [DONE]\n\n")


if __name__ == "__main__":
    mock = Mock()
    print(mock.url)
    threading.Event().wait()
