"""Teacher forcing of Infinity: all scales in one pass, for training.

Source: bitwise self-correction and the loss of FoundationVision/Infinity, trainer.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from stepvar.generation.cache import BlockCausal
from stepvar.generation.schedule import ScaleSchedule
from stepvar.generation.tokens import Tokens
from stepvar.models.common.layers import padding_mask
from stepvar.models.common.training import take_tokens
from stepvar.models.infinity.transformer import InfinityBlock, InfinityTransformer


def init_weights(transformer: InfinityTransformer) -> None:
    """Fresh weights for training: small outputs of the residual branches, gates of order one.

    Args:
        transformer: Initialised in place.
    """
    width, depth = transformer.config.width, transformer.config.depth
    deviation = 1.0 / math.sqrt(width)
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=1.0 / math.sqrt(module.in_features))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=deviation)
    nn.init.normal_(transformer.unconditional_text, std=1.0 / math.sqrt(transformer.config.text_channels))
    nn.init.normal_(transformer.start_embedding, std=deviation)
    nn.init.normal_(transformer.text_pool.query, std=deviation)
    nn.init.zeros_(transformer.shared_modulation.weight)
    nn.init.zeros_(transformer.head_modulation.weight)
    transformer.head.weight.data.mul_(0.02)
    for block in transformer.blocks:
        # Gates start at a fraction of one, scales and shifts at zero: AdaLN begins as plain LayerNorm.
        block.modulation.data.zero_()
        block.modulation.data[:, :, :2] = 0.5
        for branch in (block.self_attention.output, block.cross_attention.output, block.feed_forward.down):
            branch.weight.data.div_(math.sqrt(2 * depth))


def teacher_forced_logits(
    transformer: InfinityTransformer,
    text: Sequence[Tensor],
    inputs: Sequence[Tensor],
    schedule: ScaleSchedule,
    kept: Sequence[Tensor | None] | None = None,
    compiled: bool = False,
) -> list[Tensor]:
    """Logits of all scales, each given the codes of the coarser ones.

    Args:
        transformer: The model.
        text: One [T_i, E] a picture, without padding.
        inputs: Accumulated codes resized to scales 1, 2, ..., each [B, D, h, w] at token grids; as
            many scales are run as there are inputs, plus the first.
        schedule: The whole schedule.
        kept: Tokens to run at each scale, [B, K] or None for all, where a step shall cost less.
        compiled: Whether blocks go through torch.compile; text is then padded to its longest.

    Returns:
        One [B, N, D, 2] a scale; N is h x w, or K where only some tokens are run.
    """
    scales = schedule.scales[: len(inputs) + 1]
    kept = [None] * len(scales) if kept is None else kept
    text_mask, pooled, projected = _embed_text(transformer, text, transformer.config.text_length * compiled)
    hidden = [transformer.embed_start(pooled, scales[0])]
    for scale, codes, chosen in zip(scales[1:], inputs, kept[1:], strict=True):
        hidden.append(transformer.embed_tokens(take_tokens(codes.flatten(2).mT, chosen), scale))
    lengths = [part.shape[1] for part in hidden]
    tables = [transformer.rotary(scale, schedule.position_grid) for scale in scales]
    if any(chosen is not None for chosen in kept):
        tables = [
            take_tokens(table.expand(len(text), -1, -1), chosen)
            for table, chosen in zip(tables, kept, strict=True)
        ]
    tokens, memory = Tokens(scales[-1], torch.cat(tables, dim=1)), BlockCausal(lengths)
    stream = torch.cat(hidden, dim=1)
    shared, dtype = transformer.shared_modulations(pooled), transformer.compute_dtype
    run_block = _compiled_block() if compiled else _run_block
    for block in transformer.blocks:
        stream = run_block(block, stream, tokens, shared, projected, text_mask, memory, dtype)
    logits = transformer.logits(stream, transformer.head_modulations(pooled))
    return list(logits.split(lengths, dim=1))


def _run_block(
    block: InfinityBlock,
    stream: Tensor,
    tokens: Tokens,
    shared: Tensor,
    projected: Tensor,
    text_mask: Tensor | None,
    memory: BlockCausal,
    dtype: torch.dtype,
) -> Tensor:
    modulation = block.modulations(shared)
    constants = block.self_attention.constants()
    stream = stream + block.attend_self(stream, tokens, modulation, memory, constants, dtype)
    key, value = block.cross_attention.project(projected)
    stream = stream + block.attend_text(stream, key, value, text_mask)
    return stream + block.feed(stream, modulation, dtype)


@cache
def _compiled_block() -> Callable[..., Tensor]:
    """One program for all blocks: norms, rotations, softmax and casts fused, nearly half of the time."""
    return torch.compile(_run_block, dynamic=False)


def _embed_text(
    transformer: InfinityTransformer, text: Sequence[Tensor], shortest: int = 0
) -> tuple[Tensor | None, Tensor, Tensor]:
    padded = nn.utils.rnn.pad_sequence(list(text), batch_first=True)
    padded = functional.pad(padded, (0, 0, 0, max(shortest - padded.shape[1], 0)))
    lengths = [len(entry) for entry in text]
    mask = padding_mask(lengths, padded.shape[1], padded.device)
    normed, projected = transformer.embed_text(padded)
    return mask, transformer.text_pool(normed, mask), projected
