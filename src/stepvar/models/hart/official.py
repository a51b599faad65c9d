"""Keys of HART's official checkpoints, and the configuration that follows from shapes and config.json.

Source of the keys: mit-han-lab/hart, hart/modules/models/transformer/hart_transformer_t2i.py,
hart/modules/networks/basic_hart.py and hart/modules/diffusion/diffloss.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stepvar.checkpoints.errors import CheckpointError
from stepvar.checkpoints.weights import TensorMap
from stepvar.models.common.official import (
    ZERO_BIAS,
    block_keys,
    count_numbers,
    from_official_keys,
    refuse_other_architectures,
    shape_of,
    to_official_keys,
)
from stepvar.models.common.square_schedules import LEVELS, SIDES_BY_PIXELS
from stepvar.models.hart.diffusion import SINUSOID_CHANNELS
from stepvar.models.hart.transformer import gated_width

PUBLISHED_SIDES = SIDES_BY_PIXELS[1024]
HEAD_DIM = 64
"""Channels of a head of the published model: what is assumed where no configuration says."""

TRAINING_MASK = "attn_bias_for_masking"
"""Buffer that only training needs, 380 MB for 1024 pixels. Computed from the schedule."""

DERIVED = frozenset({LEVELS, TRAINING_MASK})
"""Buffers that follow from the schedule; the one of levels has the context's tokens first, as scale 0."""

_TOP_KEYS = {
    "context_embedding.weight": "context_embed.weight",
    "context_embedding.bias": "context_embed.bias",
    "token_embedding.weight": "word_embed.weight",
    "token_embedding.bias": "word_embed.bias",
    "head_norm.weight": "head_nm.ln_wo_grad.weight",
    "head_modulation.weight": "head_nm.ada_lin.1.weight",
    "head_modulation.bias": "head_nm.ada_lin.1.bias",
    "head.weight": "head.weight",
    "head.bias": "head.bias",
    "residual_norm.weight": "decoder_norm.weight",
}
_CONTEXT_NORM = {"text_norm.weight": "context_norm.weight"}
_LEVEL_TABLE = {"level_embedding.table": "lvl_embed.weight"}
_LEVEL_NETWORK = {
    f"level_embedding.{ours}.{kind}": f"lvl_embed.mlp.{theirs}.{kind}"
    for ours, theirs in (("first", 0), ("second", 2))
    for kind in ("weight", "bias")
}

_BLOCK_KEYS = {
    "norm.weight": "ln_wo_grad.weight",
    "attention.qkv.weight": "attn.qkv_proj.weight",
    "attention.query_bias": "attn.q_bias",
    "attention.value_bias": "attn.v_bias",
    "attention.output.weight": "attn.proj.weight",
    "attention.output.bias": "attn.proj.bias",
    "feed_forward.gate.weight": "ffn.gate_proj.weight",
    "feed_forward.up.weight": "ffn.up_proj.weight",
    "feed_forward.down.weight": "ffn.down_proj.weight",
}
_COSINE = {"attention.log_scale": "attn.scale_mul_1H11"}
_MODULATION_KEYS: dict[str, dict[str, str]] = {
    "none": {},
    "block": {"modulation.weight": "ada_lin.1.weight", "modulation.bias": "ada_lin.1.bias"},
    "table": {"table": "scale_shift_table"},
}

_DIFFUSION = "diffloss.net."
_DIFFUSION_TOP = {
    "time_embedding.0": "time_embed.mlp.0",
    "time_embedding.2": "time_embed.mlp.2",
    "condition_embedding": "cond_embed",
    "input": "input_proj",
    "output_modulation": "final_layer.adaLN_modulation.1",
    "output": "final_layer.linear",
}
_DIFFUSION_BLOCK = {
    "norm": "in_ln",
    "up": "mlp.0",
    "down": "mlp.2",
    "modulation": "adaLN_modulation.1",
}

TRANSFORMERS = ("a HART transformer",)
_UNSUPPORTED_KEYS = {
    r"blocks\.\d+\.cross_attn\.": "uses cross attention",
    r"blocks\.\d+\.ffn\.fc1\.": "has the plain feed-forward (mlp_type 'gpt2')",
    r"blocks\.\d+\.attn\.mat_qkv\.": "has the plain attention (attn_type 'gpt2')",
}
"""Options of the official code that no published model uses, by the keys they leave."""


def diffusion_keys(depth: int, prefix: str = _DIFFUSION) -> dict[str, str]:
    """Our key -> official key of the diffusion head, for `depth` blocks."""
    pairs = dict(_DIFFUSION_TOP)
    for index in range(depth):
        pairs |= {
            f"blocks.{index}.{ours}": f"res_blocks.{index}.{theirs}"
            for ours, theirs in _DIFFUSION_BLOCK.items()
        }
    return {
        f"{ours}.{kind}": f"{prefix}{theirs}.{kind}"
        for ours, theirs in pairs.items()
        for kind in ("weight", "bias")
    }


