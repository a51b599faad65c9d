"""Nodes that draw: pictures, dense and pruned side by side, and the tokens that were kept."""

from __future__ import annotations

import json
import statistics
from typing import Any

import torch
from comfy_api.latest import io

import stepvar

from . import tensors
from .sockets import CATEGORY, PruningPlan, Report, drawing_inputs

_PLAN = "Without one, or from sliders at 0, every token runs."


class Generate(io.ComfyNode):
    """Draws pictures, or a video."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Its inputs and outputs."""
        return io.Schema(
            node_id="StepVARGenerate",
            display_name="StepVAR Generate",
            category=CATEGORY,
            description="Draws pictures of a prompt; with a video model the frames of one video.",
            inputs=[
                *drawing_inputs(),
                io.Int.Input("batch", default=1, min=1, max=64, tooltip="Pictures; seeds count on."),
                io.Int.Input("seconds", default=0, min=0, max=60, tooltip="Of a video; 0: a picture."),
                PruningPlan.Input("plan", optional=True, tooltip=_PLAN),
            ],
            outputs=[
                io.Image.Output(display_name="images"),
                io.Mask.Output(display_name="kept"),
                Report.Output(display_name="report"),
                io.String.Output(display_name="settings"),
            ],
        )

    @classmethod
    def execute(
        cls,
        pipeline: Any,
        prompt: str,
        seed: int,
        width: int = 0,
        height: int = 0,
        negative_prompt: str = "",
        guidance: float = 0.0,
        batch: int = 1,
        seconds: int = 0,
        plan: Any = None,
    ) -> io.NodeOutput:
        """Pictures [B, H, W, 3], mask of the last pruned scale [B, H, W], the report, and it as JSON."""
        settings = call_settings(pipeline, width, height, negative_prompt, guidance, seconds)
        result = draw(pipeline, prompt, seed, batch, plan, settings)
        images = tensors.images_of(result)
        mask = tensors.kept_mask(result.report, images)
        return io.NodeOutput(images, mask, result.report, json.dumps(result.report.as_json()))


class Compare(io.ComfyNode):
    """Draws one picture dense and pruned, from one seed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Its inputs and outputs."""
        return io.Schema(
            node_id="StepVARCompare",
            display_name="StepVAR Compare",
            category=CATEGORY,
            description="Draws a prompt dense and pruned from one seed; both are timed in turn.",
            inputs=[
                *drawing_inputs(),
                io.Int.Input(
                    "repeats",
                    default=1,
                    min=1,
                    max=20,
                    tooltip="Measured rounds after a warm-up; times are medians.",
                ),
                PruningPlan.Input("plan", tooltip="What is compared with the dense run."),
            ],
            outputs=[
                io.Image.Output(display_name="dense"),
                io.Image.Output(display_name="pruned"),
                io.Image.Output(display_name="difference"),
                io.Mask.Output(display_name="kept"),
                io.String.Output(display_name="text"),
            ],
        )

    @classmethod
    def execute(
        cls,
        pipeline: Any,
        prompt: str,
        seed: int,
        plan: Any,
        width: int = 0,
        height: int = 0,
        negative_prompt: str = "",
        guidance: float = 0.0,
        repeats: int = 1,
    ) -> io.NodeOutput:
        """Both pictures, their difference times four, the kept tokens, and what it says in words.

        Raises:
            ValueError: When there is no plan to compare with.
        """
        if plan is None:
            raise ValueError("There is nothing to compare: give a plan with a slider above 0, or a preset.")
        settings = call_settings(pipeline, width, height, negative_prompt, guidance, 0)
        times: dict[bool, list[float]] = {False: [], True: []}
        results = {}
        for number in range(repeats + 1):
            for pruned in (False, True):
                result = draw(pipeline, prompt, seed, 1, plan if pruned else None, settings)
                results[pruned] = result
                if number:
                    times[pruned].append(result.report.seconds)
        dense, pruned = tensors.images_of(results[False]), tensors.images_of(results[True])
        mask = tensors.kept_mask(results[True].report, pruned)
        before, after = statistics.median(times[False]), statistics.median(times[True])
        error = float(torch.mean((dense - pruned) ** 2))
        likeness = "equal" if error == 0 else f"PSNR {-10 * torch.log10(torch.tensor(error)).item():.2f} dB"
        text = f"dense {before:.3f} s, pruned {after:.3f} s: {before / after:.2f} times as fast; {likeness}"
        return io.NodeOutput(dense, pruned, ((dense - pruned).abs() * 4).clamp(0, 1), mask, text)


class KeptTokens(io.ComfyNode):
    """The tokens that a scale kept, as a mask of the picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Its inputs and outputs."""
        return io.Schema(
            node_id="StepVARKeptTokens",
            display_name="StepVAR Kept Tokens",
            category=CATEGORY,
            description="Where a scale computed its tokens: 1 is kept, 0 pruned.",
            inputs=[
                Report.Input("report"),
                io.Image.Input("images", tooltip="The pictures of the report; the mask has their size."),
                io.Int.Input(
                    "scale", default=-1, min=-64, max=63, tooltip="Counted from 0, or -1 for the last."
                ),
            ],
            outputs=[io.Mask.Output(display_name="kept")],
        )

    @classmethod
    def execute(cls, report: stepvar.Report, images: torch.Tensor, scale: int = -1) -> io.NodeOutput:
        """The mask [B, H, W]; a scale that was left out kept nothing."""
        return io.NodeOutput(tensors.kept_mask(report, images, scale))


def call_settings(
    pipeline: Any, width: int, height: int, negative_prompt: str, guidance: float, seconds: int
) -> dict[str, Any]:
    """Arguments of a pipeline's call; what was left to the model is left out.

    Raises:
        ValueError: When only one side was given, or seconds of a model of pictures.
    """
    if bool(width) != bool(height):
        raise ValueError("Give both width and height, or leave both at 0.")
    settings: dict[str, Any] = {"width": width, "height": height} if width else {}
    if negative_prompt.strip():
        settings["negative_prompt"] = negative_prompt
    if guidance:
        settings["guidance_scale"] = guidance
    if pipeline.draws_videos:
        settings["seconds"] = seconds
    elif seconds:
        raise ValueError(f"{type(pipeline).__name__} draws pictures: leave seconds at 0.")
    return settings


def draw(pipeline: Any, prompt: str, seed: int, batch: int, plan: Any, settings: dict[str, Any]) -> Any:
    """Calls the pipeline, with ComfyUI's progress bar and its cancel button."""
    return pipeline(
        [prompt] * batch,
        seed=seed,
        pruning=plan,
        observer=_observer(pipeline, plan, settings),
        **settings,
    )


def _observer(pipeline: Any, plan: Any, settings: dict[str, Any]) -> Any:
    """Moves ComfyUI's bar by the planned cost of every scale, and stops where the user cancelled."""
    from comfy.model_management import throw_exception_if_processing_interrupted
    from comfy.utils import ProgressBar

    costs = [cost.flops for cost in pipeline.summary(plan, **settings).costs]
    bar, whole = ProgressBar(1000), max(sum(costs), 1)

    def observe(report: Any) -> None:
        throw_exception_if_processing_interrupted()
        done = sum(costs[: report.plan.scale.index + 1])
        bar.update_absolute(round(1000 * done / whole))

    return observe
