"""Tiny real models with random weights, and one way to run them and to see what ran."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stepvar.generation.cache import KVCache
from stepvar.generation.guidance import Guidance, per_scale
from stepvar.generation.loop import Generation, generate
from stepvar.generation.progress import Observer, ScaleReport
from stepvar.generation.pruner import Preview, PruningMethod
from stepvar.generation.sampling import BitSampler, CodebookChoice, SamplingSettings
from stepvar.generation.schedule import Scale, ScaleSchedule
from stepvar.models.infinity.session import InfinitySession, TextCondition
from stepvar.models.infinity.transformer import InfinityTransformer

SMALL = ScaleSchedule.from_grids([(1, 1), (2, 2), (4, 3), (6, 5), (9, 7), (12, 10)])
"""Six scales, 248 tokens; no two sides are equal where it matters."""

TEXT_CHANNELS = 24


def make_transformer(seed: int = 0, **config) -> InfinityTransformer:
    """A tiny transformer whose every parameter is random, so that nothing hides behind a zero."""
    sizes = {"depth": 3, "width": 64, "heads": 2, "bits": 4, "text_channels": TEXT_CHANNELS}
    sizes |= {"text_length": 12, "pool_heads": 2, **config}
    model = InfinityTransformer(**sizes).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        drawn = torch.randn(value.shape, generator=generator)
        if name.endswith("norm.weight"):
            drawn = 1.0 + 0.1 * drawn
        elif name.endswith("log_scale"):
            drawn = 1.4 + 0.2 * drawn
        elif name.endswith("modulation") and "blocks" in name:
            drawn = 0.3 + 0.1 * drawn
        elif name == "token_embedding.weight":
            drawn = 3.0 * drawn / value.shape[-1] ** 0.5
        elif name == "head.weight":
            drawn = 0.7 * drawn / value.shape[-1] ** 0.5
        elif value.dim() == 2 and name != "unconditional_text":
            drawn = drawn / value.shape[-1] ** 0.5
        else:
            drawn = 0.2 * drawn
        value.data.copy_(drawn)
    return model.requires_grad_(False)


def make_text(*lengths: int, seed: int = 0, channels: int = TEXT_CHANNELS) -> tuple[Tensor, ...]:
    """Text features of prompts with these lengths; a prompt's features depend on its place and seed."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return tuple(torch.randn(length, channels, generator=generator) for length in lengths)


class WatchedCache:
    """Mixed into a session: remembers the cache that it allocated."""

    cache: KVCache

    def allocate_cache(self, plan) -> KVCache:
        self.cache = super().allocate_cache(plan)
        return self.cache


class WatchedSession(WatchedCache, InfinitySession):
    """A session that remembers the cache it allocated."""


class ForcedSampler:
    """Returns given values instead of drawing."""

    def __init__(self, choices: dict[int, Tensor]) -> None:
        self.choices = choices

    def temperature(self, scale: Scale) -> float:
        return 1.0

    def sample(self, logits: Tensor, scale: Scale) -> Tensor:
        return self.choices[scale.index]


@dataclass
class Drawing:
    """What came of a run, and what was seen of it.

    Attributes:
        tensors: What the loop showed, by (name, index of the scale).
    """

    session: WatchedCache
    result: Generation
    tensors: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    @property
    def reports(self) -> list[ScaleReport]:
        return self.result.scales

    @property
    def layer_tokens(self) -> list[list[int]]:
        """Tokens that really left each layer, one list a scale; zeros where the scale did not run."""
        depth = self.session.depth
        return [
            [
                self.tensors[f"layer {layer}", report.plan.scale.index].shape[1] if report.rows else 0
                for layer in range(depth)
            ]
            for report in self.reports
        ]

    @property
    def cache_lengths(self) -> list[tuple[int, int]]:
        """Tokens stored and room for them, one pair a layer."""
        return [(layer.length, layer.capacity) for layer in self.session.cache.layers]

    def fingerprint(self) -> str:
        """A hash of every drawn bit or code, every kept position and the accumulated codes."""
        digest = hashlib.sha256()
        for report in self.reports:
            choice = self.result.choices.get(report.plan.scale.index)
            drawn = choice.index if isinstance(choice, CodebookChoice) else choice
            for value in (drawn, report.kept_index):
                digest.update(b"-" if value is None else value.numpy().tobytes())
        digest.update(self.result.latent.numpy().tobytes())
        return digest.hexdigest()


@torch.no_grad()
def draw(
    transformer: InfinityTransformer,
    schedule: ScaleSchedule = SMALL,
    *,
    text: Sequence[Tensor] | None = None,
    negative: Sequence[Tensor] | None = None,
    seeds: Sequence[int] = (0,),
    guidance: float | Sequence[float] = 3.0,
    layers: Sequence[int] = (),
    at_logits: bool = True,
    release: bool = True,
    temperature: float | Sequence[float] = 1.0,
    top_k: int = 0,
    top_p: float = 0.0,
    pruning: PruningMethod | None = None,
    forced: dict[int, Tensor] | None = None,
    observer: Observer | None = None,
    patchify: bool = False,
    preview: Preview | None = None,
    watch: Any = None,
) -> Drawing:
    """Generates with the real loop; texts default to one prompt of 5 tokens a seed.

    `watch.session` is the session before it runs, for observers that look into it.
    """
    text = make_text(*[5] * len(seeds)) if text is None else text
    weights = per_scale(guidance, len(schedule), "guidance_scale")
    guide = Guidance(weights, frozenset(layers), at_logits, release)
    if not guide.active:
        negative = ()
    elif negative is None:
        negative = [transformer.unconditional_text[: len(entry)] for entry in text]
    session = WatchedSession(transformer, TextCondition(tuple(text), tuple(negative)), schedule, patchify)
    if watch is not None:
        watch.session = session
    temperatures = per_scale(temperature, len(schedule), "temperature")
    settings = SamplingSettings(temperatures, top_k, top_p)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    sampler = BitSampler(settings, schedule, transformer.config.bits, generators, session.device)
    tensors: dict[tuple[str, int], Tensor] = {}

    def probe(name: str, scale: Scale, tensor: Tensor) -> None:
        tensors[name, scale.index] = tensor

    result = generate(
        session,
        guidance=guide,
        sampler=sampler if forced is None else ForcedSampler(forced),
        pruning=pruning,
        observer=observer,
        probe=probe,
        preview=preview,
    )
    return Drawing(session, result, tensors)


def bits(drawing: Drawing) -> dict[int, Tensor]:
    """Drawn bits by index of the scale."""
    return drawing.result.choices


def same_bits(first: Drawing, second: Drawing) -> bool:
    """Whether two runs drew the same bits at the same scales."""
    left, right = bits(first), bits(second)
    return left.keys() == right.keys() and all(torch.equal(left[index], right[index]) for index in left)
