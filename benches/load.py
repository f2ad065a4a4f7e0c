#!/usr/bin/env python3
"""Load as users make it: prompts of many lengths, many users, and a long prompt beside users who
decode. Runs `kilotok bench` for each, and reports JSON, a table and a picture.

    python3 benches/load.py target/release/kilotok --device "one H100" \\
        --serve "benches/models/slice --load-format dummy --context-max 131072" \\
        --out benches/results/load.json
    python3 benches/load.py target/release/kilotok --serve "demo --engine cpu" --tiny \\
        --out load.json
    python3 benches/load.py --draw benches/results/load.json

Needs nothing but Python. Prompts start with different words, so the cache has none of them. The
picture lies beside the JSON, beside the floor and the figures of vLLM 0.26 on one rank's eighth of
MiMo-V2.5-Pro on one H100, which benches/results/beside_vllm.md describes.
"""

import argparse
import json
import pathlib
import re
import shlex
import subprocess
import tempfile
import threading
import time
from html import escape

# Tokens of prompts; users and tokens of their replies; tokens of their prompts; the long prompt and
# those beside it.
FULL = {"prompts": [1000, 4000, 16_000, 32_000, 128_000],
        "crowds": [(1, 128), (8, 128), (64, 64), (64, 128), (256, 128)],
        "input": 512, "long": 16_000, "beside": 8, "beside_output": 1024}
TINY = {"prompts": [100, 400], "crowds": [(1, 16), (4, 16), (16, 16)],
        "input": 32, "long": 400, "beside": 4, "beside_output": 200}
START_S = 600  # for a server to load its model
RUN_S = 3600  # for one run
# Tokens a second of a prompt alone, and of 64 users who decode.
VLLM_PROMPTS = {1000: 10_100, 4000: 16_500, 16_000: 19_000}
VLLM_DECODE_64 = 2075
# A prompt reads all experts once, and computes 10.3 GFLOP a token at 989 TFLOP/s.
FLOOR_S, FLOOR_TOKEN_S = 0.022, 10.3e9 / 989e12
OURS, VLLM, FLOOR = "#3b6fb6", "#c77b30", "#4d8f5b"


def floor_rate(tokens):
    return tokens / max(FLOOR_S, tokens * FLOOR_TOKEN_S)


class Bench:
    def __init__(self, program, url, folder):
        self.program, self.url, self.folder = program, url, folder

    def start(self, name, count, concurrency, tokens_in, tokens_out, seed, warmup=0):
        path = self.folder / f"{name}.json"
        command = [self.program, "bench", self.url, "-n", count, "-c", concurrency,
                   "--input-len", tokens_in, "--output-len", tokens_out, "--warmup", warmup,
                   "--seed", seed, "--endpoint", "completions", "--json", path]
        process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
        return process, path

    def finish(self, started):
        process, path = started
        if process.wait(timeout=RUN_S):
            raise SystemExit(f"{' '.join(process.args)}: ended with {process.returncode}")
        result = json.loads(path.read_text())
        print(f"{path.stem}: first token {result['mean_ttft_ms']:.1f} ms, "
              f"{result['output_throughput']:.1f} output tokens a second", flush=True)
        if result["failed"]:
            errors = [error for error in result["errors"] if error]
            raise SystemExit(f"{' '.join(process.args)}: {result['failed']} failed: {errors[0]}")
        return result

    def run(self, *args, **more):
        return self.finish(self.start(*args, **more))


def milliseconds(seconds):
    return round(seconds * 1e3, 2)


def prompts(bench, sizes):
    for tokens in sizes["prompts"]:
        result = bench.run(f"prompt_{tokens}", 3, 1, tokens, 2, seed=tokens, warmup=1)
        first, read = min(zip(result["ttfts"], result["input_lens"]))
        yield {"tokens": read, "asked": tokens, "first_token_ms": milliseconds(first),
               "tokens_per_s": round(read / first)}


