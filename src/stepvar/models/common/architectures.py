"""Names of architectures, recognised by keys of their state dicts: for messages about a wrong file."""

from __future__ import annotations

from collections.abc import Iterable

_ARCHITECTURES: dict[str, tuple[str, ...]] = {
    "a T5 text encoder": ("shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"),
    "an Infinity transformer": ("text_proj_for_sos.ca.mat_kv.weight",),
    "an Infinity transformer in stepvar's own names": ("unconditional_text", "text_pool.query"),
    "an InfinityStar transformer": ("cfg_uncond", "sos_token", "text_proj.weight"),
    "a Switti transformer": ("word_embed.weight", "text_pooler.weight"),
    "a Switti transformer in stepvar's own names": ("text_pool.weight", "level_embedding.weight"),
    "a HART transformer": ("word_embed.weight", "context_embed.weight"),
    "a VAR transformer": ("word_embed.weight", "class_emb.weight"),
    "a VAR transformer in stepvar's own names": ("class_embedding.weight", "position_embedding"),
    "a visual tokenizer of HART": ("vae.encoder.conv_in.weight", "vae.quantize.embedding.weight"),
    "a visual tokenizer of the VAR family": ("encoder.conv_in.weight", "quantize.embedding.weight"),
    "a video tokenizer of InfinityStar": ("decoder.conv_in.conv.weight", "scale_learnable_parameters"),
    "a visual tokenizer of Infinity": ("encoder.conv_in.conv.weight", "decoder.conv_in.conv.weight"),
    "a visual tokenizer": ("encoder.conv_in.weight", "decoder.conv_in.weight"),
}
"""Architectures by keys that only they have together; of several that match, the first counts."""


def name_architecture(keys: Iterable[str]) -> str | None:
    """Says in words what a state dict belongs to, e.g. "a VAR transformer"; None when unknown."""
    keys = set(keys)
    return next((name for name, signs in _ARCHITECTURES.items() if keys.issuperset(signs)), None)
