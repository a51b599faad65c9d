"""The HTML page of a report, which needs no other file, and its numbers as JSON."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from string import Template
from typing import Any

from stepvar.metrics.statistics import Interval, mean_interval
from stepvar.report import charts
from stepvar.report.claims import evaluate_claims
from stepvar.report.claims.claim import FAILED, HELD, OPEN, Claim
from stepvar.report.configurations import DENSE, OURS
from stepvar.report.coverage import COVERAGE
from stepvar.report.gallery import GAIN
from stepvar.report.other_report import OtherReport
from stepvar.report.published_costs import published_costs
from stepvar.report.records import EqualTimeDifference, PairedDifference, PromptMeasures, Row
from stepvar.report.results import Results

Cell = tuple[str, Callable[[Row], str]]

TABLES = {
    "decomposition": "Where the gain comes from: skipping, pruning, both",
    "table 1": "Methods without skips: half of the second last scale and three quarters of the last pruned",
    "table 2": "Methods with the paper's plan: 0.4 and 0.5 pruned, then two scales skipped",
    "equal time": "Ours pruned more and less, and the rivals, each in its own time (without skips)",
    "fastervar": "FasterVAR and fair controls: the last two scales left out, no guidance on the third last",
    "others": "Accelerators of other kinds: guidance dropped, scales left out per picture, a smaller cache, "
    "a second model for the last scales",
    "selection": "Ablation: what to keep (same ratios, without skips)",
    "recovery": "Ablation: how to fill in what was pruned",
    "variants": "Beyond the paper: one thing changed at a time",
    "ratio": "Ablation: ratio on the last two scales",
    "pairs": "Ablation: which pair of adjacent scales (0.7 each)",
    "skips": "Leaving out the last scales",
}


def numbers(results: Results) -> dict[str, Any]:
    """All numbers of the page, as one JSON document."""
    return {
        "run": results.folder.run,
        "pictures": {
            "main": len(results.pictures[DENSE].psnr),
            "measured_blocks": len(results.blocks),
            "rounds": len(results.rounds),
        },
        "tables": {name: [row.as_json() for row in results.rows(name)] for name in TABLES},
        "references": {name: [row.as_json() for row in results.references(name)] for name in TABLES},
        "differences": {
            name: [entry.as_json() for entry in results.differences(name, ours)]
            for name, ours in (("table 1", OURS), ("table 2", _ours_with_skips(results)))
        },
        "equal time": {
            family: {rival: equal.as_json() for rival, equal in equal_times(results, family).items()}
            for family in results.configurations.families
        },
        "categories": {
            table: {
                label: {category: interval.as_json() for category, interval in scores.items()}
                for label, scores in results.categories(table).items()
            }
            for table in BY_CATEGORY
        },
        "real_fit": None if results.real_fit is None else results.real_fit.as_json(),
        "saliency": {ratio: mean_interval(rows).as_json() for ratio, rows in results.saliency().items()},
        "diversity": {label: interval.as_json() for label, interval in results.diversity().items()},
        "perturbation": [
            {"scale": scale, "psnr": psnr.as_json(), "ssim": ssim.as_json()}
            for scale, psnr, ssim in results.perturbations()
        ],
        "published": [
            {**vars(model), "late_share": model.late_share, "saving": model.saving}
            for model in published_costs()
        ],
        "claims": [claim.as_json() for claim in evaluate_claims(results)],
    }


def render(results: Results, other: OtherReport | None = None) -> tuple[str, dict[str, Any]]:
    """The page, and the numbers behind it; verdicts of another report stand beside these."""
    document = numbers(results)
    claims = [Claim(**entry) for entry in document["claims"]]
    template = Template(files("stepvar.report").joinpath("report.html").read_text("utf-8"))
    parts = {
        "title": "StepVAR, measured",
        "setting": _setting(results),
        "verdicts": _claims(claims),
        **{
            name: str(sum(claim.verdict == verdict for claim in claims))
            for name, verdict in (("held", HELD), ("failed", FAILED), ("open", OPEN))
        },
        "claims": str(len(claims)),
        "decomposition": _table(results, "decomposition"),
        "contents_regimes": "" if other is None else '<a class="part" href="#regimes">Regime by regime</a>',
        "regimes": "" if other is None else _regimes(results, claims, other),
        "coverage": _coverage(),
        "lpips": _lpips(results),
        "cascade": "" if "cascade" in results.folder.identity else _NO_CASCADE,
        "table1": _table(results, "table 1")
        + _differences(results.differences("table 1", OURS), OURS)
        + _categories(results, "table 1"),
        "table2": _table(results, "table 2")
        + _differences(results.differences("table 2", _ours_with_skips(results)), OURS)
        + _categories(results, "table 2"),
        "equal_time": _table(results, "equal time")
        + "".join(_at_equal_time(results, family) for family in results.configurations.families),
        "real_fit": "-" if results.real_fit is None else cell(results.real_fit, 3),
        "trade_off": charts.trade_off(results),
        "fastervar": _table(results, "fastervar"),
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
        "figure_6": charts.saliency(results) if results.saliency() else _NO_OBJECTS,
        "gallery": "".join(_gallery(entry) for entry in results.gallery()) or _MISSING,
        "diversity": _diversity(results),
        "features": html.escape(results.folder.identity["features"]),
        # A closing tag inside the JSON would end the script element.
        "numbers": json.dumps(document, allow_nan=False).replace("</", "<\\/"),
    }
    return template.substitute(parts), document


_MISSING = '<p class="note">Not measured.</p>'
_NO_OBJECTS = '<p class="note">No object was found in any of the dense pictures: this is not measured.</p>'
_NO_CASCADE = (
    '<p class="note">A cascade of two models (CoDe) needs a second, smaller model of the same visual '
    "tokenizer; none was given (<code>stepvar reproduce --cascade DIR</code>), so none was measured.</p>"
)

BY_CATEGORY = ("table 1", "table 2")
"""Tables whose scene scores are shown by category too, as GenEval's are."""


