"""Tiny real HART models with random weights, and one way to run them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2Model

from stepvar.generation.cache import KVCache
from stepvar.generation.loop import Generation, generate
from stepvar.generation.pruner import PruningMethod
from stepvar.generation.sampling import CodebookSampler
from stepvar.generation.schedule import Scale, ScaleSchedule
from stepvar.models.common.vq_vae_checkpoints import vae_to_official
from stepvar.models.hart.official import to_official
from stepvar.models.hart.pipeline import HARTPipeline
from stepvar.models.hart.sampling import make_guidance, make_sampling
from stepvar.models.hart.session import HARTSession, ResidualDraw, draw_residual_noise
from stepvar.models.hart.sizes import draw_orders, scale_schedule
from stepvar.models.hart.text import ContextFeatures
from stepvar.models.hart.transformer import HARTTransformer
from stepvar.models.hart.vae import HARTVAE

SIDES = (1, 2, 3, 4, 6, 8)
GRIDS = [(side, side) for side in SIDES]
TALL = [(1, 1), (2, 2), (4, 3), (6, 5), (9, 7), (12, 10)]
CONTEXT, CHANNELS, CODES = 7, 24, 40
WORDS = ["a", "red", "blue", "green", "ring", "star", "on", "sand", "two", "big", "draw", ":"]


def randomise(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Gives every parameter a random value, so that nothing hides behind a zero or a one."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        drawn = torch.randn(value.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            drawn = 1.0 + 0.1 * drawn
        elif value.dim() >= 2 and "codebook" not in name:
            drawn = drawn / value[0].numel() ** 0.5
        elif "codebook" not in name:
            drawn = 0.2 * drawn
        value.data.copy_(drawn)
    return model.eval().requires_grad_(False)


def make_hart(seed: int = 0, **config) -> HARTTransformer:
    """A tiny transformer."""
    sizes = {"depth": 3, "width": 32, "heads": 2, "codebook_size": CODES, "latent_channels": 4}
    sizes |= {"context_tokens": CONTEXT, "context_channels": CHANNELS, "sides": list(SIDES)}
    sizes |= {"diffusion_width": 16, "diffusion_depth": 1, "diffusion_steps": "3", "pixels_per_token": 4}
    return randomise(HARTTransformer(**{**sizes, **config}), seed)


def make_vae(seed: int = 1, **config) -> HARTVAE:
    """A tiny tokenizer: 4 pixels a token."""
    sizes = {"codes": CODES, "channels": 4, "base_channels": 32, "multipliers": [1, 1, 1]}
    return randomise(HARTVAE(**{**sizes, "encoder_blocks": 1, "decoder_blocks": 1, **config}), seed)


def make_context(*lengths: int, seed: int = 0) -> ContextFeatures:
    """Features of prompts with these numbers of tokens; a prompt's depend on its place and seed."""
    generator = torch.Generator().manual_seed(500 + seed)
    features = torch.randn(len(lengths), CONTEXT, CHANNELS, generator=generator)
    return ContextFeatures.from_mask(features, torch.arange(CONTEXT) < torch.tensor(lengths)[:, None])


class WatchedSession(HARTSession):
    """A session that remembers the cache it allocated."""

    cache: KVCache

    def allocate_cache(self, plan) -> KVCache:
        self.cache = super().allocate_cache(plan)
        return self.cache


class Drawing:
    """What came of a run, and what was seen of it."""

    def __init__(self, session: WatchedSession, result: Generation, tensors: dict) -> None:
        self.session, self.result, self.tensors = session, result, tensors

    @property
    def indices(self) -> dict[int, Tensor]:
        return {scale: choice.index for scale, choice in self.result.choices.items()}

    @property
    def latent(self) -> Tensor:
        return self.result.latent


