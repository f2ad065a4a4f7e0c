"""Pictures of a training: loss of the target, loss of the drafter, acceptance by slot.

    python curves.py FOLDER FIGURES

FOLDER holds target_log.jsonl, draft_log.jsonl and figures.json.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {"code": "#1f6feb", "chat": "#d1592b", "train": "#8a8f98"}


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def finish(axes, path, x, y, place="best", columns=1):
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc=place, fontsize=8, ncols=columns)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.figure.tight_layout()
    axes.figure.savefig(path)
    plt.close(axes.figure)


def axes():
    return plt.subplots(figsize=(5.2, 3.1), dpi=110)[1]


def main(folder, figures):
    target, draft = read(folder / "target_log.jsonl"), read(folder / "draft_log.jsonl")
    plain = axes()
    for name, label in (("code", "held-out source"), ("chat", "held-out replies")):
        points = [(e["seconds"] / 60, e[name]) for e in target if not e["tune"]]
        plain.plot(*zip(*points, strict=True), color=COLOURS[name], label=label)
    points = [(e["seconds"] / 60, e["train"]) for e in target if not e["tune"]]
    plain.plot(*zip(*points, strict=True), color=COLOURS["train"], label="training mix")
    plain.set_ylim(0.7, 2.6)
    finish(plain, figures / "target_loss.png", "minutes", "nats per token")
    length = axes()
    points = [(e["seconds"] / 60, e["length_anywhere"]) for e in draft]
    length.plot(*zip(*points, strict=True), color=COLOURS["code"], label="from any position")
    finish(length, figures / "drafter_length.png", "minutes", "acceptance length, training text")
    rates = axes()
    measured = json.loads((folder / "figures.json").read_text())
    for name, colour in (("code", "#1f6feb"), ("functions", "#2da44e"), ("chat", "#d1592b")):
        for mode, style in (("greedy", "-"), ("temperature 1", "--")):
            found = measured[name][mode]["rates"]
            label = f"{name}, {mode}"
            rates.plot(range(1, len(found) + 1), found, style, color=colour, label=label)
    rates.set_ylim(0, 1.4)  # room for the legend
    rates.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    finish(rates, figures / "acceptance.png", "draft", "share of rounds", "upper right", 2)


if __name__ == "__main__":
    Path(sys.argv[2]).mkdir(exist_ok=True)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