def _ours_with_skips(results: Results) -> str:
    return next(label for label, _ in results.configurations.table("table 2") if label.startswith(OURS))


def cell(interval: Interval, digits: int = 2, factor: float = 1.0) -> str:
    """A value with its interval below it."""
    value, low, high = (
        f"{factor * number:.{digits}f}" for number in (interval.value, interval.low, interval.high)
    )
    return f"{value}<small>{low} to {high}</small>"


def against_dense(show: Callable[[Row], str]) -> Callable[[Row], str]:
    """A cell that is empty for the dense run, which everything is compared with."""
    return lambda row: "" if row.is_dense else show(row)


def against_prompt(show: Callable[[PromptMeasures], str]) -> Callable[[Row], str]:
    """A cell that is empty where scenes were not checked."""
    return lambda row: "" if row.prompt is None else show(row.prompt)


_COLUMNS: tuple[Cell, ...] = (
    ("plan", lambda row: row.kind),
    ("tokens", lambda row: _work(row)),
    ("ms", lambda row: f"{1e3 * row.seconds:.0f}<small>text, decoder {1e3 * row.outside:.0f}</small>"),
    ("speed-up", lambda row: cell(row.speedup)),
    ("PSNR, dB", against_dense(lambda row: cell(row.psnr))),
    ("SSIM", against_dense(lambda row: cell(row.ssim, 3))),
    ("scene distance", against_dense(lambda row: cell(row.scene_distance, 3))),
    ("LPIPS", against_dense(lambda row: "" if row.lpips is None else cell(row.lpips, 3))),
    ("Fréchet to dense", against_dense(lambda row: cell(row.frechet, 4) if row.frechet_valid else "")),
    ("equal bits, %", against_dense(lambda row: cell(row.agreement, 1, 100))),
    ("fine detail", lambda row: cell(row.detail, 2)),
    ("scene score, %", against_prompt(lambda found: cell(found.scene, 1, 100))),
    ("change, points", against_dense(against_prompt(lambda found: cell(found.scene_change, 1)))),
    ("text fit", against_prompt(lambda found: cell(found.text_fit, 3))),
    (
        "Fréchet to real",
        lambda row: against_prompt(lambda found: cell(found.real, 4))(row) if row.frechet_valid else "",
    ),
    ("KV, MiB", lambda row: f"{row.cache_bytes / 2**20:.1f}{_peak(row)}"),
)


