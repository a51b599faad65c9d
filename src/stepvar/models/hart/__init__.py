"""HART: text to image with a hybrid tokenizer and a diffusion head."""

from __future__ import annotations

from stepvar.models.spec import ModelSpec, our_component, text_encoder, text_tokenizer

_HERE = "stepvar.models.hart"

SPEC = ModelSpec(
    key="hart",
    name="HART",
    repository="mit-han-lab/hart",
    signatures=(
        frozenset({"word_embed.weight", "context_embed.weight"}),
        frozenset({"context_embedding.weight", "residual_norm.weight"}),
    ),
    pipeline=f"{_HERE}.pipeline:HARTPipeline",
    plans=f"{_HERE}.presets:PRESETS",
    components={
        "transformer": our_component(f"{_HERE}.transformer", "HARTTransformer"),
        "vae": our_component(f"{_HERE}.vae", "HARTVAE", former_name="HARTTokenizer"),
        "text_encoder": text_encoder(
            ("Qwen2Model", "Qwen2VLTextModel"), f"{_HERE}.text", "Qwen2-VL-1.5B-Instruct"
        ),
        "tokenizer": text_tokenizer("Qwen2TokenizerFast", "Qwen2Tokenizer"),
    },
    convert=f"{_HERE}.checkpoints:convert",
    objects=f"{_HERE}.checkpoints:OBJECTS",
    conformance="stepvar.conformance.hart:run",
)
