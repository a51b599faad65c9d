"""The generation loop: every model and every pruning method runs through `generate`.

A scale is embedded, goes through the layers, gives logits, is sampled, and is added to the latent, which the
next scale is embedded from. A pruning method is called around these steps and decides which tokens take part.
"""

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
from stepvar.generation.tokens import Choice, Tokens, row_count


class Session(Protocol):
    """A model at work on one batch: everything that lives as long as one generation.

    A model's own `start(condition, schedule)` makes it. It holds what is computed once (text keys
    and values, modulations), the accumulated latent, and nothing that belongs to a scale.

    Attributes:
        depth: Number of layers.
        images: B.
        copies: 2 when every image has an unconditional copy, else 1.
        latent: [B, d, (t,) H, W] codes accumulated so far.
    """

    depth: int
    images: int
    copies: int
    latent: Tensor

    @property
    def schedule(self) -> ScaleSchedule:
        """The scales."""
        ...

    def allocate_cache(self, plan: GenerationPlan) -> Cache:
        """Allocates the KV cache for exactly the tokens of the plan, or `NoCache` where scales share none."""
        ...

    def prefill(self, cache: Cache) -> None:
        """Runs what every scale sees besides earlier scales, a text prefix for example, into the cache.

        Called once, before the first scale; models that have no such prefix do nothing.
        """
        ...

    def embed(self, scale: Scale, rows: slice) -> tuple[Tensor, Tokens]:
        """Input of a scale from the latent: hidden states [R, N, C] of some rows, and their tokens.

        A model whose sequence has more than maps in it, a prompt's tokens for example, puts them before a
        scale's own: hidden states may then be [R, M + N, C], of which the loop hands on the last N.
        """
        ...

    def branches(self, layer: int, memory: Memory, rows: slice) -> Sequence[tuple[str, Branch]]:
        """The residual branches of a layer on some rows, by name, in order."""
        ...

    def logits(self, hidden: Tensor, rows: slice | None = None) -> Tensor:
        """Logits of some rows' hidden states [R, N, C], value last; by default of the first rows."""
        ...

    def commit(self, scale: Scale, choice: Choice, hidden: Tensor, tokens: Tokens) -> None:
        """Adds the sampled values of a scale to the latent.

        Args:
            choice: What the sampler drew.
            hidden: [R, N, C] hidden states that the logits came from; both copies of an image that is no
                longer guided are the one that remains.
            tokens: Tokens that ran through the last layer; other positions' hidden states were recovered.
        """
        ...


class Sampler(Protocol):
    """Draws values from logits; see `stepvar.generation.sampling`."""

    def temperature(self, scale: Scale) -> float:
        """What a scale's logits are divided by, before guidance."""
        ...

    def sample(self, logits: Tensor, scale: Scale) -> Choice:
        """Draws from guided logits [B, N, ...]."""
        ...

    def expect(self, logits: Tensor, scale: Scale) -> Choice:
        """The mean of what `sample` draws, without noise, in a form that the session commits too."""
        ...


Probe = Callable[[str, Scale, Any], None]
"""Called with (name, scale, value) for intermediate values; see `generate`."""

ScaleCallback = Callable[[ScaleReport, Tensor], Tensor | None]
"""Called with the report of a scale that ran and the accumulated codes; see `generate`."""


class NonFiniteError(ValueError):
    """A model computed logits that are no finite numbers."""


@dataclass
class Generation:
    """Result of a generation.

    Attributes:
        latent: [B, d, (t,) H, W] accumulated codes, ready to decode.
        choices: Sampled values per scale that ran, by scale index.
        scales: One report a scale, skipped ones included.
        cache_bytes: Size of the KV cache.
    """

    latent: Tensor
    choices: dict[int, Choice] = field(default_factory=dict)
    scales: list[ScaleReport] = field(default_factory=list)
    cache_bytes: int = 0

    def finish(self, latent: Tensor, watch: Stopwatch) -> None:
        """Takes the last codes, and the time between the two marks of every scale."""
        self.latent = latent
        for index, report in enumerate(self.scales):
            report.seconds = watch.seconds(2 * index)


def generate(
    session: Session,
    *,
    guidance: Guidance,
    sampler: Sampler,
    pruning: PruningMethod | None = None,
    observer: Observer | None = None,
    probe: Probe | None = None,
    preview: Preview | None = None,
    prefix: Mapping[int, Choice] | None = None,
    on_scale_end: ScaleCallback | None = None,
) -> Generation:
    """Runs all scales of a schedule.

    Args:
        session: The model at work, from its `start(...)`.
        guidance: Classifier-free guidance.
        sampler: Draws the values.
        pruning: A pruning method's configuration; None runs everything.
        observer: Called with a report after every scale, skipped ones included.
        probe: Called with intermediate values: "input" of the first layer, "layer 0", "layer 1", ... (output
            of a layer, of the tokens that ran, before guidance), "logits" (after temperature and guidance),
            "choice" and "latent".
        preview: Decodes accumulated codes of any size, for methods that look at the picture so far.
        prefix: Values of scales that are known already, by index: the model reads them, and draws the rest.
        on_scale_end: Called after every scale that ran; returns the codes to go on with, or None to leave out
            the scales that are left.

    Returns:
        The accumulated latent, the choices and the reports.

    Raises:
        NonFiniteError: When logits were not finite; found out at the end, so that no device waits in between.
    """
    plan = plan_generation(pruning, session.schedule, session.depth)
    guidance = replace(guidance, remaining=plan.remaining)
    step = ScaleStep.prefilled(session, pruning, plan, sampler, probe)
    result = Generation(session.latent, cache_bytes=step.cache.bytes)
    limits = Limits.planned(plan, session.images)
    watch = Stopwatch(session.latent.device)
    ended = False
    for entry in plan.scales:
        index = entry.scale.index
        watch.mark()
        limits = (None if ended else step.pruner.decide(entry.scale, session.latent, preview)) or limits
        report = ScaleReport(limits.of(entry))
        if not report.plan.skipped:
            result.choices[index] = step.run_limited(report, limits, guidance, (prefix or {}).get(index))
        watch.mark()
        result.scales.append(report)
        if not watch.deferred:
            report.seconds = watch.seconds(2 * index)
        if observer is not None:
            observer(report)
        if on_scale_end is not None and not report.plan.skipped:
            changed = on_scale_end(report, session.latent)
            ended = changed is None
            session.latent = session.latent if changed is None else changed
            limits = limits.ended_after(index) if ended else limits
    step.require_finite()
    result.finish(session.latent, watch)
    return result