@torch.no_grad()
def draw(
    transformer: HARTTransformer,
    vae: HARTVAE,
    *,
    context: ContextFeatures | None = None,
    negative: ContextFeatures | None = None,
    seeds: Sequence[int] = (0,),
    grids: Sequence[tuple[int, int]] = GRIDS,
    guidance: float = 3.0,
    parts: int = 1,
    smooth: bool = True,
    residual: str = "all",
    top_k: int | None = 20,
    top_p: float = 0.0,
    pruning: PruningMethod | None = None,
) -> Drawing:
    """Generates with the real loop; contexts default to prompts of 5 tokens."""
    context = make_context(*[5] * len(seeds)) if context is None else context
    schedule: ScaleSchedule = scale_schedule(grids, parts)
    guide = make_guidance(1.0 + guidance, schedule)
    condition = context
    if guide.active:
        blank = ContextFeatures.empty(*context.features.shape, context.features.device)
        condition = context.joined(blank if negative is None else negative)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    settings = make_sampling(schedule, 1.0, top_k, top_p, smooth)
    device, final = torch.device("cpu"), schedule.final
    sampler = CodebookSampler(settings, schedule, vae.quantizer.codebook.weight, generators, device)
    tokens, steps = final.height * final.width, len(transformer.residual_head.schedule)
    noise = draw_residual_noise(generators, tokens, 4, steps, device)
    drawn = ResidualDraw(noise, guide.weights[-1] - 1.0, residual == "all")
    orders = draw_orders(generators, final, device)
    session = WatchedSession(
        transformer,
        vae.quantizer,
        condition,
        len(seeds),
        schedule,
        None if residual == "none" else drawn,
        orders,
    )
    tensors: dict[tuple[str, int], Tensor] = {}

    def probe(name: str, scale: Scale, value: Tensor) -> None:
        tensors[name, scale.index] = value

    result = generate(session, guidance=guide, sampler=sampler, pruning=pruning, probe=probe)
    return Drawing(session, result, tensors)


def make_tokenizer(side: str = "right") -> PreTrainedTokenizerFast:
    """Whole words, no closing token, as a language model's tokenizer has none."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: index for index, word in enumerate(["<pad>", "<unk>", *WORDS])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", padding_side=side
    )


def make_language_model(seed: int = 2, channels: int = CHANNELS) -> Qwen2Model:
    """A tiny Qwen2."""
    config = Qwen2Config(
        vocab_size=len(WORDS) + 2,
        hidden_size=channels,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    return randomise(Qwen2Model(config), seed)


def make_pipeline(**transformer) -> HARTPipeline:
    pipeline = HARTPipeline(
        make_hart(**transformer), make_vae(), make_language_model(), make_tokenizer(), top_k=20
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write_published(folder: Path) -> tuple[HARTTransformer, HARTTransformer, HARTVAE]:
    """A folder as it is published: llm/ with plain and averaged weights, tokenizer/ with a discriminator."""
    plain, averaged, vae = make_hart(0), make_hart(9), make_vae()
    llm, tokenizer = folder / "llm", folder / "tokenizer"
    for path in (llm, tokenizer):
        path.mkdir(parents=True)
    official = {key: value.clone() for key, value in to_official(plain.state_dict(), plain.config).items()}
    save_file(official, llm / "model.safetensors")
    torch.save(to_official(averaged.state_dict(), averaged.config, training_mask=True), llm / "ema_model.bin")
    told = {"num_heads": 2, "context_token": 7, "patch_nums": [1, 2, 3, 4, 6, 8], "num_sampling_steps": "3"}
    (llm / "config.json").write_text(json.dumps(told))
    state = {f"vae.{key}": value for key, value in vae_to_official(vae.state_dict(), vae.config).items()}
    torch.save({**state, "disc.main.0.weight": torch.zeros(2)}, tokenizer / "pytorch_model.bin")
    (tokenizer / "config.json").write_text(json.dumps({"quant_resi": 0.5, "vocab_size": 40, "ch": 32}))
    return plain, averaged, vae
