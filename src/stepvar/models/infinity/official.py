"""What Infinity's published checkpoints look like: sizes, keys, and what the shapes tell.

Source of the keys: FoundationVision/Infinity, models/infinity.py, models/basic.py and tools/run_infinity.py.
Letters: C width, H heads, D bits per token, E text channels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stepvar.checkpoints.errors import CheckpointError
from stepvar.checkpoints.weights import TensorMap
from stepvar.models.common.architectures import name_architecture
from stepvar.models.infinity.transformer import feed_forward_width
from stepvar.models.infinity.vae import PUBLISHED_VAE_TYPES


@dataclass(frozen=True)
class PublishedSize:
    """One size that the official code registers.

    Attributes:
        model_type: Its official name.
        depth, width, heads, pool_heads: As for `InfinityTransformer`.
        chunks: Chunks its keys group the blocks into.
        tokenizer_type: Official `vae_type` of its visual tokenizer; assumed where nothing was published.
        budgets: Pixel budgets it was trained for; None when unknown.
    """

    model_type: str
    depth: int
    width: int
    heads: int
    chunks: int
    tokenizer_type: str
    budgets: tuple[str, ...] | None = None
    pool_heads: int = 16


# The tokenizer types of the layer* sizes and of 20B are assumptions: no weights of them name one.
PUBLISHED_SIZES: dict[str, PublishedSize] = {
    "125M": PublishedSize("infinity_layer12", 12, 768, 8, 4, "16", ("0.06M",)),
    "layer16": PublishedSize("infinity_layer16", 16, 1152, 12, 4, "16"),
    "1B": PublishedSize("infinity_layer24", 24, 1536, 16, 4, "16", ("0.06M",)),
    "layer32": PublishedSize("infinity_layer32", 32, 2080, 20, 4, "16"),
    "layer40": PublishedSize("infinity_layer40", 40, 2688, 24, 4, "16"),
    "layer48": PublishedSize("infinity_layer48", 48, 3360, 28, 4, "16"),
    "2B": PublishedSize("infinity_2b", 32, 2048, 16, 8, "32", ("1M",)),
    "8B": PublishedSize("infinity_8b", 40, 3584, 28, 8, "14", ("1M",)),
    "20B": PublishedSize("infinity_20b", 58, 4608, 36, 1, "32", pool_heads=32),
}

BUDGETS_BY_PIXELS = {"256x256": "0.06M", "512x512": "0.25M", "1024x1024": "1M"}

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

ZERO_BIAS = "zero_k_bias"
"""Buffers of zeros beside every `v_bias`: keys have no bias. We do not keep them."""

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


def published_config(name: str) -> dict[str, Any]:
    """Constructor arguments of `InfinityTransformer` for a published size.

    Args:
        name: "125M", "1B", "2B", "8B", "20B", "layer16", ... or the official model type, "infinity_2b".

    Raises:
        ValueError: When there is no such size.
    """
    by_type = {size.model_type: size for size in PUBLISHED_SIZES.values()}
    size = PUBLISHED_SIZES.get(name) or by_type.get(name)
    if size is None:
        raise ValueError(f"Unknown size {name!r}; known are {', '.join(PUBLISHED_SIZES)}.")
    return {
        "depth": size.depth,
        "width": size.width,
        "heads": size.heads,
        "bits": 56 if size.tokenizer_type == "14" else int(size.tokenizer_type),
        "text_channels": 2048,
        "text_length": 512,
        "pool_heads": size.pool_heads,
        "levels": 15,
        "block_chunks": size.chunks,
        "tokenizer_type": size.tokenizer_type,
        "budgets": list(size.budgets) if size.budgets else None,
    }


def published_name(config: Mapping[str, Any]) -> str | None:
    """The published size with a configuration's depth, width and heads; None when there is none."""
    sides = (config["depth"], config["width"], config["heads"])
    sizes = PUBLISHED_SIZES.items()
    return next((name for name, size in sizes if (size.depth, size.width, size.heads) == sides), None)


