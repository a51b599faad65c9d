"""Claims of the paper's tables."""

from __future__ import annotations

from stepvar.metrics.statistics import Interval, paired_interval
from stepvar.report.claims.claim import LEAST_ROUNDS, TOLERATED_POINTS, Claim, at_least, verdict_of
from stepvar.report.configurations import DENSE, OURS
from stepvar.report.records import PairedDifference
from stepvar.report.results import Results

WANTED_SPEEDUP, WANTED_WITHOUT_SKIPS = 2.0, 1.4
TOLERATED_FIT = 0.01
TOLERATED_DISTANCE = 0.05
"""Share by which pruned pictures may be farther from real ones than dense ones are."""

SAME_TIME = 1.05
PAPER_RECOVERIES = ("anchor", "cache")


def paper_plan_is_fast(results: Results) -> Claim:
    row = {row.label: row for row in results.rows("decomposition")}["prune and skip"]
    return Claim(
        "The paper's plan for Infinity doubles the speed, end to end.",
        "table 1",
        at_least(row.speedup, WANTED_SPEEDUP, LEAST_ROUNDS),
        f"The speed-up here is {row.speedup.format(2, ' x')}.",
    )


def paper_plan_keeps_quality(results: Results) -> Claim | None:
    row = {row.label: row for row in results.rows("decomposition")}["prune and skip"]
    dense = next(row for row in results.rows("decomposition") if row.is_dense)
    if row.prompt is None or dense.prompt is None:
        return None
    change, score = row.prompt.scene_change, dense.prompt.scene
    # A model that draws nothing right has nothing to lose.
    enough = 100 * score.low > TOLERATED_POINTS
    return Claim(
        "It does so with hardly any loss of what the pictures show (GenEval 0.73 to 0.72).",
        "table 1",
        verdict_of(enough and change.low >= -TOLERATED_POINTS, change.high < -TOLERATED_POINTS, change.n),
        f"The scene score changes by {change.format(1)} points from {score.value:.1%}; it holds when at "
        f"most {TOLERATED_POINTS:g} are lost, and there was more to lose.",
    )


def saving_comes_from_skipping(results: Results) -> Claim:
    rows = {row.label: row for row in results.rows("decomposition")}
    skip, both = rows["skip only"], rows["prune and skip"]
    share = (1 - skip.tokens) / (1 - both.tokens)
    return Claim(
        "The plan's gain is due to choosing tokens (the paper counts a skipped scale as a ratio of 1).",
        "our reading of the settings",
        verdict_of(share < 0.5, share > 0.5, both.n, 1),
        f"Skipping alone removes {1 - skip.tokens:.0%} of the tokens, the whole plan {1 - both.tokens:.0%}: "
        f"{share:.0%} of the saving is skipping, which alone is {skip.speedup.format(2, ' x')} faster.",
    )


def hart_plan_is_fast(results: Results) -> Claim:
    row = next(row for row in results.rows("table 1") if row.label == OURS)
    return Claim(
        "Without skips, the paper's ratios for HART (0.5 and 0.75 of the last two scales) make it 1.4 times "
        "as fast.",
        "table 1",
        at_least(row.speedup, WANTED_WITHOUT_SKIPS, LEAST_ROUNDS),
        f"The speed-up here is {row.speedup.format(2, ' x')}.",
    )


def as_fast_as_fastvar(results: Results) -> Claim | None:
    fastvar = next(
        (entry for entry in results.differences("table 1", OURS) if entry.rival == "FastVAR"), None
    )
    if fastvar is None:
        return None
    return Claim(
        "At the same ratios StepVAR takes no longer than FastVAR (1.60 s both).",
        "table 1",
        verdict_of(
            fastvar.time.high <= SAME_TIME, fastvar.time.low > SAME_TIME, fastvar.time.n, LEAST_ROUNDS
        ),
        f"StepVAR takes {fastvar.time.format()} times as long.",
    )


def real_pictures_are_as_near(results: Results) -> Claim | None:
    ours, dense = results.together(_both(results), DENSE)
    real = results.frechet_to_real(len(ours.psnr))
    if real is None:
        return None
    own = real.interval(dense.features).value
    change = real.difference(ours.features, dense.features)
    allowed = TOLERATED_DISTANCE * own
    return Claim(
        "Pruned pictures are no farther from real ones than dense pictures are (FID 10.09 to 9.85).",
        "table of MJHQ-30K",
        verdict_of(change.high <= allowed, change.low > allowed, change.n),
        f"With the paper's plan the Fréchet distance to renders of the same prompts changes by "
        f"{change.format(4)} from {own:.4f}; it holds up to {TOLERATED_DISTANCE:.0%} more.",
    )


def text_fit_is_kept(results: Results) -> Claim | None:
    ours, dense = results.together(_both(results), DENSE)
    if ours.text_fit is None or dense.text_fit is None:
        return None
    change = paired_interval(ours.text_fit, dense.text_fit)
    return Claim(
        "Pictures fit their prompts as well as before (CLIP score 0.275 to 0.278).",
        "table of MJHQ-30K",
        at_least(change, -TOLERATED_FIT),
        f"With the paper's plan the cosine of picture and prompt changes by {change.format(4)} from "
        f"{dense.text_fit.mean():.4f}; it holds when at most {TOLERATED_FIT:g} are lost.",
    )


