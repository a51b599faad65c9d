"""What a call asks for, checked before anything is computed: what the calls of all models share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch

from stepvar.generation.cascade import Cascade
from stepvar.generation.guidance import Guidance
from stepvar.generation.plan import GenerationPlan
from stepvar.generation.pruner import PruningMethod
from stepvar.generation.sampling import CodebookSettings, SamplingSettings
from stepvar.generation.schedule import ScaleSchedule

MAXIMUM_SEED = 2**63 - 1

PerScale = float | Sequence[float]
Seeds = int | Sequence[int] | None
Generators = torch.Generator | Sequence[torch.Generator] | None


@dataclass(frozen=True)
class Inputs:
    """What to draw and with which random numbers; nothing is encoded yet.

    Attributes:
        prompts: Texts, or numbers of classes; empty texts where features were given.
        negatives: Texts to steer away from, one a prompt; None where none were given.
        features: Encoded prompts and encoded negatives, each None where texts are to be encoded.
        repeats: Pictures of each prompt.
        generators, seeds: One a picture; the seed is None where a generator was passed.
    """

    prompts: list[Any]
    negatives: list[str] | None
    features: tuple[Any, Any]
    repeats: int
    generators: list[torch.Generator]
    seeds: list[int | None]

    @classmethod
    def of(
        cls,
        prompts: list[Any],
        seed: Seeds,
        generator: Generators,
        repeats: int = 1,
        negatives: list[str] | None = None,
        features: tuple[Any, Any] = (None, None),
        counted: str = "num_images_per_prompt",
    ) -> Inputs:
        """Of checked prompts.

        Raises:
            ValueError: When the numbers of pictures and seeds do not fit; `counted` is what the caller calls
                `repeats`.
        """
        if repeats < 1:
            raise ValueError(f"{counted} is {repeats}; it must be 1 or more.")
        generators, seeds = make_generators(len(prompts) * repeats, seed, generator)
        return cls(prompts, negatives, features, repeats, generators, seeds)

    @classmethod
    def of_texts(
        cls,
        prompt: str | Sequence[str] | None,
        negative: str | Sequence[str] | None,
        features: tuple[Any, Any],
        seed: Seeds,
        generator: Generators,
        repeats: int = 1,
    ) -> Inputs:
        """Of a prompt or several, or of their features.

        Raises:
            ValueError: When a prompt is missing or empty, or the numbers do not fit.
        """
        for text, given, name in (
            (prompt, features[0], "prompt"),
            (negative, features[1], "negative_prompt"),
        ):
            if text and given is not None:
                raise ValueError(f"{name} and {name}_embeds were both given: give one of them.")
        prompts = as_prompts(prompt or "") if features[0] is None else [""] * len(features[0])
        if not prompts:
            raise ValueError("prompt_embeds is empty: give one entry a prompt.")
        negatives = as_negatives(negative, len(prompts))
        if features[1] is not None and len(features[1]) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many negatives; got {len(features[1])}.")
        return cls.of(prompts, seed, generator, repeats, negatives, features)

    @property
    def images(self) -> int:
        return len(self.generators)


@dataclass(frozen=True)
class Request:
    """A checked call, which `NextScalePipeline.run` carries out; models add what is their own.

    Attributes:
        inputs: What to draw.
        schedule: The scales.
        guidance, sampling: How values are drawn.
        method: Of pruning; None for none.
        cascade: Another pipeline that draws the first scales.
    """

    inputs: Inputs
    schedule: ScaleSchedule
    guidance: Guidance
    sampling: SamplingSettings | CodebookSettings
    method: PruningMethod | None
    cascade: Cascade | None = None


def as_prompts(prompt: str | Sequence[str], name: str = "prompt") -> list[str]:
    """A prompt or several, as a list without empty ones.

    Raises:
        ValueError: When there is none, or one is empty or no text.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ValueError(f"No {name} was given.")
    for index, entry in enumerate(prompts):
        if not isinstance(entry, str) or not entry.strip():
            which = f"{name} {index + 1}" if len(prompts) > 1 else f"The {name}"
            raise ValueError(f"{which} is empty: describe the picture in words.")
    return prompts


def as_negatives(negative: str | Sequence[str] | None, prompts: int) -> list[str] | None:
    """Negative prompts, one for each of so many prompts; None where there are none.

    Raises:
        ValueError: When one is empty, or there are neither one nor as many as prompts.
    """
    if negative is None or negative == "":
        return None
    negatives = as_prompts(negative, "negative prompt")
    if len(negatives) == 1:
        negatives *= prompts
    if len(negatives) != prompts:
        raise ValueError(f"{prompts} prompts need one negative prompt, or {prompts}; got {len(negatives)}.")
    return negatives


def make_generators(
    images: int, seed: Seeds, generator: Generators
) -> tuple[list[torch.Generator], list[int | None]]:
    """One generator an image, and the seeds they were made from.

    A single seed s gives the images s, s + 1, ...; without seed or generator fresh seeds are drawn,
    and reported, so that every picture can be made again.

    Raises:
        ValueError: When the numbers do not fit, or a seed is out of range.
    """
    if generator is not None:
        given = [generator] if isinstance(generator, torch.Generator) else list(generator)
        if len(given) == 1 and images > 1:
            raise ValueError(f"{images} images need {images} generators, so that each is its own; got one.")
        if len(given) != images:
            raise ValueError(f"{images} images need {images} generators; got {len(given)}.")
        return given, [None] * images
    if seed is None:
        # A generator of its own: the program's stays as it was.
        first = torch.Generator().seed() % 2**31
        seeds = [first + index for index in range(images)]
    elif isinstance(seed, Integral):
        seeds = [int(seed) + index for index in range(images)]
    else:
        seeds = [int(value) for value in seed]
    if len(seeds) != images:
        raise ValueError(f"{images} images need {images} seeds; got {len(seeds)}.")
    for value in seeds:
        if not 0 <= value <= MAXIMUM_SEED:
            raise ValueError(f"The seed {value} is out of range: use 0 to {MAXIMUM_SEED}.")
    return [torch.Generator().manual_seed(value) for value in seeds], list(seeds)


def check_filters(top_k: int, top_p: float) -> None:
    """Raises ValueError when the filters of sampling are out of range."""
    if top_k < 0 or not 0.0 <= top_p <= 1.0:
        raise ValueError(f"top_k is {top_k} and top_p is {top_p:g}; use 0 or more, and 0 to 1.")


def check_temperatures(values: Sequence[float]) -> None:
    """Raises ValueError when a temperature is not positive."""
    for value in values:
        if not value > 0:
            raise ValueError(f"temperature is {value:g}; it must be positive (top_k=1 takes the best).")


def check_plan(plan: GenerationPlan, method: PruningMethod | None) -> None:
    """Raises ValueError when a pruning method would not change anything although it names scales."""
    if method is not None and not plan.changes and not getattr(method, "ratios", None):
        raise ValueError(
            "Pruning was asked for, but it names no scale to prune or skip: "
            "give ratios such as {-1: 0.5}, or scales to skip, or pass pruning=None."
        )


def check_guidance(plan: GenerationPlan, guidance: Guidance) -> None:
    """Raises ValueError when a plan drops guidance where there is none."""
    if plan.unguided is None:
        return
    late = [entry for entry in plan.scales[plan.unguided :] if not entry.skipped]
    if not guidance.active or not any(guidance.guides(entry.scale.index) for entry in late):
        raise ValueError(
            f"Guidance was to be dropped from scale {plan[plan.unguided].scale} on, but no scale that runs "
            "is guided there: leave it out, or guide those scales."
        )