def official_keys(depth: int, chunks: int) -> dict[str, str]:
    """Our key -> official key, for a transformer of `depth` blocks in `chunks` chunks."""
    keys = dict(_TOP_KEYS)
    for index in range(depth):
        chunk, place = divmod(index, depth // chunks)
        official = f"blocks.{index}" if chunks == 1 else f"block_chunks.{chunk}.module.{place}"
        keys |= {f"blocks.{index}.{ours}": f"{official}.{theirs}" for ours, theirs in _BLOCK_KEYS.items()}
    return keys


def to_official(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> TensorMap:
    """Our transformer's state dict under the official keys, with the official buffers of zeros.

    Args:
        state: Our state dict.
        config: The transformer's configuration.

    Raises:
        CheckpointError: When keys are missing or unexpected.
    """
    official: TensorMap = {}
    names = official_keys(config["depth"], config["block_chunks"])
    if state.keys() != names.keys():
        wrong = sorted(state.keys() ^ names.keys())
        raise CheckpointError(f"The state dict does not fit the configuration at {wrong[:3]}.")
    for ours, theirs in names.items():
        official[theirs] = state[ours]
        if theirs.endswith(".v_bias"):
            official[theirs.replace("v_bias", ZERO_BIAS)] = torch.zeros_like(state[ours])
    return official


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
    matches = (re.match(r"((?:block_chunks\.(\d+)\.module|blocks)\.\d+)\.", key) for key in state)
    blocks = dict(match.group(1, 2) for match in matches if match)
    chunks = max(len(set(blocks.values())), 1)
    if not blocks or len(blocks) % chunks:
        raise CheckpointError(
            f"{source} is damaged: {len(blocks)} blocks in {chunks} chunks; fetch it again."
        )
    first = "block_chunks.0.module.0" if "block_chunks.0.module.0" in blocks else "blocks.0"
    width, bits = _sides(state, "word_embed.weight", source)
    text_length, text_channels = _sides(state, "cfg_uncond", source)
    config: dict[str, Any] = {
        "depth": len(blocks),
        "width": width,
        "heads": max(_sides(state, f"{first}.sa.{_LOG_SCALE}", source, 4)),
        "bits": bits,
        "text_channels": text_channels,
        "text_length": text_length,
        "pool_heads": _sides(state, "text_proj_for_sos.ca.mat_q", source, 3)[1],
        "levels": _sides(state, "lvl_embed.weight", source)[0],
        "block_chunks": chunks,
    }
    hidden = _sides(state, f"{first}.ffn.fc1.weight", source)[0]
    if hidden != feed_forward_width(width):
        config["hidden_width"] = hidden
    name = published_name(config)
    published = published_config(name) if name else {}
    guess = "14" if bits == 56 else str(bits) if bits in PUBLISHED_VAE_TYPES else ""
    config["tokenizer_type"] = published["tokenizer_type"] if published.get("bits") == bits else guess
    config["budgets"] = published.get("budgets")
    return config


def _sides(state: Mapping[str, Tensor], key: str, source: str, dimensions: int = 2) -> tuple[int, ...]:
    shape = tuple(state[key].shape) if key in state else ()
    if len(shape) != dimensions or 0 in shape:
        found = f"is {list(shape)}" if key in state else "is missing"
        raise CheckpointError(f"{source} does not fit the model: {key} {found}; fetch it again.")
    return shape


def refuse_others(state: Mapping[str, Tensor], accepted: tuple[str, ...], source: str) -> None:
    """Raises CheckpointError when a state dict is not of an accepted architecture, saying what it is."""
    found = name_architecture(state)
    if found in accepted:
        return
    if found is None:
        found = f"nothing that stepvar knows (its first keys are {', '.join(list(state)[:3])})"
    reader = next((reader for names, reader in _READERS.items() if found in names), None)
    remedy = f"load it with {reader}" if reader else f"give a file such as {_EXAMPLES[accepted]}"
    raise CheckpointError(f"{source} holds {found}, not {accepted[0]}; {remedy}.")


def infer_vae_config(state: Mapping[str, Tensor], source: str = "The state dict") -> dict[str, Any]:
    """Constructor arguments of `InfinityVAE`, from the keys and shapes of its state dict.

    Args:
        state: A state dict as `convert_official_state` returns it; the meta device is enough.
        source: What errors call it.

    Raises:
        CheckpointError: When it tells too little.
    """
    base = _sides(state, "encoder.conv_in.conv.weight", source, 4)[0]
    config: dict[str, Any] = {
        "codebook_dim": _sides(state, "encoder.conv_out.conv.weight", source, 4)[0],
        "base_channels": base,
    }
    for side, levels in (("encoder", "down"), ("decoder", "up")):
        matches = (re.match(rf"{side}\.{levels}\.(\d+)\.block\.(\d+)\.conv1\.", key) for key in state)
        places = [match.groups() for match in matches if match]
        # Counted rather than read off the largest number, which a damaged file could make any size.
        level_count = max(len({level for level, _ in places}), 1)
        convolutions = [f"{side}.{levels}.{level}.block.0.conv1.conv.weight" for level in range(level_count)]
        channels = [_sides(state, key, source, 4)[0] for key in convolutions]
        config[f"{side}_multipliers"] = [count // base for count in channels]
        config[f"{side}_blocks"] = len({block for _, block in places})
    config["stride"] = 2 ** sum(key.endswith("downsample.conv.conv.weight") for key in state)
    # The official code builds stride 8 for transformers whose tokens are 2 x 2 positions, and only for them.
    config["patchify"] = config["stride"] == 8
    return config