def _frechet_to_real(row: Row) -> str:
    return "" if row.prompt is None or not row.frechet_valid else cell(row.prompt.real, 4)


def _work(row: Row) -> str:
    most = "at most " if row.at_most else ""
    return f"{most}{100 * row.tokens:.0f} %<small>FLOPs {100 * row.flops:.0f} %</small>"


def _peak(row: Row) -> str:
    return "" if row.memory is None else f"<small>peak {row.memory / 2**20:.0f}</small>"


def _table(results: Results, table: str) -> str:
    """A table of configurations, below the reference rows."""
    references, own = results.references(table), results.rows(table)
    rows = [*references, *own]
    columns = [column for column in _COLUMNS if any(column[1](row) for row in rows)]
    body = [[html.escape(row.label), *(show(row) for _, show in columns)] for row in rows]
    classes = ["reference"] * len(references) + ["ours" if row.label.startswith(OURS) else "" for row in own]
    caption = f"{TABLES[table]}. {results.shared(table)} pictures each, the same prompts and seeds."
    header = ["", *(name for name, _ in columns)]
    return _html_table(caption, header, body, classes) + _left_out(results, table)


def _left_out(results: Results, table: str) -> str:
    """A note about configurations that the model cannot run."""
    entries = [entry for entry in results.configurations.left_out if entry[0] == table]
    return "".join(
        f'<p class="note">Not measured: {html.escape(label)}. {html.escape(reason)}</p>'
        for _, label, reason in entries
    )


_VERSUS: tuple[tuple[str, Callable[[PairedDifference], str]], ...] = (
    ("PSNR, dB", lambda entry: cell(entry.psnr)),
    ("scene distance", lambda entry: cell(entry.scene_distance, 3)),
    ("Fréchet to dense", lambda entry: cell(entry.frechet, 4)),
    ("scene, points", lambda entry: "" if entry.scene is None else cell(entry.scene, 1)),
    ("time ratio", lambda entry: cell(entry.time)),
    (
        "verdict",
        lambda entry: (
            "nearer to dense" if entry.nearer else "farther" if entry.farther else "no clear difference"
        ),
    ),
)


def _differences(entries: Sequence[PairedDifference], ours: str) -> str:
    columns = [column for column in _VERSUS if any(column[1](entry) for entry in entries)]
    body = [[html.escape(entry.rival), *(show(entry) for _, show in columns)] for entry in entries]
    caption = "At equal ratios. Paired by prompt and seed; an interval without zero is a difference."
    return _html_table(caption, [f"{ours} minus", *(name for name, _ in columns)], body)


def _at_equal_time(results: Results, family: str) -> str:
    """Ours against every rival, in the rival's time."""
    body = []
    for rival, equal in equal_times(results, family).items():
        scene = "" if equal.scene is None else cell(equal.scene, 1)
        verdict = "better" if equal.better else "not better" if equal.not_better else "no clear difference"
        shown = (f"{1e3 * equal.seconds:.0f}", cell(equal.psnr), cell(equal.frechet, 4), scene)
        body.append([html.escape(rival), *shown, verdict])
    caption = (
        "At equal measured time, ours by a straight line between two of the plans above, one faster and one "
        "slower than the rival. Better: nearer by both measures and not clearly worse on scenes."
    )
    return _html_table(
        caption, [f"{family} minus", "ms", "PSNR, dB", "Fréchet to dense", "scene, points", "verdict"], body
    )


def equal_times(results: Results, family: str) -> dict[str, EqualTimeDifference]:
    """Ours against every rival that is not faster than all of our plans."""
    configs = dict(results.configurations.table("equal time"))
    rivals = [entry.rival for entry in results.differences("table 1", OURS)]
    found = {rival: results.at_equal_time(family, configs[rival]) for rival in rivals}
    return {rival: equal for rival, equal in found.items() if equal is not None}


def _categories(results: Results, table: str) -> str:
    scores = results.categories(table)
    if not scores:
        return ""
    names = list(next(iter(scores.values())))
    body = [
        [html.escape(label), *(cell(row[name], 0, 100) for name in names)] for label, row in scores.items()
    ]
    caption = "By category: pictures on which everything asked for is right, %."
    return _html_table(caption, ["", *names], body)


