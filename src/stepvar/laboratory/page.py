"""The report itself: one HTML page that needs no other file, and the numbers as JSON."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from string import Template
from typing import Any

from stepvar.evaluation.statistics import Interval
from stepvar.laboratory import charts
from stepvar.laboratory.analytic import published_costs
from stepvar.laboratory.claims import HELD, OPEN, Claim, judge
from stepvar.laboratory.contestants import DENSE, OURS
from stepvar.laboratory.results import Results, Row, Versus

Cell = tuple[str, Callable[[Row], str]]

EXHIBITS = {
    "decomposition": "Where the gain comes from: skipping, pruning, both",
    "table 1": "Methods without skips: half of the second last scale and three quarters of the last pruned",
    "table 2": "Methods with the paper's plan: 0.4 and 0.5 pruned, then two scales skipped",
    "others": "Accelerators of other kinds: guidance dropped, scales left out per picture, a smaller cache",
    "selection": "Ablation: what to keep (same ratios, without skips)",
    "recovery": "Ablation: how to fill in what was pruned",
    "variants": "Beyond the paper: one thing changed at a time",
    "ratio": "Ablation: ratio on the last two scales",
    "pairs": "Ablation: which pair of adjacent scales (0.7 each)",
    "skips": "Leaving out the last scales",
}


def numbers(results: Results) -> dict[str, Any]:
    """Everything that the page shows, as one JSON document."""
    return {
        "run": results.folder.run,
        "pictures": {
            "main": len(results.pictures[DENSE].psnr),
            "measured_blocks": len(results.blocks),
            "rounds": len(results.rounds),
        },
        "exhibits": {name: [row.as_json() for row in results.rows(name)] for name in EXHIBITS},
        "versus": {
            name: [entry.as_json() for entry in results.versus(name, ours)]
            for name, ours in (("table 1", OURS), ("table 2", _ours_with_skips(results)))
        },
        "categories": {
            label: {category: interval.as_json() for category, interval in scores.items()}
            for label, scores in results.categories("decomposition").items()
        },
        "diversity": {label: interval.as_json() for label, interval in results.diversity().items()},
        "perturbation": [
            {"scale": scale, "psnr": psnr.as_json(), "ssim": ssim.as_json()}
            for scale, psnr, ssim in results.perturbations()
        ],
        "published": [
            {**vars(model), "late_share": model.late_share, "saving": model.saving}
            for model in published_costs()
        ],
        "claims": [claim.as_json() for claim in judge(results)],
    }


def render(results: Results) -> tuple[str, dict[str, Any]]:
    """The page, and the numbers behind it."""
    document = numbers(results)
    claims = [Claim(**entry) for entry in document["claims"]]
    template = Template(files("stepvar.laboratory").joinpath("report.html").read_text("utf-8"))
    parts = {
        "title": "StepVAR, measured",
        "setting": _setting(results),
        "verdicts": _claims(claims),
        "held": str(sum(claim.verdict == HELD for claim in claims)),
        "claims": str(len(claims)),
        "decomposition": _table(results, "decomposition"),
        "categories": _categories(results),
        "table1": _table(results, "table 1") + _versus(results.versus("table 1", OURS), OURS),
        "table2": _table(results, "table 2")
        + _versus(results.versus("table 2", _ours_with_skips(results)), OURS),
        "trade_off": charts.trade_off(results),
        "others": _table(results, "others"),
        "selection": _table(results, "selection"),
        "recovery": _table(results, "recovery"),
        "variants": _table(results, "variants"),
        "ratio": charts.ratios(results) + _table(results, "ratio"),
        "pairs": charts.pairs(results) + _table(results, "pairs"),
        "skips": _table(results, "skips"),
        "figure_1a": charts.time_and_flops(results),
        "published": charts.published_models(published_costs()),
        "figure_1b": charts.perturbation(results) if results.perturbations() else _MISSING,
        "figure_1c": charts.added_frequencies(results) if results.spectra() else _MISSING,
        "figure_3": charts.energy_correlation(results) if results.correlations() else _MISSING,
        "gallery": "".join(_gallery(entry) for entry in results.gallery()) or _MISSING,
        "diversity": _diversity(results),
        "features": html.escape(results.folder.identity["features"]),
        # A closing tag inside the JSON would end the script element.
        "numbers": json.dumps(document, allow_nan=False).replace("</", "<\\/"),
    }
    return template.substitute(parts), document


_MISSING = '<p class="note">Not measured yet: the run was stopped before.</p>'


def _ours_with_skips(results: Results) -> str:
    return next(label for label, _ in results.field.exhibit("table 2") if label.startswith(OURS))


def cell(interval: Interval, digits: int = 2, factor: float = 1.0) -> str:
    """A value with its interval below it."""
    value, low, high = (
        f"{factor * number:.{digits}f}" for number in (interval.value, interval.low, interval.high)
    )
    return f"{value}<small>{low} to {high}</small>"


_COLUMNS: tuple[Cell, ...] = (
    ("tokens", lambda row: f"{100 * row.tokens:.0f} %"),
    ("FLOPs", lambda row: f"{100 * row.flops:.0f} %"),
    ("ms a picture", lambda row: f"{1e3 * row.seconds:.0f}"),
    ("speed-up", lambda row: cell(row.speedup)),
    ("PSNR, dB", lambda row: "" if row.frechet.high == 0.0 else cell(row.psnr)),
    ("SSIM", lambda row: "" if row.frechet.high == 0.0 else cell(row.ssim, 3)),
    ("Fréchet", lambda row: "" if row.frechet.high == 0.0 else cell(row.frechet, 4)),
    ("equal bits", lambda row: cell(row.agreement, 1, 100) + " %" if row.frechet.high else ""),
    ("fine detail", lambda row: cell(row.detail, 2)),
    ("scene score", lambda row: cell(row.scene, 1, 100)),
    ("change, points", lambda row: "" if row.frechet.high == 0.0 else cell(row.scene_change, 1)),
    ("KV MiB", lambda row: f"{row.cache_bytes / 2**20:.1f}"),
    ("peak MiB", lambda row: "" if row.memory is None else f"{row.memory / 2**20:.0f}"),
)


def _table(results: Results, exhibit: str) -> str:
    rows = results.rows(exhibit)
    columns = [column for column in _COLUMNS if any(column[1](row) for row in rows)]
    body = [[html.escape(row.label), *(render_cell(row) for _, render_cell in columns)] for row in rows]
    marked = [row.label.startswith(OURS) for row in rows]
    caption = f"{EXHIBITS[exhibit]}. {rows[0].n} pictures each, the same prompts and seeds."
    return _html_table(caption, ["", *(name for name, _ in columns)], body, marked)


def _versus(entries: Sequence[Versus], ours: str) -> str:
    body = [
        [
            html.escape(entry.rival),
            cell(entry.psnr),
            cell(entry.frechet, 4),
            cell(entry.scene, 1),
            cell(entry.time),
            "nearer to dense" if entry.nearer else "farther" if entry.farther else "no clear difference",
        ]
        for entry in entries
    ]
    header = [f"{ours} minus", "PSNR, dB", "Fréchet", "scene, points", "time ratio", "verdict"]
    caption = "Paired by prompt and seed; an interval without zero is a difference."
    return _html_table(caption, header, body, [False] * len(body))


def _categories(results: Results) -> str:
    table = results.categories("decomposition")
    names = list(next(iter(table.values())))
    body = [
        [html.escape(label), *(cell(scores[name], 0, 100) for name in names)]
        for label, scores in table.items()
    ]
    caption = "Scene score by category, % of pictures on which everything asked for is right."
    return _html_table(caption, ["", *names], body, [False] * len(body))


def _diversity(results: Results) -> str:
    found = results.diversity()
    if not found:
        return _MISSING
    body = [[html.escape(label), cell(interval, 1, 100)] for label, interval in found.items()]
    return _html_table(
        "Distance between pictures of one prompt and different seeds, % of the dense run's.",
        ["", "distance"],
        body,
        [False] * len(body),
    )


def _html_table(
    caption: str, header: Sequence[str], body: Sequence[Sequence[str]], marked: Sequence[bool]
) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    rows = []
    for row, mark in zip(body, marked, strict=True):
        values = "".join(f"<td>{value}</td>" for value in row[1:])
        rows.append(f"<tr{' class=ours' if mark else ''}><th>{row[0]}</th>{values}</tr>")
    return (
        f'<div class="scroll"><table><caption>{html.escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _claims(claims: Sequence[Claim]) -> str:
    kinds = {HELD: "yes", OPEN: "open"}
    return "".join(
        f'<li class="{kinds.get(claim.verdict, "no")}"><b>{claim.verdict}</b> '
        f"<span>{html.escape(claim.text)} <i>{html.escape(claim.source)}</i></span>"
        f"<p>{html.escape(claim.evidence)}</p></li>"
        for claim in claims
    )


def _gallery(entry: dict[str, Any]) -> str:
    rows = [
        f"<figcaption>{html.escape(EXHIBITS[name])}</figcaption>" + _strip(pictures)
        for name, pictures in entry["rows"].items()
    ]
    rows.append("<figcaption>What ran of the last scale, by ratio</figcaption>" + _strip(entry["masks"]))
    prompt = html.escape(entry["prompt"])
    return f"<figure><h3>{prompt}, seed {entry['seed']}</h3>{''.join(rows)}</figure>"


def _strip(pictures: dict[str, str]) -> str:
    shown = "".join(
        f'<div><img alt="{html.escape(label)}" src="data:image/png;base64,{data}">'
        f"<p>{html.escape(label)}</p></div>"
        for label, data in pictures.items()
    )
    return f'<div class="strip">{shown}</div>'


def _setting(results: Results) -> str:
    identity, protocol = results.folder.identity, results.protocol
    machine = identity["machine"]
    main = len(results.pictures[DENSE].psnr)
    short = f" of {protocol.pictures} planned" if main < protocol.pictures else ""
    return html.escape(
        f"Model {identity['model']} (weights {identity['weights']}), {identity['size']} pixels, "
        f"{identity['dtype']}. {machine['device_name']} ({machine['device']}, {machine['threads']} threads), "
        f"torch {machine['torch']}, stepvar {identity['stepvar']}. {main} pictures{short} of each main "
        f"contestant, {len(results.rounds)} interleaved rounds of timing."
    )