def crowds(bench, sizes):
    for users, output in sizes["crowds"]:
        result = bench.run(f"users_{users}_{output}", users, users, sizes["input"], output,
                           seed=7 + users + output, warmup=1)
        gaps = [gap for reply in result["itls"] for gap in reply]
        yield {"users": users, "input": sizes["input"], "output": output,
               "output_tokens_per_s": round(result["output_throughput"], 1),
               "first_token_ms": round(result["mean_ttft_ms"], 2),
               "slowest_gap_ms": milliseconds(max(gaps, default=0))}


def gaps_within(result, begin, end):
    """Waits between chunks that ended within a time of the run's clock."""
    for start, first, gaps in zip(result["start_times"], result["ttfts"], result["itls"]):
        at = start + first
        for gap in gaps:
            at += gap
            if begin <= at <= end:
                yield gap


def long_beside(bench, sizes):
    """The slowest gap while the prompt is read: the longest wait of the others within its time."""
    users = sizes["beside"]
    alone = bench.run("alone", users, users, 64, 64, seed=3, warmup=1)
    started = bench.start("beside", users, users, 64, sizes["beside_output"], seed=4)
    begun = time.monotonic()
    # All of them decode when the prompt comes: twice what their first tokens took alone.
    time.sleep(2 * max(alone["ttfts"]) + 0.5)
    came = time.monotonic() - begun
    long = bench.run("long", 1, 1, sizes["long"], 2, seed=5)
    left = time.monotonic() - begun
    still = started[0].poll() is None
    beside = bench.finish(started)
    usual = [gap for reply in alone["itls"] for gap in reply]
    gaps = list(gaps_within(beside, came, left))
    return {"prompt": long["input_lens"][0], "users": users,
            "first_token_ms": milliseconds(long["ttfts"][0]),
            "slowest_gap_ms": milliseconds(max(gaps, default=0)),
            "slowest_gap_without_ms": milliseconds(max(usual, default=0)),
            "users_decoded_to_its_end": still}


def table(result):
    lines = [f"{result['device']}, commit {result['commit']}, `{result['command']}`", "",
             "| prompt | first token, ms | tokens a second | vLLM 0.26 on an H100 | floor |",
             "|---:|---:|---:|---:|---:|"]
    for one in result["prompts"]:
        vllm = VLLM_PROMPTS.get(one["asked"])
        lines.append(f"| {one['tokens']:,} | {one['first_token_ms']:,} | {one['tokens_per_s']:,} "
                     f"| {f'{vllm:,}' if vllm else ''} | {floor_rate(one['asked']):,.0f} |")
    lines += ["",
              "| users | in, out | output tokens a second | first token, ms | slowest gap, ms |",
              "|---:|---|---:|---:|---:|"]
    for one in result["crowds"]:
        lines.append(f"| {one['users']} | {one['input']}, {one['output']} "
                     f"| {one['output_tokens_per_s']:,} | {one['first_token_ms']:,} "
                     f"| {one['slowest_gap_ms']:,} |")
    one = result["long"]
    lines += ["", f"A prompt of {one['prompt']:,} beside {one['users']} users who decode: their "
              f"slowest gap is {one['slowest_gap_ms']} ms, without it "
              f"{one['slowest_gap_without_ms']} ms; its first token takes "
              f"{one['first_token_ms']:,} ms."]
    if not one["users_decoded_to_its_end"]:
        lines.append("The users' replies ended before it: give them more tokens.")
    return "\n".join(lines)


def label(x, y, words, size=13, anchor="start"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
            f'fill="#1f2933">{escape(words)}</text>')


def bars(y, title, rows, unit):
    """Rows of a label and bars of a value, a colour and a name. Returns lines and the next y."""
    most = max((value for _, row in rows for value, *_ in row), default=1) or 1
    out = [label(24, y, title, 15)]
    y += 14
    for name, row in rows:
        out.append(label(150, y + 15, name, anchor="end"))
        for value, colour, who in row:
            width = max(560 * value / most, 1.5)
            out.append(f'<rect x="160" y="{y}" width="{width:.1f}" height="18" fill="{colour}"/>')
            out.append(label(166 + width, y + 14, f"{who} {value:,.0f} {unit}", 12))
            y += 22
        y += 8
    return out, y + 24


