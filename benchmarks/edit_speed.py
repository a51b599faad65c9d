"""Time of an edit by the size of its mask: the mask's region, a plan within the region, and every token.

The edits are timed in turn, in one process, and medians count; times are processor seconds on a CPU, so
that other work on the machine does not count. How long an edit of every token takes does not depend on the
mask, so it is timed once a round, with a mask of a quarter. The picture is rendered; what is drawn does not
matter.

    python benchmarks/edit_speed.py -o edit_speed.json --plot docs/images/edit_speed.png

prints the table of docs/editing.md. A round takes 11 edits: 15 seconds of one core with the embedded model of
256 pixels, a minute with one of 384; --seconds says for how long rounds are begun.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import stepvar
from stepvar.scenes import render, sample_scene

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4)
DENSE = "every token"
PLANS = {"region": "region", "region and best": "best"}
QUARTER = 1 / 4


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", help="a folder; by default the embedded model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=240.0, help="no round begins later; one always runs")
    parser.add_argument(
        "--shares", type=float, nargs="+", default=SHARES, help="of the picture, of each mask"
    )
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--plot", type=Path)
    return parser.parse_args()


def box_of(share: float) -> list[float]:
    """A box in the middle that covers a share of the picture, in shares of its sides."""
    side = share**0.5
    return [(1 - side) / 2, (1 - side) / 2, side, side]


def timed_edit(pipe: Any, picture: Image.Image, share: float, plan: str | None) -> float:
    """Seconds of one edit."""
    clock = time.perf_counter if pipe.device.type == "cuda" else time.process_time
    started = clock()
    pipe.edit(pipe.example_prompt, image=picture, box=box_of(share), seed=0, pruning=plan)
    return clock() - started


def measure(pipe: Any, shares: list[float], seconds: float) -> dict[str, Any]:
    """Median seconds of every token, and of each plan by mask, with FLOPs as shares of every token's."""
    height, width = pipe.pixels(pipe.schedule())
    scene = sample_scene(np.random.default_rng(0), canvas=min(height, width))
    picture = Image.fromarray(render(scene, min(height, width), 0)).resize((width, height))
    for plan in (None, *PLANS.values()):
        timed_edit(pipe, picture, QUARTER, plan)
    dense: list[float] = []
    runs: dict[tuple[float, str], list[float]] = {(share, name): [] for share in shares for name in PLANS}
    started = time.perf_counter()
    while not dense or time.perf_counter() - started < seconds:
        dense.append(timed_edit(pipe, picture, QUARTER, None))
        for (share, name), found in runs.items():
            found.append(timed_edit(pipe, picture, share, PLANS[name]))
    rows = []
    for share in shares:
        plans = {}
        for name, plan in PLANS.items():
            told = pipe.summary(plan, image=picture, box=box_of(share))
            found = runs[share, name]
            plans[name] = {
                "seconds": statistics.median(found),
                "faster": statistics.median(each / own for each, own in zip(dense, found, strict=True)),
                "flops": told.flops / told.dense_flops,
            }
        rows.append({"share": share, "plans": plans})
    return {"rounds": len(dense), "pixels": [width, height], DENSE: statistics.median(dense), "rows": rows}


def table(found: dict[str, Any]) -> str:
    """The measurements as Markdown."""
    header = ["mask"]
    for name in PLANS:
        header += [f"FLOPs, {name}", f"time, {name}"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for row in found["rows"]:
        cells = [f"{row['share']:.0%}".replace("%", " %")]
        for each in row["plans"].values():
            cells += [f"{1 / each['flops']:.1f} x fewer", f"{each['seconds']:.2f} s, {each['faster']:.2f} x"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(found: dict[str, Any], path: Path) -> None:
    """Seconds against the mask's share, one line a plan."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.axhline(found[DENSE], color="grey", label=DENSE)
    for name in PLANS:
        seconds = [row["plans"][name]["seconds"] for row in found["rows"]]
        axes.plot([100 * row["share"] for row in found["rows"]], seconds, marker="o", label=name)
    axes.set_xlabel("mask, % of the picture")
    axes.set_ylabel("seconds of one edit")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    figure.legend(loc="outside upper center", ncols=3)
    figure.savefig(path, dpi=120)


def main() -> None:
    settings = parse()
    torch.set_num_threads(settings.threads)
    pipe = stepvar.load(settings.model) if settings.model else stepvar.load_embedded()
    pipe.to(settings.device).set_progress_bar_config(disable=True)
    found = measure(pipe, list(settings.shares), settings.seconds)
    width, height = found["pixels"]
    print(
        f"{width}x{height} pixels, {settings.threads} threads, {found['rounds']} rounds; every token: "
        f"{found[DENSE]:.2f} s"
    )
    print(table(found))
    if settings.output:
        settings.output.write_text(json.dumps({**found, "threads": settings.threads}, indent=1))
    if settings.plot:
        plot(found, settings.plot)


if __name__ == "__main__":
    main()
