"""The generation loop: one road for every model and every pruning method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from stepvar.generation.cache import Cache, Memory
from stepvar.generation.guidance import Guidance
from stepvar.generation.plan import GenerationPlan
from stepvar.generation.progress import Observer, ScaleReport, Stopwatch
from stepvar.generation.pruner import (
    Branch,
    Limits,
    Preview,
    Pruner,
    PruningMethod,
    plan_generation,
    start_pruner,
)
from stepvar.generation.schedule import Scale, ScaleSchedule
from stepvar.generation.tokens import Tokens


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

    def allocate_cache(self, plan: GenerationPlan) -> Cache:
        """Allocates the KV cache for exactly the tokens of the plan, or `NoCache` where scales share none."""
        ...

    def prefill(self, cache: Cache) -> None:
        """Runs what every scale sees besides earlier scales, a text prefix for example, into the cache.

        Called once, before the first scale; models that have no such prefix do nothing.
        """
        ...

    def embed(self, scale: Scale, rows: int) -> tuple[Tensor, Tokens]:
        """Input of a scale from the latent: hidden states [rows, N, C] and their tokens.

        A model whose sequence has more than maps in it, a prompt's tokens for example, puts them before a
        scale's own: hidden states may then be [rows, M + N, C], of which the loop hands on the last N.
        """
        ...

    def branches(self, layer: int, memory: Memory, rows: int) -> Sequence[tuple[str, Branch]]:
        """The residual branches of a layer, by name, in order."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of the first rows' hidden states [rows, N, C], value last."""
        ...

    def commit(self, scale: Scale, choice: Any, hidden: Tensor, tokens: Tokens) -> None:
        """Adds the sampled values of a scale to the latent.

        Args:
            choice: What the sampler drew.
            hidden: [rows, N, C] hidden states that the logits came from; both copies of an image that is no
                longer guided are its conditional one.
            tokens: Tokens that ran through the last layer; other positions' hidden states were recovered.
        """
        ...


class Sampler(Protocol):
    """Draws values from logits; see `stepvar.generation.sampling`."""

    def temperature(self, scale: Scale) -> float:
        """What a scale's logits are divided by, before guidance."""
        ...

    def sample(self, logits: Tensor, scale: Scale) -> Any:
        """Draws from guided logits, in the form that the session commits: a tensor [B, N, ...] or several."""
        ...

    def expect(self, logits: Tensor, scale: Scale) -> Any:
        """What `sample` gives on average, without noise, in a form that the session commits too."""
        ...


Probe = Callable[[str, Scale, Any], None]
"""Called with (name, scale, value) at the loop's landmarks; see `generate`."""


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
    choices: dict[int, Any] = field(default_factory=dict)
    scales: list[ScaleReport] = field(default_factory=list)
    cache_bytes: int = 0


def generate(
    session: Session,
    *,
    guidance: Guidance,
    sampler: Sampler,
    pruning: PruningMethod | None = None,
    observer: Observer | None = None,
    probe: Probe | None = None,
    preview: Preview | None = None,
    prefix: Mapping[int, Tensor] | None = None,
) -> Generation:
    """Runs all scales of a schedule.

    Args:
        session: The model at work, from its `start(...)`.
        guidance: Classifier-free guidance.
        sampler: Draws the values.
        pruning: A pruning method's configuration; None runs everything.
        observer: Hears of every scale.
        probe: Sees intermediate values: "input" of the first layer, "layer 0", "layer 1", ... (what
            leaves a layer: living tokens only, before guidance), "logits" (after temperature and
            guidance), "choice" and "latent".
        preview: Draws accumulated codes of any size as pixels, for methods that look at the picture so far.
        prefix: Values of scales that are known already, by index: the model reads them, and draws the rest.

    Returns:
        The accumulated latent, the choices and the reports.
    """
    plan = plan_generation(pruning, session.schedule, session.depth)
    device = session.latent.device
    pruner = start_pruner(pruning, plan, device)
    allocated = session.allocate_cache(plan)
    session.prefill(allocated)
    cache = pruner.attach(allocated)
    result = Generation(session.latent, cache_bytes=cache.bytes)
    limits = Limits.planned(plan, session.images)
    watch = Stopwatch(device)
    for entry in plan.scales:
        watch.mark()
        limits = pruner.decide(entry.scale, session.latent, preview) or limits
        report = ScaleReport(limits.of(entry))
        if not report.plan.skipped:
            before = session.latent
            pruner.begin_scale(entry, session.images, before)
            limited = replace(guidance, until=limits.guided_until)
            report.rows = limited.rows(entry.scale.index, session.images, session.copies)
            known = (prefix or {}).get(entry.scale.index)
            result.choices[entry.scale.index] = run_scale(
                session, entry.scale, report.rows, cache, pruner, limited, sampler, probe, known
            )
            session.latent = _merge(limits.running(entry.scale.index), session.latent, before)
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
    cache: Cache,
    pruner: Pruner,
    guidance: Guidance,
    sampler: Sampler,
    probe: Probe | None,
    known: Any = None,
) -> Any:
    """One scale: embed, run the layers, sample unless the values are known, commit. Returns the values."""
    hidden, tokens = session.embed(scale, rows)
    _show(probe, "input", scale, hidden)
    for layer in range(session.depth):
        tokens, hidden = pruner.enter(layer, tokens, hidden)
        for name, branch in session.branches(layer, cache[layer], rows):
            hidden = pruner.residual(layer, name, branch, tokens, hidden)
        if probe is not None:
            probe(f"layer {layer}", scale, hidden)
        hidden = guidance.after_layer(scale.index, layer, hidden)
    hidden = pruner.leave(tokens, hidden)[:, -scale.tokens :]
    choice = known
    if known is None:
        logits = _logits(session, scale, hidden, guidance, sampler)
        _show(probe, "logits", scale, logits)
        drawn = sampler.sample(logits, scale)
        choice = pruner.settle(tokens, drawn, lambda: sampler.expect(logits, scale))
    session.commit(scale, choice, guidance.paired(scale.index, hidden), tokens)
    _show(probe, "choice", scale, choice)
    _show(probe, "latent", scale, session.latent)
    return choice


def _logits(session: Session, scale: Scale, hidden: Tensor, guidance: Guidance, sampler: Sampler) -> Tensor:
    """Logits after temperature and guidance, one row an image."""
    if guidance.mixes_logits(scale.index):
        logits = session.logits(hidden) / sampler.temperature(scale)
        return guidance.mix_images(scale.index, logits)
    return session.logits(hidden[: session.images]) / sampler.temperature(scale)


def _merge(running: list[bool], latent: Tensor, before: Tensor) -> Tensor:
    """The latent of images that still run, and what it was for those that have ended."""
    if all(running):
        return latent
    mask = torch.tensor(running, device=latent.device).view(-1, *(1,) * (latent.dim() - 1))
    return torch.where(mask, latent, before)


def _show(probe: Probe | None, name: str, scale: Scale, value: Any) -> None:
    if probe is not None:
        probe(name, scale, value)
