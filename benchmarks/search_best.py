"""Looks for plans of StepVAR for a model and this machine: fast ones, and a faithful one.

*fast*: for each of `--speedups`, end to end, the plan with the highest scene score that is at least so many
times faster than dense. *faithful*: skips nothing, takes as long as the preset "prune", and is nearest to the
dense run (PSNR, then Fréchet distance). All candidates are timed in turn; then pictures are generated in
three rounds, and only the best third of each group goes on. Stopped at any moment, the same
command goes on where it was.

    python benchmarks/search_best.py -o runs/search
    python benchmarks/search_best.py -o runs/try --pictures 4,8,16 --rounds 1 --batch 4 --limit 12

The folder gets `results.json` (every candidate with its intervals) and `raw/` (what they are made from).
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from stepvar.allocator import keep_freed_memory
from stepvar.evaluation.provenance import fingerprint, versions
from stepvar.metrics.frechet import frechet_interval
from stepvar.metrics.statistics import Interval, mean_interval, median_ratio_interval, paired_interval
from stepvar.metrics.timing import machine
from stepvar.models.output import as_json_value
from stepvar.models.pipeline import NextScalePipeline
from stepvar.pruning.scores import SCORERS
from stepvar.pruning.stepvar import StepVAR
from stepvar.report.folder import ReportFolder
from stepvar.report.metrics import Metrics
from stepvar.report.samples import generate_samples, make_samples, measure

FAST, FAITHFUL, REFERENCE = "fast", "faithful", "reference"
LATE = (-4, -3, -2, -1)
UNGUIDED = (-2, -3, -4, -6, -8)
"""First scales without guidance that are tried."""

PRUNE = {-2: 0.5, -1: 0.75}
SHARE_KEPT = 1 / 3
FEWEST = 4
HEADROOM = 1.1
"""A plan must save this much more FLOPs than time: no plan is faster than its FLOPs promise."""

TIME_SLACK = 1.03
"""How much longer than the preset "prune" a faithful plan may take."""

FORGIVEN = 2.0
"""Points of scene score that the best plan may lose."""


@dataclass(frozen=True)
class Candidate:
    """A plan in the running.

    Attributes:
        kind: "fast", "faithful" or "reference".
        method: None for dense.
    """

    kind: str
    method: StepVAR | None

    @property
    def name(self) -> str:
        if self.method is None:
            return "dense"
        default = StepVAR()
        fields = [
            f"{field}={value}".replace(" ", "")
            for field, value in vars(self.method).items()
            if value != getattr(default, field) and (field, value) != ("anchor_stride", 3)
        ]
        return f"{self.kind} {' '.join(fields)}"


def references() -> list[Candidate]:
    """What every table shows besides: dense, the paper's plan, skip only and prune only."""
    plans = [StepVAR(ratios={-4: 0.4, -3: 0.5}, skip=(-2, -1)), StepVAR(skip=(-2, -1)), StepVAR(ratios=PRUNE)]
    return [Candidate(REFERENCE, plan) for plan in (None, *plans)]


def fast_candidates(pipeline: NextScalePipeline, speedup: float) -> Iterator[Candidate]:
    """Plans with and without skips, with and without guidance, whose FLOPs allow the speed that is wanted."""
    looks = (("nearest", "own"), ("guided", "expected"))
    # Leaving out a scale before the last one, which carries the detail, loses less than leaving that out.
    for skip in ((), (-1,), (-2,), (-3,), (-2, -1)):
        left = [scale for scale in LATE if scale not in skip]
        starts = (None, *(scale for scale in UNGUIDED[:4] if scale <= left[-1]))
        shares = [{}, *(_falling(left[-count:], level) for count in (1, 3) for level in (0.4, 0.6, 0.8))]
        for ratios, unguided in product(shares, starts):
            if not (ratios or skip or unguided):
                continue
            for recovery, values in looks if ratios else looks[:1]:
                method = StepVAR(ratios, skip, unguided, recovery=recovery, values=values)
                if saving(pipeline, method) >= HEADROOM * speedup:
                    yield Candidate(FAST, method)


def _falling(scales: Sequence[int], level: float) -> dict[int, float]:
    """A ratio for the last scale, two thirds and one third of it for those before."""
    shares = (level, 2 * level / 3, level / 3)
    return {scale: round(share, 3) for scale, share in zip(reversed(scales), shares, strict=False)}


