"""Time of an edit by the size of its mask: every token, the mask's region, and a plan within the region.

The edits are timed in turn, in one process, and the median counts; times are seconds of the processor on a
CPU, so that other work on the machine does not count. The picture is rendered; what is drawn does not matter.

    python benchmarks/edit_speed.py -o edit_speed.json --plot docs/images/edit_speed.png
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
PLANS: dict[str, str | None] = {"every token": None, "region": "region", "region and best": "best"}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", help="a folder; by default the embedded model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each; the median counts")
    parser.add_argument(
        "--shares", type=float, nargs="+", default=SHARES, help="of the picture, of each mask"
    )
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--plot", type=Path)
    return parser.parse_args()


def run_edit(pipe: Any, picture: Image.Image, box: list[int], plan: str | None) -> dict[str, float]:
    """Seconds of one edit, and its FLOPs as a share of every token's."""
    prompt = pipe.example_prompt
    clock = time.perf_counter if pipe.device.type == "cuda" else time.process_time
    started = clock()
    pipe.edit(prompt, image=picture, box=box, seed=0, pruning=plan)
    spent = clock() - started
    told = pipe.summary(plan, image=picture, box=box)
    return {"seconds": spent, "flops": told.flops / told.dense_flops}


def measure(pipe: Any, shares: list[float], repeats: int) -> list[dict[str, Any]]:
    """One entry a mask: its share, and for each plan the median seconds and the share of FLOPs."""
    height, width = pipe.pixels(pipe.schedule())
    scene = sample_scene(np.random.default_rng(0), canvas=min(height, width))
    picture = Image.fromarray(render(scene, min(height, width), 0)).resize((width, height))
    rows = []
    for share in shares:
        wide, high = round(width * share**0.5), round(height * share**0.5)
        box = [(width - wide) // 2, (height - high) // 2, wide, high]
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in PLANS}
        for _ in range(repeats):
            for name, plan in PLANS.items():
                runs[name].append(run_edit(pipe, picture, box, plan))
        medians = {
            name: {key: statistics.median(run[key] for run in found) for key in ("seconds", "flops")}
            for name, found in runs.items()
        }
        rows.append({"share": wide * high / (width * height), "plans": medians})
        print(f"mask of {share:.1%}: " + ", ".join(f"{n} {m['seconds']:.2f} s" for n, m in medians.items()))
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Seconds against the mask's share, one line a plan."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for name in PLANS:
        seconds = [row["plans"][name]["seconds"] for row in rows]
        axes.plot([100 * row["share"] for row in rows], seconds, marker="o", label=name)
    axes.set_xlabel("mask, % of the picture")
    axes.set_ylabel("seconds of one edit")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    settings = parse()
    torch.set_num_threads(settings.threads)
    pipe = stepvar.load(settings.model) if settings.model else stepvar.load_embedded()
    pipe.to(settings.device).set_progress_bar_config(disable=True)
    run_edit(pipe, Image.new("RGB", (256, 256)), [0, 0, 64, 64], "region")
    rows = measure(pipe, list(settings.shares), settings.repeats)
    for row in rows:
        dense = row["plans"]["every token"]["seconds"]
        gains = ", ".join(f"{name} {dense / each['seconds']:.2f} x" for name, each in row["plans"].items())
        print(f"mask of {row['share']:.1%}: {gains}")
    if settings.output:
        settings.output.write_text(json.dumps({"rows": rows, "threads": settings.threads}, indent=1))
    if settings.plot:
        plot(rows, settings.plot)


if __name__ == "__main__":
    main()
