"""Edit score: the share of edits of scenes that show in their box what was asked for, from pixels alone.

Beside it stands how well the rest was preserved before the picture's own pixels are put back: the peak
signal-to-noise ratio (PSNR) outside of the box, and that of the visual tokenizer's round trip of the unedited
picture, which nothing but another tokenizer can exceed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stepvar.editing.pictures import composite, fit_window, open_canvas
from stepvar.editing.sheets import Row
from stepvar.metrics.statistics import mean_interval
from stepvar.scenes import render
from stepvar.scenes.edits import KINDS, EditVerdict, SceneEdit, check_edit, sample_edits

if TYPE_CHECKING:
    from stepvar.models.pipeline import NextScalePipeline

ASPECTS = ("count", "shape", "colour", "texture")

Advance = Callable[[int], None]
"""Called with the number of edits that were just judged."""

Pixels = NDArray[np.uint8]

SHOWN = 10
"""Edits whose pictures are kept: the first ones, whatever came out."""


@dataclass(frozen=True)
class EditScores:
    """Verdicts on edits.

    Attributes:
        edits: What was asked for.
        verdicts: What was found.
        outside: PSNR outside of each box in decibels, before compositing.
        tokenizer: The same of the tokenizer's round trip; empty where it was not measured.
        seconds: Of each edit, reading and compositing included.
        rows: Before, mask and after of the first `SHOWN` edits.
    """

    edits: Sequence[SceneEdit]
    verdicts: Sequence[EditVerdict]
    outside: Sequence[float]
    tokenizer: Sequence[float]
    seconds: Sequence[float]
    rows: Sequence[Row] = ()

    @property
    def overall(self) -> float:
        """Share of the edits that succeeded."""
        return float(np.mean([verdict.passed for verdict in self.verdicts]))

    def as_json(self) -> dict[str, Any]:
        kinds = {
            kind: [
                verdict.passed
                for edit, verdict in zip(self.edits, self.verdicts, strict=True)
                if edit.kind == kind
            ]
            for kind in KINDS
        }
        interval = mean_interval([float(verdict.passed) for verdict in self.verdicts])
        return {
            "overall": self.overall,
            "interval": [interval.low, interval.high],
            "n": len(self.edits),
            "kinds": {kind: float(np.mean(passed)) for kind, passed in kinds.items() if passed},
            "aspects": {
                aspect: float(np.mean([getattr(verdict, aspect) for verdict in self.verdicts]))
                for aspect in ASPECTS
            },
            "psnr_outside": float(np.mean(self.outside)),
            "psnr_tokenizer": float(np.mean(self.tokenizer)) if self.tokenizer else None,
            "box_share": float(np.mean([edit.box[2] * edit.box[3] for edit in self.edits]))
            / self.edits[0].source.canvas ** 2,
            "seconds_per_edit": float(np.median(self.seconds)),
        }


def evaluate_edits(
    pipeline: NextScalePipeline,
    count: int,
    seed: int = 0,
    settings: dict[str, Any] | None = None,
    share: float = 0.25,
    round_trip: bool = True,
    advance: Advance | None = None,
) -> EditScores:
    """Edits random scenes one by one, and checks the results.

    Args:
        pipeline: A model of pictures that knows the scenes' words.
        count: Edits.
        seed: Chooses the edits; the pictures' seeds count on from it.
        settings: Further arguments of `edit`, `pruning` for example.
        share: Of the picture that each box covers.
        round_trip: Whether to measure the tokenizer alone too.
        advance: Called with the progress.

    Raises:
        ValueError: When the pictures are not square, or the model cannot edit.
    """
    if count < 1:
        raise ValueError(f"{count} edits cannot be evaluated; ask for at least one.")
    if not 0.0 < share < 1.0:
        raise ValueError(f"A box cannot cover {share:g} of a picture; give a share between 0 and 1.")
    height, width = pipeline.pixels(pipeline.schedule())
    if height != width:
        raise ValueError(f"Scenes are square; {width}x{height} pixels are not: choose a square size.")
    edits = sample_edits(count, seed, width, share)
    verdicts: list[EditVerdict] = []
    outsides: list[float] = []
    tokenizer: list[float] = []
    seconds: list[float] = []
    rows: list[Row] = []
    for number, edit in enumerate(edits):
        source = render(edit.source, width, number)
        started = time.perf_counter()
        drawn, result = draw_edit(pipeline, source, edit, seed + number, settings or {})
        spent = time.perf_counter() - started
        outside = np.ones((height, width), dtype=np.bool_)
        outside[_rows(edit), _columns(edit)] = False
        verdicts.append(check_edit(result, edit))
        outsides.append(_psnr(drawn, source, outside))
        if round_trip:
            tokenizer.append(_psnr(_round_trip(pipeline, source), source, outside))
        seconds.append(spent)
        if number < SHOWN:
            mask = Image.fromarray(np.where(outside, 0, 255).astype(np.uint8))
            rows.append((Image.fromarray(source), mask, Image.fromarray(result)))
        if advance is not None:
            advance(1)
    return EditScores(edits, verdicts, outsides, tokenizer, seconds, rows)


def draw_edit(
    pipeline: NextScalePipeline, source: Pixels, edit: SceneEdit, seed: int, settings: dict[str, Any]
) -> tuple[Pixels, Pixels]:
    """What the decoder drew of an edit, and the composited result."""
    picture = Image.fromarray(source)
    output = pipeline.edit(edit.text, image=picture, box=edit.box, seed=seed, composited=False, **settings)
    [drawn] = output.images
    canvas = open_canvas(picture, box=edit.box)
    window = fit_window(canvas, drawn.size)
    return np.asarray(drawn), np.asarray(composite(canvas, window, drawn))


def _rows(edit: SceneEdit) -> slice:
    return slice(edit.box[1], edit.box[1] + edit.box[3])


def _columns(edit: SceneEdit) -> slice:
    return slice(edit.box[0], edit.box[0] + edit.box[2])


def _psnr(picture: Pixels, reference: Pixels, places: NDArray[np.bool_]) -> float:
    """Peak signal-to-noise ratio in decibels over some pixels of 8 bits."""
    difference = picture[places].astype(np.float64) - reference[places]
    return float(10.0 * np.log10(255.0**2 / max(np.square(difference).mean(), 1e-10)))


def _round_trip(pipeline: Any, source: Pixels) -> Pixels:
    """A picture as the visual tokenizer gives it back from its continuous features."""
    import torch

    from stepvar.models.output import to_output

    pixels = torch.from_numpy(source.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1.0
    with torch.inference_mode():
        decoded = pipeline.decode_codes(pipeline.vae.encode_features(pixels.to(pipeline.vae.device)))
    [image] = to_output(decoded, "pil")
    return np.asarray(image)
