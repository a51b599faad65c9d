"""The paper's claims, one by one: did each hold here?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stepvar.report import claims_rivals as beside
from stepvar.report import claims_tables as tables
from stepvar.report import claims_why as why
from stepvar.report.contestants import OURS
from stepvar.report.results import Results
from stepvar.report.verdicts import Claim


def judge(results: Results) -> list[Claim]:
    """Every claim that these results can speak about."""
    judges: Sequence[Callable[[Results], Claim | None]] = (
        why.late_scales_dominate,
        why.late_scales_forgive,
        why.late_scales_add_detail,
        why.energy_follows_structure,
        tables.paper_plan_is_fast,
        tables.paper_plan_keeps_quality,
        tables.mostly_skipping,
        tables.hart_plan_is_fast,
        tables.as_fast_as_fastvar,
        *(
            beside.beats(family, entry.rival)
            for family in results.field.families
            for entry in results.versus("table 1", OURS)
        ),
        beside.best_is_fast_and_good,
        beside.skipvar_keeps_its_word,
        beside.scalekv_keeps_its_word,
        tables.real_pictures_are_as_near,
        tables.text_fit_is_kept,
        tables.texture_beats_distance_and_chance,
        tables.fusion_beats_parts,
        tables.nearest_beats_other_recoveries,
        tables.cache_looks_real_on_paper,
        tables.ratio_trades_speed,
        why.masks_are_salient,
        tables.late_pairs_pay,
        why.diversity_is_kept,
    )
    found = [judge_one(results) for judge_one in judges]
    return [claim for claim in found if claim is not None]
