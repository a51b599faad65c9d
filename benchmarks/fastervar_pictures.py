"""Our plans against FasterVAR on the embedded model, the same scales left out: time, and how near to dense.

    python benchmarks/fastervar_pictures.py --pictures 96 --rounds 9

Every plan draws the same prompts and seeds. Differences are paired with FasterVAR's pictures, with intervals
of 95 %; times are end to end, one picture at a time, all plans in turn.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastervar import PLANS
from stepvar.allocator import keep_freed_memory
from stepvar.embedded import load_embedded
from stepvar.generation.pruner import PruningMethod
from stepvar.metrics.frechet import FrechetReference
from stepvar.metrics.statistics import Interval, mean_interval, median_ratio_interval, paired_interval
from stepvar.metrics.timing import interleaved
from stepvar.models.pipeline import NextScalePipeline
from stepvar.report.metrics import Metrics
from stepvar.report.samples import generate_samples, make_samples, measure

DENSE, RIVAL = "dense", "FasterVAR"
SEED = 41_000
"""Of the prompts, apart from those that plans were searched on."""


def timed(pipeline: NextScalePipeline, plans: Mapping[str, PruningMethod | None], rounds: int) -> Any:
    """Seconds of one picture by plan, a round each, all in turn."""
    samples = make_samples(pipeline, pipeline.pixels(pipeline.schedule()), 1, SEED)
    contestants = {
        name: lambda method=method: generate_samples(pipeline, samples, method)
        for name, method in plans.items()
    }
    return {name: entry.seconds for name, entry in interleaved(contestants, rounds, None).items()}


def drawn(
    pipeline: NextScalePipeline, plans: Mapping[str, PruningMethod | None], pictures: int, batch: int
) -> dict[str, dict[str, np.ndarray]]:
    """Measures of every picture against the dense one, by plan and measure."""
    metrics = Metrics.for_pipeline(pipeline)
    samples = make_samples(pipeline, pipeline.pixels(pipeline.schedule()), pictures, SEED)
    keys = ("psnr", "scene_distance", "passed", "features")
    found: dict[str, dict[str, list[Any]]] = {name: {key: [] for key in keys} for name in plans}
    for start in range(0, pictures, batch):
        part = samples[start : start + batch]
        dense = generate_samples(pipeline, part, None)
        for name, method in plans.items():
            batch_of = dense if method is None else generate_samples(pipeline, part, method)
            values = measure(batch_of, dense, part, metrics)
            for key in keys:
                found[name][key] += list(values[key])
    return {
        name: {key: np.asarray(values, dtype=np.float64) for key, values in entry.items()}
        for name, entry in found.items()
    }


def compared(
    seconds: Mapping[str, list[float]], measures: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, dict[str, Interval]]:
    """Each plan beside FasterVAR: how many times faster, and how much nearer to the dense run."""
    near, rival = FrechetReference(measures[DENSE]["features"]), measures[RIVAL]
    rows = {}
    for name, ours in measures.items():
        row = {
            "faster": median_ratio_interval(seconds[RIVAL], seconds[name]),
            "psnr": mean_interval(ours["psnr"]),
        }
        row["frechet"] = near.interval(ours["features"])
        row["scene"] = mean_interval(100 * ours["passed"])
        if name not in (DENSE, RIVAL):
            row["psnr_change"] = paired_interval(ours["psnr"], rival["psnr"])
            row["frechet_change"] = near.difference(ours["features"], rival["features"])
            row["distance_change"] = paired_interval(ours["scene_distance"], rival["scene_distance"])
            row["scene_change"] = paired_interval(100 * ours["passed"], 100 * rival["passed"])
        rows[name] = row
    return rows


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=96)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9, help="of timing")
    parser.add_argument("--only", action="append", choices=list(PLANS), help="besides dense and FasterVAR")
    parser.add_argument("--json", type=Path, help="write the results to this file as well")
    return parser.parse_args()


def main() -> None:
    """Measures, prints a table, writes JSON on request."""
    arguments = read_arguments()
    keep_freed_memory()
    pipeline = load_embedded()
    pipeline.set_progress_bar_config(disable=True)
    wanted = PLANS.keys() if arguments.only is None else {DENSE, RIVAL, *arguments.only}
    plans = {name: method for name, method in PLANS.items() if name in wanted}
    seconds = timed(pipeline, plans, arguments.rounds)
    measures = drawn(pipeline, plans, arguments.pictures, arguments.batch)
    rows = compared(seconds, measures)
    for name, row in rows.items():
        print(f"{name:<32}" + "  ".join(f"{key} {value.format(4)}" for key, value in row.items()))
    if arguments.json:
        document = {name: {key: value.as_json() for key, value in row.items()} for name, row in rows.items()}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
