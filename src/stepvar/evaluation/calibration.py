"""Calibration: the plan that reaches a target speed-up or PSNR, and a recovery fitted to a model.

The search sees a third of the prompts. The plan that it ends with is measured on another third; where that
misses the target, the plan is corrected once, and measured on the last third. A recovery is fitted to three
quarters of the prompts, and measured on the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stepvar.evaluation.plan_search import PROMPT_SEED, Advance, Calibration, PlanSearch, PromptSet, Trial
from stepvar.evaluation.recovery_fit import HELD_BACK, fit_recovery
from stepvar.metrics.statistics import Interval, mean_interval, paired_interval

if TYPE_CHECKING:
    from stepvar.models.pipeline import NextScalePipeline
    from stepvar.pruning.stepvar import StepVAR

FEWEST_PROMPTS = 2 * HELD_BACK
"""For a recovery: to fit it, and to measure it."""


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


@dataclass(frozen=True)
class RecoveryCalibration:
    """A plan with a recovery that was fitted to the model.

    Attributes:
        plan: What to pass as `pruning=`; `stepvar.save_plan` stores it.
        prompts: How many it was fitted to.
        before, after: PSNR to the dense pictures with the plan's own recovery, and with the fitted one, in
            dB, on prompts that the fit did not see.
        change: Their difference, paired by prompt and seed.
    """

    plan: StepVAR
    prompts: int
    before: Interval
    after: Interval
    change: Interval

    def as_json(self) -> dict[str, Any]:
        from stepvar.models.output import as_json_value

        return {
            "pruning": as_json_value(self.plan),
            "prompts": self.prompts,
            "before": self.before.as_json(),
            "after": self.after.as_json(),
            "change": self.change.as_json(),
        }


def calibrate_recovery(
    pipeline: NextScalePipeline,
    prompts: Sequence[str],
    method: StepVAR,
    *,
    advance: Advance | None = None,
    settings: dict[str, Any] | None = None,
) -> RecoveryCalibration:
    """Fits the recovery "calibrated" to a model and a plan, and measures what it changes.

    Args:
        pipeline: The model.
        prompts: Three quarters are fitted on, the last quarter is held back to measure.
        method: The plan; its recovery is what the fitted one is compared with.
        advance: Called with the progress.
        settings: Keyword arguments of the pipeline: size, guidance and so on.

    Raises:
        ValueError: When there are too few prompts, or nothing to fit; see `fit_recovery`.
    """
    if len(prompts) < FEWEST_PROMPTS:
        raise ValueError(
            f"Calibrating a recovery needs {FEWEST_PROMPTS} prompts or more; there are {len(prompts)}."
        )
    fitted_on = len(prompts) - len(prompts) // HELD_BACK
    move = None if advance is None else lambda part, name: advance(0.8 * part, name)
    plan = fit_recovery(pipeline, prompts[:fitted_on], method, advance=move, settings=settings)
    held_back = PromptSet(pipeline, prompts[fitted_on:], PROMPT_SEED + fitted_on, settings or {})
    before, after = held_back.decibels(method), held_back.decibels(plan)
    if advance is not None:
        advance(0.2, "measured")
    return RecoveryCalibration(
        plan, fitted_on, mean_interval(before), mean_interval(after), paired_interval(after, before)
    )


__all__ = [
    "PROMPT_SEED",
    "Calibration",
    "RecoveryCalibration",
    "Trial",
    "calibrate",
    "calibrate_recovery",
]
