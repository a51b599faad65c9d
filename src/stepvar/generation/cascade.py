"""A cascade of two models: one drafts the early scales, the other one goes on from there.

Source: "Collaborative Decoding Makes Visual Auto-Regressive Modeling Efficient" (CoDe), arXiv 2411.17787,
in its training-free mode: a large model drafts, a small one of the same visual tokenizer refines. The small
one first reads what was drafted, into its own KV cache; the large one's is freed by then.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from stepvar.generation.guidance import Guidance
from stepvar.generation.loop import Generation, Sampler, Session, generate
from stepvar.generation.plan import GenerationPlan
from stepvar.generation.progress import Observer, ScaleReport
from stepvar.generation.pruner import LateScalePruning, Preview, Pruner, PruningMethod, plan_generation
from stepvar.generation.report import ScaleCost
from stepvar.generation.schedule import ScaleSchedule


@dataclass(frozen=True)
class FirstScales:
    """Runs the first scales of a schedule, and no others.

    Attributes:
        count: How many.
    """

    count: int

    def plan(self, schedule: ScaleSchedule, depth: int) -> GenerationPlan:
        """Leaves out all scales from `count` on.

        Raises:
            ValueError: When none, or none of the others, would be left.
        """
        if not 0 < self.count < len(schedule):
            raise ValueError(
                f"{self.count} of {len(schedule)} scales cannot be drafted: draft 1 to {len(schedule) - 1}."
            )
        later = tuple(range(self.count - len(schedule), 0))
        return LateScalePruning(skip=later).resolve(schedule, depth, 0, depth)

    def start(self, plan: GenerationPlan, device: torch.device) -> Pruner:
        return Pruner(plan)


@dataclass(frozen=True)
class Cascade:
    """Another pipeline that draws the first scales.

    Attributes:
        drafter: A pipeline of the same kind, with the same visual tokenizer.
        scales: How many scales it draws.
    """

    drafter: Any
    scales: int

    @property
    def draft(self) -> FirstScales:
        """What the drafter runs."""
        return FirstScales(self.scales)

    @property
    def settings(self) -> dict[str, Any]:
        """What a picture depends on, for its metadata."""
        name = self.drafter.origin
        return {"drafter": name, "scales": self.scales}

    def check(
        self, refiner: Any, schedule: ScaleSchedule, guidance: Guidance, pruning: PruningMethod | None
    ) -> None:
        """Refuses what the two cannot do together, before anything is computed.

        Args:
            refiner: The pipeline that draws the other scales.
            pruning: Of the refiner.

        Raises:
            ValueError: When their kinds, tokenizers or devices differ, or a drafted scale is left out.
        """
        if type(self.drafter) is not type(refiner) or not _same_tokenizer(self.drafter.vae, refiner.vae):
            raise ValueError("A cascade needs two pipelines of one kind with the same visual tokenizer.")
        if self.drafter.device != refiner.device:
            raise ValueError(
                f"The drafter is on {self.drafter.device}, the other pipeline on {refiner.device}: move one."
            )
        if guidance.layers:
            raise ValueError(
                "Guidance inside the layers of a model cannot be shared by two: guide the logits (0)."
            )
        self.draft.plan(schedule, 1)
        plan = plan_generation(pruning, schedule, len(refiner.transformer.blocks))
        for entry in plan.scales[: self.scales]:
            if entry.prunes or entry.skipped:
                raise ValueError(
                    f"Scale {entry.scale} is drafted, so it can be neither pruned nor skipped: name later "
                    "scales, or draft fewer."
                )


def _same_tokenizer(first: nn.Module, second: nn.Module) -> bool:
    left, right = first.state_dict(), second.state_dict()
    if left.keys() != right.keys() or any(left[name].shape != right[name].shape for name in left):
        return False
    return first is second or all(torch.equal(left[name].cpu(), right[name].cpu()) for name in left)


def generate_in_cascade(
    drafter: Session,
    refiner: Session,
    drafted: int,
    *,
    guidance: Guidance,
    sampler: Sampler,
    pruning: PruningMethod | None = None,
    observer: Observer | None = None,
    preview: Preview | None = None,
) -> Generation:
    """Runs the first scales on one session and the others on another one.

    Args:
        drafter, refiner: Two models at work on the same prompts, schedule and visual tokenizer.
        drafted: Scales that the drafter runs.
        guidance: Of both, with no layers inside a model, since the two have different ones.
        sampler: Of both.
        pruning: Of the refiner.
        observer: Called after every scale, by the model that draws it.
        preview: See `generate`.

    Returns:
        The refiner's generation. A drafted scale's report has the seconds of both models; the size of the
        KV cache is that of the larger of both, since only one lives at a time.

    Raises:
        ValueError: When the two cannot work together.
    """
    if drafter.schedule != refiner.schedule or drafter.latent.shape != refiner.latent.shape:
        raise ValueError("A cascade needs two models of one visual tokenizer and one scale schedule.")

    def observe(report: ScaleReport, drafting: bool) -> None:
        if observer is not None and drafting == (report.plan.scale.index < drafted):
            observer(report)

    draft = generate(
        drafter,
        guidance=guidance,
        sampler=sampler,
        pruning=FirstScales(drafted),
        observer=lambda report: observe(report, drafting=True),
    )
    final = generate(
        refiner,
        guidance=guidance,
        sampler=sampler,
        pruning=pruning,
        observer=lambda report: observe(report, drafting=False),
        preview=preview,
        prefix=draft.choices,
    )
    for first, second in zip(draft.scales[:drafted], final.scales, strict=False):
        second.seconds += first.seconds
    final.cache_bytes = max(draft.cache_bytes, final.cache_bytes)
    return final


def cascade_costs(
    drafter: tuple[ScaleCost, ...], refiner: tuple[ScaleCost, ...], drafted: int
) -> tuple[ScaleCost, ...]:
    """Planned cost of a cascade: drafted scales cost both, as the refiner reads them.

    Args:
        drafter, refiner: What each model would cost, scale by scale, under its own plan.
        drafted: Scales that the drafter runs.
    """
    costs = [
        replace(second, flops=first.flops + second.flops) if index < drafted else second
        for index, (first, second) in enumerate(zip(drafter, refiner, strict=True))
    ]
    # Only one of the two caches lives at a time.
    larger = sum(cost.cache_bytes for cost in drafter[:drafted])
    missing = max(larger - sum(cost.cache_bytes for cost in refiner), 0)
    last = drafted - 1
    costs[last] = replace(costs[last], cache_bytes=costs[last].cache_bytes + missing)
    return tuple(costs)