def official_keys(config: Mapping[str, Any]) -> dict[str, str]:
    """Our key -> official key, for a transformer's configuration."""
    keys = dict(_TOP_KEYS)
    if config["context_norm"]:
        keys |= _CONTEXT_NORM
    keys |= _LEVEL_TABLE if config["level_table"] else _LEVEL_NETWORK
    block = _BLOCK_KEYS | _MODULATION_KEYS[config["modulation"]]
    if config["cosine_attention"]:
        block = block | _COSINE
    keys |= block_keys(block, config["depth"])
    head = diffusion_keys(config["diffusion_depth"])
    return keys | {f"residual_head.{ours}": theirs for ours, theirs in head.items()}


def level_numbers(config: Mapping[str, Any]) -> list[int]:
    """Scale of every position of a training sequence: the context, then the scales from the second on."""
    later = [side * side for side in config["sides"][1:]]
    numbers = [0] * config["context_tokens"]
    for level, count in enumerate(later, 1):
        numbers += [level] * count
    return numbers


def to_official(
    state: Mapping[str, Tensor], config: Mapping[str, Any], training_mask: bool = False
) -> TensorMap:
    """Our transformer's state dict under the official keys, with the official buffers.

    Args:
        state: Our state dict.
        config: The transformer's configuration.
        training_mask: Whether to make the mask that only training needs (380 MB for 1024 pixels).

    Raises:
        CheckpointError: When keys are missing or unexpected.
    """
    official = to_official_keys(state, official_keys(config))
    device = state["head.weight"].device
    levels = torch.tensor(level_numbers(config), device=device)
    official[LEVELS] = levels[None]
    if training_mask:
        hidden = levels[:, None] < levels[None]
        mask = torch.zeros(hidden.shape, device=device).masked_fill(hidden, -math.inf)
        official[TRAINING_MASK] = mask[None, None]
    return official


def rename(state: Mapping[str, Tensor], config: Mapping[str, Any], source: str) -> TensorMap:
    """A part of an official state dict under our keys, without the constant buffers.

    Raises:
        CheckpointError: When keys have a bias, which HART has not.
    """
    return from_official_keys(state, official_keys(config), source, "HART")


def is_optional(key: str) -> bool:
    """Whether an official key may be missing without a difference: the constant buffers."""
    return key in DERIVED or key.endswith(ZERO_BIAS)


def infer_config(
    state: Mapping[str, Tensor],
    official: Mapping[str, Any] | None = None,
    source: str = "The state dict",
) -> dict[str, Any]:
    """Constructor arguments of `HARTTransformer`, from an official state dict and its config.json.

    Keys and shapes come first; the configuration adds what they cannot tell (heads, sides, steps of the
    diffusion head, pooling, epsilon), and must not contradict them.

    Args:
        state: The official state dict; the meta device is enough, except that the sides are then not read
            off the buffer of levels.
        official: Contents of the official config.json; None assumes the published model's values for what
            shapes do not tell.
        source: What errors call it.

    Raises:
        CheckpointError: When it belongs to another architecture, tells too little, or contradicts its
            configuration.
    """
    refuse_other_architectures(state, TRANSFORMERS, source, "give the folder llm/ of a HART checkpoint")
    for pattern, what in _UNSUPPORTED_KEYS.items():
        if any(re.match(pattern, key) for key in state):
            raise CheckpointError(f"{source} {what}, which no published HART does; it is not supported.")
    settings = dict(official or {})
    config = _from_shapes(state, source)
    config |= _from_configuration(state, config, settings, source)
    _refuse_contradictions(config, settings, source)
    _check_length(state, config, source)
    return config


