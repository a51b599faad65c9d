"""Keys of InfinityStar's official checkpoints, and the configuration that follows from their shapes.

Source of the keys: FoundationVision/InfinityStar (MIT), infinity/models/infinity.py, infinity/models/basic.py
and infinity/models/videovae/models/. Letters: C width, D bits per token, E text channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stepvar.checkpoints.weights import TensorMap
from stepvar.models.common.official import (
    block_keys,
    count_numbers,
    read_chunks,
    refuse_other_architectures,
    shape_of,
)
from stepvar.models.infinitystar.schedules import PUBLISHED

_TOP_KEYS = {
    "unconditional_text.weight": "cfg_uncond",
    "text_projection.weight": "text_proj.weight",
    "text_projection.bias": "text_proj.bias",
    "token_embedding.weight": "word_embed.weight",
    "token_embedding.bias": "word_embed.bias",
    "output_norm.weight": "norm_hidden_sates.weight",  # spelled this way
    "semantic_head.weight": "semantic_head2.weight",
    "semantic_head.bias": "semantic_head2.bias",
    "detail_head.weight": "head.weight",
    "detail_head.bias": "head.bias",
}

_BLOCK_KEYS = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.query.weight": "attn.q_proj.weight",
    "attention.key.weight": "attn.k_proj.weight",
    "attention.value.weight": "attn.v_proj.weight",
    "attention.output.weight": "attn.o_proj.weight",
    "attention.query_norm.weight": "attn.q_norm.weight",
    "attention.key_norm.weight": "attn.k_norm.weight",
    "feed_forward_norm.weight": "post_attention_layernorm.weight",
    "feed_forward.gate.weight": "mlp.gate_proj.weight",
    "feed_forward.up.weight": "mlp.up_proj.weight",
    "feed_forward.down.weight": "mlp.down_proj.weight",
}

UNUSED = "sos_token"
"""A learned token that the official code never reads; we do not keep it."""

UNUSED_OF_VAE = ("proj_down_two.", "proj_up_two.", "quantizer.", "quantize.")
"""Layers and constant buffers of the tokenizer that nothing at inference reads."""

_SCALES, _SCALE = "scale_learnable_parameters", "latent_scale.weight"
"""Four numbers in the published tokenizer, of which only the first is read; our name of that one."""

TRANSFORMERS = ("an InfinityStar transformer",)
VAES = ("a video tokenizer of InfinityStar",)
_EXAMPLES = {
    TRANSFORMERS[0]: "the folder infinitystar_8b_480p_weights",
    VAES[0]: "infinitystar_videovae.pth",
}


def published_config(resolution: str = "480p") -> dict[str, Any]:
    """Constructor arguments of `InfinityStarTransformer` for the published 8B weights.

    Raises:
        ValueError: When the resolution is unknown.
    """
    if resolution not in PUBLISHED:
        raise ValueError(f"Unknown resolution {resolution!r}; known are {', '.join(PUBLISHED)}.")
    return {
        "depth": 36,
        "width": 4096,
        "heads": 32,
        "key_heads": 8,
        "hidden_width": 16384,
        "block_chunks": 6,
        "resolution": resolution,
    }


def official_keys(depth: int, chunks: int) -> dict[str, str]:
    """Our key -> official key, for a transformer of `depth` blocks in `chunks` chunks."""
    return {**_TOP_KEYS, **block_keys(_BLOCK_KEYS, depth, chunks)}


def to_official(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> TensorMap:
    """Our transformer's state dict under the official keys, with zeros for the token that is never read.

    Args:
        state: Our state dict, or a part of it.
        config: The transformer's configuration.
    """
    names = official_keys(config["depth"], config["block_chunks"])
    official = {names[key]: value for key, value in state.items()}
    embedding = state["token_embedding.bias"]
    return {**official, UNUSED: torch.zeros_like(embedding)[None, None]}


def infer_config(state: Mapping[str, Tensor], source: str = "The state dict") -> dict[str, Any]:
    """Constructor arguments of `InfinityStarTransformer`, from the keys and shapes of a state dict.

    Args:
        state: The official state dict; the meta device is enough.
        source: What errors call it.

    Raises:
        CheckpointError: When it belongs to another architecture, or tells too little.
    """
    refuse_others(state, TRANSFORMERS, source)
    depth, chunks, first = read_chunks(state, source)
    width, detail = shape_of(state, "word_embed.weight", source)
    head_dim = shape_of(state, f"{first}.attn.q_norm.weight", source, 1)[0]
    text_length, text_channels = shape_of(state, "cfg_uncond", source)
    return {
        "depth": depth,
        "width": width,
        "heads": width // head_dim,
        "key_heads": shape_of(state, f"{first}.attn.k_proj.weight", source)[0] // head_dim,
        "hidden_width": shape_of(state, f"{first}.mlp.gate_proj.weight", source)[0],
        "semantic_bits": shape_of(state, "semantic_head2.weight", source)[0] // 2,
        "detail_bits": detail,
        "text_channels": text_channels,
        "text_length": text_length,
        "block_chunks": chunks,
    }


def vae_part(state: Mapping[str, Tensor]) -> TensorMap:
    """A part of a published tokenizer's state dict under our keys, without what nothing reads."""
    kept = {key: value for key, value in state.items() if not key.startswith(UNUSED_OF_VAE)}
    if _SCALES in kept:
        kept[_SCALE] = kept.pop(_SCALES)[:1]
    return kept


def vae_to_official(state: Mapping[str, Tensor]) -> TensorMap:
    """Our tokenizer's state dict as published: what nothing reads is filled with zeros and ones."""
    scale = state[_SCALE]
    official = {key: value for key, value in state.items() if key != _SCALE}
    official[_SCALES] = torch.cat([scale, torch.ones_like(scale).repeat(3)])
    channels = state["proj_up.bias"].shape[0]
    for name in ("proj_down_two", "proj_up_two"):
        for kind in ("weight", "bias"):
            official[f"{name}.{kind}"] = torch.zeros_like(state[f"proj_up.{kind}"])
    for owner in ("quantizer", "quantize"):
        for book, bits in (("semantic", channels // 4), ("detail", channels)):
            mask = 2 ** torch.arange(bits - 1, -1, -1, device=scale.device)
            official[f"{owner}.lfq_{book}.mask"] = mask
    return official


def infer_vae_config(state: Mapping[str, Tensor], source: str = "The state dict") -> dict[str, Any]:
    """Constructor arguments of `InfinityStarVAE`, from the keys and shapes of its state dict.

    Raises:
        CheckpointError: When it belongs to another architecture, or tells too little.
    """
    refuse_others(state, VAES, source)
    levels = [
        shape_of(state, f"decoder.up_blocks.{level}.resnets.0.conv1.conv.weight", source, 5)[0]
        for level in (3, 2, 1, 0)
    ]
    finest = shape_of(state, "decoder.norm_out.norm_layer.gamma", source, 4)[0]
    return {
        "channels": [finest, *levels],
        "latent_channels": shape_of(state, "decoder.conv_in.conv.weight", source, 5)[1],
        "blocks": count_numbers(state, r"decoder\.up_blocks\.0\.resnets\.(\d+)\.") - 1,
        "with_encoder": any(key.startswith("encoder.") for key in state),
    }


def refuse_others(state: Mapping[str, Tensor], accepted: tuple[str, ...], source: str) -> None:
    """Raises CheckpointError when a state dict is not of an accepted architecture, saying what it is."""
    refuse_other_architectures(state, accepted, source, f"give {_EXAMPLES[accepted[0]]}")
