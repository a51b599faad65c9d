"""The paper's claims, each with its verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stepvar.report.claims import analysis, rivals, tables
from stepvar.report.claims.claim import Claim
from stepvar.report.configurations import BEST, OURS
from stepvar.report.results import Results


def evaluate_claims(results: Results) -> list[Claim]:
    """Every claim that these results can decide."""
    metrics: Sequence[Callable[[Results], Claim | None]] = (
        analysis.late_scales_dominate,
        analysis.late_scales_tolerate_noise,
        analysis.late_scales_add_detail,
        analysis.energy_follows_structure,
        tables.paper_plan_is_fast,
        tables.paper_plan_keeps_quality,
        tables.saving_comes_from_skipping,
        tables.hart_plan_is_fast,
        tables.as_fast_as_fastvar,
        *(
            rivals.nearer_at_equal_time(family, entry.rival)
            for family in results.configurations.families
            for entry in results.differences("table 1", OURS)
        ),
        rivals.best_is_fast_and_good,
        rivals.faithful_is_fast_and_near,
        rivals.flops_are_turned_into_time("decomposition", "prune only"),
        rivals.flops_are_turned_into_time("decomposition", BEST),
        rivals.skipvar_is_fast_and_close,
        rivals.scalekv_saves_memory,
        tables.real_pictures_are_as_near,
        tables.text_fit_is_kept,
        tables.texture_beats_distance_and_chance,
        tables.fusion_beats_parts,
        tables.nearest_beats_other_recoveries,
        tables.cache_looks_real_on_paper,
        tables.ratio_trades_speed,
        analysis.kept_tokens_cover_objects,
        tables.late_pairs_pay,
        analysis.diversity_is_kept,
    )
    found = [check(results) for check in metrics]
    return [claim for claim in found if claim is not None]