def _from_shapes(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Everything that keys and shapes tell."""
    depth = count_numbers(state, r"blocks\.(\d+)\.")
    if not depth:
        raise CheckpointError(f"{source} has no blocks; give the whole state dict.")
    width, channels = shape_of(state, "word_embed.weight", source)
    modulations = [
        name
        for name, keys in _MODULATION_KEYS.items()
        if keys and f"blocks.0.{next(iter(keys.values()))}" in state
    ]
    return {
        "depth": depth,
        "width": width,
        "codebook_size": shape_of(state, "head.weight", source)[0],
        "latent_channels": channels,
        "context_channels": shape_of(state, "context_embed.weight", source)[1],
        "hidden_width": shape_of(state, "blocks.0.ffn.gate_proj.weight", source)[0],
        "modulation": modulations[0] if modulations else "none",
        "level_table": "lvl_embed.weight" in state,
        "context_norm": "context_norm.weight" in state,
        "cosine_attention": "blocks.0.attn.scale_mul_1H11" in state,
        "diffusion_width": shape_of(state, f"{_DIFFUSION}input_proj.weight", source)[0],
        "diffusion_depth": count_numbers(state, r"diffloss\.net\.res_blocks\.(\d+)\."),
    }


def _from_configuration(
    state: Mapping[str, Tensor], config: Mapping[str, Any], settings: Mapping[str, Any], source: str
) -> dict[str, Any]:
    """What shapes do not tell, from the configuration, the buffer of levels, or the published model."""
    width = config["width"]
    if config["cosine_attention"]:
        heads = max(shape_of(state, "blocks.0.attn.scale_mul_1H11", source, 4))
    else:
        heads = settings.get("num_heads", max(width // HEAD_DIM, 1))
    context, sides = _read_levels(state)
    known = {
        "heads": heads,
        "context_tokens": settings.get("context_token", context or 300),
        "sides": list(settings.get("patch_nums") or sides or PUBLISHED_SIDES),
        "pooling": {"avg": "mean"}.get(settings.get("sep_aln_pooling_mode", "max"), "max"),
        "eps": float(settings.get("norm_eps", 1e-6)),
        "diffusion_steps": str(settings.get("num_sampling_steps", "8")),
    }
    numbers = [known["heads"], known["context_tokens"], *known["sides"]]
    if not all(isinstance(number, int) and number > 0 for number in numbers):
        raise CheckpointError(f"The configuration of {source} has sizes that are no positive numbers.")
    return known


def _read_levels(state: Mapping[str, Tensor]) -> tuple[int, list[int]]:
    """Context tokens and sides off the buffer of levels; zero and nothing where it is no such buffer."""
    levels = state.get(LEVELS)
    if levels is None or levels.is_meta or levels.dtype not in (torch.int64, torch.int32):
        return 0, []
    counts = levels.flatten().clamp_min(0).bincount().tolist()
    sides = [1] + [math.isqrt(count) for count in counts[1:]]
    if any(side * side != count for side, count in zip(sides[1:], counts[1:], strict=True)):
        return 0, []
    return counts[0], sides


_COMPARED = {
    "depth": "depth",
    "embed_dim": "width",
    "context_dim": "context_channels",
    "diff_width": "diffusion_width",
    "diff_depth": "diffusion_depth",
    "use_context_norm": "context_norm",
    "attn_l2_norm": "cosine_attention",
    "num_heads": "heads",
}
"""Official field -> ours, where the weights tell the same."""


def _refuse_contradictions(config: Mapping[str, Any], settings: Mapping[str, Any], source: str) -> None:
    expected = {theirs: config[ours] for theirs, ours in _COMPARED.items()}
    expected["use_timestep_embed"] = not config["level_table"]
    expected["disable_aln"] = config["modulation"] != "block"
    if config["modulation"] != "block":
        expected["shared_aln"] = config["modulation"] == "table"
    if "mlp_ratio" in settings:
        expected["mlp_ratio"] = _ratio(config, float(settings["mlp_ratio"]))
    for field, value in expected.items():
        if field in settings and settings[field] != value:
            raise CheckpointError(
                f"{source} contradicts its configuration: {field} is {settings[field]} there, but the "
                f"weights have {value}; the two do not belong together."
            )
    for field in ("attn_type", "mlp_type"):
        if settings.get(field, "llama") != "llama":
            raise CheckpointError(f"{source} has {field} {settings[field]!r}; only 'llama' is supported.")
    if settings.get("use_cross_attn"):
        raise CheckpointError(f"{source} uses cross attention, which is not supported.")


def _ratio(config: Mapping[str, Any], configured: float) -> float:
    """The configured ratio where it gives the hidden width, else the one that does without rounding."""
    if gated_width(config["width"], configured) == config["hidden_width"]:
        return configured
    return config["hidden_width"] / config["width"] * 1.5


def _check_length(state: Mapping[str, Tensor], config: Mapping[str, Any], source: str) -> None:
    """Refuses sides and context that do not fit the stored buffers and the level table."""
    expected = len(level_numbers(config))
    levels = state.get(LEVELS)
    if levels is not None and levels.numel() != expected:
        raise CheckpointError(
            f"{source} contradicts its configuration: {config['context_tokens']} context tokens and the "
            f"sides {config['sides']} make {expected} positions, but the weights have {levels.numel()}."
        )
    if config["level_table"]:
        rows = shape_of(state, "lvl_embed.weight", source)[0]
        if rows != len(config["sides"]):
            raise CheckpointError(
                f"{source} contradicts its configuration: {len(config['sides'])} sides, but {rows} levels."
            )
    wave = state.get("lvl_embed.mlp.0.weight")
    if wave is not None and wave.shape[-1] != SINUSOID_CHANNELS:
        raise CheckpointError(f"{source} reads waves of {wave.shape[-1]} channels, not {SINUSOID_CHANNELS}.")
