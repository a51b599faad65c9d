"""Claims of the paper about why pruning works, and about what it leaves unchanged."""

from __future__ import annotations

from typing import Any

import numpy as np

from stepvar.metrics.statistics import mean_interval, paired_interval
from stepvar.report.claims.claim import (
    LEAST_ANALYSED,
    LEAST_PROMPTS,
    LEAST_ROUNDS,
    Claim,
    above,
)
from stepvar.report.configurations import DENSE
from stepvar.report.results import Results

LATE_SHARE = 0.75
HIGH_FREQUENCY = 0.125
SALIENCY_RATIO = "0.7"


def late_scales_dominate(results: Results) -> Claim:
    rounds = [turn[DENSE]["scales"] for turn in results.rounds]
    share = mean_interval([sum(times[-3:]) / sum(times) for times in rounds])
    pairs = zip(rounds, results.times(DENSE), strict=True)
    whole = float(np.mean([sum(times[-3:]) / seconds for times, seconds in pairs]))
    return Claim(
        "The last few scales take more than 75 % of the transformer's time.",
        "figure 1a",
        above(share, LATE_SHARE, LEAST_ROUNDS),
        f"The last three of {len(rounds[0])} scales take {share.scaled(100).format(1, ' %')} of it, and "
        f"{whole:.1%} of the time from text to picture.",
    )


def late_scales_tolerate_noise(results: Results) -> Claim | None:
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
        above(gain, 0.0, LEAST_ANALYSED),
        f"Disturbing one of the last two scales leaves {gain.format(1, ' dB')} more PSNR than one of the "
        f"first two ({late.mean():.1f} against {early.mean():.1f} dB).",
    )


def late_scales_add_detail(results: Results) -> Claim | None:
    spectra = results.spectra()
    if "last scale" not in spectra:
        return None
    bands = spectra[DENSE].shape[1]
    high = int(HIGH_FREQUENCY * 2 * bands)

    def share(rows: Any) -> Any:
        return 100 * rows[:, high:].sum(axis=1) / np.maximum(rows.sum(axis=1), 1e-12)

    added, whole = share(spectra["last scale"]), share(spectra[DENSE])
    difference = paired_interval(added, whole)
    return Claim(
        "What the last scales add lies in high spatial frequencies.",
        "figure 1c",
        above(difference, 0.0, LEAST_ANALYSED),
        f"{added.mean():.1f} % of the energy that the last scale adds lies above {HIGH_FREQUENCY:g} cycles a "
        f"pixel, against {whole.mean():.1f} % of the pictures' own: {difference.format(1)} points more.",
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
        above(correlation, 0.0, LEAST_ANALYSED),
        f"At {scale}, over all layers, the correlation is {correlation.format()}; the weakest layer has "
        f"{worst:.2f}.",
    )


def kept_tokens_cover_objects(results: Results) -> Claim | None:
    found = results.saliency().get(SALIENCY_RATIO)
    if found is None or not len(found):
        return None
    lift = mean_interval(found)
    return Claim(
        "The kept tokens lie on what the picture is about: the masks look like saliency maps.",
        "figure 6",
        above(lift, 1.0, LEAST_PROMPTS),
        f"At a ratio of {SALIENCY_RATIO} the share of objects among the kept tokens is {lift.format()} times "
        "that among all tokens.",
    )


def diversity_is_kept(results: Results) -> Claim | None:
    found = results.diversity().get("prune the last two instead")
    if found is None:
        return None
    return Claim(
        "Pruning does not make pictures of one prompt more alike.",
        "asked by users, not in the paper",
        above(found, 0.95, LEAST_PROMPTS),
        f"The distance between seeds is {found.scaled(100).format(1, ' %')} of the dense run's.",
    )