def _both(results: Results) -> str:
    return dict(results.configurations.table("decomposition"))["prune and skip"].name


def nearest_beats_other_recoveries(results: Results) -> Claim:
    found = [entry for entry in results.differences("recovery", "nearest") if entry.rival in PAPER_RECOVERIES]
    return Claim(
        "Copying the nearest kept token recovers better than anchors or a cache.",
        "ablation of recovery",
        _all_nearer(found),
        f"Nearest minus {_format_differences(found)}.",
    )


def cache_looks_real_on_paper(results: Results) -> Claim | None:
    configs = dict(results.configurations.table("recovery"))
    cache, nearest = results.together(configs["cache"].name, configs["nearest"].name)
    real = results.frechet_to_real(len(cache.psnr))
    if real is None:
        return None
    change = real.difference(cache.features, nearest.features)
    return Claim(
        "Filling from a cache brings the pictures nearer to real ones by the Fréchet distance (27.37 against "
        "29.84), though it shows artefacts.",
        "ablation of recovery, figure 5",
        verdict_of(change.below_zero, change.above_zero, change.n),
        f"The distance to renders with the cache minus that with the nearest token is {change.format(4)}.",
    )


def texture_beats_distance_and_chance(results: Results) -> Claim:
    over_distance = [
        entry for entry in results.differences("selection", "texture") if entry.rival == "distance"
    ]
    over_chance = [entry for entry in results.differences("selection", "distance") if entry.rival == "random"]
    return Claim(
        "High frequencies alone select better than the distance to the mean token, and that than chance.",
        "ablation of selection",
        _all_nearer(over_distance + over_chance),
        f"Texture minus {_format_differences(over_distance)}. "
        f"Distance minus {_format_differences(over_chance)}.",
    )


def fusion_beats_parts(results: Results) -> Claim:
    parts = ("structure", "texture")
    found = [entry for entry in results.differences("selection", "structure+texture") if entry.rival in parts]
    return Claim(
        "Structure and texture together select better than either alone.",
        "ablation of selection",
        _all_nearer(found),
        f"Both minus {_format_differences(found)}.",
    )


def late_pairs_pay(results: Results) -> Claim | None:
    rows = results.rows("pairs")
    if not rows:
        return None
    first, last = rows[0], rows[-1]
    yes = last.speedup.low > first.speedup.high and last.frechet.high < first.frechet.low
    no = last.speedup.high < first.speedup.low or last.frechet.low > first.frechet.high
    return Claim(
        "Pruning early pairs of scales wrecks the pictures and saves nothing; late pairs save time and keep "
        "them.",
        "figure 7",
        verdict_of(yes, no, min(last.frechet.n, first.frechet.n)),
        f"{first.label}: {first.speedup.format(2, ' x')}, Fréchet {first.frechet.format(4)}; {last.label}: "
        f"{last.speedup.format(2, ' x')}, Fréchet {last.frechet.format(4)}.",
    )


def ratio_trades_speed(results: Results) -> Claim | None:
    rows = {row.label: row for row in results.rows("ratio")}
    if not rows.keys() >= {"0.1", "0.5", "0.9"}:
        return None
    knee = _bend(results, ("0.1", "0.5", "0.9"))
    faster = rows["0.9"].speedup.low > rows["0.1"].speedup.high
    slower = rows["0.9"].speedup.high < rows["0.1"].speedup.low
    return Claim(
        "Higher ratios are faster, and quality falls slowly up to about 0.5 and quickly beyond.",
        "ablation of ratios",
        verdict_of(faster and knee.above_zero, slower or knee.below_zero, knee.n),
        "Speed-up and Fréchet distance to dense by ratio: "
        + "; ".join(
            f"{row.label}: {row.speedup.value:.2f} x, {row.frechet.value:.4f}" for row in rows.values()
        )
        + f". From 0.5 to 0.9 the distance grows by {knee.format(4)} more than from 0.1 to 0.5.",
    )


def _bend(results: Results, ratios: tuple[str, str, str]) -> Interval:
    """How much more the Fréchet distance to dense grows over the second step than over the first."""
    configs = dict(results.configurations.table("ratio"))
    pictures = results.together(*(configs[ratio].name for ratio in ratios))
    dense = results.frechet_to_dense(len(pictures[0].psnr))
    low, middle, high = (dense.distances(entry.features) for entry in pictures)
    return dense.interval_of(high - 2.0 * middle + low)


def _all_nearer(found: list[PairedDifference]) -> str:
    return verdict_of(
        all(entry.nearer for entry in found), any(entry.farther for entry in found), found[0].psnr.n
    )


def _format_differences(found: list[PairedDifference]) -> str:
    return "; ".join(
        f"{entry.rival}: PSNR {entry.psnr.format()} dB, Fréchet {entry.frechet.format(4)}" for entry in found
    )
