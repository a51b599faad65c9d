"""Fails when a report lacks a table, a figure or a claim: `python tests/check_report.py FOLDER`."""

from __future__ import annotations

import html
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stepvar.report.claims.claim import FAILED, HELD, OPEN
from stepvar.report.configurations import KINDS
from stepvar.report.page import TABLES

SOURCES = ("figure 1a", "figure 1b", "figure 1c", "figure 3", "figure 7", "table 1", "MJHQ-30K", "selection",
           "recovery", "ratios")  # fmt: skip
"""What a claim must come from; figure 6 is left out where no picture shows an object."""

FEWEST_CLAIMS, CHARTS = 20, 8


def complaints(folder: Path) -> Iterator[str]:
    """What is wrong with a report."""
    page = (folder / "index.html").read_text("utf-8")
    document = json.loads((folder / "numbers.json").read_text("utf-8"))
    for name, caption in TABLES.items():
        if html.escape(caption) not in page:
            yield f"the page lacks the table {name!r}"
        rows = [*document["references"].get(name, []), *document["tables"].get(name, [])]
        missing = set(KINDS) - {row["kind"] for row in rows}
        if missing:
            yield f"the table {name!r} lacks {', '.join(sorted(missing))}"
        for row in rows:
            yield from (f"{name!r}, {row['label']!r}: {key} is no number" for key in bad_numbers(row))
    if page.count("<svg") < CHARTS:
        yield f"the page has {page.count('<svg')} figures, not {CHARTS} or more"
    claims = document["claims"]
    if len(claims) < FEWEST_CLAIMS:
        yield f"there are {len(claims)} claims, not {FEWEST_CLAIMS} or more"
    for source in SOURCES:
        if not any(source in claim["source"] for claim in claims):
            yield f"no claim comes from {source}"
    for claim in claims:
        if claim["verdict"] not in (HELD, FAILED, OPEN) or claim["text"] not in html.unescape(page):
            yield f"the claim {claim['text']!r} has no verdict on the page"
    for key in ("perturbation", "diversity", "published", "categories"):
        if not document[key]:
            yield f"{key} was not measured"


def bad_numbers(row: dict[str, Any]) -> Iterator[str]:
    """Values of a row that are missing or not finite."""
    for key, value in row.items():
        number = value["value"] if isinstance(value, dict) else value
        if isinstance(number, float) and not math.isfinite(number):
            yield key


if __name__ == "__main__":
    sys.exit("\n".join(complaints(Path(sys.argv[1]))) or None)
