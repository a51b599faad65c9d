"""VAREdit: a picture edited as an instruction says, on Infinity's transformer with other weights."""

from __future__ import annotations

from dataclasses import replace

from stepvar.models.infinity import SPEC as INFINITY

_HERE = "stepvar.models.varedit"

SPEC = replace(
    INFINITY,
    key="varedit",
    name="VAREdit",
    repository="HiDream-ai/VAREdit",
    # Its weights have Infinity's names and shapes, every one: whoever loads them says what they are.
    signatures=(),
    same_weights_as="infinity",
    pipeline=f"{_HERE}.pipeline:VAREditPipeline",
    plans=f"{_HERE}.presets:PRESETS",
    convert=f"{_HERE}.checkpoints:convert",
    objects=f"{_HERE}.checkpoints:OBJECTS",
    conformance="stepvar.conformance.varedit:run",
    task="image-to-image",
)
