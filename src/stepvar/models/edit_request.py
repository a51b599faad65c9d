"""Edits as they are asked for, checked before anything is computed: pictures, masks, sizes, what will run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stepvar.editing.known_tokens import KnownTokens, around
from stepvar.editing.masks import (
    LATE_SCALES,
    MARGIN,
    RegionRule,
    counts_of,
    free_tokens,
    kept_scales,
    late,
)
from stepvar.editing.pictures import Canvas, Window, describe_fit, fit_window, fitted, open_canvas
from stepvar.generation.fields import require_fields
from stepvar.generation.pruner import PruningMethod
from stepvar.models.request import Request
from stepvar.pruning.presets import Pruning

if TYPE_CHECKING:
    from stepvar.models.pipeline import NextScalePipeline

REGION = "region"
"""What `pruning` calls a run of the mask's region alone at late scales, all of its tokens kept."""


@dataclass(frozen=True)
class EditSettings:
    """What an edit may change, and how; see `NextScalePipeline.edit`.

    Attributes:
        pruning: `REGION`, None for a dense edit, or a plan for the region's tokens.
    """

    mask: Any = None
    box: Any = None
    outpaint: Any = None
    strength: float | None = None
    pruning: Pruning = REGION
    margin: int = MARGIN
    late_scales: int = LATE_SCALES
    feather: int | None = None
    composited: bool = True
    fit: str = "crop"

    def require_valid(self) -> None:
        """Raises ValueError when a field is out of range, or of another kind."""
        require_fields(self, "the edit")
        RegionRule(self.margin, self.late_scales)
        if self.feather is not None and self.feather < 0:
            raise ValueError(f"feather is {self.feather}; it is a width in pixels, 0 or more.")

    @property
    def prunes(self) -> bool:
        """Whether late scales run on a region."""
        return self.pruning is not None and self.pruning != "none"

    @property
    def rule(self) -> RegionRule:
        """Which tokens of late scales run."""
        return RegionRule(self.margin, self.late_scales if self.prunes else 0)

    @property
    def plan(self) -> Pruning:
        """What the pipeline's own `check` takes as pruning."""
        return None if self.pruning == REGION else self.pruning


@dataclass
class Edit:
    """A checked edit; nothing is encoded yet.

    Attributes:
        settings: As they were given.
        request: Of all pictures, without what is known.
        canvases: One a picture, and the parts that the model sees.
        pixels: [B, 3, H, W] in -1..1, what the model sees.
        coverage: [B, H, W] in 0..1, how much of each pixel may change.
        keep: Scales at the start that stay the pictures' own.
    """

    settings: EditSettings
    request: Any
    canvases: list[Canvas]
    windows: list[Window]
    pixels: Tensor
    coverage: Tensor
    keep: int

    @cached_property
    def free(self) -> tuple[Tensor, ...]:
        """Tokens that are drawn, per scale, bool [B, N]."""
        return free_tokens(self.coverage, self.request.schedule, self.keep, self.settings.late_scales)

    def free_of(self, pictures: Sequence[int]) -> tuple[Tensor, ...]:
        """The same of some pictures."""
        return tuple(mask[list(pictures)] for mask in self.free)

    @cached_property
    def grouped(self) -> list[list[int]]:
        """Pictures that run together: those with as many tokens in their regions, scale by scale."""
        settings, schedule, free = self.settings, self.request.schedule, self.free
        found: dict[tuple[int, ...], list[int]] = {}
        scales = [scale for scale in schedule if late(scale, schedule, settings.late_scales)]
        counts = [counts_of(free[scale.index], scale, settings.margin) for scale in scales]
        for picture in range(len(self.pixels)):
            key = tuple(each[picture] for each in counts) if settings.prunes else ()
            found.setdefault(key, []).append(picture)
        embedded = any(side is not None for side in self.request.inputs.embeds)
        if self.request.options.batch_invariant or (embedded and len(found) > 1):
            return [[picture] for picture in range(len(self.pixels))]
        return list(found.values())

    def method(self, pictures: Sequence[int]) -> PruningMethod:
        """The pruning method with the known tokens of some pictures, ready to plan."""
        settings, schedule = self.settings, self.request.schedule
        free = self.free_of(pictures)
        stride = getattr(self.request.method, "anchor_stride", None)
        known = KnownTokens(free, settings.rule.regions(free, schedule, stride))
        return around(self.request.method, known)


def check_edit(
    pipeline: NextScalePipeline,
    subject: Sequence[Any],
    image: Any,
    settings: EditSettings,
    call: dict[str, Any],
) -> Edit:
    """Checks an edit; reads pictures and masks, and runs no model.

    Raises:
        ValueError: When an argument is wrong, or the model cannot edit.
    """
    require_encoder(pipeline)
    settings.require_valid()
    if call.get("cascade") is not None:
        raise ValueError("An edit is drawn by one model: leave cascade out.")
    call = with_subject(pipeline, subject, call)
    canvases = open_canvases(image, settings)
    width, height = canvases[0].size
    sizes = dict(pipeline.edit_size(width, height)) if call.get("height") is call.get("width") is None else {}
    subjects = call.get(pipeline._subject)
    if isinstance(subjects, (str, int)):
        call[pipeline._subject] = [subjects] * len(canvases)
    request = pipeline.check(pruning=settings.plan, **{**sizes, **call})
    if any(scale.part is not None for scale in request.schedule):
        raise ValueError("An edit draws the last map at once: leave parts out.")
    entries, repeats = request.inputs.images // request.inputs.repeats, request.inputs.repeats
    if len(canvases) not in (1, entries):
        raise ValueError(f"{entries} prompts need one picture, or {entries}; got {len(canvases)}.")
    canvases = canvases * entries if len(canvases) == 1 else canvases
    canvases = [canvas for canvas in canvases for _ in range(repeats)]
    require_one_size(canvases, settings, request.options.output_type)
    keep = _kept(settings, canvases, request)
    return _fit(pipeline, request, canvases, settings, keep)