def faithful_candidates(pipeline: NextScalePipeline) -> Iterator[Candidate]:
    """Plans without skips that cost what the preset "prune" does, with ratios stretched until they do."""
    patterns = (PRUNE, {-1: 0.75}, {-3: 0.33, -2: 0.5, -1: 0.75}, {-2: 0.6, -1: 0.6})
    looks = list(product(("nearest", "guided"), ("own", "expected")))
    plans = [
        StepVAR(ratios=ratios, recovery=recovery, values=values, dense_end=dense_end)
        for (recovery, values), ratios, dense_end in product(looks, patterns, (0, 1))
    ]
    # Guidance costs half of a scale: without it on late ones, fewer tokens need to go.
    plans += [
        StepVAR(ratios=ratios, unguided=unguided, recovery=recovery, values=values)
        for (recovery, values), ratios, unguided in product(looks, patterns[:2], (-1, *UNGUIDED))
    ]
    for recovery in ("nearest", "guided"):
        base = StepVAR(ratios=PRUNE, recovery=recovery)
        plans += [replace(base, score=score) for score in SCORERS]
        plans += [replace(base, structure_weight=weight) for weight in (0.25, 0.75)]
        plans += [replace(base, normalisation=normalisation) for normalisation in ("rank", "deviation")]
        plans += [replace(base, kernel=5), replace(base, stages=2), replace(base, anchor_stride=4)]
        plans += [replace(base, first_layer=layer) for layer in (0, 2, 3)]
    plans += [StepVAR(ratios=PRUNE, values="copied"), StepVAR(ratios=PRUNE, recovery="update")]
    plans += [StepVAR(ratios=PRUNE, recovery=recovery) for recovery in ("anchor", "cache", "bilinear")]
    wanted = pipeline.summary(StepVAR(ratios=PRUNE)).flops
    for plan in plans:
        stretched = _stretched(pipeline, plan, wanted)
        if stretched is not None:
            yield Candidate(FAITHFUL, stretched)


def _stretched(pipeline: NextScalePipeline, plan: StepVAR, wanted: int) -> StepVAR | None:
    """The plan with its ratios stretched so that it costs `wanted` FLOPs; None where no ratios do."""
    low, high = 0.0, 0.95 / max(plan.ratios.values())

    def at(stretch: float) -> StepVAR:
        return replace(
            plan, ratios={scale: round(stretch * share, 3) for scale, share in plan.ratios.items()}
        )

    try:
        if pipeline.summary(at(high)).flops > wanted:
            return None
        for _ in range(12):
            middle = (low + high) / 2
            low, high = (low, middle) if pipeline.summary(at(middle)).flops <= wanted else (middle, high)
        return at(high)
    except ValueError:
        # More anchors than kept tokens, or more stages than layers.
        return None


def saving(pipeline: NextScalePipeline, method: StepVAR) -> float:
    """How many times fewer FLOPs than dense; 0 for a plan that this schedule cannot run."""
    try:
        summary = pipeline.summary(method)
    except ValueError:
        return 0.0
    return summary.dense_flops / summary.flops