def _diversity(results: Results) -> str:
    found = results.diversity()
    if not found:
        return _MISSING
    body = [[html.escape(label), cell(interval, 1, 100)] for label, interval in found.items()]
    caption = "Distance between pictures of one prompt and different seeds, % of the dense run's."
    return _html_table(caption, ["", "distance"], body)


def _coverage() -> str:
    body = [
        [html.escape(entry.table), f'<a href="#{entry.anchor}">{html.escape(entry.here)}</a>']
        if entry.anchor
        else [html.escape(entry.table), html.escape(entry.here)]
        for entry in COVERAGE
    ]
    return _html_table(
        "What the paper shows, and where it is here.", ["in the paper", "here"], body, text=True
    )


def _lpips(results: Results) -> str:
    if results.folder.identity["lpips"]:
        return "LPIPS is measured with torchvision's weights."
    return (
        "LPIPS itself is not measured: its ImageNet weights were not given "
        "(<code>stepvar reproduce --lpips FILE</code>)."
    )


def _html_table(
    caption: str,
    header: Sequence[str],
    body: Sequence[Sequence[str]],
    classes: Sequence[str] | None = None,
    text: bool = False,
) -> str:
    """A table; `classes` are those of its rows, `text` sets it to the left."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    rows = []
    for row, name in zip(body, classes or [""] * len(body), strict=True):
        values = "".join(f"<td>{value}</td>" for value in row[1:])
        rows.append(f"<tr{f' class={name}' if name else ''}><th>{row[0]}</th>{values}</tr>")
    return (
        f'<div class="scroll"><table{" class=text" if text else ""}><caption>{html.escape(caption)}</caption>'
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


def _regimes(results: Results, claims: Sequence[Claim], other: OtherReport) -> str:
    """The verdicts of two reports side by side: where the paper's claims hold, and where not."""
    identity = results.folder.identity
    here = f"{identity['model']}, {identity['size']}"
    body = [
        [html.escape(claim.text), _verdict(claim), _verdict(other.claims.get(claim.text))] for claim in claims
    ]
    caption = "The same claims on two models. Empty: not measured there, or asked in other words."
    table = _html_table(caption, ["claim", here, other.title], body, text=True)
    return f'<h3 id="regimes">Regime by regime</h3>{table}'


def _verdict(claim: Claim | None) -> str:
    return "" if claim is None else f"<b>{claim.verdict}</b><small>{html.escape(claim.evidence)}</small>"


def _gallery(entry: dict[str, Any]) -> str:
    rows = [
        f"<figcaption>{html.escape(TABLES[name])}</figcaption>" + _strip(pictures)
        for name, pictures in entry["rows"].items()
    ]
    rows += [
        f"<figcaption>What the last scales add (figure 1c): difference of the pictures with and without "
        f"them, times {GAIN:g}</figcaption>" + _strip(entry["added"]),
        "<figcaption>What ran of the last scale, by ratio (figure 6)</figcaption>" + _strip(entry["masks"]),
    ]
    prompt = html.escape(entry["prompt"])
    return f"<figure><h3>{prompt}, seed {entry['seed']}</h3>{''.join(rows)}</figure>"


def _strip(pictures: dict[str, str]) -> str:
    shown = "".join(
        f'<div><img alt="{html.escape(label)}" src="data:image/webp;base64,{data}">'
        f"<p>{html.escape(label)}</p></div>"
        for label, data in pictures.items()
    )
    return f'<div class="strip">{shown}</div>'


def _setting(results: Results) -> str:
    identity, protocol = results.folder.identity, results.protocol
    machine = identity["machine"]
    main = len(results.pictures[DENSE].psnr)
    short = f" of {protocol.pictures} planned" if main < protocol.pictures else ""
    second = f" Second model of cascades: weights {identity['cascade']}." if "cascade" in identity else ""
    return html.escape(
        f"Model {identity['model']} (weights {identity['weights']}), {identity['size']} pixels, "
        f"{identity['dtype']}. {machine['device_name']} ({machine['device']}, {machine['threads']} threads), "
        f"torch {machine['torch']}, stepvar {identity['stepvar']}. {main} pictures{short} of each central "
        f"configuration, {len(results.rounds)} interleaved rounds of timing.{second}"
    )
