"""Scores and recoveries against the dense run, beside scores that have seen it.

    python benchmarks/recovery_exhibits.py -o exhibits.json
    python benchmarks/recovery_exhibits.py --model FOLDER --prompts 48 --fit 32 -o exhibits.json

Every prompt is drawn dense and, at the same ratios, by every score with every recovery; "calibrated" is
fitted to each score on other prompts. A cell is the mean PSNR to the dense pictures with an interval of 95 %.

Scores that have seen the dense run rank tokens by what no method can know:

    final high-pass    texture score of the hidden states after the last layer
    logit high-pass    the same of the guided logits
    largest change     how far the pruned layers move a token, the paper's argument (figure 3) for its score
    cost               squared error in the pixels around a token where it was pruned, less where it was kept,
                       over runs that prune at random

With them "calibrated" takes the maps fitted to the score "structure+texture". The numbers are written after
every batch; --rounds adds times, all plans in turn.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from search_best import open_model
from stepvar.allocator import keep_freed_memory
from stepvar.cli.display import format_table
from stepvar.cli.values import parse_ratios
from stepvar.evaluation.plan_search import PROMPT_SEED
from stepvar.evaluation.provenance import fingerprint, versions
from stepvar.evaluation.recovery_fit import fit_recovery
from stepvar.files import write_atomically
from stepvar.generation.plan import GenerationPlan, ScalePlan
from stepvar.generation.pruner import Expect, Pruner
from stepvar.generation.schedule import Grid, ScaleSchedule
from stepvar.generation.tokens import Choice, Tokens
from stepvar.metrics.fidelity import bounded_psnr
from stepvar.metrics.statistics import mean_interval, median_ratio_interval, paired_interval
from stepvar.metrics.timing import interleaved
from stepvar.models.pipeline import NextScalePipeline
from stepvar.pruning.scores import SCORERS, ScoringInput, texture_scores
from stepvar.pruning.stepvar import StepVAR
from stepvar.report.samples import GeneratedBatch, Sample, generate_samples, make_samples

SEED = 43_000
"""Of the prompts that are measured, apart from those that are fitted on or searched with."""

OURS, REFERENCE = "structure+texture", "structure+texture, nearest"
RECOVERIES = ("nearest", "guided", "calibrated")
SEEN = ("final high-pass", "logit high-pass", "largest change", "cost")
"""Scores that have seen the dense run."""


@dataclass(eq=False)
class Notes:
    """What scores that have seen the dense run are made of, of the pictures of one batch.

    Attributes:
        entry, final: [B, N, C] before and after the pruned layers, by grid.
        logits: [B, N, D] guided logits of bits; of a codebook the codes that are expected.
        cost: [B, N] see the cost above.
    """

    entry: dict[Grid, Tensor] = field(default_factory=dict)
    final: dict[Grid, Tensor] = field(default_factory=dict)
    logits: dict[Grid, Tensor] = field(default_factory=dict)
    cost: dict[Grid, Tensor] = field(default_factory=dict)

    def score(self, tokens: ScoringInput, *, kind: str) -> Tensor:
        """[B, N] scores of a kind."""
        grid = tokens.grid
        if kind == "cost":
            return self.cost[grid]
        if kind == "largest change":
            return (self.final[grid] - self.entry[grid]).norm(dim=-1)
        return texture_scores((self.final if kind == "final high-pass" else self.logits)[grid], grid)


@dataclass(frozen=True)
class Noted:
    """The dense run, which leaves notes at the scales that a plan prunes."""

    method: StepVAR
    notes: Notes

    @property
    def ratios(self) -> Mapping[int, float]:
        return self.method.ratios

    def plan(self, schedule: ScaleSchedule, depth: int) -> GenerationPlan:
        return replace(self.method, ratios=dict.fromkeys(self.ratios, 0.0)).plan(schedule, depth)

    def start(self, plan: GenerationPlan, device: torch.device) -> Pruner:
        scales = ScaleSchedule(tuple(entry.scale for entry in plan.scales))
        pruned = [entry.scale.index for entry in self.method.plan(scales, plan.depth).scales if entry.prunes]
        return NotingPruner(plan, self.notes, pruned)


class NotingPruner(Pruner):
    """The dense run, noted down."""

    def __init__(self, plan: GenerationPlan, notes: Notes, pruned: Sequence[int]) -> None:
        super().__init__(plan)
        self.notes, self.pruned = notes, pruned

    def begin_scale(self, entry: ScalePlan, images: int, latent: Tensor) -> None:
        self.entry, self.images = entry, images

    def enter(self, layer: int, tokens: Tokens, hidden: Tensor) -> tuple[Tokens, Tensor]:
        if tokens.scale.index in self.pruned and layer == self.entry.first_layer:
            self.notes.entry[tokens.scale.grid] = hidden[: self.images].clone()
        return tokens, hidden

    def leave(self, tokens: Tokens, hidden: Tensor) -> Tensor:
        if tokens.scale.index in self.pruned:
            self.notes.final[tokens.scale.grid] = hidden[: self.images].clone()
        return hidden

    def settle(self, tokens: Tokens, choice: Choice, expect: Expect) -> Choice:
        if tokens.scale.index in self.pruned:
            mean = expect()
            bits = isinstance(mean, Tensor)
            self.notes.logits[tokens.scale.grid] = torch.logit(mean, 1e-6) if bits else mean.codes
        return choice


def note_costs(
    pipeline: NextScalePipeline,
    samples: Sequence[Sample],
    dense: GeneratedBatch,
    method: StepVAR,
    notes: Notes,
    draws: int,
) -> None:
    """Fills `notes.cost` from runs that prune at random."""
    sums: dict[Grid, list[Any]] = {}
    whole = torch.from_numpy(np.stack(dense.pictures)).float()
    for draw in range(draws):
        batch = generate_samples(pipeline, samples, replace(method, score="random", seed=draw))
        error = (torch.from_numpy(np.stack(batch.pictures)).float() - whole).square().mean(dim=-1)
        for scale in batch.report.scales:
            if scale.kept_index is None:
                continue
            height, width = scale.plan.scale.height, scale.plan.scale.width
            local = functional.adaptive_avg_pool2d(error[:, None], (height, width))
            # What a token decides reaches its neighbours through the decoder.
            local = functional.avg_pool2d(local, 3, 1, 1, count_include_pad=False).flatten(1)
            kept = torch.zeros_like(local).scatter_(1, scale.kept_index.cpu(), 1.0)
            found = sums.setdefault(scale.plan.scale.grid, [0.0] * 4)
            for place, value in enumerate((kept, kept * local, 1 - kept, (1 - kept) * local)):
                found[place] = found[place] + value
    for grid, (kept, error_kept, pruned, error_pruned) in sums.items():
        cost = error_pruned / pruned.clamp_min(1.0) - error_kept / kept.clamp_min(1.0)
        # A token that was never kept, or never pruned, says nothing.
        notes.cost[grid] = torch.where((kept > 0) & (pruned > 0), cost, cost.mean(dim=1, keepdim=True))


def make_plans(pipeline: NextScalePipeline, options: argparse.Namespace, notes: Notes) -> dict[str, Any]:
    """All plans by name, "score, recovery"."""
    base = StepVAR(ratios=options.ratios)
    fitted_on = make_samples(pipeline, pipeline.pixels(pipeline.schedule()), options.fit, PROMPT_SEED)
    prompts = [sample.prompt for sample in fitted_on]
    fitted: dict[str, Any] = {}
    for score in SCORERS:
        fitted[score] = fit_recovery(pipeline, prompts, replace(base, score=score)).recovery
        errors = ", ".join(f"{one.name} {one.error:.3f}" for one in fitted[score].maps)
        print(f"fitted to {score} on {options.fit} prompts, error against guided: {errors}", flush=True)
    plans: dict[str, Any] = {}
    seen = [kind for kind in SEEN if kind != "cost" or options.draws]
    for name, score in {**{name: name for name in SCORERS}, **dict.fromkeys(seen)}.items():
        rule = partial(notes.score, kind=name) if score is None else score
        for recovery in RECOVERIES:
            used = fitted[score or OURS] if recovery == "calibrated" else recovery
            plans[f"{name}, {recovery}"] = replace(base, score=rule, recovery=used)
    plans["no guidance on these scales"] = StepVAR(unguided=min(options.ratios))
    return plans


def measure(
    pipeline: NextScalePipeline, plans: Mapping[str, Any], notes: Notes, options: argparse.Namespace
) -> dict[str, Any]:
    """PSNR to the dense pictures by plan, in one document that is written after every batch."""
    samples = make_samples(pipeline, pipeline.pixels(pipeline.schedule()), options.prompts, SEED)
    base = StepVAR(ratios=options.ratios)
    decibels: dict[str, list[float]] = {name: [] for name in plans}
    document: dict[str, Any] = {}
    for start in range(0, len(samples), options.batch):
        part = samples[start : start + options.batch]
        dense = generate_samples(pipeline, part, Noted(base, notes))
        note_costs(pipeline, part, dense, base, notes, options.draws)
        for name, plan in plans.items():
            drawn = generate_samples(pipeline, part, plan)
            pairs = zip(drawn.pictures, dense.pictures, strict=True)
            decibels[name] += [bounded_psnr(*pair) for pair in pairs]
        document = {
            "weights": fingerprint(pipeline),
            "versions": versions(),
            "options": {key: str(value) for key, value in vars(options).items()},
            "psnr": {name: mean_interval(values).as_json() for name, values in decibels.items()},
            "change": {
                name: paired_interval(values, decibels[REFERENCE]).as_json()
                for name, values in decibels.items()
            },
            "values": decibels,
        }
        write(document, options.output)
        print(f"{start + len(part)} of {len(samples)} prompts", flush=True)
    return document


def time_plans(pipeline: NextScalePipeline, plans: Mapping[str, Any], rounds: int) -> dict[str, Any]:
    """How many times faster than dense, of one picture end to end, all plans in turn."""
    samples = make_samples(pipeline, pipeline.pixels(pipeline.schedule()), 1, SEED)
    runs = {
        name: partial(generate_samples, pipeline, samples, plans.get(name))
        for name in ("dense", *(f"{OURS}, {recovery}" for recovery in RECOVERIES))
    }
    seconds = interleaved(runs, rounds, pipeline._execution_device)
    return {
        name: median_ratio_interval(seconds["dense"].seconds, seconds[name].seconds).as_json()
        for name in runs
        if name != "dense"
    }


def write(document: Mapping[str, Any], output: Path) -> None:
    write_atomically(output, json.dumps(document, indent=1, allow_nan=False).encode())


def shown(interval: Mapping[str, float]) -> str:
    return f"{interval['value']:.2f} ({interval['low']:.2f} to {interval['high']:.2f})"


def table(document: Mapping[str, Any]) -> str:
    """Scores down, recoveries across."""
    names = dict.fromkeys(name.rpartition(", ")[0] for name in document["psnr"] if ", " in name)
    rows = [
        (name, *(shown(document["psnr"][f"{name}, {recovery}"]) for recovery in RECOVERIES)) for name in names
    ]
    lines = [format_table(("PSNR to dense, dB", *RECOVERIES), rows), ""]
    lines += [f"{name}: {shown(document['psnr'][name])} dB" for name in document["psnr"] if ", " not in name]
    lines += [f"{name}: {shown(value)} x as fast as dense" for name, value in document["speedup"].items()]
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON file of all numbers")
    parser.add_argument("--model", type=Path, help="a pipeline folder that knows scenes; default: embedded")
    parser.add_argument("--prompts", type=int, default=48, help="that are measured")
    parser.add_argument("--fit", type=int, default=32, help="prompts that recoveries are fitted to")
    parser.add_argument("--ratios", type=str, default="-2=0.5,-1=0.75")
    parser.add_argument("--draws", type=int, default=24, help="random runs for the cost; 0 leaves it out")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=0, help="of timing")
    options = parser.parse_args()
    options.ratios = dict(parse_ratios(options.ratios))
    return options


def main() -> None:
    options = parse()
    keep_freed_memory()
    pipeline = open_model(options.model)
    pipeline.set_progress_bar_config(disable=True)
    notes = Notes()
    plans = make_plans(pipeline, options, notes)
    document = measure(pipeline, plans, notes, options)
    document["speedup"] = time_plans(pipeline, plans, options.rounds) if options.rounds else {}
    write(document, options.output)
    print(table(document))


if __name__ == "__main__":
    main()
