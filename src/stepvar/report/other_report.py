"""An earlier report, whose verdicts stand beside this one's: the same claims on another model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepvar.report.claims.claim import FAILED, HELD, OPEN, Claim
from stepvar.report.folder import NUMBERS

_LARGEST = 64 * 2**20
"""Bytes of a document of numbers; a full report's has a quarter of a million."""


@dataclass(frozen=True)
class OtherReport:
    """What a report needs to know of another one.

    Attributes:
        model: Name of its model.
        size: Width and height of its pictures, such as "256 x 256".
        claims: Its claims by their texts.
    """

    model: str
    size: str
    claims: dict[str, Claim]

    @property
    def title(self) -> str:
        """Model and size, for the head of a column."""
        return f"{self.model}, {self.size}"


def read_report(folder: Path) -> OtherReport:
    """Reads the verdicts of a finished report.

    Args:
        folder: As `stepvar reproduce` wrote it.

    Raises:
        ValueError: When it holds no report, or a damaged one.
    """
    file = folder / NUMBERS
    if not file.is_file():
        raise ValueError(
            f"'{folder}' holds no finished report ({NUMBERS} is missing): name a report's folder."
        )
    if file.stat().st_size > _LARGEST:
        raise ValueError(f"'{file}' is larger than any report: name a report's folder.")
    try:
        document = json.loads(file.read_text("utf-8"))
        identity = document["run"]["identity"]
        claims = [_claim(entry) for entry in document["claims"]]
        return OtherReport(str(identity["model"]), str(identity["size"]), {c.text: c for c in claims})
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"'{file}' is no document of a report ({type(error).__name__}): name a report's folder."
        ) from error


def _claim(entry: dict[str, Any]) -> Claim:
    claim = Claim(*(str(entry[name]) for name in ("text", "source", "verdict", "evidence")))
    if claim.verdict not in (HELD, FAILED, OPEN):
        raise ValueError(f"unknown verdict {claim.verdict!r}")
    return claim
