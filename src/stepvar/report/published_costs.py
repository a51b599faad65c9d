"""Costs of published models by scale, from their sizes and schedules alone (figure 1a).

Only the transformer is counted, a multiply-add as two, with both copies of classifier-free guidance. Sources:
FoundationVision/Infinity and FoundationVision/InfinityStar (configurations and schedules), mit-han-lab/hart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stepvar.generation.plan import kept_tokens
from stepvar.models.infinity.sizes import SizeTable

COPIES = 2


@dataclass(frozen=True)
class PublishedScale:
    """One scale of a published schedule.

    Attributes:
        name: Grid of the token map.
        tokens: In it.
        times: How often it is run.
    """

    name: str
    tokens: int
    times: int = 1


@dataclass(frozen=True)
class Published:
    """A published model, as far as its cost goes.

    Attributes:
        name: With its size.
        depth, width: Layers and channels.
        weights: Weights of a layer that every token is multiplied with.
        steps: The schedule.
        ratios: Share pruned by place from the end; 1 skips. The paper's plan for it.
        plan: The same in words.
        context: Tokens that every step attends to beside those of the schedule, such as text.
        remembers: Whether a step attends to all steps before it, or to its own tokens only.
        dense_layers: First layers that run in full at pruned scales.
    """

    name: str
    depth: int
    width: int
    weights: int
    steps: Sequence[PublishedScale]
    ratios: Mapping[int, float]
    plan: str
    context: int
    remembers: bool = True
    dense_layers: int = field(default=1)


@dataclass(frozen=True)
class ModelCost:
    """FLOPs of a published model.

    Attributes:
        name: With its picture size.
        scales: Names of its scales.
        dense, pruned: FLOPs of every scale, dense and with the paper's plan for it.
        plan: That plan, in words.
    """

    name: str
    scales: list[str]
    dense: list[int]
    pruned: list[int]
    plan: str

    @property
    def late_share(self) -> float:
        """Share of the FLOPs in the last four scales."""
        return sum(self.dense[-4:]) / sum(self.dense)

    @property
    def saving(self) -> float:
        """Dense FLOPs over the pruned ones."""
        return sum(self.dense) / sum(self.pruned)


def published_costs() -> list[ModelCost]:
    """Every published model, dense and with the paper's plan for it."""
    return [
        ModelCost(
            model.name,
            [step.name for step in model.steps],
            scale_flops(model, {}),
            scale_flops(model, model.ratios),
            model.plan,
        )
        for model in PUBLISHED
    ]


def scale_flops(model: Published, ratios: Mapping[int, float]) -> list[int]:
    """FLOPs of every scale of a model, pruned by place from the end."""
    seen = [model.context] * model.depth
    found = []
    for index, step in enumerate(model.steps):
        ratio = ratios.get(index - len(model.steps), 0.0)
        flops = 0
        for layer in range(model.depth):
            tokens = step.tokens if layer < model.dense_layers else kept_tokens(step.tokens, ratio)
            tokens = 0 if ratio == 1.0 else tokens
            keys = seen[layer] + tokens
            flops += 2 * tokens * model.weights + 4 * tokens * model.width * keys
            seen[layer] = keys if model.remembers else seen[layer]
        found.append(COPIES * step.times * flops)
    return found


def _infinity(name: str, depth: int, width: int) -> Published:
    grids = SizeTable.published().at_aspect(1.0, "1M")
    hidden = 4 * width
    return Published(
        f"Infinity-{name}, 1024 x 1024",
        depth,
        width,
        # Self-attention has four square matrices, cross-attention two: text keys are made once.
        6 * width**2 + 2 * width * hidden,
        [PublishedScale(str(scale), scale.tokens) for scale in grids],
        {-4: 0.4, -3: 0.5, -2: 1.0, -1: 1.0},
        "0.4, 0.5, skip, skip",
        context=0,
        dense_layers=max(round(3 / 32 * depth), 1),
    )


def _hart() -> Published:
    width, hidden = 1536, 4096
    sides = (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)
    return Published(
        "HART, 1024 x 1024",
        24,
        width,
        4 * width**2 + 3 * width * hidden,
        [PublishedScale(f"{side}x{side}", side**2) for side in sides],
        {-2: 0.5, -1: 0.75},
        "0.5, 0.75",
        context=300,
        dense_layers=2,
    )


def _infinity_star() -> Published:
    """The clip of twenty latent frames that follows the first frame: 95 % of a five-second video."""
    width, hidden, ratio = 4096, 16384, 9 / 16
    sides = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 40)
    columns = [side / math.sqrt(ratio) for side in sides]
    grids = [(round(wide * ratio), round(wide)) for wide in columns]
    times = [3] * (len(grids) - 2) + [2, 1]
    first_frame, text = grids[-1][0] * grids[-1][1], 128
    return Published(
        "InfinityStar-8B, 480p, 5 s",
        36,
        width,
        # Grouped-query attention: a quarter of the keys and values.
        2 * width**2 + 2 * width * 1024 + 3 * width * hidden,
        [
            PublishedScale(f"{high}x{wide}", 20 * high * wide, count)
            for (high, wide), count in zip(grids, times, strict=True)
        ],
        {-2: 0.4, -1: 0.5},
        "0.4, 0.5 (open in the paper)",
        context=first_frame + text,
        remembers=False,
        dense_layers=3,
    )


PUBLISHED: tuple[Published, ...] = (
    _infinity("2B", 32, 2048),
    _infinity("8B", 40, 3584),
    _hart(),
    _infinity_star(),
)
"""Models of figure 1a; a further one is one entry."""
