"""Charts of a report, as SVG text."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from stepvar.metrics.statistics import Interval, mean_interval
from stepvar.report.configurations import DENSE, SKIP_ONLY
from stepvar.report.configurations import OURS as OURS_LABEL
from stepvar.report.published_costs import ModelCost
from stepvar.report.records import Row
from stepvar.report.results import Results

INK, FAINT, RULE = "#1c1e24", "#70747e", "#d9dce2"
OURS, DENSE_COLOUR, RIVAL, SKIPPED = "#007a6c", "#31343c", "#e8a33d", "#a8acb6"
COLD, WARM = "#165c7d", "#c8553d"

_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "stepvar",
}


def require_matplotlib() -> None:
    """Raises ValueError when figures cannot be generated here."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError("Reports need matplotlib: pip install 'stepvar[report]'.") from error


@contextmanager
def _figure(columns: int = 1, width: float = 9.0, height: float = 3.1, **options: Any) -> Iterator[Any]:
    """A styled figure and its axes; nothing of pyplot's global state is touched."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(1, columns, squeeze=False, **options)[0]


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def time_and_flops(results: Results) -> str:
    """Figure 1a: where time and FLOPs go, scale by scale, dense and with the paper's plan."""
    paper = dict(results.configurations.table("decomposition"))["prune and skip"].name
    names = [entry["scale"] for entry in results.costs[DENSE]["scales"]]
    places = np.arange(len(names))
    with _figure(2) as (figure, (left, right)):
        for name, shift, colour, label in (
            (DENSE, -0.2, DENSE_COLOUR, "dense"),
            (paper, 0.2, OURS, "StepVAR, paper's plan"),
        ):
            spent = [_milliseconds(interval) for interval in results.scale_seconds(name)]
            bars = {"width": 0.4, "color": colour, "label": label}
            left.bar(places + shift, _values(spent), yerr=_errors(spent), ecolor=FAINT, **bars)
            right.bar(places + shift, _scale_flops(results, name), **bars)
        for axis, title, unit in (
            (left, "Time per scale, one picture", "ms"),
            (right, "Transformer FLOPs per scale", "GFLOP"),
        ):
            axis.set_xticks(places, names, rotation=45)
            axis.set_title(title)
            axis.set_ylabel(unit)
        left.legend()
        return _svg(figure)


def _milliseconds(interval: Interval) -> Interval:
    return interval.scaled(1e3)


def _scale_flops(results: Results, name: str) -> np.ndarray:
    return np.array([entry["flops"] for entry in results.costs[name]["scales"]]) / 1e9


def published_models(models: Sequence[ModelCost]) -> str:
    """Figure 1a for published models, computed from their sizes and schedules."""
    with _figure(len(models), width=3.4 * len(models), height=2.9) as (figure, axes):
        for axis, model in zip(axes, models, strict=True):
            places = np.arange(len(model.scales))
            axis.bar(places - 0.2, np.array(model.dense) / 1e12, 0.4, color=DENSE_COLOUR, label="dense")
            axis.bar(places + 0.2, np.array(model.pruned) / 1e12, 0.4, color=OURS, label=model.plan)
            axis.set_xticks(places, model.scales, rotation=70, fontsize=7.5)
            axis.set_title(model.name)
            axis.set_ylabel("TFLOP")
            axis.legend(fontsize=8)
        return _svg(figure)


def perturbation(results: Results) -> str:
    """Figure 1b: one scale disturbed, all others as they were."""
    found = results.perturbations()
    places = np.arange(len(found))
    panels = (
        ("PSNR to the clean picture, dB", [psnr for _, psnr, _ in found]),
        ("SSIM", [ssim for _, _, ssim in found]),
    )
    with _figure(2, height=2.8) as (figure, axes):
        for axis, (title, intervals) in zip(axes, panels, strict=True):
            axis.errorbar(
                places, _values(intervals), yerr=_errors(intervals), color=COLD, marker="o", capsize=3
            )
            axis.set_xticks(places, [entry[0] for entry in found], rotation=45)
            axis.set_title(title)
            axis.set_xlabel("disturbed scale")
        return _svg(figure)