def unique(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Each plan once within its kind."""
    return list({candidate.name: candidate for candidate in candidates}.values())


MEANS = ("psnr", "ssim", "scene_distance", "text_fit", "aspects")
"""Measures whose means a row of the results has."""


class Search:
    """A search at work.

    Args:
        pipeline: The model.
        folder: Of raw numbers and results.
        candidates: All plans; the dense one comes first.
        options: Of the command line.
    """

    def __init__(
        self,
        pipeline: NextScalePipeline,
        folder: ReportFolder,
        candidates: Sequence[Candidate],
        options: argparse.Namespace,
    ) -> None:
        self.pipeline, self.folder, self.options = pipeline, folder, options
        self.candidates = list(candidates)
        self.metrics = Metrics.for_pipeline(pipeline)
        size = pipeline.pixels(pipeline.schedule())
        self.samples = make_samples(pipeline, size, max(options.pictures), options.seed)

    def time_all(self) -> dict[str, list[float]]:
        """Seconds of one picture by candidate, a round each, all in turn."""
        rounds = [self._round(index) for index in range(self.options.rounds)]
        return {candidate.name: [turn[candidate.name] for turn in rounds] for candidate in self.candidates}

    def _round(self, index: int) -> dict[str, float]:
        known = self.folder.load(f"times-{index:02}")
        if known is None:
            for candidate in self.candidates[:2]:
                generate_samples(self.pipeline, self.samples[:1], candidate.method)
            known = {
                candidate.name: generate_samples(self.pipeline, self.samples[:1], candidate.method).seconds
                for candidate in self.candidates
            }
            self.folder.save(f"times-{index:02}", known)
            print(f"timing round {index + 1} of {self.options.rounds}", flush=True)
        return known

    def block(self, index: int, configs: Sequence[Candidate]) -> None:
        """Draws and measures one batch by all configs that have not generated it yet."""
        size = self.options.batch
        samples = self.samples[index * size : (index + 1) * size]
        left = [config for config in configs if self.folder.load(self._step(config, index)) is None]
        if not left:
            return
        dense = generate_samples(self.pipeline, samples, None)
        for config in left:
            generated = (
                dense if config.method is None else generate_samples(self.pipeline, samples, config.method)
            )
            self.folder.save(self._step(config, index), measure(generated, dense, samples, self.metrics))
        print(f"batch {index + 1}, {len(configs)} candidates", flush=True)

    def _step(self, config: Candidate, block: int) -> str:
        return f"pictures-{self.candidates.index(config):03}-{block:03}"

    def measured(self, config: Candidate, blocks: int) -> dict[str, np.ndarray]:
        """What the first batches of a candidate gave, by measure."""
        parts = [self.folder.load(self._step(config, index)) for index in range(blocks)]
        found = {
            key: np.concatenate([np.asarray(part[key], dtype=np.float64) for part in parts])
            for key in ("psnr", "ssim", "scene_distance", "detail", "text_fit", "passed", "features")
        }
        aspects = [np.mean([part["aspects"][name] for name in part["aspects"]], axis=0) for part in parts]
        return {**found, "aspects": np.concatenate(aspects)}

    def run(self) -> dict[str, Any]:
        """The whole search; returns the document of results."""
        times = self.time_all()
        medians = {name: statistics.median(seconds) for name, seconds in times.items()}
        self.groups = {
            config.name: self.group(config, medians["dense"] / medians[config.name])
            for config in self.candidates
        }
        configs = [config for config in self.candidates if self.groups[config.name] is not None]
        print(f"{len(configs)} of {len(self.candidates)} candidates are as fast as wanted", flush=True)
        blocks = 0
        for stage, pictures in enumerate(self.options.pictures):
            for index in range(blocks, pictures // self.options.batch):
                self.block(index, configs)
            blocks = pictures // self.options.batch
            if stage + 1 < len(self.options.pictures):
                configs = self.best(configs, blocks)
        return self.document(configs, times, blocks)

    def group(self, config: Candidate, speedup: float) -> str | float | None:
        """What a plan competes in: its kind or, of fast ones, the highest of the wanted speed-ups it has."""
        if config.kind != FAST:
            return config.kind
        return max((wanted for wanted in self.options.speedups if wanted <= speedup), default=None)

    def best(self, configs: Sequence[Candidate], blocks: int) -> list[Candidate]:
        """The best third of each group, and the references."""
        kept = [config for config in configs if config.kind == REFERENCE]
        for group in (*self.options.speedups, FAITHFUL):
            # Whether everything is right is 0 or 1 a picture, and too coarse for few pictures.
            key = "psnr" if group == FAITHFUL else "aspects"
            own = [config for config in configs if self.groups[config.name] == group]
            means = {
                config.name: {name: values.mean() for name, values in self.measured(config, blocks).items()}
                for config in own
            }
            own.sort(key=lambda config, means=means, key=key: -means[config.name][key])
            best = own[: max(FEWEST, round(SHARE_KEPT * len(own)))]
            # What looks like the dense picture need not have the least squared error.
            own.sort(key=lambda config, means=means: means[config.name]["scene_distance"])
            kept += unique([*best, *own[:FEWEST]])
        return kept

    def document(
        self, configs: Sequence[Candidate], times: Mapping[str, list[float]], blocks: int
    ) -> dict[str, Any]:
        """Every survivor with its intervals, and the winners."""
        dense = self.measured(self.candidates[0], blocks)
        rows = [self._row(config, self.measured(config, blocks), dense, times) for config in configs]
        prune = StepVAR(ratios=PRUNE)
        allowed = TIME_SLACK * statistics.median(times[Candidate(REFERENCE, prune).name])
        near = [row for row in rows if row["kind"] == FAITHFUL and row["seconds"] <= allowed]
        fast = [self._winner(rows, wanted) for wanted in self.options.speedups]
        good = [row for row in fast if row and row["scene_change"]["value"] >= -FORGIVEN]
        winners = {
            **{
                f"{wanted:g} x": row and row["name"]
                for wanted, row in zip(self.options.speedups, fast, strict=True)
            },
            f"fastest that loses {FORGIVEN:g} points or less": good[-1]["name"] if good else None,
            "faithful by PSNR": max(near, key=lambda row: row["psnr"]["value"])["name"] if near else None,
            "faithful by Fréchet": min(near, key=lambda row: row["frechet"]["value"])["name"]
            if near
            else None,
        }
        return {"identity": self.folder.identity, "winners": winners, "candidates": rows}

    @staticmethod
    def _winner(rows: Sequence[dict[str, Any]], wanted: float) -> dict[str, Any] | None:
        """The row with the best score among fast plans that reach a speed-up."""
        fast = [row for row in rows if row["kind"] == FAST and row["speedup"]["value"] >= wanted]
        return max(
            fast,
            key=lambda row: (row["scene_change"]["value"], -row["scene_distance"]["value"]),
            default=None,
        )

    def _row(
        self,
        config: Candidate,
        ours: dict[str, np.ndarray],
        dense: dict[str, np.ndarray],
        times: Mapping[str, list[float]],
    ) -> dict[str, Any]:
        summary = self.pipeline.summary(config.method)
        count = len(ours["psnr"])
        same = config.method is None
        zero = Interval(0.0, 0.0, 0.0, count)
        values = {
            "speedup": median_ratio_interval(times["dense"], times[config.name]),
            **{
                key: mean_interval(ours[key])
                for key in ("psnr", "ssim", "scene_distance", "text_fit", "aspects")
            },
            "detail": mean_interval(ours["detail"] / np.maximum(dense["detail"], 1e-9)),
            "scene": mean_interval(ours["passed"]),
            "scene_change": zero if same else paired_interval(100 * ours["passed"], 100 * dense["passed"]),
            "frechet": zero if same else frechet_interval(dense["features"], ours["features"]),
        }
        return {
            "name": config.name,
            "kind": config.kind,
            "method": as_json_value(config.method),
            "n": count,
            "seconds": statistics.median(times[config.name]),
            "tokens": summary.tokens / summary.dense_tokens,
            "flops_saving": summary.dense_flops / summary.flops,
            **{key: value.as_json() for key, value in values.items()},
        }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder, new or of this search")
    parser.add_argument("--model", type=Path, help="a pipeline folder that knows scenes; default: embedded")
    parser.add_argument(
        "--speedups",
        type=lambda text: sorted(float(part) for part in text.split(",")),
        default=[1.5, 1.8, 2.2, 2.6, 3.0],
        help="wanted of fast plans, end to end: 1.5,1.8,2.2,2.6,3",
    )
    parser.add_argument(
        "--pictures",
        type=lambda text: [int(part) for part in text.split(",")],
        default=[16, 64, 320],
        help="pictures of all candidates, of the best third, of their best third: 16,64,320",
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of timing")
    parser.add_argument("--batch", type=int, default=8, help="pictures generated at a time")
    parser.add_argument("--limit", type=int, help="at most so many candidates of a kind, for trying out")
    parser.add_argument("--seed", type=int, default=7_000, help="of the prompts; pictures count on from it")
    options = parser.parse_args()
    counts = options.pictures
    if any(count < options.batch or count % options.batch for count in counts) or counts != sorted(counts):
        parser.error(f"--pictures must rise, in multiples of --batch {options.batch}")
    return options


def open_model(folder: Path | None) -> NextScalePipeline:
    """The embedded model, or another one of scenes."""
    if folder is None:
        from stepvar.embedded import load_embedded

        return load_embedded()
    from stepvar.models.infinity.pipeline import InfinityPipeline

    return InfinityPipeline.from_pretrained(folder, local_files_only=True)


def main() -> None:
    options = parse()
    keep_freed_memory()
    pipeline = open_model(options.model)
    pipeline.set_progress_bar_config(disable=True)
    fast = unique(list(fast_candidates(pipeline, options.speedups[0])))[: options.limit]
    faithful = unique(list(faithful_candidates(pipeline)))[: options.limit]
    candidates = [*references(), *fast, *faithful]
    print(f"{len(fast)} fast and {len(faithful)} faithful candidates", flush=True)
    identity = {
        "weights": fingerprint(pipeline),
        "versions": versions(),
        "machine": machine(pipeline._execution_device),
        "candidates": [candidate.name for candidate in candidates],
        **{key: getattr(options, key) for key in ("pictures", "rounds", "batch", "seed", "speedups")},
    }
    folder = ReportFolder(options.output, identity)
    if folder.run is None:
        folder.start({})
    document = Search(pipeline, folder, candidates, options).run()
    folder.write_text("results.json", json.dumps(document, indent=1, allow_nan=False))
    _tell(document)


def _tell(document: dict[str, Any]) -> None:
    rows = sorted(document["candidates"], key=lambda row: (row["kind"], -row["psnr"]["value"]))
    keys = ("speedup", "psnr", "frechet", "scene_distance", "detail", "scene", "scene_change")
    print(" ".join(f"{key[:8]:>8}" for key in keys))
    for row in rows:
        print(" ".join(f"{row[key]['value']:8.3f}" for key in keys), row["name"])
    print(json.dumps(document["winners"], indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