def draw(result, path):
    rows = []
    for one in result["prompts"]:
        row = [(one["tokens_per_s"], OURS, "kilotok")]
        if one["asked"] in VLLM_PROMPTS:
            row.append((VLLM_PROMPTS[one["asked"]], VLLM, "vLLM, H100"))
        rows.append((f"{one['tokens']:,}", row + [(floor_rate(one["asked"]), FLOOR, "floor")]))
    out, y = bars(64, "Prompts alone, by their tokens: tokens a second", rows, "/s")
    crowd_rows = []
    for one in result["crowds"]:
        row = [(one["output_tokens_per_s"], OURS, "kilotok")]
        if one["users"] == 64:
            row.append((VLLM_DECODE_64, VLLM, "vLLM, H100, without prompts"))
        crowd_rows.append((f"{one['users']}, {one['output']} out", row))
    size = result["crowds"][0]
    title = f"Users with {size['input']} tokens in, and out: output tokens a second"
    more, y = bars(y, title, crowd_rows, "/s")
    one = result["long"]
    title = f"Slowest gap of {one['users']} users while a prompt of {one['prompt']:,} is read"
    last, y = bars(y, title, [("without it", [(one["slowest_gap_without_ms"], FLOOR, "")]),
                              ("beside it", [(one["slowest_gap_ms"], OURS, "")])], "ms")
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" width="960" height="{y}" '
            f'viewBox="0 0 960 {y}" font-family="sans-serif">'
            '<rect width="100%" height="100%" fill="white"/>')
    what = label(24, 32, f"{result['device']}, commit {result['commit']}", 13)
    path.write_text("\n".join([head, what, *out, *more, *last, "</svg>"]) + "\n")


def served(program, arguments):
    """Starts a server on a free port. Returns it and its address."""
    process = subprocess.Popen([program, "serve", *shlex.split(arguments), "--port", "0"],
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    begun = time.monotonic()
    said = ""
    for line in process.stdout:
        said += line
        found = re.search(r"http://[0-9.]+:\d+", line)
        if found:
            # Its later lines are read too, so that it never waits for room in the pipe.
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return process, found.group(0)
        if time.monotonic() - begun > START_S:
            break
    process.kill()
    raise SystemExit(f"the server did not start:\n{said}")


def commit():
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True,
                           cwd=pathlib.Path(__file__).parent)
    return found.stdout.strip() or "unknown"


def measure(args, url):
    sizes = dict(TINY if args.tiny else FULL)
    if args.prompts:
        sizes["prompts"] = [int(tokens) for tokens in args.prompts.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args.program, url, pathlib.Path(folder))
        command = f"load.py {args.serve or url}{' --tiny' if args.tiny else ''}"
        return {"device": args.device, "commit": args.commit or commit(), "command": command,
                "prompts": list(prompts(bench, sizes)), "crowds": list(crowds(bench, sizes)),
                "long": long_beside(bench, sizes)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", nargs="?", help="kilotok, for its bench")
    parser.add_argument("--url", help="a server that runs")
    parser.add_argument("--serve", help="arguments of `kilotok serve`, which is started")
    parser.add_argument("--device", default="a machine without a name")
    parser.add_argument("--commit", help="of the server, if it is not this checkout's")
    parser.add_argument("--prompts", help="tokens of the prompts alone, with commas between them")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that all works")
    parser.add_argument("--out", type=pathlib.Path, help="the JSON; the picture lies beside it")
    parser.add_argument("--draw", type=pathlib.Path, help="only the table and picture of this JSON")
    args = parser.parse_args()
    if args.draw:
        result, out = json.loads(args.draw.read_text()), args.draw
    elif args.program and args.out and bool(args.url) != bool(args.serve):
        server, url = served(args.program, args.serve) if args.serve else (None, args.url)
        try:
            result, out = measure(args, url), args.out
        finally:
            if server:
                server.terminate()
                server.wait()
        out.write_text(json.dumps(result, indent=1) + "\n")
    else:
        parser.error("give a program, --out, and --url or --serve")
    print(table(result))
    draw(result, out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
