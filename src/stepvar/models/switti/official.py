"""Keys of Switti's official checkpoints, and the configuration that follows from their shapes.

Source of the keys: yandex-research/switti, models/switti.py and models/basic_switti.py.
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

PUBLISHED: dict[str, tuple[int, bool]] = {
    "512": (512, False),
    "512-AR": (512, True),
    "1024": (1024, False),
    "1024-AR": (1024, True),
}
"""Pixels, and whether scales attend to earlier ones; all have 30 layers."""

HEAD_CHANNELS = 64

MASK = "attn_bias_for_masking"
"""Training's mask: the only thing in the weights that tells a causal model from the others."""

DERIVED = frozenset({LEVELS, MASK})
"""Buffers that follow from the configuration. We do not keep them."""

_TOP_KEYS = {
    "start_embedding": "pos_start",
    "level_embedding.weight": "lvl_embed.weight",
    "token_embedding.weight": "word_embed.weight",
    "token_embedding.bias": "word_embed.bias",
    "text_pool.weight": "text_pooler.weight",
    "text_pool.bias": "text_pooler.bias",
    "head_modulation.weight": "head_nm.ada_lin.1.weight",
    "head_modulation.bias": "head_nm.ada_lin.1.bias",
    "head.weight": "head.weight",
    "head.bias": "head.bias",
}

_CROP_KEYS = {
    "crop_frequencies": "crop_embed.weight",
    "crop_projection.weight": "crop_proj.weight",
    "crop_projection.bias": "crop_proj.bias",
}

_BLOCK_KEYS = {
    "modulation.weight": "ada_lin.1.weight",
    "modulation.bias": "ada_lin.1.bias",
    "self_attention.qkv.weight": "attn.to_qkv.weight",
    "self_attention.qkv.bias": "attn.to_qkv.bias",
    "self_attention.output.weight": "attn.proj.weight",
    "self_attention.output.bias": "attn.proj.bias",
    "cross_attention.query.weight": "cross_attn.to_q.weight",
    "cross_attention.query.bias": "cross_attn.to_q.bias",
    "cross_attention.key_value.weight": "cross_attn.to_kv.weight",
    "cross_attention.key_value.bias": "cross_attn.to_kv.bias",
    "cross_attention.output.weight": "cross_attn.proj.weight",
    "cross_attention.output.bias": "cross_attn.proj.bias",
    "self_input_norm.weight": "self_attention_norm1.weight",
    "self_output_norm.weight": "self_attention_norm2.weight",
    "cross_input_norm.weight": "cross_attention_norm1.weight",
    "cross_output_norm.weight": "cross_attention_norm2.weight",
    "feed_input_norm.weight": "ffn_norm1.weight",
    "feed_output_norm.weight": "ffn_norm2.weight",
    "text_norm.weight": "attention_y_norm.weight",
}

_GATED_KEYS = {
    "feed_forward.gate.weight": "ffn.gate_proj.weight",
    "feed_forward.up.weight": "ffn.up_proj.weight",
    "feed_forward.down.weight": "ffn.down_proj.weight",
}
_PLAIN_KEYS = {
    "feed_forward.up.weight": "ffn.fc1.weight",
    "feed_forward.up.bias": "ffn.fc1.bias",
    "feed_forward.down.weight": "ffn.fc2.weight",
    "feed_forward.down.bias": "ffn.fc2.bias",
}


def published_config(name: str) -> dict[str, Any]:
    """Constructor arguments of `SwittiTransformer` for a published model.

    Raises:
        ValueError: When there is no such model.
    """
    if name not in PUBLISHED:
        raise ValueError(f"Unknown model {name!r}; known are {', '.join(PUBLISHED)}.")
    pixels, causal = PUBLISHED[name]
    sides = SIDES_BY_PIXELS[pixels]
    return {"depth": 30, "width": 1920, "heads": 30, "sides": sides, "causal": causal}


def official_keys(config: Mapping[str, Any]) -> dict[str, str]:
    """Our key -> official key, for a transformer of this configuration."""
    keys, block = dict(_TOP_KEYS), dict(_BLOCK_KEYS)
    if not config["rotary"]:
        keys["position_embedding"] = "pos_1LC"
    if config["crop_condition"]:
        keys |= _CROP_KEYS
        block["crop_scale"] = "crop_cond_scales"
    block |= _GATED_KEYS if config["gated_feed_forward"] else _PLAIN_KEYS
    return keys | block_keys(block, config["depth"])


def to_official(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> TensorMap:
    """Our transformer's state dict under the official keys, with the official buffer of levels.

    The mask of training is left out: it is large, and the official code makes it anew.

    Args:
        state: Our state dict.
        config: The transformer's configuration.

    Raises:
        CheckpointError: When keys are missing or unexpected.
    """
    official = to_official_keys(state, official_keys(config))
    official[LEVELS] = levels_of(config["sides"]).to(state["start_embedding"].device)
    return official


def rename(state: Mapping[str, Tensor], config: Mapping[str, Any], source: str) -> TensorMap:
    """A part of a checked official state dict under our keys, without the buffers we do not keep."""
    return from_official_keys(state, official_keys(config), source, "Switti")


def infer_config(state: Mapping[str, Tensor], source: str = "The state dict") -> dict[str, Any]:
    """Constructor arguments of `SwittiTransformer`, from the keys and shapes of an official state dict.

    Args:
        state: The official state dict. On the meta device only the schedules that the official code names
            are recognised, and a model is taken for one whose scales see themselves alone.
        source: What errors call it.

    Raises:
        CheckpointError: When it belongs to another architecture, or tells too little.
    """
    refuse_other_architectures(
        state, ("a Switti transformer",), source, "give the folder of yresearch/Switti, for example"
    )
    depth = count_numbers(state, r"blocks\.(\d+)\.")
    width, channels = shape_of(state, "word_embed.weight", source)
    gated = "blocks.0.ffn.gate_proj.weight" in state
    feed = "blocks.0.ffn.up_proj.weight" if gated else "blocks.0.ffn.fc1.weight"
    mask = state.get(MASK)
    return {
        "depth": depth,
        "width": width,
        "heads": max(width // HEAD_CHANNELS, 1),
        "sides": read_sides(state, shape_of(state, LEVELS, source)[1], source),
        "codes": shape_of(state, "head.weight", source)[0],
        "channels": channels,
        "causal": mask is not None and not mask.is_meta and bool(mask[0, 0, -1, 0] == 0),
        "text_channels": shape_of(state, "blocks.0.cross_attn.to_kv.weight", source)[1],
        "pooled_channels": shape_of(state, "text_pooler.weight", source)[1],
        "feed_forward_width": shape_of(state, feed, source)[0],
        "gated_feed_forward": gated,
        "crop_condition": "crop_embed.weight" in state,
        "rotary": "pos_1LC" not in state,
    }
