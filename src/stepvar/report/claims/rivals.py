"""Claims beside the paper's tables: at equal time, about other accelerators, about searched plans."""

from __future__ import annotations

from collections.abc import Callable

from stepvar.report.claims.claim import (
    LEAST_ROUNDS,
    OPEN,
    TOLERATED_POINTS,
    Claim,
    at_least,
    verdict_of,
)
from stepvar.report.configurations import BEST, FAITHFUL, Configuration
from stepvar.report.records import Row
from stepvar.report.results import Results

WANTED_OF_BEST = 3.5
WANTED_OF_FAITHFUL, DECIBELS_OF_FAITHFUL = 2.0, 32.0

PROMISE_KEPT = 0.85
"""Of the speed-up that FLOPs promise for the transformer."""

SKIPVAR_SPEEDUP, SKIPVAR_SSIM = 1.8, 0.88
SCALEKV_SHARE = 0.15
"""Of the dense cache: a tenth is remembered, and a scale sees all of its own tokens besides."""


def nearer_at_equal_time(family: str, rival: str) -> Callable[[Results], Claim | None]:
    """The claim that ours is nearer to the dense run than a rival of table 1 that takes as long."""

    def check(results: Results) -> Claim | None:
        if family not in results.configurations.families:
            return None
        source = "our aim" if family == FAITHFUL else "tables 1 and 2, ablation of selection"
        name = f"the plan {family!r}" if family == FAITHFUL else family
        text = (
            f"Without skips and at the same measured time, {name} is nearer to the dense run than {rival}, "
            "and no worse on scenes."
        )
        config = dict(results.configurations.table("equal time"))[rival]
        equal = results.at_equal_time(family, config)
        if equal is None:
            evidence = (
                f"{rival} takes {results.seconds(config.name):.3f} s, less than any of our plans: no answer."
            )
            return Claim(text, source, OPEN, evidence)
        scene = "" if equal.scene is None else f"; scene score {equal.scene.format(1)} points"
        return Claim(
            text,
            source,
            verdict_of(equal.better, equal.not_better, equal.psnr.n),
            f"At {1e3 * equal.seconds:.0f} ms: PSNR {equal.psnr.format(2, ' dB')}, Fréchet distance "
            f"{equal.frechet.format(4)}, ours minus theirs{scene}.",
        )

    return check


def best_is_fast_and_good(results: Results) -> Claim | None:
    row = _row(results, "decomposition", BEST)
    if row is None or row.prompt is None:
        return None
    speedup, change = row.speedup, row.prompt.scene_change
    return Claim(
        f"A plan of our own (preset {BEST!r}) is {WANTED_OF_BEST:g} times as fast as dense and loses "
        f"{TOLERATED_POINTS:g} points of scene score or less.",
        "our aim",
        verdict_of(
            speedup.low >= WANTED_OF_BEST and change.low >= -TOLERATED_POINTS,
            speedup.high < WANTED_OF_BEST or change.high < -TOLERATED_POINTS,
            change.n if speedup.n >= LEAST_ROUNDS else 0,
        ),
        f"It is {speedup.format(2, ' x')} as fast, and the scene score changes by {change.format(1)} points.",
    )


def faithful_is_fast_and_near(results: Results) -> Claim | None:
    row = _row(results, "decomposition", FAITHFUL)
    if row is None:
        return None
    return Claim(
        f"A plan of our own that leaves nothing out (preset {FAITHFUL!r}) is {WANTED_OF_FAITHFUL:g} times as "
        f"fast as dense at {DECIBELS_OF_FAITHFUL:g} dB to it.",
        "our aim",
        verdict_of(
            row.speedup.low >= WANTED_OF_FAITHFUL and row.psnr.low >= DECIBELS_OF_FAITHFUL,
            row.speedup.high < WANTED_OF_FAITHFUL or row.psnr.high < DECIBELS_OF_FAITHFUL,
            row.psnr.n if row.speedup.n >= LEAST_ROUNDS else 0,
        ),
        f"It is {row.speedup.format(2, ' x')} as fast, at {row.psnr.format(1, ' dB')}.",
    )


def flops_are_turned_into_time(table: str, label: str) -> Callable[[Results], Claim | None]:
    """The claim that the transformer's time falls nearly as its FLOPs do."""

    def check(results: Results) -> Claim | None:
        row = _row(results, table, label)
        if row is None:
            return None
        name = dict(results.configurations.table(table))[label].name
        speedup, promise = results.transformer_speedup(name), 1.0 / row.flops
        return Claim(
            f"The transformer's speed-up by {label!r} is at least {PROMISE_KEPT:.0%} of what its FLOPs "
            "promise.",
            "our aim",
            at_least(speedup.scaled(1 / promise), PROMISE_KEPT, LEAST_ROUNDS),
            f"It is {speedup.format(2, ' x')} of {promise:.2f} x promised.",
        )

    return check


def skipvar_is_fast_and_close(results: Results) -> Claim | None:
    row = _row(results, "others", "SkipVAR")
    if row is None:
        return None
    return Claim(
        f"SkipVAR is {SKIPVAR_SPEEDUP:g} times as fast as dense at an SSIM above {SKIPVAR_SSIM:g}.",
        "SkipVAR, on Infinity-2B",
        verdict_of(
            row.speedup.low >= SKIPVAR_SPEEDUP and row.ssim.low > SKIPVAR_SSIM,
            row.speedup.high < SKIPVAR_SPEEDUP or row.ssim.high < SKIPVAR_SSIM,
            row.speedup.n,
            LEAST_ROUNDS,
        ),
        f"{row.speedup.format(2, ' x')}, SSIM {row.ssim.format(3)}, with decisions fitted to Infinity-2B.",
    )


def scalekv_saves_memory(results: Results) -> Claim | None:
    row, dense = _row(results, "others", "ScaleKV, 6 %"), _row(results, "decomposition", "dense")
    if row is None or dense is None or row.prompt is None:
        return None
    share, change = row.cache_bytes / dense.cache_bytes, row.prompt.scene_change
    return Claim(
        "ScaleKV remembers a tenth of the keys and values and hardly changes what the pictures show.",
        "ScaleKV, on Infinity-8B",
        verdict_of(
            share <= SCALEKV_SHARE and change.low >= -TOLERATED_POINTS,
            share > SCALEKV_SHARE or change.high < -TOLERATED_POINTS,
            change.n,
        ),
        f"The cache is {share:.0%} of the dense one, the workspace of one layer included; the scene score "
        f"changes by {change.format(1)} points, PSNR {row.psnr.format(1, ' dB')}, speed-up "
        f"{row.speedup.format(2, ' x')}.",
    )


def _row(results: Results, table: str, label: str) -> Row | None:
    configs: dict[str, Configuration] = dict(results.configurations.table(table))
    if label not in configs:
        return None
    return next(row for row in results.rows(table) if row.label == label)