def require_encoder(pipeline: NextScalePipeline) -> None:
    """Raises ValueError when a model has nothing that turns pictures into tokens."""
    if not pipeline.edits_pictures:
        raise ValueError(
            f"{type(pipeline).__name__} edits no pictures by a mask: use Infinity, VAR, HART or Switti."
        )
    if getattr(pipeline.vae, "encoder", None) is None:
        raise ValueError(
            "This model has no encoder of pictures, so it cannot edit one: convert it again, from a file of "
            "its visual tokenizer that has the encoder."
        )


def with_subject(pipeline: NextScalePipeline, subject: Sequence[Any], call: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call with what the picture shall show among them."""
    name = pipeline._subject
    if len(subject) > 1 or (subject and name in call):
        raise ValueError(f"An edit takes one {name}, and everything else by name.")
    call = {**call, name: subject[0]} if subject else dict(call)
    if call.get(name) is None and call.get("prompt_embeds") is None:
        raise ValueError(f"No {name} was given: say what the edited picture shall show.")
    return call


def open_canvases(image: Any, settings: EditSettings) -> list[Canvas]:
    """The pictures with their masks, boxes and borders."""
    if image is None:
        raise ValueError("No image was given: an edit needs the picture to start from.")
    images = list(image) if isinstance(image, (list, tuple)) else [image]
    masks = list(settings.mask) if isinstance(settings.mask, (list, tuple)) else [settings.mask]
    boxes = list(settings.box) if _is_list_of_boxes(settings.box) else [settings.box]
    count = max(len(images), len(masks), len(boxes))
    if not images or not masks or not boxes:
        raise ValueError("image, mask or box is an empty list: give one entry a picture.")
    for name, given in (("image", images), ("mask", masks), ("box", boxes)):
        if len(given) not in (1, count):
            raise ValueError(f"{count} pictures need one {name}, or {count}; got {len(given)}.")

    def entry(given: list[Any], number: int) -> Any:
        return given[0] if len(given) == 1 else given[number]

    return [
        open_canvas(entry(images, number), entry(masks, number), entry(boxes, number), settings.outpaint)
        for number in range(count)
    ]


def require_one_size(canvases: Sequence[Canvas], settings: EditSettings, kind: str) -> None:
    """Raises ValueError when composited pictures of several sizes would have to become one array."""
    if settings.composited and kind in ("np", "pt") and len({canvas.size for canvas in canvases}) > 1:
        raise ValueError(
            f"The pictures differ in size, so their edits are no one array: leave output_type {kind!r} out, "
            "or give composited=False."
        )


def _is_list_of_boxes(box: Any) -> bool:
    return isinstance(box, (list, tuple)) and all(isinstance(entry, (list, tuple)) for entry in box)


def _kept(settings: EditSettings, canvases: Sequence[Canvas], request: Request) -> int:
    """How many scales stay the picture's own."""
    masked = all(canvas.mask is not None for canvas in canvases)
    if settings.strength is None:
        if not masked:
            raise ValueError(
                "Nothing says what may change: give a mask, a box, a border to draw, or a strength for a "
                "variation."
            )
        return 0
    keep = kept_scales(settings.strength, request.schedule)
    if not masked and keep == 0:
        raise ValueError(
            f"At strength {settings.strength:g} all {len(request.schedule)} scales would be drawn, and "
            "nothing of the picture would stay: give a smaller one, or a mask."
        )
    return keep


def _fit(
    pipeline: NextScalePipeline, request: Any, canvases: list[Canvas], settings: EditSettings, keep: int
) -> Edit:
    height, width = pipeline.pixels(request.schedule)
    windows, pixels, coverage = [], [], []
    done: dict[int, tuple[Window, Tensor, Tensor]] = {}
    for canvas in canvases:
        if id(canvas) not in done:
            window = fit_window(canvas, (width, height), "pad" if canvas.outside else settings.fit)
            canvas.notes += describe_fit(canvas, window, (width, height))
            done[id(canvas)] = (window, *fitted(canvas, window, (width, height)))
        window, seen, free = done[id(canvas)]
        if not bool(free.any()):
            raise ValueError(
                "The mask lies outside of what the model sees of the picture: give fit='pad', or another "
                "mask."
            )
        windows.append(window)
        pixels.append(seen)
        coverage.append(free)
    edit = Edit(settings, request, canvases, windows, torch.stack(pixels), torch.stack(coverage), keep)
    for group in edit.grouped:
        edit.method(group).plan(request.schedule, pipeline.depth)
    return edit


def edit_arguments(call: Mapping[str, Any]) -> tuple[EditSettings, dict[str, Any]]:
    """An edit's own settings among the arguments of a call, and the others."""
    own = set(EditSettings.__dataclass_fields__)
    return EditSettings(**{name: value for name, value in call.items() if name in own}), {
        name: value for name, value in call.items() if name not in own
    }
