"""Calibration: the plan that reaches a target speed-up, or a target PSNR to the dense run.

The search sees a third of the prompts. The plan that it ends with is measured on another third; where that
misses the target, the plan is corrected once, and measured on the last third.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stepvar.evaluation.plan_search import PROMPT_SEED, Advance, Calibration, PlanSearch, Trial

if TYPE_CHECKING:
    from stepvar.models.pipeline import NextScalePipeline


def calibrate(
    pipeline: NextScalePipeline,
    prompts: Sequence[str],
    *,
    target_speedup: float | None = None,
    target_psnr: float | None = None,
    method: str = "stepvar",
    skips: int = 0,
    repeats: int = 5,
    advance: Advance | None = None,
    settings: dict[str, Any] | None = None,
) -> Calibration:
    """Finds how much to prune.

    Args:
        pipeline: The model, on the device that it will run on.
        prompts: A random third is fitted on, the others are held back to measure the plan; more give a PSNR
            that holds better for new prompts. Times are of one picture, end to end.
        target_speedup: Dense time over pruned time.
        target_psnr: Instead: mean PSNR to the dense pictures of the same seeds, in dB. The fastest plan that
            still reaches it in the search is taken.
        method: One of `stepvar.pruning.presets.METHODS`.
        skips: Late scales that may be left out where pruning alone does not reach the target speed; with a
            target PSNR, where that is faster.
        repeats: Interleaved rounds of each measurement of time.
        advance: Called with the progress.
        settings: Keyword arguments of the pipeline: size, guidance and so on.

    Raises:
        ValueError: When the target cannot be reached; the message says what can.
    """
    if (target_speedup is None) == (target_psnr is None):
        raise ValueError("Give target_speedup or target_psnr, one of the two.")
    if not prompts:
        raise ValueError("Calibration needs prompts; none were given.")
    search = PlanSearch(pipeline, prompts, method, repeats, advance, settings or {})
    if not 0 <= skips <= len(search.heights) - 2:
        raise ValueError(f"skips is {skips}; this model has {len(search.heights)} scales.")
    if target_speedup is not None:
        if not target_speedup > 1.0:
            raise ValueError(f"target_speedup is {target_speedup:g}; it must be above 1, the dense run's.")
        return search.measure_chosen(search.for_speed(target_speedup, skips), ("speedup", target_speedup))
    if target_psnr is None or not target_psnr > 0.0:
        raise ValueError(f"target_psnr is {target_psnr}; it must be a positive number of dB.")
    return search.measure_chosen(search.for_psnr(target_psnr, skips), ("psnr", target_psnr))


__all__ = ["PROMPT_SEED", "Calibration", "Trial", "calibrate"]
