"""Scene score: the share of pictures that show what their prompts ask for, checked in the pixels alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stepvar import scenes as still
from stepvar.scenes.moving import checker as video_checker
from stepvar.scenes.moving import grammar as video_grammar
from stepvar.scenes.moving import scenes as video_scenes

if TYPE_CHECKING:
    from stepvar.models.pipeline import NextScalePipeline
    from stepvar.pruning.presets import Pruning

Pixels = NDArray[np.uint8]
"""A picture [H, W, 3], or the frames of a video [F, H, W, 3]."""

Prompt = still.Prompt | video_grammar.VideoPrompt
Verdict = still.CheckResult | video_checker.VideoCheckResult
Advance = Callable[[int], None]
"""Called with the number of pictures that were just checked."""

ASPECTS = ("count", "shapes", "colours", "textures", "sizes", "position", "background")
"""Of a picture."""

_RESAMPLES = 10_000
_RENDERING = 1
"""Tells the random numbers of scenes from those of prompts."""


@dataclass(frozen=True)
class SceneKind:
    """Scenes that a model may be asked for.

    Attributes:
        categories: Of the prompts.
        aspects: Of a verdict.
        prompts: Evaluation prompts, for a number and a seed.
        check: Checks pixels against what a prompt asks for.
        render: Pixels that show what a prompt asks for, for random numbers, its spec, a side and a seed.
    """

    categories: Sequence[str]
    aspects: Sequence[str]
    prompts: Callable[[int, int], Sequence[Any]]
    check: Callable[[Pixels, Any], Any]
    render: Callable[[np.random.Generator, Any, int, int], Pixels]


def _render_still(random: np.random.Generator, spec: Any, side: int, seed: int) -> Pixels:
    return still.render(still.scene_for(random, spec, split="any", canvas=side), side, seed)


def _render_moving(random: np.random.Generator, spec: Any, side: int, seed: int) -> Pixels:
    scene = video_scenes.scene_for(random, spec, split="any", canvas=side)
    return video_scenes.render_video(scene, side, seed=seed)


STILL = SceneKind(still.CATEGORIES, ASPECTS, still.evaluation_prompts, still.check, _render_still)
MOVING = SceneKind(
    video_grammar.CATEGORIES,
    ("count", "shapes", "colours", "textures", "motion", "background"),
    video_grammar.evaluation_prompts,
    video_checker.check,
    _render_moving,
)


@dataclass(frozen=True)
class SceneScores:
    """Verdicts on pictures, or videos, of prompts.

    Attributes:
        prompts: What was asked for.
        verdicts: What was found, one a prompt.
        seconds: Time of generating the pictures, without checking them.
        kind: Of the scenes.
    """

    prompts: Sequence[Prompt]
    verdicts: Sequence[Verdict]
    seconds: float
    kind: SceneKind = STILL

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
            for category in self.kind.categories
        }

    @property
    def aspects(self) -> dict[str, float]:
        """Share of the pictures on which one aspect is right, whether or not the prompt names it."""
        return {
            aspect: _share(getattr(verdict, aspect) for verdict in self.verdicts)
            for aspect in self.kind.aspects
        }

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
    pruning: Pruning = None,
    batch: int = 8,
    advance: Advance | None = None,
    settings: dict[str, Any] | None = None,
    kind: SceneKind = STILL,
) -> SceneScores:
    """Generates evaluation prompts, one seed a picture, and checks the pictures.

    Args:
        pipeline: A model that knows the scenes' words.
        count: Prompts.
        seed: Chooses the prompts; the pictures' seeds count on from it.
        pruning: As the pipeline takes it.
        batch: Pictures generated at a time.
        advance: Called with the progress.
        settings: Further keyword arguments of the pipeline.
        kind: `STILL` for a model of pictures, `MOVING` for one of videos.
    """
    prompts = _prompts(count, seed, kind)

    def draw() -> Iterator[Sequence[Pixels]]:
        for start in range(0, count, batch):
            part = prompts[start : start + batch]
            seeds = [seed + start + index for index in range(len(part))]
            texts = [prompt.text for prompt in part]
            result = pipeline(texts, seed=seeds, pruning=pruning, **(settings or {}))
            if kind is MOVING:
                yield [np.stack([np.asarray(frame) for frame in video]) for video in result.frames]
            else:
                yield [np.asarray(image) for image in result.images]

    return _check(kind, prompts, draw(), advance)


def evaluate_reconstructions(
    pipeline: NextScalePipeline,
    count: int,
    seed: int = 0,
    batch: int = 8,
    advance: Advance | None = None,
    settings: dict[str, Any] | None = None,
    kind: SceneKind = STILL,
) -> SceneScores:
    """Renders scenes of evaluation prompts, and checks their reconstructions by the visual tokenizer.

    This is the ceiling of what any transformer can reach with this tokenizer. Arguments as for
    `evaluate_generation`; only those that set the size belong in `settings`.

    Raises:
        ValueError: When the model's pictures are not square.
    """
    prompts = _prompts(count, seed, kind)
    schedule = pipeline.schedule(**(settings or {}))
    height, width = pipeline.pixels(schedule)
    if height != width:
        raise ValueError(f"Scenes are square; {width}x{height} pixels are not: choose a square size.")
    random = np.random.default_rng([seed, _RENDERING])
    scenes = [kind.render(random, prompt.spec, width, index) for index, prompt in enumerate(prompts)]
    round_trip = _video_round_trip if kind is MOVING else _picture_round_trip

    def reconstruct() -> Iterator[Sequence[Pixels]]:
        for start in range(0, count, batch):
            yield round_trip(pipeline.vae, scenes[start : start + batch], schedule)

    return _check(kind, prompts, reconstruct(), advance)


def _picture_round_trip(tokenizer: Any, pictures: Sequence[Pixels], schedule: Any) -> list[Pixels]:
    """Pictures -> bits of every scale -> pictures."""
    import torch

    from stepvar.models.output import to_output

    grids = [(scale.height, scale.width) for scale in schedule]
    with torch.inference_mode():
        decoded = tokenizer.decode_pixels(tokenizer.encode(_signed(pictures, tokenizer.device), grids).latent)
    return [np.asarray(image) for image in to_output(decoded, "pil")]


def _video_round_trip(tokenizer: Any, videos: Sequence[Pixels], schedule: Any) -> list[Pixels]:
    """Videos -> bits of every step -> videos."""
    import torch

    from stepvar.models.infinitystar.frames import to_bytes
    from stepvar.models.infinitystar.quantizer import quantize

    with torch.inference_mode():
        steps = quantize(tokenizer.encode(_signed(videos, tokenizer.device)), schedule)
        codes = torch.cat([step.after for step in steps if step.scale.ends_clip], dim=2)
        return [to_bytes(video).numpy() for video in tokenizer.decode_pixels(codes)]


def _signed(pixels: Sequence[Pixels], device: Any) -> Any:
    """Bytes [..., 3] as one tensor [B, 3, ...] in -1..1."""
    import torch

    stacked = torch.from_numpy(np.stack(pixels)).movedim(-1, 1).float()
    return (stacked / 127.5 - 1.0).to(device)


def _prompts(count: int, seed: int, kind: SceneKind) -> Sequence[Any]:
    if count < 1:
        raise ValueError(f"{count} prompts cannot be evaluated; ask for at least one.")
    return kind.prompts(count, seed)


def _check(
    kind: SceneKind,
    prompts: Sequence[Any],
    batches: Iterator[Sequence[Pixels]],
    advance: Advance | None,
) -> SceneScores:
    verdicts: list[Verdict] = []
    spent, started = 0.0, time.perf_counter()
    for pictures in batches:
        spent += time.perf_counter() - started
        part = prompts[len(verdicts) : len(verdicts) + len(pictures)]
        verdicts += [kind.check(pixels, prompt.spec) for pixels, prompt in zip(pictures, part, strict=True)]
        if advance is not None:
            advance(len(pictures))
        started = time.perf_counter()
    return SceneScores(prompts, verdicts, spent, kind)


def _share(values: Iterator[bool] | Sequence[bool]) -> float:
    return float(np.mean([bool(value) for value in values]))


def _share_or_none(values: Iterator[bool] | Sequence[bool]) -> float | None:
    listed = list(values)
    return _share(listed) if listed else None
