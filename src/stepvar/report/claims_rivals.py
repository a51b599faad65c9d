"""What is claimed beside the paper's tables: at equal time, of other accelerators, of plans of our own."""

from __future__ import annotations

from collections.abc import Callable

from stepvar.report.contestants import BEST, FAITHFUL, Contestant
from stepvar.report.records import Row
from stepvar.report.results import Results
from stepvar.report.verdicts import LEAST_ROUNDS, OPEN, TOLERATED_POINTS, Claim, tell, verdict_of

WANTED_OF_BEST = 3.0

SKIPVAR_SPEEDUP, SKIPVAR_SSIM = 1.8, 0.88
SCALEKV_SHARE = 0.15
"""Of the dense cache: a tenth is remembered, and a scale sees all of its own tokens besides."""


def beats(family: str, rival: str) -> Callable[[Results], Claim | None]:
    """The claim that ours is nearer to the dense run than a rival of table 1 that takes as long."""

    def judge_one(results: Results) -> Claim | None:
        if family not in results.field.families:
            return None
        source = "our aim" if family == FAITHFUL else "tables 1 and 2, ablation of selection"
        name = f"the plan {family!r}" if family == FAITHFUL else family
        text = (
            f"Without skips and at the same measured time, {name} is nearer to the dense run than {rival}, "
            "and no worse on scenes."
        )
        member = dict(results.field.exhibit("equal time"))[rival]
        equal = results.at_equal_time(family, member)
        if equal is None:
            told = (
                f"{rival} takes {results.seconds(member.name):.3f} s, less than any of our plans: no answer."
            )
            return Claim(text, source, OPEN, told)
        return Claim(
            text,
            source,
            verdict_of(equal.better, equal.not_better, equal.psnr.n),
            f"At {1e3 * equal.seconds:.0f} ms: PSNR {tell(equal.psnr, 2, ' dB')}, Fréchet distance "
            f"{tell(equal.frechet, 4)}, scene score {tell(equal.scene, 1)} points, ours minus theirs.",
        )

    return judge_one


def best_is_fast_and_good(results: Results) -> Claim | None:
    row = _row(results, "decomposition", BEST)
    if row is None:
        return None
    speedup, change = row.speedup, row.scene_change
    return Claim(
        f"A plan of our own (preset {BEST!r}) is {WANTED_OF_BEST:g} times as fast as dense and loses "
        f"{TOLERATED_POINTS:g} points of scene score or less.",
        "our aim",
        verdict_of(
            speedup.low >= WANTED_OF_BEST and change.low >= -TOLERATED_POINTS,
            speedup.high < WANTED_OF_BEST or change.high < -TOLERATED_POINTS,
            change.n if speedup.n >= LEAST_ROUNDS else 0,
        ),
        f"It is {tell(speedup, 2, ' x')} as fast, and the scene score changes by {tell(change, 1)} points.",
    )


def skipvar_keeps_its_word(results: Results) -> Claim | None:
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
        f"{tell(row.speedup, 2, ' x')}, SSIM {tell(row.ssim, 3)}, with decisions fitted to Infinity-2B.",
    )


def scalekv_keeps_its_word(results: Results) -> Claim | None:
    row, dense = _row(results, "others", "ScaleKV, 6 %"), _row(results, "decomposition", "dense")
    if row is None or dense is None:
        return None
    share, change = row.cache_bytes / dense.cache_bytes, row.scene_change
    return Claim(
        "ScaleKV remembers a tenth of the keys and values and hardly changes what the pictures show.",
        "ScaleKV, on Infinity-8B",
        verdict_of(
            share <= SCALEKV_SHARE and change.low >= -TOLERATED_POINTS,
            share > SCALEKV_SHARE or change.high < -TOLERATED_POINTS,
            change.n,
        ),
        f"The cache is {share:.0%} of the dense one, the workspace of one layer included; the scene score "
        f"changes by {tell(change, 1)} points, PSNR {tell(row.psnr, 1, ' dB')}, speed-up "
        f"{tell(row.speedup, 2, ' x')}.",
    )


def _row(results: Results, exhibit: str, label: str) -> Row | None:
    members: dict[str, Contestant] = dict(results.field.exhibit(exhibit))
    if label not in members:
        return None
    return next(row for row in results.rows(exhibit) if row.label == label)