@dataclass(frozen=True)
class ScaleStep:
    """One step of the loop, with what all steps share; see `generate`."""

    session: Session
    cache: Cache
    pruner: Pruner
    sampler: Sampler
    probe: Probe | None
    extremes: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def prefilled(
        cls,
        session: Session,
        pruning: PruningMethod | None,
        plan: GenerationPlan,
        sampler: Sampler,
        probe: Probe | None,
    ) -> ScaleStep:
        """A step with a pruner at its start and a cache that holds what every scale sees."""
        pruner = start_pruner(pruning, plan, session.latent.device)
        cache = session.allocate_cache(plan)
        session.prefill(cache)
        return cls(session, pruner.attach(cache), pruner, sampler, probe)

    def require_finite(self) -> None:
        """Raises NonFiniteError when logits of any scale were not finite; waits for the device once."""
        if not self.extremes or self.session.latent.is_meta:
            return
        finite = torch.stack(list(self.extremes.values())).isfinite().all(dim=1).tolist()
        broken = [scale for scale, good in zip(self.extremes, finite, strict=True) if not good]
        if broken:
            raise NonFiniteError(
                f"The model computed logits that are no finite numbers at scale {broken[0]}: its weights are "
                "damaged, a setting is extreme, or the number format is too small; load it again, or use "
                "float32."
            )

    def run_limited(
        self, report: ScaleReport, limits: Limits, guidance: Guidance, given: Choice | None
    ) -> Choice:
        """Runs a scale for the images that have not ended, and notes in its report what was computed."""
        session, scale, before = self.session, report.plan.scale, self.session.latent
        limited = replace(guidance, until=limits.guided_until)
        rows = limited.rows(scale.index, session.images, session.copies)
        report.rows = row_count(rows)
        self.pruner.begin_scale(report.plan, session.images, before)
        choice = self.run(scale, rows, limited, given)
        session.latent = _keep_ended(limits.running(scale.index), session.latent, before)
        report.kept_index = self.pruner.kept_index
        return choice

    def run(self, scale: Scale, rows: slice, guidance: Guidance, given: Choice | None) -> Choice:
        """Embeds a scale, runs the layers, samples its values unless they are given, and commits them.

        Args:
            rows: Batch rows to compute: those of the conditional copies, of the unconditional ones, or both.
            given: Values that are known already.

        Returns:
            The values.
        """
        self.cache.select(rows)
        hidden, tokens = self.session.embed(scale, rows)
        self._show("input", scale, hidden)
        hidden, tokens = self._run_layers(scale, rows, guidance, hidden, tokens)
        choice = self._sample(scale, rows, guidance, hidden, tokens) if given is None else given
        self.session.commit(scale, choice, guidance.paired(scale.index, hidden), tokens)
        self._show("choice", scale, choice)
        self._show("latent", scale, self.session.latent)
        return choice

    def _run_layers(
        self, scale: Scale, rows: slice, guidance: Guidance, hidden: Tensor, tokens: Tokens
    ) -> tuple[Tensor, Tokens]:
        """Hidden states of all positions after the last layer, and the tokens that ran through it."""
        for layer in range(self.session.depth):
            tokens, hidden = self.pruner.enter(layer, tokens, hidden)
            for name, branch in self.session.branches(layer, self.cache[layer], rows):
                hidden = self.pruner.residual(layer, name, branch, tokens, hidden)
            self._show(f"layer {layer}", scale, hidden)
            hidden = guidance.after_layer(scale.index, layer, hidden)
        return self.pruner.leave(tokens, hidden)[:, -scale.tokens :], tokens

    def _sample(
        self, scale: Scale, rows: slice, guidance: Guidance, hidden: Tensor, tokens: Tokens
    ) -> Choice:
        """Draws the values of a scale from its hidden states."""
        session, temperature = self.session, self.sampler.temperature(scale)
        if guidance.mixes_logits(scale.index):
            logits = guidance.mix_images(scale.index, session.logits(hidden, rows) / temperature)
        else:
            alone = guidance.unmixed_rows(scale.index, session.images, session.copies)
            first = alone.start - rows.start
            logits = session.logits(hidden[first : first + session.images], alone) / temperature
        self._show("logits", scale, logits)
        self.extremes[str(scale)] = torch.stack(torch.aminmax(logits))
        drawn = self.sampler.sample(logits, scale)
        return self.pruner.settle(tokens, drawn, lambda: self.sampler.expect(logits, scale))

    def _show(self, name: str, scale: Scale, value: Any) -> None:
        if self.probe is not None:
            self.probe(name, scale, value)


def _keep_ended(running: list[bool], latent: Tensor, before: Tensor) -> Tensor:
    """The latent of images that still run, and the one before for those that have ended."""
    if all(running):
        return latent
    mask = torch.tensor(running, dtype=torch.bool, device=latent.device)
    return torch.where(mask.view(-1, *(1,) * (latent.dim() - 1)), latent, before)
