"""Editing with any model that has an encoder: masks, boxes, new borders, variations; see `stepvar.editing`.

A model gives one hook, `NextScalePipeline.known_values`: what a scale's tokens are, given what is left over.
Everything else follows from the pipeline's own `check`, `sampler`, `prefill` and `run_scales`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stepvar.editing.known_tokens import KnownTokens, SourceFeatures, around
from stepvar.editing.masks import (
    LATE_SCALES,
    MARGIN,
    RegionRule,
    counts_of,
    free_tokens,
    kept_scales,
    late,
    latent_places,
)
from stepvar.editing.pictures import Canvas, Window, composite, describe_fit, fit_window, fitted, open_canvas
from stepvar.generation.pruner import PruningMethod
from stepvar.generation.report import Report, Summary
from stepvar.models.output import ImageOutput, as_json_value, require_finite_pixels, to_output
from stepvar.models.request import Inputs, Request

if TYPE_CHECKING:
    from stepvar.models.pipeline import NextScalePipeline
    from stepvar.pruning.presets import Pruning

REGION = "region"
"""What `pruning` calls a run of the mask's region alone at late scales, all of its tokens kept."""

Entry = TypeVar("Entry")


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
        """Raises ValueError when a number is out of range."""
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


@dataclass(repr=False)
class EditOutput(ImageOutput):
    """Result of an edit.

    Attributes:
        images: As in `ImageOutput`. Pictures have the size of the one that was edited where they were
            composited onto it, and the model's size otherwise.
        report: As in `ImageOutput`; of several runs the first one's scales, with the time of all.
        before: The pictures that were edited, upright, as sRGB, with their new borders.
        masks: What could change, white; None where everything could.
        notes: What was done to each picture on its way into the model, in a few words each.
    """

    before: list[Image.Image]
    masks: list[Image.Image | None]
    notes: list[list[str]]


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

    def groups(self) -> list[list[int]]:
        """Pictures that run together: those with as many tokens in their regions, scale by scale."""
        settings, schedule = self.settings, self.request.schedule
        if self.request.options.batch_invariant:
            return [[picture] for picture in range(len(self.pixels))]
        free = free_tokens(self.coverage, schedule, self.keep, settings.late_scales)
        found: dict[tuple[int, ...], list[int]] = {}
        scales = [scale for scale in schedule if late(scale, schedule, settings.late_scales)]
        counts = [counts_of(free[scale.index], scale, settings.margin) for scale in scales]
        for picture in range(len(self.pixels)):
            key = tuple(each[picture] for each in counts) if settings.prunes else ()
            found.setdefault(key, []).append(picture)
        return list(found.values())

    def method(self, pictures: Sequence[int]) -> PruningMethod:
        """The pruning method with the known tokens of some pictures, ready to plan."""
        settings, schedule = self.settings, self.request.schedule
        coverage = self.coverage[list(pictures)]
        free = free_tokens(coverage, schedule, self.keep, settings.late_scales)
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
    call = _with_subject(pipeline, subject, call)
    canvases = _open_all(image, settings)
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


