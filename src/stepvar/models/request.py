"""Requests: what a call asks for, checked before anything is computed; what the calls of all models share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import torch

from stepvar.generation.cascade import Cascade
from stepvar.generation.guidance import Guidance, per_scale
from stepvar.generation.plan import GenerationPlan
from stepvar.generation.pruner import PruningMethod
from stepvar.generation.schedule import ScaleSchedule
from stepvar.models.output import CallOptions, StageTimer

if TYPE_CHECKING:
    from typing_extensions import Self

MAXIMUM_SEED = 2**63 - 1

MOST_IMAGES = 2**20
"""Pictures of a call: every one has a generator before anything is computed."""

SMALLEST_TEMPERATURE = 1e-6
"""Logits divided by less could overflow float32 before guidance mixes them."""

PerScale = float | Sequence[float]
Seeds = int | Sequence[int] | None
Generators = torch.Generator | Sequence[torch.Generator] | None


@dataclass(frozen=True)
class Inputs:
    """What to draw and with which random numbers; nothing is encoded yet.

    Attributes:
        prompts: Texts, or numbers of classes; empty texts where embeddings were given.
        negatives: Texts to steer away from, one a prompt; None where none were given.
        embeds: Encoded prompts and encoded negatives, each None where texts are to be encoded.
        repeats: Pictures of each prompt.
        generators: One a picture; where one generator was given for several, each entry is that one.
        seeds: One a picture, None where a generator was given.
    """

    prompts: list[Any]
    negatives: list[str] | None
    embeds: tuple[Any, Any]
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
        embeds: tuple[Any, Any] = (None, None),
    ) -> Inputs:
        """Of checked prompts.

        Raises:
            ValueError: When the numbers of pictures and seeds do not fit.
        """
        if not is_whole(repeats) or not 1 <= repeats * len(prompts) <= MOST_IMAGES:
            raise ValueError(
                f"num_images_per_prompt is {repeats}; it must be a whole number, 1 or more, and a call draws "
                f"{MOST_IMAGES} pictures at most."
            )
        generators, seeds = make_generators(len(prompts) * repeats, seed, generator)
        return cls(prompts, negatives, embeds, repeats, generators, seeds)

    @classmethod
    def of_texts(
        cls,
        prompt: str | Sequence[str] | None,
        negative: str | Sequence[str] | None,
        embeds: tuple[Any, Any],
        seed: Seeds,
        generator: Generators,
        repeats: int = 1,
    ) -> Inputs:
        """Of a prompt or several, or of their embeddings.

        Raises:
            ValueError: When a prompt is missing or empty, or the numbers do not fit.
        """
        for text, given, name in ((prompt, embeds[0], "prompt"), (negative, embeds[1], "negative_prompt")):
            if text and given is not None:
                raise ValueError(f"{name} and {name}_embeds were both given: give one of them.")
        if embeds[0] is None:
            prompts = as_prompts("" if prompt is None else prompt)
        else:
            prompts = [""] * len(embeds[0])
        if not prompts:
            raise ValueError("prompt_embeds is empty: give one entry a prompt.")
        negatives = as_negatives(negative, len(prompts))
        if embeds[1] is not None and len(embeds[1]) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many negatives; got {len(embeds[1])}.")
        return cls.of(prompts, seed, generator, repeats, negatives, embeds)

    @property
    def images(self) -> int:
        """B."""
        return len(self.generators)

    def of_picture(self, picture: int) -> Inputs:
        """What is asked for one of the pictures."""
        prompt = slice(picture // self.repeats, picture // self.repeats + 1)
        positive, negative = (None if side is None else side[prompt] for side in self.embeds)
        return Inputs(
            self.prompts[prompt],
            None if self.negatives is None else self.negatives[prompt],
            (positive, negative),
            1,
            [self.generators[picture]],
            [self.seeds[picture]],
        )


@dataclass(frozen=True, kw_only=True)
class Request:
    """A checked call; models add what is their own.

    Attributes:
        inputs: What to draw.
        schedule: The scales.
        guidance: Classifier-free guidance.
        method: Of pruning; None for none.
        options: In which form the result is handed over, and what is called on the way.
        timer: Measures the stages of the call.
        cascade: Another pipeline that draws the first scales.
    """

    inputs: Inputs
    schedule: ScaleSchedule
    guidance: Guidance
    method: PruningMethod | None
    options: CallOptions
    timer: StageTimer
    cascade: Cascade | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.options.batch_invariant, bool):
            raise ValueError(f"batch_invariant is {self.options.batch_invariant!r}; give True or False.")
        own = {id(generator) for generator in self.inputs.generators}
        if self.options.batch_invariant and len(own) < self.inputs.images:
            raise ValueError(
                "batch_invariant draws each picture from random numbers of its own, and one generator serves "
                "several: pass seeds, or one generator a picture."
            )

    @property
    def parts(self) -> list[Self]:
        """What is computed together: all pictures, or each by itself where none may depend on another."""
        if not self.options.batch_invariant:
            return [self]
        return [replace(self, inputs=self.inputs.of_picture(index)) for index in range(self.inputs.images)]


def as_prompts(prompt: str | Sequence[str], name: str = "prompt") -> list[str]:
    """A prompt or several, as a list without empty ones.

    Raises:
        ValueError: When there is none, or one is empty or no text.
    """
    if not isinstance(prompt, Iterable) or isinstance(prompt, (bytes, bytearray, Mapping)):
        raise ValueError(f"{name} is of type {type(prompt).__name__}: give a text, or a list of texts.")
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ValueError(f"No {name} was given.")
    for index, entry in enumerate(prompts):
        which = f"{name} {index + 1}" if len(prompts) > 1 else f"The {name}"
        if not isinstance(entry, str):
            raise ValueError(f"{which} is of type {type(entry).__name__}: give a text.")
        if not entry.strip():
            raise ValueError(f"{which} is empty: describe the picture in words.")
        if not is_unicode(entry):
            raise ValueError(f"{which} holds half a character (a surrogate), which no tokenizer reads.")
    return prompts


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded: one from JSON or a damaged file may hold lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


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
        needed = "One prompt needs one" if prompts == 1 else f"{prompts} prompts need one, or {prompts},"
        raise ValueError(f"{needed} negative prompt; got {len(negatives)}.")
    return negatives


def make_generators(
    images: int, seed: Seeds, generator: Generators
) -> tuple[list[torch.Generator], list[int | None]]:
    """One generator an image, and the seeds they were made from.

    A single seed s gives the images s, s + 1, ...; without seed or generator fresh seeds are drawn,
    and reported, so that every picture can be made again. A single generator serves all images in turn: an
    image then depends on its place in the batch.

    Raises:
        ValueError: When the numbers do not fit, or a seed is out of range.
    """
    if generator is not None:
        if seed is not None:
            raise ValueError("seed and generator were both given: give one of them.")
        several = [generator] if isinstance(generator, torch.Generator) else generator
        if not isinstance(several, Iterable) or not all(isinstance(x, torch.Generator) for x in several):
            raise ValueError("generator takes a torch.Generator, or one an image; numbers are for seed.")
        given = [generator] * images if isinstance(generator, torch.Generator) else list(several)
        if len(given) != images:
            raise ValueError(f"{images} images need {images} generators; got {len(given)}.")
        return given, [None] * images
    seeds = _seeds(seed, images)
    if len(seeds) != images:
        raise ValueError(f"{images} images need {images} seeds; got {len(seeds)}.")
    for value in seeds:
        if not 0 <= value <= MAXIMUM_SEED:
            raise ValueError(f"The seed {value} is out of range: use 0 to {MAXIMUM_SEED}.")
    return [torch.Generator().manual_seed(value) for value in seeds], list(seeds)


def _seeds(seed: Seeds, images: int) -> list[int]:
    if seed is None:
        # A generator of its own: the program's stays as it was.
        first = torch.Generator().seed() % 2**31
        return [first + index for index in range(images)]
    if is_whole(seed) and isinstance(seed, Integral):
        return [int(seed) + index for index in range(images)]
    if isinstance(seed, (str, bytes, bool, torch.Tensor)) or not isinstance(seed, Iterable):
        raise ValueError(f"seed is of type {type(seed).__name__}: give a whole number, or one an image.")
    values = list(seed)
    for value in values:
        if not is_whole(value):
            raise ValueError(f"The seed {value!r} is no whole number: give one, or one an image.")
    return [int(value) for value in values]


def numbers_per_scale(value: PerScale, scales: int, name: str) -> tuple[float, ...]:
    """One finite number a scale.

    Args:
        value: One number for all scales, or a sequence with at least one entry a scale.
        scales: How many scales there are.
        name: Of the argument, for messages.

    Raises:
        ValueError: When there are too few, or one is no finite number.
    """
    values = [value] if isinstance(value, Real) else value
    # A tensor without a dimension has the method of an iterable and cannot be gone through.
    if isinstance(values, (str, torch.Tensor)) or not isinstance(values, Iterable):
        raise ValueError(f"{name} is of type {type(value).__name__}: give a number, or one a scale.")
    checked = [require_number(entry, name) for entry in values]
    return per_scale(checked[0] if isinstance(value, Real) else checked, scales, name)


def require_number(value: Any, name: str) -> float:
    """The value of an argument.

    Raises:
        ValueError: When it is no finite number.
    """
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
        value = number
    raise ValueError(f"{name} is {value!r}; give a finite number.")


def check_filters(top_k: int, top_p: float) -> None:
    """Raises ValueError when the filters of sampling are out of range."""
    if not is_whole(top_k) or top_k < 0 or not 0.0 <= require_number(top_p, "top_p") <= 1.0:
        raise ValueError(f"top_k is {top_k} and top_p is {top_p:g}; use 0 or more, and 0 to 1.")


def check_temperatures(values: Sequence[float], name: str = "temperature") -> None:
    """Raises ValueError when a temperature is not positive, or so small that logits would overflow."""
    for value in values:
        if not value >= SMALLEST_TEMPERATURE:
            raise ValueError(
                f"{name} is {value:g}; it must be positive, {SMALLEST_TEMPERATURE:g} or more "
                "(top_k=1 takes the best)."
            )


def check_pixels(height: int | None, width: int | None) -> None:
    """Raises ValueError when a side is given that is no whole number."""
    for name, value in (("height", height), ("width", width)):
        if value is not None and (not isinstance(value, Real) or value != int(value)):
            raise ValueError(f"{name} is {value!r}: give a whole number of pixels.")


def check_aspect_ratio(ratio: float) -> float:
    """An aspect ratio.

    Raises:
        ValueError: When it is not positive and finite.
    """
    number = require_number(ratio, "aspect_ratio")
    if number <= 0:
        raise ValueError(f"aspect_ratio is {number:g}; it is width / height and must be positive.")
    return number


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
