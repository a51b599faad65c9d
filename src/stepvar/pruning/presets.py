"""Presets: named pruning plans with a description, and plans that several models share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from os import PathLike
from types import MappingProxyType
from typing import Any, TypeAlias

from stepvar.generation.pruner import LateScalePruning, PruningMethod
from stepvar.pruning.fastervar import FasterVAR
from stepvar.pruning.fastvar import FastVAR
from stepvar.pruning.int8_cache import Int8Cache
from stepvar.pruning.scalekv import ScaleKV
from stepvar.pruning.skipvar import SkipVAR
from stepvar.pruning.stepvar import StepVAR

METHODS: Mapping[str, LateScalePruning] = MappingProxyType(
    {
        "stepvar": StepVAR(),
        "fastvar": FastVAR(),
        "fastervar": FasterVAR(),
        "sparsevar-standin": StepVAR(score="texture", anchor_stride=4),
    }
)
"""Methods that prune tokens, by name, with no scales named yet; see `with_scales`.

"sparsevar-standin" is not SparseVAR, whose code was never published: it does what is known of it, keeps
the tokens of high spatial frequency and a sparse uniform grid of anchors, and copies the nearest.
"""


@dataclass(frozen=True)
class Preset:
    """A pruning plan with a name.

    Attributes:
        name: What `pruning=` and `--pruning` call it.
        method: The plan.
        description: What it does, in one line.
        measured_on: On what it was measured, in one line.
    """

    name: str
    method: PruningMethod
    description: str
    measured_on: str

    def __str__(self) -> str:
        return f"{self.name}: {self.description} (measured on: {self.measured_on})"


@dataclass(frozen=True)
class ChangedPreset:
    """A preset some of whose method's fields are others, for any model that has the preset.

    Attributes:
        name: The preset.
        changes: Values by name of the field, such as `score`.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, presets: Mapping[str, Preset]) -> PruningMethod:
        """The changed method.

        Raises:
            ValueError: When there is no such preset, or its method has no such field.
        """
        return changed(find_preset(self.name, presets).method, self.changes, f"preset {self.name!r}")


Pruning: TypeAlias = PruningMethod | Preset | ChangedPreset | str | PathLike[str] | None
"""What `pruning=` accepts; see `resolve_pruning`. A path, or a text that ends with .json, is a plan file."""


def changed(method: PruningMethod, changes: Mapping[str, Any], title: str) -> PruningMethod:
    """A method with other values in some of its fields.

    Args:
        title: What messages call the method.

    Raises:
        ValueError: When it has no such field, or a value is out of range.
    """
    if not is_dataclass(method):
        raise ValueError(f"{title} has no fields that could be changed.")
    known = {entry.name for entry in fields(method)}
    for name in changes:
        if name not in known:
            raise ValueError(f"{name} is no field of {type(method).__name__} ({title}): leave it out.")
    other: PruningMethod = replace(method, **changes)  # type: ignore[type-var]  # is_dataclass narrows wrongly
    return other


def by_name(*presets: Preset) -> Mapping[str, Preset]:
    """Presets in their order, by name, as a mapping that cannot be changed."""
    return MappingProxyType({preset.name: preset for preset in presets})


def with_scales(method: str, ratios: Mapping[int, float], skip: Collection[int] = ()) -> LateScalePruning:
    """A method of `METHODS` on named scales, so that methods can be compared on one schedule.

    Raises:
        ValueError: When there is no such method, or a ratio is out of range.
    """
    if method not in METHODS:
        raise ValueError(f"Unknown pruning method {method!r}; known are {', '.join(METHODS)}.")
    return replace(METHODS[method], ratios=ratios, skip=tuple(skip))


def late_scale_presets(measured_on: str) -> tuple[Preset, ...]:
    """StepVAR's plan for Infinity, its two halves, and its rivals at the same ratios.

    Scales are counted from the end, so that a plan does the same at every aspect ratio and pixel budget.
    """
    ratios, skip = {-4: 0.4, -3: 0.5}, (-2, -1)
    return (
        Preset(
            "paper",
            with_scales("stepvar", ratios, skip),
            "StepVAR's plan for Infinity: 0.4 and 0.5 pruned of the fourth and third last scale, the last "
            "two left out",
            measured_on,
        ),
        Preset(
            "prune",
            StepVAR(ratios={-2: 0.5, -1: 0.75}),
            "nothing left out; 0.5 and 0.75 pruned of the last two scales, the paper's ratios for HART",
            measured_on,
        ),
        Preset(
            "skip",
            StepVAR(skip=skip),
            "the last two scales left out and nothing pruned: what leaving out alone brings",
            measured_on,
        ),
        Preset(
            "fastvar",
            with_scales("fastvar", ratios, skip),
            "FastVAR as published for Infinity, at the ratios of 'paper'",
            measured_on,
        ),
        Preset(
            "sparsevar-standin",
            with_scales("sparsevar-standin", ratios, skip),
            "a stand-in for SparseVAR (no code was published), at the ratios of 'paper'",
            measured_on,
        ),
    )


def unguided_preset(measured_on: str) -> Preset:
    return Preset(
        "unguided", StepVAR(unguided=-2), "no classifier-free guidance on the last two scales", measured_on
    )


def skipvar_preset(measured_on: str) -> Preset:
    return Preset(
        "skipvar",
        SkipVAR(),
        "SkipVAR: leaves out the last one to three scales, or guidance there, as each picture needs",
        measured_on,
    )


def scalekv_preset(measured_on: str) -> Preset:
    return Preset(
        "scalekv",
        # As many tokens as the published budgets for Infinity keep on average.
        ScaleKV(share=0.06),
        "ScaleKV: all layers but the first remember 6 % of the tokens between two scales; saves memory",
        measured_on,
    )


def int8_preset(measured_on: str) -> Preset:
    return Preset(
        "int8-cache",
        Int8Cache(),
        "keys and values held as 8-bit integers between two scales: half the memory of bfloat16",
        measured_on,
    )


def find_preset(name: str, presets: Mapping[str, Preset]) -> Preset:
    """The preset of a name.

    Raises:
        ValueError: When there is none.
    """
    if name not in presets:
        known = ", ".join(["none", *presets])
        raise ValueError(f"Unknown pruning preset {name!r}; known are {known}.")
    return presets[name]


def resolve_pruning(pruning: Pruning, presets: Mapping[str, Preset]) -> PruningMethod | None:
    """Turns what a user may pass as `pruning=` into a method, or None for a dense run.

    Args:
        pruning: A method, a preset or its name, "none" or None.
        presets: Those of the model.

    Raises:
        ValueError: When the preset is unknown, or the value is of another kind.
    """
    if pruning is None or pruning == "none":
        return None
    if isinstance(pruning, str):
        return find_preset(pruning, presets).method
    if isinstance(pruning, Preset):
        return pruning.method
    if isinstance(pruning, ChangedPreset):
        return pruning.apply(presets)
    if isinstance(pruning, PruningMethod):
        return pruning
    raise ValueError(
        f"pruning is a {type(pruning).__name__}; pass StepVAR(...), another method, a preset's name or None."
    )