def _with_subject(
    pipeline: NextScalePipeline, subject: Sequence[Any], call: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of a call with what the picture shall show among them."""
    name = pipeline._subject
    if len(subject) > 1 or (subject and name in call):
        raise ValueError(f"An edit takes one {name}, and everything else by name.")
    call = {**call, name: subject[0]} if subject else dict(call)
    if call.get(name) is None and call.get("prompt_embeds") is None:
        raise ValueError(f"No {name} was given: say what the edited picture shall show.")
    return call


def _open_all(image: Any, settings: EditSettings) -> list[Canvas]:
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
    for group in edit.groups():
        edit.method(group).plan(request.schedule, pipeline.depth)
    return edit


def run_edit(pipeline: NextScalePipeline, edit: Edit) -> EditOutput:
    """Draws a checked edit."""
    latents: dict[int, Tensor] = {}
    reports: list[Report] = []
    for pictures in edit.groups():
        request = replace(edit.request, inputs=_selected(edit.request.inputs, pictures))
        drawn, report = _draw_group(pipeline, edit, request, pictures)
        latents |= dict(zip(pictures, drawn, strict=True))
        reports.append(report)
    codes = torch.stack([latents[picture] for picture in range(len(latents))])
    with edit.request.timer.stage("decode"):
        images = _pictures(pipeline, edit, codes)
    report = _joined(reports, edit)
    output = EditOutput(
        images=images,
        report=report,
        before=[canvas.picture for canvas in edit.canvases],
        masks=[
            None if canvas.mask is None else Image.fromarray(canvas.mask.astype(np.uint8) * 255)
            for canvas in edit.canvases
        ],
        notes=[list(canvas.notes) for canvas in edit.canvases],
    )
    pipeline.maybe_free_model_hooks()
    return edit.request.options.packed(output)


def _draw_group(
    pipeline: NextScalePipeline, edit: Edit, request: Any, pictures: Sequence[int]
) -> tuple[Tensor, Report]:
    """Accumulated codes of pictures that run together, the encoder's own features where nothing was drawn."""
    sampler = pipeline.sampler(request)
    with request.timer.stage("encode"):
        pipeline.load_to_device(pipeline.vae)
        device = pipeline._execution_device
        # One by one, so that a picture's features do not depend on those beside it.
        features = torch.cat(
            [pipeline.vae.encode_features(edit.pixels[picture][None].to(device)) for picture in pictures]
        )
    source = SourceFeatures(features, pipeline.known_values)
    free = free_tokens(edit.coverage[list(pictures)], request.schedule, edit.keep, edit.settings.late_scales)
    request = replace(request, method=_with_source(edit.method(pictures), source))
    session = pipeline.prefill(request)
    result = pipeline.run_scales(session, sampler, request)
    grid = (features.shape[-2], features.shape[-1])
    drawn = latent_places(free[-1].to(device), request.schedule.final, grid)
    return torch.where(drawn, result.latent, features), pipeline.report(result, request)


def _with_source(method: Any, source: SourceFeatures) -> Any:
    if isinstance(method, KnownTokens):
        return replace(method, source=source)
    return replace(method, pruning=_with_source(method.pruning, source))


def _selected(inputs: Inputs, pictures: Sequence[int]) -> Inputs:
    """The inputs of some pictures: of one, or with those of one prompt together."""
    if len(pictures) == 1:
        return inputs.of_picture(pictures[0])
    entries = [picture // inputs.repeats for picture in pictures[:: inputs.repeats]]
    if len(pictures) == inputs.images:
        return inputs

    def some(values: Any) -> Any:
        if values is None:
            return None
        if isinstance(values, Tensor):
            return values[entries]
        if not isinstance(values, (list, tuple)):
            raise ValueError(
                "Masks of different areas run one after the other, which needs prompts, not embeddings."
            )
        return type(values)(values[entry] for entry in entries)

    return replace(
        inputs,
        prompts=some(inputs.prompts),
        negatives=some(inputs.negatives),
        embeds=(some(inputs.embeds[0]), some(inputs.embeds[1])),
        generators=[inputs.generators[picture] for picture in pictures],
        seeds=[inputs.seeds[picture] for picture in pictures],
    )


def _pictures(pipeline: NextScalePipeline, edit: Edit, codes: Tensor) -> Any:
    """Codes in the form asked for, composited where asked for."""
    kind = edit.request.options.output_type
    if kind == "latent":
        return codes
    pipeline.load_to_device(pipeline.vae)
    alone = edit.request.options.batch_invariant
    parts = [pipeline.decode_codes(part) for part in codes.split(1 if alone else len(codes))]
    pixels = require_finite_pixels(torch.cat(parts) if alone else parts[0])
    if not edit.settings.composited:
        return to_output(pixels, kind)
    drawn: Any = to_output(pixels, "pil")
    pictures = [
        composite(canvas, window, picture, edit.settings.feather)
        for canvas, window, picture in zip(edit.canvases, edit.windows, drawn, strict=True)
    ]
    if kind == "pil":
        return pictures
    array: NDArray[np.float32] = np.stack([np.asarray(each, np.float32) / 255.0 for each in pictures])
    return array if kind == "np" else torch.from_numpy(array).permute(0, 3, 1, 2)


def _joined(reports: Sequence[Report], edit: Edit) -> Report:
    """One report of all runs, with what was edited among its settings."""
    first, settings = reports[0], edit.settings
    inputs, request = edit.request.inputs, edit.request
    shown = {**first.settings, "prompts": inputs.prompts, "pruning": as_json_value(_plan_name(edit))}
    if inputs.negatives is not None:
        shown["negative_prompts"] = inputs.negatives
    shown["edit"] = {
        "strength": settings.strength,
        "kept_scales": edit.keep,
        "margin": settings.margin if settings.prunes else None,
        "late_scales": settings.late_scales,
        "feather": settings.feather,
        "composited": settings.composited,
        "mask_share": [round(float(each.mean()), 4) for each in edit.coverage],
        "notes": [list(canvas.notes) for canvas in edit.canvases],
    }
    return replace(
        first,
        stages=request.timer.seconds(),
        cache_bytes=max(report.cache_bytes for report in reports),
        seeds=inputs.seeds,
        settings=shown,
        choices=first.choices if len(reports) == 1 else {},
    )


def _plan_name(edit: Edit) -> Any:
    if edit.settings.pruning == REGION:
        return REGION
    return edit.request.method


def summarise_edit(pipeline: NextScalePipeline, edit: Edit, text_tokens: int) -> Summary:
    """What a checked edit will run.

    Of pictures with masks of different areas, which run one after the other, the plan is that of the largest
    region, and the costs are those of all.
    """
    parts: list[Summary] = []
    for pictures in edit.groups():
        request = replace(edit.request, method=edit.method(pictures))
        parts.append(pipeline.summarise(request, len(pictures), text_tokens))
    largest = max(parts, key=lambda part: part.tokens)
    return replace(
        largest,
        costs=_added([part.costs for part in parts]),
        dense_costs=_added([part.dense_costs for part in parts]),
    )


def _added(costs: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(
        replace(
            row[0],
            flops=sum(cost.flops for cost in row),
            rows=sum(cost.rows for cost in row),
            cache_bytes=max(cost.cache_bytes for cost in row),
        )
        for row in zip(*costs, strict=True)
    )


def edit_arguments(call: Mapping[str, Any]) -> tuple[EditSettings, dict[str, Any]]:
    """An edit's own settings among the arguments of a call, and the others."""
    own = set(EditSettings.__dataclass_fields__)
    return EditSettings(**{name: value for name, value in call.items() if name in own}), {
        name: value for name, value in call.items() if name not in own
    }
