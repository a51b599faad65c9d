"""Keys of VAR's official checkpoints, and the configuration that follows from their shapes.

Source of the keys: FoundationVision/VAR, models/var.py and models/basic_var.py.
Letters: C width, H heads, V codes, D channels of a code, L tokens of all scales.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from stepvar.checkpoints.weights import TensorMap
from stepvar.models.common.official import (
    block_keys,
    count_numbers,
    from_official_keys,
    refuse_other_architectures,
    shape_of,
    to_official_keys,
)
from stepvar.models.common.square_schedules import LEVELS, SIDES_BY_PIXELS, levels_of, read_sides

PUBLISHED_SIZES: dict[str, tuple[int, int]] = {
    "d16": (16, 256),
    "d20": (20, 256),
    "d24": (24, 256),
    "d30": (30, 256),
    "d36": (36, 512),
}
"""Depth and pixels; widths are 64 x depth, with heads of 64 channels."""

HEAD_CHANNELS = 64

DERIVED = frozenset({LEVELS, "attn_bias_for_masking"})
"""Buffers that follow from the schedule. We do not keep them."""

_TOP_KEYS = {
    "start_embedding": "pos_start",
    "position_embedding": "pos_1LC",
    "level_embedding.weight": "lvl_embed.weight",
    "class_embedding.weight": "class_emb.weight",
    "token_embedding.weight": "word_embed.weight",
    "token_embedding.bias": "word_embed.bias",
    "head_modulation.weight": "head_nm.ada_lin.1.weight",
    "head_modulation.bias": "head_nm.ada_lin.1.bias",
    "head.weight": "head.weight",
    "head.bias": "head.bias",
}

_BLOCK_KEYS = {
    "self_attention.qkv.weight": "attn.mat_qkv.weight",
    "self_attention.query_bias": "attn.q_bias",
    "self_attention.value_bias": "attn.v_bias",
    "self_attention.output.weight": "attn.proj.weight",
    "self_attention.output.bias": "attn.proj.bias",
    "feed_forward.up.weight": "ffn.fc1.weight",
    "feed_forward.up.bias": "ffn.fc1.bias",
    "feed_forward.down.weight": "ffn.fc2.weight",
    "feed_forward.down.bias": "ffn.fc2.bias",
}

_COSINE_KEYS = {"self_attention.log_scale": "attn.scale_mul_1H11"}
_SHARED_KEYS = {
    "shared_modulation.weight": "shared_ada_lin.1.weight",
    "shared_modulation.bias": "shared_ada_lin.1.bias",
}
_SHARED_BLOCK_KEYS = {"modulation": "ada_gss"}
_OWN_BLOCK_KEYS = {"modulation.weight": "ada_lin.1.weight", "modulation.bias": "ada_lin.1.bias"}


def published_config(name: str) -> dict[str, Any]:
    """Constructor arguments of `VARTransformer` for a published size.

    Raises:
        ValueError: When there is no such size.
    """
    if name not in PUBLISHED_SIZES:
        raise ValueError(f"Unknown size {name!r}; known are {', '.join(PUBLISHED_SIZES)}.")
    depth, pixels = PUBLISHED_SIZES[name]
    return {
        "depth": depth,
        "width": HEAD_CHANNELS * depth,
        "heads": depth,
        "sides": SIDES_BY_PIXELS[pixels],
        "shares_modulation": pixels == 512,
    }


def official_keys(config: Mapping[str, Any]) -> dict[str, str]:
    """Our key -> official key, for a transformer of this configuration."""
    keys, block = dict(_TOP_KEYS), dict(_BLOCK_KEYS)
    if config["cosine_attention"]:
        block |= _COSINE_KEYS
    if config["shares_modulation"]:
        keys |= _SHARED_KEYS
    block |= _SHARED_BLOCK_KEYS if config["shares_modulation"] else _OWN_BLOCK_KEYS
    return keys | block_keys(block, config["depth"])


def to_official(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> TensorMap:
    """Our transformer's state dict under the official keys, with the official buffers of zeros and levels.

    The mask of training is left out: it is large, and the official code makes it anew.

    Args:
        state: Our state dict.
        config: The transformer's configuration.

    Raises:
        CheckpointError: When keys are missing or unexpected.
    """
    official = to_official_keys(state, official_keys(config))
    official[LEVELS] = levels_of(config["sides"]).to(state["position_embedding"].device)
    return official


def rename(state: Mapping[str, Tensor], config: Mapping[str, Any], source: str) -> TensorMap:
    """A part of a checked official state dict under our keys, without the buffers we do not keep.

    Raises:
        CheckpointError: When keys have a bias, which VAR's have not.
    """
    return from_official_keys(state, official_keys(config), source, "VAR")


def infer_config(state: Mapping[str, Tensor], source: str = "The state dict") -> dict[str, Any]:
    """Constructor arguments of `VARTransformer`, from the keys and shapes of an official state dict.

    Args:
        state: The official state dict. On the meta device only the schedules that the official code names
            are recognised; otherwise the buffer of levels tells the schedule.
        source: What errors call it.

    Raises:
        CheckpointError: When it belongs to another architecture, or tells too little.
    """
    refuse_other_architectures(state, ("a VAR transformer",), source, "give a file such as var_d16.pth")
    depth = count_numbers(state, r"blocks\.(\d+)\.")
    width, channels = shape_of(state, "word_embed.weight", source)
    length = shape_of(state, "pos_1LC", source, 3)[1]
    cosine = "blocks.0.attn.scale_mul_1H11" in state
    heads = max(width // HEAD_CHANNELS, 1)
    if cosine:
        heads = max(shape_of(state, "blocks.0.attn.scale_mul_1H11", source, 4))
    return {
        "depth": depth,
        "width": width,
        "heads": heads,
        "sides": read_sides(state, length, source),
        "codes": shape_of(state, "head.weight", source)[0],
        "channels": channels,
        "classes": shape_of(state, "class_emb.weight", source)[0] - 1,
        "feed_forward_width": shape_of(state, "blocks.0.ffn.fc1.weight", source)[0],
        "shares_modulation": "shared_ada_lin.1.weight" in state,
        "cosine_attention": cosine,
    }
