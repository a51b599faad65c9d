"""Pictures side by side, what the last scales add, and masks of what ran (figures 1c and 4 to 6)."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stepvar.evaluation.comparison import kept_mask
from stepvar.metrics.fidelity import amplified_difference
from stepvar.report.contestants import DENSE

if TYPE_CHECKING:
    from stepvar.report.contestants import Contestant
    from stepvar.report.drawing import Drawn
    from stepvar.report.steps import Study

SHOWN = ("decomposition", "table 1", "table 2", "recovery")
GAIN = 4.0
_DIMMED = 0.25


def show(study: Study, index: int) -> dict[str, Any]:
    """One prompt drawn by the methods of the main tables, and masks of the last scale by ratio."""
    job = study.jobs[index % len(study.jobs)]
    drawn: dict[str, Drawn] = {}

    def once(member: Contestant) -> Drawn:
        if member.name not in drawn:
            drawn[member.name] = study.models.draw([job], member)
        return drawn[member.name]

    rows = {
        exhibit: {label: encoded(once(member).pictures[0]) for label, member in study.field.exhibit(exhibit)}
        for exhibit in SHOWN
    }
    masks = {}
    for label, member in study.field.exhibit("ratio"):
        result = once(member)
        masks[label] = encoded(_masked(result.pictures[0], kept_mask(result.report.scales[-1])))
    dense = once(study.field[DENSE]).pictures[0]
    added = {
        f"the {label}": encoded(amplified_difference(dense, once(member).pictures[0], GAIN))
        for label, member in study.field.exhibit("skips")
    }
    return {**job.as_json(), "rows": rows, "added": added, "masks": masks}


def encoded(picture: NDArray[np.uint8]) -> str:
    """A picture as base64 of a WebP: a page of PNGs would be four times larger."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="WEBP", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()


def _masked(picture: NDArray[np.uint8], kept: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The picture with tokens that did not run dimmed and grey."""
    image = Image.fromarray(picture)
    grey = image.convert("L").point(lambda value: value * _DIMMED).convert("RGB")
    mask = Image.fromarray((kept * 255).astype(np.uint8)).resize(image.size, Image.Resampling.NEAREST)
    return np.asarray(Image.composite(image, grey, mask))
