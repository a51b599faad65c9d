"""How often a model draws what its prompt says, judged on the embedded model's scenes from pixels alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stepvar.embedded.scenes import (
    CATEGORIES,
    CheckResult,
    Prompt,
    check,
    evaluation_prompts,
    render,
    scene_for,
)

if TYPE_CHECKING:
    from stepvar.models.pipeline import NextScalePipeline
    from stepvar.pruning.base import PruningMethod

Pixels = NDArray[np.uint8]
Advance = Callable[[int], None]
"""Told how many pictures were judged."""

ASPECTS = ("count", "shapes", "colours", "textures", "sizes", "position", "background")

_RESAMPLES = 10_000
_RENDERING = 1
"""Tells the random numbers of scenes from those of prompts."""


@dataclass(frozen=True)
class SceneScores:
    """Verdicts on pictures of prompts.

    Attributes:
        prompts: What was asked for.
        verdicts: What was found, one a prompt.
        seconds: Time that making the pictures took, judging not included.
    """

    prompts: Sequence[Prompt]
    verdicts: Sequence[CheckResult]
    seconds: float

    @property
    def overall(self) -> float:
        """Share of the pictures on which everything is right."""
        return _share(verdict.passed for verdict in self.verdicts)

    @property
    def categories(self) -> dict[str, float | None]:
        """The same by category; None for one without prompts."""
        return {
            category: _share_or_none(
                verdict.passed
                for prompt, verdict in zip(self.prompts, self.verdicts, strict=True)
                if prompt.category == category
            )
            for category in CATEGORIES
        }

    @property
    def aspects(self) -> dict[str, float]:
        """Share of the pictures on which one aspect is right, whether or not the prompt names it."""
        return {aspect: _share(getattr(verdict, aspect) for verdict in self.verdicts) for aspect in ASPECTS}

    def split(self, held_out: bool) -> dict[str, float | int | None]:
        """Score of the prompts that do, or do not, name a combination that training never shows."""
        passed = [
            verdict.passed
            for prompt, verdict in zip(self.prompts, self.verdicts, strict=True)
            if prompt.held_out == held_out
        ]
        return {"overall": _share_or_none(passed), "n": len(passed)}

    def interval(self) -> tuple[float, float]:
        """Bootstrap interval of `overall` that holds 95 %."""
        count = len(self.verdicts)
        # Drawing n verdicts with replacement and counting the passed ones is a binomial draw.
        draws = np.random.default_rng(0).binomial(count, self.overall, _RESAMPLES) / count
        low, high = np.percentile(draws, (2.5, 97.5))
        return float(low), float(high)

    def as_json(self) -> dict[str, Any]:
        return {
            "overall": self.overall,
            "interval": list(self.interval()),
            "n": len(self.prompts),
            "categories": self.categories,
            "aspects": self.aspects,
            "held_out": self.split(held_out=True),
            "seen": self.split(held_out=False),
            "seconds_per_image": self.seconds / len(self.prompts),
        }


def evaluate_generation(
    pipeline: NextScalePipeline,
    count: int,
    seed: int = 0,
    pruning: PruningMethod | str | None = None,
    batch: int = 8,
    advance: Advance | None = None,
    settings: dict[str, Any] | None = None,
) -> SceneScores:
    """Draws evaluation prompts, one seed a picture, and judges the pictures.

    Args:
        pipeline: A model that knows the scenes' words.
        count: Prompts.
        seed: Chooses the prompts; the pictures' seeds count on from it.
        pruning: As the pipeline takes it.
        batch: Pictures drawn at a time.
        advance: Hears of progress.
        settings: Further keyword arguments of the pipeline.
    """
    prompts = _prompts(count, seed)

    def draw() -> Iterator[Sequence[Pixels]]:
        for start in range(0, count, batch):
            part = prompts[start : start + batch]
            seeds = [seed + start + index for index in range(len(part))]
            texts = [prompt.text for prompt in part]
            result = pipeline(texts, seed=seeds, pruning=pruning, **(settings or {}))
            yield [np.asarray(image) for image in result.images]

    return _judge(prompts, draw(), advance)


def evaluate_reconstructions(
    pipeline: NextScalePipeline,
    count: int,
    seed: int = 0,
    batch: int = 8,
    advance: Advance | None = None,
    settings: dict[str, Any] | None = None,
) -> SceneScores:
    """Renders scenes of evaluation prompts, and judges what the visual tokenizer makes of them.

    This is the ceiling of what any transformer can reach with this tokenizer. Arguments as for
    `evaluate_generation`; only those that set the size belong in `settings`.

    Raises:
        ValueError: When the model's pictures are not square.
    """
    from stepvar.models.pipeline import to_output

    prompts = _prompts(count, seed)
    schedule = pipeline.schedule(**(settings or {}))
    height, width = pipeline.transformer.size_table.pixels(schedule)
    if height != width:
        raise ValueError(f"Scenes are square; {width}x{height} pixels are not: choose a square size.")
    scenes = _scenes(prompts, seed, width)
    grids = [(scale.height, scale.width) for scale in schedule]

    def reconstruct() -> Iterator[Sequence[Pixels]]:
        for start in range(0, count, batch):
            pictures = scenes[start : start + batch]
            decoded = _round_trip(pipeline.vae, pictures, grids)
            yield [np.asarray(image) for image in to_output(decoded, "pil")]

    return _judge(prompts, reconstruct(), advance)


def _round_trip(tokenizer: Any, pictures: Sequence[Pixels], grids: Sequence[tuple[int, int]]) -> Any:
    """Pictures -> bits of every scale -> pictures, [B, 3, H, W] in -1..1."""
    import torch

    with torch.inference_mode():
        stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()
        signed = (stacked / 127.5 - 1.0).to(tokenizer.device)
        return tokenizer.decode(tokenizer.encode(signed, grids).latent)


def _prompts(count: int, seed: int) -> list[Prompt]:
    if count < 1:
        raise ValueError(f"{count} prompts cannot be evaluated; ask for at least one.")
    return evaluation_prompts(count, seed)


def _scenes(prompts: Sequence[Prompt], seed: int, side: int) -> list[Pixels]:
    random = np.random.default_rng([seed, _RENDERING])
    return [
        render(scene_for(random, prompt.spec, split="any", canvas=side), side, seed=index)
        for index, prompt in enumerate(prompts)
    ]


def _judge(
    prompts: Sequence[Prompt], batches: Iterator[Sequence[Pixels]], advance: Advance | None
) -> SceneScores:
    verdicts: list[CheckResult] = []
    spent, started = 0.0, time.perf_counter()
    for pictures in batches:
        spent += time.perf_counter() - started
        part = prompts[len(verdicts) : len(verdicts) + len(pictures)]
        verdicts += [check(picture, prompt.spec) for picture, prompt in zip(pictures, part, strict=True)]
        if advance is not None:
            advance(len(pictures))
        started = time.perf_counter()
    return SceneScores(prompts, verdicts, spent)


def _share(values: Iterator[bool] | Sequence[bool]) -> float:
    return float(np.mean([bool(value) for value in values]))


def _share_or_none(values: Iterator[bool] | Sequence[bool]) -> float | None:
    listed = list(values)
    return _share(listed) if listed else None