def added_frequencies(results: Results) -> str:
    """Figure 1c: what the last scales add, by spatial frequency."""
    from matplotlib.ticker import NullLocator

    lows, highs = [], []
    with _figure(1, width=8.6, height=3.2) as (figure, (axis,)):
        colours = [DENSE_COLOUR, COLD, OURS, RIVAL]
        for (label, rows), colour in zip(results.spectra().items(), colours, strict=False):
            total = rows.sum(axis=1, keepdims=True)
            bands = [mean_interval(column) for column in (100 * rows / np.maximum(total, 1e-12)).T]
            centres = (np.arange(len(bands)) + 0.5) / (2 * len(bands))
            name = "the dense pictures" if label == DENSE else f"added by the {label}"
            axis.plot(centres, _values(bands), color=colour, marker=".", label=name)
            low, high = [band.low for band in bands], [band.high for band in bands]
            axis.fill_between(centres, low, high, color=colour, alpha=0.15, linewidth=0)
            lows.append(max(min(low), 1e-3))
            highs.append(max(high))
        axis.set_yscale("log")
        axis.set_yticks([0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50])
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_locator(NullLocator())
        axis.set_ylim(0.5 * min(lows), 2.0 * max(highs))
        axis.set_xlabel("cycles a pixel")
        axis.set_ylabel("% of the energy")
        axis.set_title("Energy by spatial frequency")
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return _svg(figure)


def energy_correlation(results: Results) -> str:
    """Figure 3: correlation of residual energy with |projection|, layer by scale, and maps of both."""
    table = results.correlations()
    maps = (results.folder.load("energy") or {"maps": []})["maps"]
    means = np.array([rows.mean(axis=1) for rows in table.values()]).T
    with _figure(1 + 2 * len(maps), width=11.0, height=2.7, width_ratios=[2.2] + [1] * (2 * len(maps))) as (
        figure,
        axes,
    ):
        shown = axes[0].imshow(means, vmin=-1, vmax=1, cmap="RdBu_r", aspect="auto", origin="lower")
        axes[0].set_xticks(range(len(table)), list(table), rotation=45)
        axes[0].set_yticks(range(len(means)))
        axes[0].set_ylabel("layer")
        axes[0].set_title("Correlation")
        axes[0].grid(visible=False)
        figure.colorbar(shown, ax=axes[0])
        for index, entry in enumerate(maps):
            for axis, key, name in zip(
                axes[1 + 2 * index : 3 + 2 * index],
                ("energy", "projection"),
                ("energy", "|proj.|"),
                strict=True,
            ):
                axis.imshow(entry[key], cmap="magma")
                axis.set_title(f"layer {entry['layer']}\n{name}", fontsize=8.5)
                axis.set_axis_off()
        return _svg(figure)


def ratios(results: Results) -> str:
    """Speed and quality by the share pruned of the last two scales."""
    rows = results.rows("ratio")
    at = [float(row.label) for row in rows]
    scenes = [row.prompt.scene.scaled(100) for row in rows if row.prompt is not None]
    panels = [
        ("Speed-up, end to end", [row.speedup for row in rows], OURS),
        ("PSNR to dense, dB", [row.psnr for row in rows[1:]], COLD),
        ("Fréchet distance to dense", [row.frechet for row in rows], WARM),
        *([("Scene score, %", scenes, DENSE_COLOUR)] if scenes else []),
    ]
    with _figure(len(panels), width=11.0, height=2.5) as (figure, axes):
        for axis, (title, intervals, colour) in zip(axes, panels, strict=True):
            axis.errorbar(
                at[-len(intervals) :],
                _values(intervals),
                yerr=_errors(intervals),
                color=colour,
                marker="o",
                capsize=3,
            )
            axis.set_title(title)
            axis.set_xlabel("share pruned")
            axis.set_xlim(-0.05, 0.95)
        if scenes:
            axes[-1].set_ylim(0.0, max(5.0, axes[-1].get_ylim()[1]))
        return _svg(figure)


