"""A tiny real VAR with random weights, and one way to run it and to see what ran."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stepvar.generation.guidance import Guidance
from stepvar.generation.loop import generate
from stepvar.generation.progress import Observer
from stepvar.generation.pruner import PruningMethod
from stepvar.generation.sampling import CodebookSampler, CodebookSettings
from stepvar.generation.schedule import Scale
from stepvar.models.var.pipeline import VARPipeline
from stepvar.models.var.session import VARSession
from stepvar.models.var.transformer import VARTransformer
from stepvar.models.var.vae import VARVAE
from tiny_models import Drawing, WatchedCache

SIDES = (1, 2, 3, 5, 6, 8)
CODES, CHANNELS, CLASSES = 40, 8, 6
PIXELS = 32


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Gives every parameter random values, so that nothing hides behind a zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        drawn = torch.randn(value.shape, generator=generator)
        if name.endswith("log_scale"):
            drawn = 1.4 + 0.2 * drawn
        elif "modulation" in name and "bias" in name:
            drawn = 0.3 + 0.1 * drawn
        elif name in ("token_embedding.weight", "head.weight"):
            drawn = 3.0 * drawn / value.shape[-1] ** 0.5
        elif "norm" in name and name.endswith("weight"):
            drawn = 1.0 + 0.1 * drawn
        elif value.dim() >= 2 and "embedding" not in name and "codebook" not in name:
            drawn = drawn / value[0].numel() ** 0.5
        elif "codebook" not in name:
            drawn = 0.2 * drawn
        value.data.copy_(drawn)


def make_var(seed: int = 0, **config) -> VARTransformer:
    """A tiny transformer."""
    sizes = {"depth": 3, "width": 32, "heads": 2, "sides": SIDES, "pixels_per_token": 4}
    sizes |= {"codes": CODES, "channels": CHANNELS, "classes": CLASSES, **config}
    model = VARTransformer(**sizes).eval()
    randomise(model, seed)
    return model.requires_grad_(False)


def make_vq_vae(seed: int = 0, kind: type = VARVAE, **config):
    """A tiny tokenizer: stride 4."""
    sizes = {"codes": CODES, "channels": CHANNELS, "base_channels": 32, "multipliers": (1, 1, 1)}
    model = kind(**{**sizes, "encoder_blocks": 1, "decoder_blocks": 1, **config}).eval()
    randomise(model, seed)
    return model.requires_grad_(False)


def make_var_pipeline(labels: Sequence[str] | None = None, **config) -> VARPipeline:
    """A tiny pipeline: 32 x 32 pixels in six scales."""
    pipeline = VARPipeline(make_var(**config), make_vq_vae(), labels=None if labels is None else list(labels))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class WatchedVARSession(WatchedCache, VARSession):
    """A session that remembers the cache it allocated."""


@torch.no_grad()
def draw_var(
    transformer: VARTransformer,
    classes: Sequence[int] = (0,),
    seeds: Sequence[int] = (0,),
    strength: float = 2.0,
    pruning: PruningMethod | None = None,
    observer: Observer | None = None,
    release: bool = True,
    smooth: bool = False,
    top_k: int = 0,
) -> Drawing:
    """Generates with the real loop."""
    quantizer = make_vq_vae().quantizer
    scales = len(transformer.schedule)
    progress = [index / max(scales - 1, 1) for index in range(scales)]
    guidance = Guidance(tuple(1.0 + strength * ratio for ratio in progress), release=release)
    session = WatchedVARSession(transformer, quantizer, torch.tensor(list(classes)), guidance.active)
    smoothing = tuple(progress) if smooth else (None,) * scales
    settings = CodebookSettings((1.0,) * scales, (top_k,) * scales, 0.0, smoothing)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    sampler = CodebookSampler(
        settings, session.schedule, quantizer.codebook.weight, generators, session.device
    )
    tensors: dict[tuple[str, int], Tensor] = {}

    def probe(name: str, scale: Scale, value: Tensor) -> None:
        tensors[name, scale.index] = value

    result = generate(
        session, guidance=guidance, sampler=sampler, pruning=pruning, observer=observer, probe=probe
    )
    return Drawing(session, result, tensors)


def indices(drawing: Drawing) -> dict[int, Tensor]:
    """Drawn codes by index of the scale."""
    return {scale: choice.index for scale, choice in drawing.result.choices.items()}
