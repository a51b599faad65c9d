"""VAR: class to image."""

from __future__ import annotations

from stepvar.models.spec import ModelSpec, our_component

_HERE = "stepvar.models.var"

SPEC = ModelSpec(
    key="var",
    name="VAR",
    repository="FoundationVision/VAR",
    signatures=(
        frozenset({"word_embed.weight", "class_emb.weight"}),
        frozenset({"class_embedding.weight", "position_embedding"}),
    ),
    pipeline=f"{_HERE}.pipeline:VARPipeline",
    plans=f"{_HERE}.presets:PRESETS",
    components={
        "transformer": our_component(f"{_HERE}.transformer", "VARTransformer"),
        "vae": our_component(f"{_HERE}.vae", "VARVAE", former_name="VARTokenizer"),
    },
    convert=f"{_HERE}.checkpoints:convert",
    objects=f"{_HERE}.checkpoints:OBJECTS",
    conformance="stepvar.conformance.var:run",
    routes=(("trainer", "var_wo_ddp"),),
    task="unconditional-image-generation",
)
