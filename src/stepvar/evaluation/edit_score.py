"""Edit score: the share of edits of scenes that show in their box what was asked for, from pixels alone.

Beside it stands how well the rest was preserved before the picture's own pixels are put back: the peak
signal-to-noise ratio (PSNR) outside of the box, and that of the visual tokenizer's round trip of the unedited
picture, which nothing but another tokenizer can exceed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stepvar.editing.pictures import composite, fit_window, open_canvas
from stepvar.editing.sheets import Row
from stepvar.evaluation.provenance import fingerprint
from stepvar.evaluation.record_log import RecordLog
from stepvar.metrics.statistics import Interval, mean_interval, paired_interval
from stepvar.models.edit_request import REGION
from stepvar.models.output import as_json_value
from stepvar.scenes import render
from stepvar.scenes.edits import KINDS, EditVerdict, SceneEdit, check_edit, sample_edits

if TYPE_CHECKING:
    from stepvar.models.pipeline import NextScalePipeline
    from stepvar.pruning.presets import Pruning

ASPECTS = ("count", "shape", "colour", "texture")

DENSE = "none"
"""What the plan that runs every token is called."""

Advance = Callable[[int], None]
"""Called with the number of edits that were just judged."""

Pixels = NDArray[np.uint8]

SHOWN = 10
"""Edits whose pictures are kept: the first ones, whatever came out."""


@dataclass(frozen=True)
class Measured:
    """One edit under one plan.

    Attributes:
        verdict: What the box shows.
        outside: PSNR outside of the box in decibels, before compositing.
        seconds: Of the edit, reading and compositing included.
    """

    verdict: EditVerdict
    outside: float
    seconds: float

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Measured:
        return cls(EditVerdict(**document["verdict"]), document["outside"], document["seconds"])

    def as_json(self) -> dict[str, Any]:
        return {"verdict": asdict(self.verdict), "outside": self.outside, "seconds": self.seconds}


@dataclass(frozen=True)
class EditScores:
    """Verdicts on the same edits under one plan or several.

    Attributes:
        edits: What was asked for.
        plans: By name of the plan, one entry an edit; the first plan is the one that was asked for.
        tokenizer: PSNR outside of each box of the tokenizer's round trip; empty where it was not measured.
        rows: Before, mask and after of the first `SHOWN` edits, drawn by the first plan.
    """

    edits: Sequence[SceneEdit]
    plans: Mapping[str, Sequence[Measured]]
    tokenizer: Sequence[float]
    rows: Sequence[Row] = ()

    @property
    def reference(self) -> str:
        """The plan that others are compared with: the dense one, or else the first."""
        return DENSE if DENSE in self.plans else next(iter(self.plans))

    @property
    def box_share(self) -> float:
        """Of the picture, mean of all boxes."""
        return float(np.mean([edit.box[2] * edit.box[3] / edit.source.canvas**2 for edit in self.edits]))

    def passed(self, plan: str) -> list[float]:
        """1 for every edit that succeeded, else 0."""
        return [float(each.verdict.passed) for each in self.plans[plan]]

    def difference(self, plan: str) -> Interval:
        """Share that succeeded, less that of the reference on the same edits and seeds."""
        return paired_interval(self.passed(plan), self.passed(self.reference))

    def faster(self, plan: str) -> float:
        """Median over all edits of how many times less time it took than the reference."""
        pairs = zip(self.plans[self.reference], self.plans[plan], strict=True)
        return float(np.median([other.seconds / own.seconds for other, own in pairs]))

    def plan_as_json(self, plan: str) -> dict[str, Any]:
        """Scores of one plan."""
        measured = self.plans[plan]
        kinds = {
            kind: [
                each.verdict.passed
                for edit, each in zip(self.edits, measured, strict=True)
                if edit.kind == kind
            ]
            for kind in KINDS
        }
        interval = mean_interval(self.passed(plan))
        outside = mean_interval([each.outside for each in measured])
        return {
            "overall": interval.value,
            "interval": [interval.low, interval.high],
            "n": len(self.edits),
            "kinds": {kind: float(np.mean(passed)) for kind, passed in kinds.items() if passed},
            "aspects": {
                aspect: float(np.mean([getattr(each.verdict, aspect) for each in measured]))
                for aspect in ASPECTS
            },
            "psnr_outside": outside.value,
            "psnr_outside_interval": [outside.low, outside.high],
            "psnr_tokenizer": float(np.mean(self.tokenizer)) if self.tokenizer else None,
            "box_share": self.box_share,
            "seconds_per_edit": float(np.median([each.seconds for each in measured])),
        }

    def as_json(self) -> dict[str, Any]:
        """Scores of the first plan, and of all against the reference where there are several."""
        document = self.plan_as_json(next(iter(self.plans)))
        if len(self.plans) > 1:
            document["reference"] = self.reference
            document["plans"] = {
                plan: {
                    **self.plan_as_json(plan),
                    "difference": self.difference(plan).as_json(),
                    "faster": self.faster(plan),
                }
                for plan in self.plans
            }
        return document


def evaluate_edits(
    pipeline: NextScalePipeline,
    count: int,
    seed: int = 0,
    plans: Mapping[str, Pruning] | None = None,
    settings: dict[str, Any] | None = None,
    share: float = 0.25,
    round_trip: bool = True,
    log: Path | None = None,
    advance: Advance | None = None,
    show: int = SHOWN,
) -> EditScores:
    """Edits random scenes one by one, under every plan in turn, and checks the results.

    Args:
        pipeline: A model of pictures that knows the scenes' words.
        count: Edits.
        seed: Chooses the edits; the pictures' seeds count on from it.
        plans: What to pass as `pruning`, by name; by default the region alone.
        settings: Further arguments of `edit`.
        share: Of the picture that each box covers.
        round_trip: Whether to measure the tokenizer alone too.
        log: A file that holds every finished edit: a stopped evaluation goes on with it.
        advance: Called with the progress.
        show: Pictures of so many edits are kept.

    Raises:
        ValueError: When the pictures are not square, the model cannot edit, or the file is another
            evaluation's.
    """
    if count < 1:
        raise ValueError(f"{count} edits cannot be evaluated; ask for at least one.")
    if not 0.0 < share < 1.0:
        raise ValueError(f"A box cannot cover {share:g} of a picture; give a share between 0 and 1.")
    height, width = pipeline.pixels(pipeline.schedule())
    if height != width:
        raise ValueError(f"Scenes are square; {width}x{height} pixels are not: choose a square size.")
    plans, settings = plans or {REGION: REGION}, settings or {}
    edits = sample_edits(count, seed, width, share)
    done = _open_log(log, pipeline, seed, plans, settings, share)
    rows: list[Row] = []
    for number, edit in enumerate(edits):
        source = render(edit.source, width, number)
        pictures: dict[str, Pixels] = {}
        if number not in done.records:
            record, pictures = _measure(pipeline, source, edit, seed + number, plans, settings)
            if round_trip:
                record["tokenizer"] = _psnr(_round_trip(pipeline, source), source, _outside(edit))
            done.add(number, record)
        if number < show:
            first, pruning = next(iter(plans.items()))
            if first not in pictures:
                _, pictures[first] = draw_edit(
                    pipeline, source, edit, seed + number, {**settings, "pruning": pruning}
                )
            mask = Image.fromarray(np.where(_outside(edit), 0, 255).astype(np.uint8))
            rows.append((Image.fromarray(source), mask, Image.fromarray(pictures[first])))
        if advance is not None:
            advance(1)
    records = [done.records[number] for number in range(count)]
    measured = {plan: [Measured.from_json(record["plans"][plan]) for record in records] for plan in plans}
    return EditScores(edits, measured, [record["tokenizer"] for record in records if round_trip], rows)


class _Unlogged:
    """Stands in for a file of records."""

    def __init__(self) -> None:
        self.records: dict[int, dict[str, Any]] = {}

    def add(self, number: int, record: dict[str, Any]) -> None:
        self.records[number] = record


def _open_log(
    log: Path | None,
    pipeline: NextScalePipeline,
    seed: int,
    plans: Mapping[str, Pruning],
    settings: dict[str, Any],
    share: float,
) -> RecordLog | _Unlogged:
    if log is None:
        return _Unlogged()
    depends_on = {
        "measurement": "edits of scenes",
        "model": fingerprint(pipeline),
        "plans": {name: as_json_value(plan) for name, plan in plans.items()},
        "settings": as_json_value(settings),
        "seed": seed,
        "share": share,
    }
    return RecordLog(log, depends_on)


def _measure(
    pipeline: NextScalePipeline,
    source: Pixels,
    edit: SceneEdit,
    seed: int,
    plans: Mapping[str, Pruning],
    settings: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, Pixels]]:
    """One edit under every plan: a record, and the results."""
    measured: dict[str, Any] = {}
    pictures: dict[str, Pixels] = {}
    for name, pruning in plans.items():
        started = time.perf_counter()
        drawn, result = draw_edit(pipeline, source, edit, seed, {**settings, "pruning": pruning})
        spent = time.perf_counter() - started
        outside = _psnr(drawn, source, _outside(edit))
        measured[name] = Measured(check_edit(result, edit), outside, spent).as_json()
        pictures[name] = result
    return {"kind": edit.kind, "text": edit.text, "plans": measured}, pictures


def _outside(edit: SceneEdit) -> NDArray[np.bool_]:
    """Pixels outside of the box, bool [H, W]."""
    left, top, width, height = edit.box
    places = np.ones((edit.source.canvas,) * 2, dtype=np.bool_)
    places[top : top + height, left : left + width] = False
    return places


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
