"""Sizes that the official Infinity registers, and the constructor arguments of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


def feed_forward_width(width: int) -> int:
    """Hidden width of the feed-forward: 4 C rounded to a multiple of 256 (half to even)."""
    return round(4 * width / 256) * 256


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
