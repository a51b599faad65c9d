"""A tiny real pipeline with random weights that knows the scenes' words: 64 x 64 pixels in six scales."""

from __future__ import annotations

from typing import Any

import torch

from stepvar.models.infinity.pipeline import InfinityPipeline
from stepvar.models.infinity.vae import InfinityVAE
from stepvar.scenes.text_encoder import build_word_tokenizer
from tiny_models import make_transformer

SIDES = (1, 2, 3, 4, 6, 8)
TOKENS = sum(side * side for side in SIDES)
PIXELS = 64
TEXT_LENGTH = 24

_TEXT_CHANNELS = 32
_BITS = 8


def make_pipeline(seed: int = 0) -> InfinityPipeline:
    """Builds it; the same seed gives the same weights."""
    pipeline = InfinityPipeline(**make_parts(seed))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_parts(seed: int = 0) -> dict[str, Any]:
    """The pipeline's components, which no pipeline was made of yet."""
    from transformers import T5Config, T5EncoderModel

    words = build_word_tokenizer()
    config = T5Config(
        vocab_size=len(words),
        d_model=_TEXT_CHANNELS,
        d_kv=16,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
        is_encoder_decoder=False,
        use_cache=False,
    )
    transformer = make_transformer(
        seed,
        depth=2,
        bits=_BITS,
        text_channels=_TEXT_CHANNELS,
        text_length=TEXT_LENGTH,
        levels=len(SIDES),
        tokenizer_type="scenes",
        grids=[[side, side] for side in SIDES],
        pixels_per_token=PIXELS // SIDES[-1],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = InfinityVAE(
            codebook_dim=_BITS,
            base_channels=8,
            encoder_multipliers=(1, 1, 2, 2),
            decoder_multipliers=(1, 1, 2, 2),
            encoder_blocks=1,
            decoder_blocks=1,
            norm_groups=4,
        )
        encoder = T5EncoderModel(config)
    return {
        "transformer": transformer,
        "vae": tokenizer.eval(),
        "text_encoder": encoder.eval(),
        "tokenizer": words,
    }
