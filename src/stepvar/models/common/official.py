"""Key maps between official state dicts and ours, and checks of official ones, whatever the model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from stepvar.checkpoints.errors import CheckpointError
from stepvar.checkpoints.weights import TensorMap
from stepvar.models.common.architectures import name_architecture

KeyMap = Mapping[str, str]
"""Our key -> official key."""

ZERO_BIAS = "zero_k_bias"
"""Buffers of zeros beside every official `v_bias`: keys have no bias. We do not keep them."""


def block_keys(keys: KeyMap, depth: int, chunks: int = 1) -> dict[str, str]:
    """The keys of all blocks.

    Args:
        keys: Key map of one block.
        depth: Blocks.
        chunks: Chunks that the official keys group the blocks into.
    """
    names: dict[str, str] = {}
    for index in range(depth):
        chunk, position = divmod(index, depth // chunks)
        official = f"blocks.{index}" if chunks == 1 else f"block_chunks.{chunk}.module.{position}"
        names |= {f"blocks.{index}.{ours}": f"{official}.{theirs}" for ours, theirs in keys.items()}
    return names


def to_official_keys(state: Mapping[str, Tensor], names: KeyMap) -> TensorMap:
    """A complete state dict of ours under the official keys, with zeros for the official zero biases.

    Raises:
        CheckpointError: When keys are missing or unexpected.
    """
    if state.keys() != names.keys():
        wrong = sorted(state.keys() ^ names.keys())
        raise CheckpointError(f"The state dict does not fit the configuration at {wrong[:3]}.")
    official: TensorMap = {}
    for ours, theirs in names.items():
        official[theirs] = state[ours]
        if theirs.endswith(".v_bias"):
            official[theirs.replace("v_bias", ZERO_BIAS)] = torch.zeros_like(state[ours])
    return official


def from_official_keys(state: Mapping[str, Tensor], names: KeyMap, source: str, model: str) -> TensorMap:
    """A part of a checked official state dict under our keys, without the buffers that we do not keep.

    Args:
        names: The key map.
        source: Name of the state dict in errors.
        model: Name of the model in errors.

    Raises:
        CheckpointError: When keys have a bias, which the model has not.
    """
    for key, value in state.items():
        if key.endswith(ZERO_BIAS) and not value.is_meta and value.any():
            raise CheckpointError(f"{source} has a key bias ({key} is not zero), which {model} has not.")
    ours = {theirs: own for own, theirs in names.items()}
    return {ours[key]: value for key, value in state.items() if key in ours}


def shape_of(state: Mapping[str, Tensor], key: str, source: str, dimensions: int = 2) -> tuple[int, ...]:
    """Shape of a tensor that must be there, with this number of dimensions.

    Raises:
        CheckpointError: When it is not.
    """
    shape = tuple(state[key].shape) if key in state else ()
    if len(shape) != dimensions or 0 in shape:
        found = f"is {list(shape)}" if key in state else "is missing"
        raise CheckpointError(
            f"{source} does not fit the model: {key} {found}; give the whole official state dict."
        )
    return shape


def count_numbers(keys: Iterable[str], pattern: str) -> int:
    """How many different numbers keys have where a pattern's first group is.

    Counted rather than read off the largest number, which a damaged file could make any size.
    """
    return len({match[1] for key in keys if (match := re.match(pattern, key))})


def read_chunks(keys: Iterable[str], source: str) -> tuple[int, int, str]:
    """Number of blocks, number of chunks, and the key of the first block of a transformer.

    Raises:
        CheckpointError: When there are no blocks, or the chunks are not equally long.
    """
    blocks: dict[str, str | None] = {}
    for key in keys:
        if match := re.match(r"((?:block_chunks\.(\d+)\.module|blocks)\.\d+)\.", key):
            blocks[match[1]] = match[2]
    chunks = max(len(set(blocks.values())), 1)
    if not blocks or len(blocks) % chunks:
        raise CheckpointError(
            f"{source} is damaged: {len(blocks)} blocks in {chunks} chunks; give the whole state dict."
        )
    first = "block_chunks.0.module.0"
    return len(blocks), chunks, first if first in blocks else "blocks.0"


def refuse_other_architectures(
    state: Mapping[str, Tensor], accepted: Sequence[str], source: str, remedy: str
) -> None:
    """Checks what a state dict is of.

    Args:
        accepted: Architectures as `name_architecture` names them, the usual one first.
        source: Name of the state dict in errors.
        remedy: What would work, as in "give the folder of ...".

    Raises:
        CheckpointError: When it is of none of them.
    """
    found = name_architecture(state)
    if found in accepted:
        return
    if found is None:
        found = f"nothing that stepvar knows (its first keys are {', '.join(list(state)[:3])})"
    raise CheckpointError(f"{source} holds {found}, not {accepted[0]}; {remedy}.")
