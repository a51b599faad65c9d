"""The generation loop: one road for every model and every pruning method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from stepvar.generation.attention import KVCache, Memory
from stepvar.generation.guidance import Guidance
from stepvar.generation.progress import Observer, ScaleReport, Stopwatch
from stepvar.generation.schedule import Scale, ScaleSchedule
from stepvar.generation.tokens import Tokens
from stepvar.pruning.base import Branch, Pruner, PruningMethod
from stepvar.pruning.plan import GenerationPlan


class Session(Protocol):
    """A model at work on one batch: everything that lives as long as one generation.

    A model's own `start(condition, schedule)` makes it. It holds what is computed once (text keys
    and values, modulations), the accumulated latent, and nothing that belongs to a scale.

    Attributes:
        schedule: The scales.
        depth: Number of layers.
        images: B.
        copies: 2 when every image has an unconditional copy, else 1.
        latent: [B, d, (t,) H, W] codes accumulated so far.
    """

    schedule: ScaleSchedule
    depth: int
    images: int
    copies: int
    latent: Tensor

    def allocate_cache(self, plan: GenerationPlan) -> KVCache:
        """Allocates the KV cache for exactly the tokens of the plan."""
        ...

    def embed(self, scale: Scale, rows: int) -> tuple[Tensor, Tokens]:
        """Input of a scale from the latent: hidden states [rows, N, C] and their tokens."""
        ...

    def branches(self, layer: int, memory: Memory, rows: int) -> Sequence[tuple[str, Branch]]:
        """The residual branches of a layer, by name, in order."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of the first rows' hidden states [rows, N, C], value last."""
        ...

    def commit(self, scale: Scale, choice: Tensor, hidden: Tensor) -> None:
        """Adds the sampled values of a scale to the latent.

        Args:
            choice: What the sampler drew, [B, N, ...].
            hidden: [rows, N, C] hidden states that the logits came from.
        """
        ...


class Sampler(Protocol):
    """Draws values from logits; see `stepvar.generation.sampling`."""

    def temperature(self, scale: Scale) -> float:
        """What a scale's logits are divided by, before guidance."""
        ...

    def sample(self, logits: Tensor, scale: Scale) -> Tensor:
        """Draws [B, N, ...] from guided logits."""
        ...


Probe = Callable[[str, Scale, Tensor], None]
"""Called with (name, scale, tensor) at the loop's landmarks; see `generate`."""


@dataclass
class Generation:
    """What a generation leaves.

    Attributes:
        latent: [B, d, (t,) H, W] accumulated codes, ready to decode.
        choices: Sampled values per scale that ran, by scale index.
        scales: One report a scale, skipped ones included.
        cache_bytes: Size of the KV cache.
    """

    latent: Tensor
    choices: dict[int, Tensor] = field(default_factory=dict)
    scales: list[ScaleReport] = field(default_factory=list)
    cache_bytes: int = 0


def plan_generation(method: PruningMethod | None, schedule: ScaleSchedule, depth: int) -> GenerationPlan:
    """What a method will run on a schedule; everything when there is no method."""
    return GenerationPlan.dense(schedule, depth) if method is None else method.plan(schedule, depth)


def generate(
    session: Session,
    *,
    guidance: Guidance,
    sampler: Sampler,
    pruning: PruningMethod | None = None,
    observer: Observer | None = None,
    probe: Probe | None = None,
) -> Generation:
    """Runs all scales of a schedule.

    Args:
        session: The model at work, from its `start(...)`.
        guidance: Classifier-free guidance.
        sampler: Draws the values.
        pruning: A pruning method's configuration; None runs everything.
        observer: Hears of every scale.
        probe: Sees intermediate tensors: "input" of the first layer, "layer 0", "layer 1", ... (what
            leaves a layer: living tokens only, before guidance), "logits" (after temperature and
            guidance), "choice" and "latent".

    Returns:
        The accumulated latent, the choices and the reports.
    """
    plan = plan_generation(pruning, session.schedule, session.depth)
    device = session.latent.device
    pruner = Pruner(plan) if pruning is None else pruning.start(plan, device)
    cache = session.allocate_cache(plan)
    result = Generation(session.latent, cache_bytes=cache.bytes)
    watch = Stopwatch(device)
    for entry in plan.scales:
        watch.mark()
        report = ScaleReport(entry)
        if not entry.skipped:
            pruner.begin_scale(entry, session.images, session.latent)
            report.rows = guidance.rows(entry.scale.index, session.images, session.copies)
            choice = run_scale(session, entry.scale, report.rows, cache, pruner, guidance, sampler, probe)
            result.choices[entry.scale.index] = choice
            report.kept_index = pruner.kept_index
        watch.mark()
        result.scales.append(report)
        if not watch.deferred:
            report.seconds = watch.seconds(2 * entry.scale.index)
        if observer is not None:
            observer(report)
    for index, report in enumerate(result.scales):
        report.seconds = watch.seconds(2 * index)
    result.latent = session.latent
    return result


def run_scale(
    session: Session,
    scale: Scale,
    rows: int,
    cache: KVCache,
    pruner: Pruner,
    guidance: Guidance,
    sampler: Sampler,
    probe: Probe | None,
) -> Tensor:
    """One scale: embed, run the layers, sample, commit. Returns the sampled values."""
    hidden, tokens = session.embed(scale, rows)
    _show(probe, "input", scale, hidden)
    for layer in range(session.depth):
        tokens, hidden = pruner.enter(layer, tokens, hidden)
        for name, branch in session.branches(layer, cache[layer], rows):
            hidden = pruner.residual(layer, name, branch, tokens, hidden)
        if probe is not None:
            probe(f"layer {layer}", scale, hidden)
        hidden = guidance.after_layer(scale.index, layer, hidden)
    hidden = pruner.leave(tokens, hidden)
    if guidance.mixes_logits(scale.index):
        logits = guidance.mix(scale.index, session.logits(hidden) / sampler.temperature(scale))
    else:
        logits = session.logits(hidden[: session.images]) / sampler.temperature(scale)
    _show(probe, "logits", scale, logits)
    choice = pruner.settle(tokens, sampler.sample(logits, scale))
    session.commit(scale, choice, hidden)
    _show(probe, "choice", scale, choice)
    _show(probe, "latent", scale, session.latent)
    return choice


def _show(probe: Probe | None, name: str, scale: Scale, tensor: Tensor) -> None:
    if probe is not None:
        probe(name, scale, tensor)
