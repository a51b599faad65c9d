"""Infinity: text to image by bitwise next-scale prediction."""

from __future__ import annotations

from stepvar.models.spec import ModelSpec, our_component, text_encoder, text_tokenizer

_HERE = "stepvar.models.infinity"

SPEC = ModelSpec(
    key="infinity",
    name="Infinity",
    repository="FoundationVision/Infinity",
    signatures=(
        frozenset({"text_proj_for_sos.ca.mat_kv.weight"}),
        frozenset({"unconditional_text", "text_pool.query"}),
    ),
    pipeline=f"{_HERE}.pipeline:InfinityPipeline",
    plans=f"{_HERE}.presets:PRESETS",
    components={
        "transformer": our_component(f"{_HERE}.transformer", "InfinityTransformer"),
        "vae": our_component(f"{_HERE}.vae", "InfinityVAE", former_name="InfinityTokenizer"),
        "text_encoder": text_encoder(("T5EncoderModel",), "stepvar.models.common.t5", "flan-t5-xl"),
        "tokenizer": text_tokenizer("T5TokenizerFast", "T5Tokenizer"),
    },
    convert=f"{_HERE}.checkpoints:convert",
    objects=f"{_HERE}.checkpoints:OBJECTS",
    conformance="stepvar.conformance.infinity:run",
    routes=(("trainer", "gpt_fsdp"), ("trainer", "gpt_wo_ddp")),
)
