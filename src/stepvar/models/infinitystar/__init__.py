"""InfinityStar: text to video, image to video and continuation."""

from __future__ import annotations

from stepvar.models.spec import ModelSpec, our_component, text_encoder, text_tokenizer

_HERE = "stepvar.models.infinitystar"

SPEC = ModelSpec(
    key="infinitystar",
    name="InfinityStar",
    repository="FoundationVision/InfinityStar",
    signatures=(
        frozenset({"cfg_uncond", "sos_token", "text_proj.weight"}),
        frozenset({"unconditional_text.weight", "semantic_head.weight", "detail_head.weight"}),
    ),
    pipeline=f"{_HERE}.pipeline:InfinityStarPipeline",
    plans=f"{_HERE}.presets:PRESETS",
    components={
        "transformer": our_component(f"{_HERE}.transformer", "InfinityStarTransformer"),
        "vae": our_component(f"{_HERE}.vae", "InfinityStarVAE", former_name="InfinityStarTokenizer"),
        "text_encoder": text_encoder(("T5EncoderModel",), "stepvar.models.common.t5", "flan-t5-xl"),
        "tokenizer": text_tokenizer("T5TokenizerFast", "T5Tokenizer"),
    },
    convert=f"{_HERE}.checkpoints:convert",
    objects=f"{_HERE}.checkpoints:OBJECTS",
    conformance="stepvar.conformance.infinitystar:run",
    routes=(("trainer", "gpt_fsdp"), ("trainer", "gpt_wo_ddp"), ("state_dict",)),
    task="text-to-video",
)
