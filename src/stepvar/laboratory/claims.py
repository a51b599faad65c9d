"""The paper's claims, one by one: did each hold here?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stepvar.evaluation.statistics import Interval, mean_interval, paired_interval
from stepvar.laboratory.contestants import DENSE, OURS
from stepvar.laboratory.results import Results

HELD, FAILED, OPEN = "held", "did not hold", "undecided"

LATE_SHARE = 0.75
WANTED_SPEEDUP = 2.0
TOLERATED_POINTS = 2.0
HIGH_FREQUENCY = 0.125
LEAST_PICTURES, LEAST_PROMPTS, LEAST_ROUNDS = 16, 4, 3
"""Bootstrap intervals of fewer measurements are too narrow to decide anything."""


@dataclass(frozen=True)
class Claim:
    """One claim and what became of it.

    Attributes:
        text: What the paper says.
        source: Where.
        verdict: "held", "did not hold" or "undecided".
        evidence: Our numbers, in a sentence.
    """

    text: str
    source: str
    verdict: str
    evidence: str

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))


def judge(results: Results) -> list[Claim]:
    """Every claim that these results can speak about."""
    judges: Sequence[Callable[[Results], Claim | None]] = (
        late_scales_dominate,
        late_scales_forgive,
        late_scales_add_detail,
        energy_follows_structure,
        paper_plan_is_fast,
        paper_plan_keeps_quality,
        mostly_skipping,
        *(_beats(rival.rival) for rival in results.versus("table 1", OURS)),
        nearest_beats_other_recoveries,
        fusion_beats_parts,
        late_pairs_pay,
        ratio_trades_speed,
        diversity_is_kept,
    )
    found = [judge_one(results) for judge_one in judges]
    return [claim for claim in found if claim is not None]


def _verdict(yes: bool, no: bool, n: int, least: int = LEAST_PICTURES) -> str:
    """Undecided where the interval allows both answers, or where it rests on too few measurements."""
    if n < least:
        return OPEN
    return HELD if yes else FAILED if no else OPEN


def tell(interval: Interval, digits: int = 2, unit: str = "") -> str:
    """An interval in words: "1.52 (1.48 to 1.57)"."""
    numbers = [f"{value:.{digits}f}" for value in (interval.value, interval.low, interval.high)]
    return f"{numbers[0]}{unit} ({numbers[1]} to {numbers[2]})"


def late_scales_dominate(results: Results) -> Claim:
    rounds = [turn[DENSE]["scales"] for turn in results.rounds]
    share = mean_interval([sum(times[-3:]) / sum(times) for times in rounds])
    return Claim(
        "The last few scales take more than 75 % of the inference time.",
        "figure 1a",
        _verdict(share.low > LATE_SHARE, share.high < LATE_SHARE, share.n, LEAST_ROUNDS),
        f"The last three of {len(rounds[0])} scales take {tell(_times(share, 100), 1, ' %')} of the "
        "transformer's time.",
    )


def late_scales_forgive(results: Results) -> Claim | None:
    found = results.perturbations()
    if len(found) < 4:
        return None
    steps = [results.folder.load(f"perturbation-{index:02}") for index in range(len(found))]
    early = np.mean([steps[0]["psnr"], steps[1]["psnr"]], axis=0)
    late = np.mean([steps[-2]["psnr"], steps[-1]["psnr"]], axis=0)
    gain = paired_interval(late, early)
    return Claim(
        "Noise at one early scale wrecks the picture; at a late scale it hardly shows.",
        "figure 1b",
        _verdict(gain.above_zero, gain.below_zero, gain.n),
        f"Disturbing one of the last two scales leaves {tell(gain, 1, ' dB')} more PSNR than one of the "
        f"first two ({late.mean():.1f} against {early.mean():.1f} dB).",
    )


def late_scales_add_detail(results: Results) -> Claim | None:
    spectra = results.spectra()
    if "last 1" not in spectra:
        return None
    bands = spectra[DENSE].shape[1]
    high = int(HIGH_FREQUENCY * 2 * bands)

    def share(rows: Any) -> Any:
        return 100 * rows[:, high:].sum(axis=1) / np.maximum(rows.sum(axis=1), 1e-12)

    added, whole = share(spectra["last 1"]), share(spectra[DENSE])
    difference = paired_interval(added, whole)
    return Claim(
        "What the last scales add lies in high spatial frequencies.",
        "figure 1c",
        _verdict(difference.above_zero, difference.below_zero, difference.n),
        f"{added.mean():.1f} % of the energy that the last scale adds lies above {HIGH_FREQUENCY:g} cycles a "
        f"pixel, against {whole.mean():.1f} % of the pictures' own: {tell(difference, 1)} points more.",
    )


def energy_follows_structure(results: Results) -> Claim | None:
    table = results.correlations()
    if not table:
        return None
    scale, rows = list(table.items())[-1]
    correlation = mean_interval(rows.mean(axis=0))
    worst = float(min(rows.mean(axis=1)))
    return Claim(
        "The residual energy of a block correlates with the projection on the first principal component.",
        "figure 3",
        _verdict(correlation.above_zero, correlation.below_zero, correlation.n),
        f"At {scale}, over all layers, the correlation is {tell(correlation)}; the weakest layer has "
        f"{worst:.2f}.",
    )


def paper_plan_is_fast(results: Results) -> Claim:
    row = {row.label: row for row in results.rows("decomposition")}["prune and skip"]
    return Claim(
        "The paper's plan for Infinity doubles the speed, end to end.",
        "table 1",
        _verdict(
            row.speedup.low >= WANTED_SPEEDUP,
            row.speedup.high < WANTED_SPEEDUP,
            row.speedup.n,
            LEAST_ROUNDS,
        ),
        f"The speed-up here is {tell(row.speedup, 2, ' x')}.",
    )


def paper_plan_keeps_quality(results: Results) -> Claim:
    row = {row.label: row for row in results.rows("decomposition")}["prune and skip"]
    change = row.scene_change
    return Claim(
        "It does so with hardly any loss of what the pictures show (GenEval 0.73 to 0.72).",
        "table 1",
        _verdict(change.low >= -TOLERATED_POINTS, change.high < -TOLERATED_POINTS, change.n),
        f"The scene score changes by {tell(change, 1)} points; it holds when at most "
        f"{TOLERATED_POINTS:g} are lost.",
    )


def mostly_skipping(results: Results) -> Claim:
    rows = {row.label: row for row in results.rows("decomposition")}
    skip, both = rows["skip only"], rows["prune and skip"]
    share = (1 - skip.tokens) / (1 - both.tokens)
    return Claim(
        "The plan's gain is due to choosing tokens (the paper counts a skipped scale as a ratio of 1).",
        "our reading of the settings",
        _verdict(share < 0.5, share > 0.5, both.n, 1),
        f"Skipping alone removes {1 - skip.tokens:.0%} of the tokens, the whole plan {1 - both.tokens:.0%}: "
        f"{share:.0%} of the saving is skipping, which alone is {tell(skip.speedup, 2, ' x')} faster.",
    )


def _beats(rival: str) -> Callable[[Results], Claim]:
    def judge_one(results: Results) -> Claim:
        versus = next(entry for entry in results.versus("table 1", OURS) if entry.rival == rival)
        return Claim(
            f"Without skips, StepVAR is nearer to the dense run than {rival} at the same ratios.",
            "tables 1 and 2, ablation of selection",
            _verdict(versus.nearer, versus.farther, versus.psnr.n),
            f"PSNR {tell(versus.psnr, 2, ' dB')}, Fréchet distance {tell(versus.frechet, 4)}, scene score "
            f"{tell(versus.scene, 1)} points, time {tell(versus.time, 2)} times theirs.",
        )

    return judge_one


def nearest_beats_other_recoveries(results: Results) -> Claim | None:
    found = results.versus("recovery", "nearest")
    if not found:
        return None
    told = [f"{entry.rival}: PSNR {tell(entry.psnr)} dB, Fréchet {tell(entry.frechet, 4)}" for entry in found]
    return Claim(
        "Copying the nearest kept token recovers better than the alternatives.",
        "ablation of recovery",
        _verdict(
            all(entry.nearer for entry in found),
            any(entry.farther for entry in found),
            found[0].psnr.n,
        ),
        f"Nearest minus {'; '.join(told)}.",
    )


def fusion_beats_parts(results: Results) -> Claim:
    found = [
        entry
        for entry in results.versus("selection", "structure+texture")
        if entry.rival in ("structure", "texture")
    ]
    told = [f"{entry.rival}: PSNR {tell(entry.psnr)} dB, Fréchet {tell(entry.frechet, 4)}" for entry in found]
    return Claim(
        "Structure and texture together select better than either alone.",
        "ablation of selection",
        _verdict(
            all(entry.nearer for entry in found),
            any(entry.farther for entry in found),
            found[0].psnr.n,
        ),
        f"Both minus {'; '.join(told)}.",
    )


def late_pairs_pay(results: Results) -> Claim:
    rows = results.rows("pairs")
    first, last = rows[0], rows[-1]
    yes = last.speedup.low > first.speedup.high and last.frechet.high < first.frechet.low
    no = last.speedup.high < first.speedup.low or last.frechet.low > first.frechet.high
    return Claim(
        "Pruning early pairs of scales wrecks the pictures and saves nothing; late pairs save time and keep "
        "them.",
        "figure 7",
        _verdict(yes, no, min(last.frechet.n, first.frechet.n)),
        f"{first.label}: {tell(first.speedup, 2, ' x')}, Fréchet {tell(first.frechet, 4)}; {last.label}: "
        f"{tell(last.speedup, 2, ' x')}, Fréchet {tell(last.frechet, 4)}.",
    )


def ratio_trades_speed(results: Results) -> Claim:
    rows = results.rows("ratio")
    speeds, distances = [row.speedup.value for row in rows], [row.frechet.value for row in rows]
    rising = all(np.diff(speeds) > 0) and all(np.diff(distances) > 0)
    return Claim(
        "Higher ratios are faster, and quality falls slowly up to about 0.5 and quickly beyond.",
        "ablation of ratios",
        _verdict(rising and distances[-1] - distances[3] > distances[3] - distances[1], False, rows[0].n),
        "Speed-up and Fréchet distance by ratio: "
        + "; ".join(f"{row.label}: {row.speedup.value:.2f} x, {row.frechet.value:.4f}" for row in rows)
        + ".",
    )


def diversity_is_kept(results: Results) -> Claim | None:
    found = results.diversity().get("prune the last two instead")
    if found is None:
        return None
    return Claim(
        "Pruning does not make pictures of one prompt more alike.",
        "asked by users, not in the paper",
        _verdict(found.low > 0.95, found.high < 0.95, found.n, LEAST_PROMPTS),
        f"The distance between seeds is {tell(_times(found, 100), 1, ' %')} of the dense run's.",
    )


def _times(interval: Interval, factor: float) -> Interval:
    return Interval(factor * interval.value, factor * interval.low, factor * interval.high, interval.n)
