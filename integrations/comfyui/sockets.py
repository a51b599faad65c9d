"""Types of what goes from node to node, and the inputs that several nodes share."""

from __future__ import annotations

from comfy_api.latest import io

CATEGORY = "stepvar"

Pipeline = io.Custom("STEPVAR_PIPELINE")
"""A pipeline of stepvar: what `stepvar.load` returns."""

PruningPlan = io.Custom("STEPVAR_PLAN")
"""What a pipeline takes as `pruning`: a preset's name or a method."""

Report = io.Custom("STEPVAR_REPORT")
"""A `stepvar.Report` of a generation."""

LARGEST_SEED = 2**63 - 1


def drawing_inputs() -> list[io.Input]:
    """What is drawn, and how large; 0 and empty texts leave a choice to the model."""
    return [
        Pipeline.Input("pipeline"),
        io.String.Input(
            "prompt",
            multiline=True,
            dynamic_prompts=True,
            default="two yellow stars above a striped blue ring on sand",
            tooltip="What the pictures show; a number or name for a model of classes.",
        ),
        io.Int.Input("seed", default=0, min=0, max=LARGEST_SEED, control_after_generate=True),
        io.Int.Input("width", default=0, min=0, max=8192, step=16, tooltip="In pixels; 0: the model's own."),
        io.Int.Input("height", default=0, min=0, max=8192, step=16, tooltip="In pixels; 0: the model's own."),
        io.String.Input("negative_prompt", default="", multiline=True, tooltip="What to steer away from."),
        io.Float.Input(
            "guidance", default=0.0, min=0.0, max=50.0, step=0.1, tooltip="1 is off; 0: the model's own."
        ),
    ]
