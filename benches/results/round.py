#!/usr/bin/env python3
"""Draws round.svg, a round of batch 1 over time, from the phases of rounds_slice_h200.json.

    python3 benches/results/round.py
"""

import json
from html import escape
from pathlib import Path

HERE = Path(__file__).parent
WIDTH, LEFT, RIGHT = 960, 96, 24
# What the host's work takes, from the journal (launches.md, Doorbells): not in the JSON.
PLAN_TO_DOORBELL_US, ENQUEUE_US = 6, 36
TARGET, DRAFTER, HOST, WAIT = "#3b6fb6", "#c77b30", "#4d8f5b", "#b9c2cc"
# Bars of the target's pass: label, phases of the JSON.
TARGET_BARS = [
    ("residual add", ["add_to_stream"]),
    ("Q, K, V", ["project"]),
    ("attention", ["attention"]),
    ("output", ["output"]),
    ("router", ["router_parts", "router_sums", "routes"]),
    ("experts: gate and up", ["gate_up"]),
    ("experts: down", ["down"]),
    ("head, sampling", ["embed", "head", "share_logits", "sample", "accept", "rest"]),
]


def measured():
    for entry in json.loads((HERE / "rounds_slice_h200.json").read_text()):
        if "--phases" in entry["command"] and entry["batch"] == 1 and entry["routing"] == "uniform":
            return entry
    raise SystemExit("no round of batch 1 with phases")


def text(x, y, words, size=13, anchor="start", colour="#1f2933", weight="normal"):
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
        f'fill="{colour}" font-weight="{weight}">{escape(words)}</text>'
    )


def bar(x, y, width, colour, words="", height=34):
    rect = (
        f'<rect x="{x:.1f}" y="{y}" width="{max(width, 1.5):.1f}" height="{height}" '
        f'fill="{colour}" stroke="white"/>'
    )
    fits = len(words) * 6.6 < width
    label = text(x + width / 2, y + 22, words, 12, "middle", "white") if words and fits else ""
    return rect + label


def rounds_lane(entry, x_of):
    phases = entry["phases"]
    verify, draft = phases["verify"]["us"], phases["draft"]["us"]
    out = [text(LEFT - 8, 84, "GPU", anchor="end", weight="bold")]
    out.append(bar(x_of(0), 62, x_of(verify) - x_of(0), TARGET,
                   f"verify: the target reads 8 tokens, 70 layers, {verify / 1000:.2f} ms"))
    out.append(bar(x_of(verify), 62, x_of(verify + draft) - x_of(verify), DRAFTER, "draft 7"))
    out.append(text(LEFT - 8, 142, "host", anchor="end", weight="bold"))
    ring, launched = PLAN_TO_DOORBELL_US, PLAN_TO_DOORBELL_US + ENQUEUE_US
    out.append(bar(x_of(0), 120, x_of(launched) - x_of(0), HOST))
    out.append(bar(x_of(launched), 120, x_of(verify + draft) - x_of(launched), WAIT))
    out.append(text(x_of((launched + verify + draft) / 2), 142,
                    "the engine thread waits; other threads do HTTP, text and grammar masks", 12,
                    "middle"))
    out.append(text(x_of(0), 172, f"plan and doorbell {ring} us, launches of the next step "
                    f"{ENQUEUE_US} us", 12))
    out.append(text(x_of(verify + draft), 172, "output; the next plan", 12, "end"))
    return out


def target_lane(entry, x_of):
    phases = entry["phases"]
    out = [text(LEFT - 8, 242, "verify,", anchor="end", weight="bold"),
           text(LEFT - 8, 258, "by phase", anchor="end", weight="bold")]
    at = 0.0
    for index, (label, names) in enumerate(TARGET_BARS):
        parts = [phases["verify." + name] for name in names]
        own = sum(part["us"] for part in parts)
        wait = sum(part.get("wait_us", 0) for part in parts)
        width = x_of(own) - x_of(0)
        fits = len(label) * 6.6 < width
        out.append(bar(x_of(at), 226, width, TARGET, label if fits else ""))
        out.append(bar(x_of(at + own), 226, x_of(wait) - x_of(0), WAIT) if wait > 20 else "")
        middle = x_of(at + (own + wait) / 2)
        if not fits:
            out.append(text(middle, 220 if index % 2 else 278, label, 12, "middle"))
        out.append(text(middle, 296 if not fits and not index % 2 else 278,
                        f"{own / 1000:.2f}", 11, "middle", "#52606d"))
        at += own + wait
    return out


def main():
    entry = measured()
    total = entry["phases"]["verify"]["us"] + entry["phases"]["draft"]["us"]
    scale = (WIDTH - LEFT - RIGHT) / total

    def x_of(us):
        return LEFT + us * scale

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} 340" '
        f'font-family="Helvetica, Arial, sans-serif">',
        f'<rect width="{WIDTH}" height="340" rx="8" fill="white"/>',
        text(LEFT, 30, f"One round of batch 1: {entry['round_ms_p50']:.2f} ms, up to 8 tokens",
             16, weight="bold"),
        *rounds_lane(entry, x_of),
        *target_lane(entry, x_of),
        text(LEFT, 326, f"{entry['device']}, {entry['commit']}, one rank's eighth of "
             "MiMo-V2.5-Pro, kernels with stamps. Below: ms over all layers; grey: waits at "
             "barriers.", 12, colour="#52606d"),
        "</svg>",
    ]
    (HERE / "round.svg").write_text("\n".join(line for line in out if line) + "\n")


if __name__ == "__main__":
    main()
