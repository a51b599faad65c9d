"""Generation plans: kept tokens, skipped scales and narrowed layers, fixed before anything runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate

from stepvar.generation.guidance import CONDITIONAL
from stepvar.generation.schedule import Scale, ScaleSchedule
from stepvar.generation.weight_sketch import WeightSketch


@dataclass(frozen=True)
class ScalePlan:
    """What one scale will run.

    Attributes:
        scale: The scale.
        skipped: The scale is not run at all; it adds nothing to the accumulated codes.
        kept: Tokens that the narrowed layers run on (all of them when nothing is pruned).
        first_layer, last_layer: Half-open range of layers that run on the kept tokens only.
        stages: (layer, tokens) of each narrowing when there are several, in order: the first at
            `first_layer`, the last down to `kept`.
    """

    scale: Scale
    skipped: bool = False
    kept: int = 0
    first_layer: int = 0
    last_layer: int = 0
    stages: tuple[tuple[int, int], ...] = ()

    @property
    def prunes(self) -> bool:
        return not self.skipped and self.kept < self.scale.tokens and self.first_layer < self.last_layer

    def tokens(self, layer: int) -> int:
        """Tokens that a layer runs on at this scale."""
        if self.skipped:
            return 0
        if not (self.prunes and self.first_layer <= layer < self.last_layer):
            return self.scale.tokens
        return next((count for start, count in reversed(self.stages) if start <= layer), self.kept)

    def narrows(self, layer: int) -> bool:
        """Whether a layer runs on fewer tokens than the one before it."""
        if not self.prunes:
            return False
        return layer == self.first_layer or any(start == layer for start, _ in self.stages)


@dataclass(frozen=True)
class GenerationPlan:
    """What every scale of a schedule will run, on a model of `depth` layers.

    Attributes:
        unguided: Index of the first scale without classifier-free guidance; None where guidance stays.
        remaining: Which copy of an image goes on alone from there; see `Guidance`.
        retained: Most tokens that a layer goes on remembering after a scale, by layer, then by scale;
            empty where nothing is forgotten.
        int8_cache: Keys and values are held as 8-bit integers between two scales.
        decides: The method may leave out more while it runs, once it has seen the picture so far: what is
            planned is then the most that will run.
        fitted_to: The weights that something in the method was fitted to; it runs on no others.
    """

    scales: tuple[ScalePlan, ...]
    depth: int
    unguided: int | None = None
    remaining: str = CONDITIONAL
    retained: tuple[tuple[int, ...], ...] = ()
    int8_cache: bool = False
    decides: bool = False
    fitted_to: WeightSketch | None = None

    @classmethod
    def dense(cls, schedule: ScaleSchedule, depth: int) -> GenerationPlan:
        return cls(tuple(ScalePlan(scale, kept=scale.tokens) for scale in schedule), depth)

    def __getitem__(self, index: int) -> ScalePlan:
        return self.scales[index]

    @property
    def prunes(self) -> bool:
        return any(entry.prunes for entry in self.scales)

    @property
    def changes(self) -> bool:
        """Whether anything differs from a dense run."""
        left_out = any(entry.prunes or entry.skipped for entry in self.scales)
        other_cache = bool(self.retained) or self.int8_cache
        return left_out or self.decides or self.unguided is not None or other_cache

    def remembered(self, layer: int) -> list[int]:
        """Tokens whose keys and values a layer holds after each scale."""
        held, counts = 0, []
        for entry in self.scales:
            if not entry.skipped:
                held += entry.tokens(layer)
                if self.retained:
                    held = min(held, self.retained[layer][entry.scale.index])
            counts.append(held)
        return counts

    def attended(self, layer: int) -> list[int]:
        """Tokens that each scale's queries see in a layer, its own included; 0 where it is skipped."""
        before = [0, *self.remembered(layer)]
        return [
            0 if entry.skipped else held + entry.tokens(layer)
            for entry, held in zip(self.scales, before, strict=False)
        ]

    def cached_tokens(self, layer: int) -> int:
        """Most tokens whose keys and values a layer holds between two scales."""
        return max(self.remembered(layer))

    def stored_tokens(self, besides: int = 0) -> list[int]:
        """Room for keys and values, in tokens of all layers together, that is needed up to each scale.

        Where a layer is about to forget, it attends in a workspace that all layers share: that counts too.

        Args:
            besides: Tokens that every layer holds besides those of the maps, a prompt's for example; they are
                never forgotten.
        """
        room, work = [besides * self.depth] * len(self.scales), [0] * len(self.scales)
        for layer in range(self.depth):
            held, seen = self.remembered(layer), self.attended(layer)
            room = [total + most for total, most in zip(room, accumulate(held, max), strict=True)]
            cut = [tokens + besides if tokens > left else 0 for tokens, left in zip(seen, held, strict=True)]
            work = [max(widest, tokens) for widest, tokens in zip(work, cut, strict=True)]
        return [tokens + most for tokens, most in zip(room, accumulate(work, max), strict=True)]


