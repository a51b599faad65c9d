"""Switti: text to image without causal attention between scales."""

from __future__ import annotations

from stepvar.models.spec import ModelSpec, our_component, text_encoder, text_tokenizer

_HERE = "stepvar.models.switti"

SPEC = ModelSpec(
    key="switti",
    name="Switti",
    repository="yandex-research/switti",
    signatures=(
        frozenset({"word_embed.weight", "text_pooler.weight"}),
        frozenset({"text_pool.weight", "level_embedding.weight"}),
    ),
    pipeline=f"{_HERE}.pipeline:SwittiPipeline",
    plans=f"{_HERE}.presets:PRESETS",
    components={
        "transformer": our_component(f"{_HERE}.transformer", "SwittiTransformer"),
        "vae": our_component(f"{_HERE}.vae", "SwittiVAE", former_name="SwittiTokenizer"),
        "text_encoder": text_encoder(("CLIPTextModel",), f"{_HERE}.text", "clip-vit-large-patch14"),
        "tokenizer": text_tokenizer("CLIPTokenizerFast", "CLIPTokenizer"),
        "text_encoder_2": text_encoder(
            ("CLIPTextModel",), f"{_HERE}.text", "CLIP-ViT-bigG-14-laion2B-39B-b160k"
        ),
        "tokenizer_2": text_tokenizer("CLIPTokenizerFast", "CLIPTokenizer"),
    },
    convert=f"{_HERE}.checkpoints:convert",
    objects=f"{_HERE}.checkpoints:OBJECTS",
    conformance="stepvar.conformance.switti:run",
    license=None,
)
