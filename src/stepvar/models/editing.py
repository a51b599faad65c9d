"""Editing with any model that has an encoder: masks, boxes, new borders, variations; see `stepvar.editing`.

A model gives one hook, `NextScalePipeline.known_values`: what a scale's tokens are, given what is left over.
Everything else follows from the pipeline's own `check`, `sampler`, `prefill` and `run_scales`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stepvar.editing.known_tokens import KnownTokens, SourceFeatures
from stepvar.editing.masks import latent_places
from stepvar.editing.pictures import Canvas, composite
from stepvar.generation.report import Report, Summary
from stepvar.models.edit_request import REGION, Edit
from stepvar.models.output import ImageOutput, as_json_value, require_finite_pixels, to_output
from stepvar.models.request import Inputs

if TYPE_CHECKING:
    from stepvar.models.pipeline import NextScalePipeline


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


def run_edit(pipeline: NextScalePipeline, edit: Edit) -> EditOutput:
    """Draws a checked edit."""
    latents: dict[int, Tensor] = {}
    reports: list[Report] = []
    for pictures in edit.grouped:
        request = replace(edit.request, inputs=_selected(edit.request.inputs, pictures))
        drawn, report = _draw_group(pipeline, edit, request, pictures)
        latents |= dict(zip(pictures, drawn, strict=True))
        reports.append(report)
    codes = torch.stack([latents[picture] for picture in range(len(latents))])
    with edit.request.timer.stage("decode"):
        images = _pictures(pipeline, edit, codes)
    report = _joined(reports, edit)
    output = edit_output(images, report, edit.canvases)
    pipeline.maybe_free_model_hooks()
    return edit.request.options.packed(output)


def edit_output(images: Any, report: Report, canvases: Sequence[Canvas]) -> EditOutput:
    """The result of an edit, with what each picture was made from."""
    masks = [
        None if canvas.mask is None else Image.fromarray(canvas.mask.astype(np.uint8) * 255)
        for canvas in canvases
    ]
    before, notes = [canvas.picture for canvas in canvases], [list(canvas.notes) for canvas in canvases]
    return EditOutput(images=images, report=report, before=before, masks=masks, notes=notes)


def _draw_group(
    pipeline: NextScalePipeline, edit: Edit, request: Any, pictures: Sequence[int]
) -> tuple[Tensor, Report]:
    """Accumulated codes of pictures that run together, the encoder's own features where nothing was drawn."""
    sampler = pipeline.sampler(request)
    with request.timer.stage("encode"):
        vae: Any = pipeline.vae  # of a model that edits, with an encoder
        pipeline.load_to_device(vae)
        device = pipeline._execution_device
        # One by one, so that a picture's features do not depend on those beside it.
        features = torch.cat(
            [vae.encode_features(edit.pixels[picture][None].to(device)) for picture in pictures]
        )
    source = SourceFeatures(features, pipeline.known_values)
    free = edit.free_of(pictures)
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
    """The inputs of some pictures; encoded texts are never asked for by several but all."""
    if len(pictures) == inputs.images:
        return inputs
    parts = [inputs.of_picture(picture) for picture in pictures]
    if len(parts) == 1:
        return parts[0]
    return Inputs(
        [part.prompts[0] for part in parts],
        None if inputs.negatives is None else [part.negatives[0] for part in parts if part.negatives],
        (None, None),
        1,
        [part.generators[0] for part in parts],
        [part.seeds[0] for part in parts],
    )


def _pictures(pipeline: NextScalePipeline, edit: Edit, codes: Tensor) -> Any:
    """Codes in the form asked for, composited where asked for."""
    kind = edit.request.options.output_type
    if kind == "latent":
        return codes
    pipeline.load_to_device(pipeline.vae)
    parts = codes.split(1) if edit.request.options.batch_invariant else (codes,)
    pixels = require_finite_pixels(torch.cat([pipeline.decode_codes(part) for part in parts]))
    if not edit.settings.composited:
        return to_output(pixels, kind)
    drawn: Any = to_output(pixels, "pil")
    pictures = [
        composite(canvas, window, picture, edit.settings.feather)
        for canvas, window, picture in zip(edit.canvases, edit.windows, drawn, strict=True)
    ]
    return as_kind(pictures, kind)


def as_kind(pictures: list[Image.Image], kind: str) -> Any:
    """Pictures in the form asked for: "pil", "np" or "pt"; those of one array have one size."""
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
    for pictures in edit.grouped:
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