def pairs(results: Results) -> str:
    """Figure 7: two adjacent scales pruned by 0.7, early to late."""
    rows = results.rows("pairs")
    places = np.arange(len(rows))
    panels = (
        ("Speed-up, end to end", [row.speedup for row in rows], OURS),
        ("Fréchet distance to dense", [row.frechet for row in rows], WARM),
        ("PSNR to dense, dB", [row.psnr for row in rows], COLD),
    )
    with _figure(3, width=11.0, height=3.0) as (figure, axes):
        for axis, (title, intervals, colour) in zip(axes, panels, strict=True):
            axis.bar(places, _values(intervals), yerr=_errors(intervals), color=colour, capsize=3, width=0.6)
            axis.set_xticks(places, [row.label for row in rows], rotation=45, ha="right", fontsize=8)
            axis.set_title(title)
        axes[0].axhline(1.0, color=FAINT, linewidth=1)
        return _svg(figure)


def saliency(results: Results) -> str:
    """Figure 6 in numbers: how much of what is kept lies on objects."""
    found = {float(ratio): mean_interval(rows) for ratio, rows in results.saliency().items()}
    with _figure(1, width=5.0, height=2.6) as (figure, (axis,)):
        lifts = list(found.values())
        axis.errorbar(list(found), _values(lifts), yerr=_errors(lifts), color=OURS, marker="o", capsize=3)
        axis.axhline(1.0, color=FAINT, linewidth=1, linestyle="--", label="chosen by chance")
        axis.set_xlim(0.0, 1.0)
        axis.set_xlabel("share pruned")
        axis.set_title("Objects among kept tokens, against all tokens")
        axis.legend()
        return _svg(figure)


def trade_off(results: Results) -> str:
    """Time against PSNR to the dense run: both main tables, and ours at several ratios."""
    panels = (("table 1", "Without skips"), ("equal time", "At several ratios"), ("table 2", "Paper's plan"))
    with _figure(3, width=11.5, height=4.0) as (figure, axes):
        for axis, (table, title) in zip(axes, panels, strict=True):
            rows = [row for row in results.rows(table) if not row.is_dense]
            if table == "equal time":
                _families(axis, results)
            for number, row in enumerate(rows, 1):
                _point(axis, row, number)
            axis.set_xlabel("ms a picture, end to end")
            axis.set_title(title)
            axis.legend(fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, handlelength=0)
        axes[0].set_ylabel("PSNR to dense, dB")
        return _svg(figure)


def _families(axis: Any, results: Results) -> None:
    """A line through the plans of each of our families."""
    rows = results.rows("equal time")
    for family, configs in results.configurations.families.items():
        names = [label for label, config in results.configurations.table("equal time") if config in configs]
        line = sorted((row for row in rows if row.label in names), key=lambda row: row.seconds)
        colour = OURS if family == OURS_LABEL else SKIPPED
        axis.plot(
            [1e3 * row.seconds for row in line], [row.psnr.value for row in line], color=colour, alpha=0.4
        )


def _point(axis: Any, row: Row, number: int) -> None:
    """A configuration, with its number beside it: names would overlap."""
    colour = SKIPPED if row.label == SKIP_ONLY else OURS if row.label.startswith(OURS_LABEL) else RIVAL
    axis.errorbar(
        [1e3 * row.seconds],
        [row.psnr.value],
        yerr=_errors([row.psnr]),
        color=colour,
        marker="o",
        capsize=3,
        linestyle="none",
        label=f"{number}  {row.label}",
    )
    place = (1e3 * row.seconds, row.psnr.value)
    axis.annotate(str(number), place, (5, 4), textcoords="offset points", fontsize=8, color=INK)


def _values(intervals: Sequence[Interval]) -> list[float]:
    return [interval.value for interval in intervals]


def _errors(intervals: Sequence[Interval]) -> np.ndarray:
    """Distances down and up, not below 0: an interval that was centred may just miss its value."""
    down = [interval.value - interval.low for interval in intervals]
    up = [interval.high - interval.value for interval in intervals]
    return np.maximum([down, up], 0.0)