def kept_tokens(tokens: int, ratio: float) -> int:
    """Tokens kept of `tokens` at a pruning ratio: all but floor(ratio x tokens), at least one."""
    return max(tokens - int(ratio * tokens + 1e-9), 1)


def find_scale(schedule: ScaleSchedule, name: int) -> int:
    """Resolves a scale's name: its height in tokens, or a negative number counted from the end.

    Raises:
        ValueError: When no scale, or more than one, has that name.
    """
    if name < 0:
        if -name > len(schedule):
            raise ValueError(
                f"Scale {name} does not exist: counted from the end, the schedule has scales "
                f"-1 to -{len(schedule)}."
            )
        return len(schedule) + name
    matches = [scale.index for scale in schedule if scale.height == name]
    if len(matches) == 1:
        return matches[0]
    if not matches:
        heights = ", ".join(str(scale) for scale in schedule)
        raise ValueError(f"No scale is {name} tokens high; the scales are {heights}.")
    # What helps comes first: where a schedule repeats its scales, the end may not be shown.
    names = " or ".join(f"{match - len(schedule)} ({schedule[match]})" for match in matches)
    raise ValueError(
        f"Name scale {name} from the end, {names}: {len(matches)} scales are {name} tokens high."
    )


def resolve_plan(
    schedule: ScaleSchedule,
    depth: int,
    ratios: Mapping[int, float],
    skip: Collection[int],
    first_layer: int,
    last_layer: int,
) -> GenerationPlan:
    """Turns ratios and skips by scale name into a plan.

    A ratio of 1 has nothing left to run: such a scale is planned, and reported, as skipped.

    Raises:
        ValueError: When a name is unknown or named twice, nothing would be left to run, or the
            request would change nothing at all.
    """
    skipped = {find_scale(schedule, name) for name in skip}
    by_index: dict[int, float] = {}
    for name, ratio in ratios.items():
        index = find_scale(schedule, name)
        if index in by_index or index in skipped:
            raise ValueError(f"Scale {schedule[index]} is named twice: give it one ratio, or skip it.")
        by_index[index] = ratio
    skipped |= {index for index, ratio in by_index.items() if ratio == 1.0}
    if len(skipped) == len(schedule):
        raise ValueError("Every scale is skipped: leave at least the first one to run.")
    if 0 in skipped:
        raise ValueError("The first scale carries the prompt into the picture and cannot be skipped.")
    plan = GenerationPlan(
        tuple(
            ScalePlan(
                scale,
                skipped=scale.index in skipped,
                kept=0 if scale.index in skipped else kept_tokens(scale.tokens, by_index.get(scale.index, 0)),
                first_layer=first_layer,
                last_layer=last_layer,
            )
            for scale in schedule
        ),
        depth,
    )
    _refuse_silent_no_op(plan, by_index)
    _refuse_parts(plan)
    return plan


def _refuse_parts(plan: GenerationPlan) -> None:
    for entry in plan.scales:
        if entry.scale.part is not None and (entry.prunes or entry.skipped):
            raise ValueError(
                f"Scale {entry.scale} is drawn in parts, which can be neither pruned nor skipped: "
                "draw it at once, or name other scales."
            )


def in_stages(plan: GenerationPlan, stages: int) -> GenerationPlan:
    """The plan with every narrowing taken in equal steps, spread evenly from its first layer to the last.

    Raises:
        ValueError: When there are fewer pruned layers than stages.
    """

    def staged(entry: ScalePlan) -> ScalePlan:
        if stages == 1 or not entry.prunes:
            return entry
        layers, pruned = entry.last_layer - entry.first_layer, entry.scale.tokens - entry.kept
        if layers < stages:
            raise ValueError(f"{stages} stages need as many pruned layers; this plan prunes {layers}.")
        steps = tuple(
            (entry.first_layer + step * layers // stages, entry.scale.tokens - (step + 1) * pruned // stages)
            for step in range(stages)
        )
        return replace(entry, stages=steps)

    return replace(plan, scales=tuple(staged(entry) for entry in plan.scales))


def _refuse_silent_no_op(plan: GenerationPlan, ratios: Mapping[int, float]) -> None:
    for index, ratio in ratios.items():
        entry = plan[index]
        if ratio > 0 and not entry.skipped and not entry.prunes:
            raise ValueError(
                f"Pruning {ratio:g} of scale {entry.scale} ({entry.scale.tokens} tokens) at layers "
                f"{entry.first_layer} to {entry.last_layer} of {plan.depth} would change nothing: "
                "raise the ratio, name a larger scale or start at an earlier layer."
            )
