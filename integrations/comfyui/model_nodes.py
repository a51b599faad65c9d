"""Nodes that make what the others take: a model, a pruning plan."""

from __future__ import annotations

import torch
from comfy_api.latest import io

import stepvar
from stepvar.embedded import EMBEDDED_NAMES

from .sockets import CATEGORY, Pipeline, PruningPlan

_AUTO = "auto"
_SCALES = ("last", "second_last", "third_last", "fourth_last")
_SKIPPED = 1.0


class LoadModel(io.ComfyNode):
    """Opens a model, whatever it is stored as."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Its inputs and outputs."""
        return io.Schema(
            node_id="StepVARLoadModel",
            display_name="StepVAR Load Model",
            category=CATEGORY,
            description="Opens Infinity, InfinityStar, HART, Switti or VAR; 'embedded' needs no download.",
            inputs=[
                io.String.Input(
                    "model",
                    default="embedded",
                    tooltip=f"{', '.join(EMBEDDED_NAMES)}, a folder, a file, or owner/name on the hub.",
                ),
                io.Combo.Input("dtype", options=[_AUTO, "float32", "bfloat16", "float16"], default=_AUTO),
                io.Combo.Input("device", options=[_AUTO, "cpu", "cuda"], default=_AUTO),
            ],
            outputs=[Pipeline.Output(display_name="pipeline")],
        )

    @classmethod
    def execute(cls, model: str, dtype: str = _AUTO, device: str = _AUTO) -> io.NodeOutput:
        """The pipeline, on its device."""
        name = model.strip()
        place = device if device != _AUTO else "cuda" if torch.cuda.is_available() else "cpu"
        # Embedded models stay in float32 everywhere, so that their pictures are the same everywhere.
        usual = "bfloat16" if place == "cuda" and name not in EMBEDDED_NAMES else "float32"
        kind = getattr(torch, usual if dtype == _AUTO else dtype)
        if name in EMBEDDED_NAMES:
            pipeline = stepvar.load_embedded(EMBEDDED_NAMES[name], kind)
        else:
            pipeline = stepvar.load(name, dtype=kind)
        pipeline.set_progress_bar_config(disable=True)
        return io.NodeOutput(pipeline.to(place))


class PresetPlan(io.ComfyNode):
    """A plan by its name."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Its inputs and outputs."""
        return io.Schema(
            node_id="StepVARPreset",
            display_name="StepVAR Preset",
            category=CATEGORY,
            description="A pruning plan by name; a model says which of them it has.",
            inputs=[
                io.Combo.Input(
                    "preset",
                    options=sorted({name for presets in stepvar.PRESETS.values() for name in presets}),
                    default="best",
                    tooltip="best: fastest at about equal quality; faithful: nearest to dense.",
                )
            ],
            outputs=[PruningPlan.Output(display_name="plan")],
        )

    @classmethod
    def execute(cls, preset: str) -> io.NodeOutput:
        """The preset's name, which every pipeline takes."""
        return io.NodeOutput(preset)


class Plan(io.ComfyNode):
    """A plan by a slider for each of the last scales."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Its inputs and outputs."""
        usual = {"last": 0.75, "second_last": 0.5}
        sliders = [
            io.Float.Input(
                name,
                default=usual.get(name, 0.0),
                min=0.0,
                max=_SKIPPED,
                step=0.05,
                display_mode=io.NumberDisplay.slider,
                tooltip="Share of this scale's tokens that are pruned; 1 leaves the scale out.",
            )
            for name in _SCALES
        ]
        return io.Schema(
            node_id="StepVARPlan",
            display_name="StepVAR Plan",
            category=CATEGORY,
            description="How much of each late scale is pruned, and which of its tokens stay.",
            inputs=[
                *sliders,
                io.Combo.Input(
                    "score",
                    options=["structure+texture", "structure", "texture", "distance", "change", "random"],
                    default="structure+texture",
                    tooltip="What makes a token important.",
                ),
                io.Combo.Input(
                    "recovery",
                    options=["nearest", "anchor", "cache", "bilinear", "update", "guided"],
                    default="nearest",
                    tooltip="How pruned positions get their features.",
                ),
            ],
            outputs=[PruningPlan.Output(display_name="plan")],
        )

    @classmethod
    def execute(cls, score: str, recovery: str, **sliders: float) -> io.NodeOutput:
        """The method; None, which is dense, where no slider is above 0."""
        shares = {-place: sliders.get(name, 0.0) for place, name in enumerate(_SCALES, start=1)}
        ratios = {scale: share for scale, share in shares.items() if 0.0 < share < _SKIPPED}
        skip = tuple(scale for scale, share in shares.items() if share >= _SKIPPED)
        if not ratios and not skip:
            return io.NodeOutput(None)
        return io.NodeOutput(stepvar.StepVAR(ratios=ratios, skip=skip, score=score, recovery=recovery))
