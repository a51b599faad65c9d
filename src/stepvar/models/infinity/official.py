"""Keys of Infinity's official checkpoints, and the configuration that follows from their shapes.

Source of the keys: FoundationVision/Infinity, models/infinity.py, models/basic.py and tools/run_infinity.py.
Letters: C width, H heads, D bits per token, E text channels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from stepvar.checkpoints.weights import TensorMap
from stepvar.models.common.architectures import name_architecture
from stepvar.models.common.official import (
    block_keys,
    read_chunks,
    refuse_other_architectures,
    shape_of,
    to_official_keys,
)
from stepvar.models.infinity.published import feed_forward_width, published_config, published_name
from stepvar.models.infinity.vae import PUBLISHED_VAE_TYPES

_LOG_SCALE = "scale_mul_1H11"

_TOP_KEYS = {
    "unconditional_text": "cfg_uncond",
    "start_embedding": "pos_start",
    "text_norm.weight": "text_norm.weight",
    "text_pool.query": "text_proj_for_sos.ca.mat_q",
    "text_pool.key_value.weight": "text_proj_for_sos.ca.mat_kv.weight",
    "text_pool.value_bias": "text_proj_for_sos.ca.v_bias",
    "text_pool.output.weight": "text_proj_for_sos.ca.proj.weight",
    "text_pool.output.bias": "text_proj_for_sos.ca.proj.bias",
    "text_projection.0.weight": "text_proj_for_ca.0.weight",
    "text_projection.0.bias": "text_proj_for_ca.0.bias",
    "text_projection.2.weight": "text_proj_for_ca.2.weight",
    "text_projection.2.bias": "text_proj_for_ca.2.bias",
    "level_embedding.weight": "lvl_embed.weight",
    "token_embedding.weight": "word_embed.weight",
    "token_embedding.bias": "word_embed.bias",
    "shared_modulation.weight": "shared_ada_lin.1.weight",
    "shared_modulation.bias": "shared_ada_lin.1.bias",
    "head_modulation.weight": "head_nm.ada_lin.1.weight",
    "head_modulation.bias": "head_nm.ada_lin.1.bias",
    "head.weight": "head.weight",
    "head.bias": "head.bias",
}

_BLOCK_KEYS = {
    "modulation": "ada_gss",
    "self_attention.qkv.weight": "sa.mat_qkv.weight",
    "self_attention.query_bias": "sa.q_bias",
    "self_attention.value_bias": "sa.v_bias",
    "self_attention.log_scale": f"sa.{_LOG_SCALE}",
    "self_attention.output.weight": "sa.proj.weight",
    "self_attention.output.bias": "sa.proj.bias",
    "cross_norm.weight": "ca_norm.weight",
    "cross_norm.bias": "ca_norm.bias",
    "cross_attention.query.weight": "ca.mat_q.weight",
    "cross_attention.query.bias": "ca.mat_q.bias",
    "cross_attention.key_value.weight": "ca.mat_kv.weight",
    "cross_attention.value_bias": "ca.v_bias",
    "cross_attention.output.weight": "ca.proj.weight",
    "cross_attention.output.bias": "ca.proj.bias",
    "feed_forward.up.weight": "ffn.fc1.weight",
    "feed_forward.up.bias": "ffn.fc1.bias",
    "feed_forward.down.weight": "ffn.fc2.weight",
    "feed_forward.down.bias": "ffn.fc2.bias",
}

DERIVED = frozenset({"lvl_1L", "attn_bias_for_masking", "Infinity_visible_kvlen", "Infinity_invisible_qlen"})
"""Buffers the official loader drops too: it computes them from the schedule."""

_TRANSFORMERS = ("an Infinity transformer",)
VAES = ("a visual tokenizer of Infinity", "a visual tokenizer")
_READERS = {
    _TRANSFORMERS: "load_transformer",
    VAES: "load_vae",
    (
        "an Infinity transformer in stepvar's own names",
    ): "load_transformer, given the folder with its config.json",
}
_EXAMPLES = {_TRANSFORMERS: "infinity_2b_reg.pth", VAES: "infinity_vae_d32reg.pth"}
"""What `name_architecture` calls our models, which function loads them, and a published file of each."""


def official_keys(depth: int, chunks: int) -> dict[str, str]:
    """Our key -> official key, for a transformer of `depth` blocks in `chunks` chunks."""
    return {**_TOP_KEYS, **block_keys(_BLOCK_KEYS, depth, chunks)}


def to_official(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> TensorMap:
    """Our transformer's state dict under the official keys, with the official buffers of zeros.

    Args:
        state: Our state dict.
        config: The transformer's configuration.

    Raises:
        CheckpointError: When keys are missing or unexpected.
    """
    return to_official_keys(state, official_keys(config["depth"], config["block_chunks"]))


def with_one_scale_shape(state: Mapping[str, Tensor]) -> TensorMap:
    """An official state dict with every attention scale as [1, H, 1, 1].

    Training with the authors' own attention kernel stores them as [1, 1, H, 1].
    """
    return {
        key: value.reshape(1, -1, 1, 1) if key.endswith(_LOG_SCALE) and value.ndim == 4 else value
        for key, value in state.items()
    }


def infer_config(state: Mapping[str, Tensor], source: str = "The state dict") -> dict[str, Any]:
    """Constructor arguments of `InfinityTransformer`, from the keys and shapes of an official state dict.

    Args:
        state: The official state dict; the meta device is enough.
        source: What errors call it.

    Returns:
        The arguments; the tokenizer type and the pixel budgets are those of the published size of the same
        depth, width and heads.

    Raises:
        CheckpointError: When it belongs to another architecture, or tells too little.
    """
    refuse_others(state, _TRANSFORMERS, source)
    depth, chunks, first = read_chunks(state, source)
    width, bits = shape_of(state, "word_embed.weight", source)
    text_length, text_channels = shape_of(state, "cfg_uncond", source)
    config: dict[str, Any] = {
        "depth": depth,
        "width": width,
        "heads": max(shape_of(state, f"{first}.sa.{_LOG_SCALE}", source, 4)),
        "bits": bits,
        "text_channels": text_channels,
        "text_length": text_length,
        "pool_heads": shape_of(state, "text_proj_for_sos.ca.mat_q", source, 3)[1],
        "levels": shape_of(state, "lvl_embed.weight", source)[0],
        "block_chunks": chunks,
    }
    hidden = shape_of(state, f"{first}.ffn.fc1.weight", source)[0]
    if hidden != feed_forward_width(width):
        config["hidden_width"] = hidden
    name = published_name(config)
    published = published_config(name) if name else {}
    guess = "14" if bits == 56 else str(bits) if bits in PUBLISHED_VAE_TYPES else ""
    config["tokenizer_type"] = published["tokenizer_type"] if published.get("bits") == bits else guess
    config["budgets"] = published.get("budgets")
    return config


def refuse_others(state: Mapping[str, Tensor], accepted: tuple[str, ...], source: str) -> None:
    """Raises CheckpointError when a state dict is not of an accepted architecture, saying what it is."""
    found = name_architecture(state)
    reader = next((reader for names, reader in _READERS.items() if found in names), None)
    remedy = f"load it with {reader}" if reader else f"give a file such as {_EXAMPLES[accepted]}"
    refuse_other_architectures(state, accepted, source, remedy)


def infer_vae_config(state: Mapping[str, Tensor], source: str = "The state dict") -> dict[str, Any]:
    """Constructor arguments of `InfinityVAE`, from the keys and shapes of its state dict.

    Args:
        state: A state dict as `convert_official_state` returns it; the meta device is enough.
        source: What errors call it.

    Raises:
        CheckpointError: When it tells too little.
    """
    base = shape_of(state, "encoder.conv_in.conv.weight", source, 4)[0]
    config: dict[str, Any] = {
        "codebook_dim": shape_of(state, "encoder.conv_out.conv.weight", source, 4)[0],
        "base_channels": base,
    }
    for side, levels in (("encoder", "down"), ("decoder", "up")):
        matches = (re.match(rf"{side}\.{levels}\.(\d+)\.block\.(\d+)\.conv1\.", key) for key in state)
        places = [match.groups() for match in matches if match]
        # Counted rather than read off the largest number, which a damaged file could make any size.
        level_count = max(len({level for level, _ in places}), 1)
        convolutions = [f"{side}.{levels}.{level}.block.0.conv1.conv.weight" for level in range(level_count)]
        channels = [shape_of(state, key, source, 4)[0] for key in convolutions]
        config[f"{side}_multipliers"] = [count // base for count in channels]
        config[f"{side}_blocks"] = len({block for _, block in places})
    config["stride"] = 2 ** sum(key.endswith("downsample.conv.conv.weight") for key in state)
    # The official code builds stride 8 for transformers whose tokens are 2 x 2 positions, and only for them.
    config["patchify"] = config["stride"] == 8
    return config
