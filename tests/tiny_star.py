"""Tiny real video models with random weights: clips of 48 x 80 pixels, a second of 4 latent frames."""

from __future__ import annotations

import torch
from torch import Tensor

from stepvar.models.infinitystar.pipeline import InfinityStarPipeline
from stepvar.models.infinitystar.session import TextPrefix
from stepvar.models.infinitystar.transformer import InfinityStarTransformer
from stepvar.models.infinitystar.vae import InfinityStarVAE
from stepvar.scenes.text_encoder import build_word_tokenizer

GRIDS = [[1, 1], [1, 2], [2, 3], [3, 5]]
"""Two coarse scales and two fine ones."""

IMAGE_REPETITIONS = [2, 1, 2, 1]
VIDEO_REPETITIONS = [2, 2, 2, 1]
STEPS_OF_PICTURE, STEPS_OF_CLIP = sum(IMAGE_REPETITIONS), sum(VIDEO_REPETITIONS)
CLIP_FRAMES = 4
TEXT_CHANNELS = 32


def make_star_transformer(seed: int = 0, **config) -> InfinityStarTransformer:
    """A tiny transformer whose every parameter is random, so that nothing hides behind a zero."""
    sizes = {"depth": 3, "width": 64, "heads": 4, "key_heads": 2, "hidden_width": 96}
    sizes |= {"text_channels": TEXT_CHANNELS, "text_length": 32, "resolution": "tiny", "grids": GRIDS}
    sizes |= {"semantic_scales": 2, "image_repetitions": IMAGE_REPETITIONS}
    sizes |= {"video_repetitions": VIDEO_REPETITIONS, "clip_frames": CLIP_FRAMES, **config}
    model = InfinityStarTransformer(**sizes).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        drawn = torch.randn(value.shape, generator=generator)
        if name.endswith("norm.weight"):
            drawn = 1.0 + 0.1 * drawn
        elif value.dim() == 2 and "unconditional" not in name:
            drawn = 1.5 * drawn / value.shape[-1] ** 0.5
        else:
            drawn = 0.3 * drawn
        value.data.copy_(drawn)
    return model.requires_grad_(False)


def make_star_vae(seed: int = 0, **config) -> InfinityStarVAE:
    """A tiny video tokenizer with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = InfinityStarVAE(channels=(4, 8, 8, 8, 8), **config)
        for name, value in model.named_parameters():
            if name.endswith("gamma"):
                value.data += 0.1 * torch.randn_like(value)
    return model.eval().requires_grad_(False)


def make_text_prefix(tokens: int = 5, guided: bool = True, seed: int = 0) -> TextPrefix:
    """Random text features, and others for the unconditional copy."""
    generator = torch.Generator().manual_seed(100 + seed)
    drawn = torch.randn(2, tokens, TEXT_CHANNELS, generator=generator)
    return TextPrefix(drawn[0], drawn[1] if guided else None)


def make_star_pipeline(seed: int = 0, **config) -> InfinityStarPipeline:
    """A whole pipeline that knows the scenes' words; `config` goes to the transformer."""
    from transformers import T5Config, T5EncoderModel

    words = build_word_tokenizer()
    t5 = T5Config(
        vocab_size=len(words),
        d_model=TEXT_CHANNELS,
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = T5EncoderModel(t5).eval()
    pipeline = InfinityStarPipeline(
        make_star_transformer(seed, **config),
        make_star_vae(seed),
        encoder,
        words,
        prompt_suffix="",
        marks_duration=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def random_video(frames: int, height: int = 48, width: int = 80, seed: int = 0) -> Tensor:
    """Smooth random pixels [1, 3, F, H, W] in -1..1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 3, max(frames // 4, 1), height // 8, width // 8, generator=generator)
    size = (frames, height, width)
    return torch.nn.functional.interpolate(coarse, size=size, mode="trilinear").clamp(-1.0, 1.0)
