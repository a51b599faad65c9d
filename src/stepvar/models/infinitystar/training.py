"""Teacher forcing of InfinityStar: all steps in one pass, for training.

A step sees the text, itself, and the last step of the clip before it, so all of them fit one sequence.
Source of the self-correction and the loss: FoundationVision/Infinity (MIT), trainer.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from stepvar.generation.cache import BlockWindows
from stepvar.models.common.training import take_tokens
from stepvar.models.infinitystar.quantizer import QuantizedStep, resize_area
from stepvar.models.infinitystar.schedules import VideoScale, VideoSchedule
from stepvar.models.infinitystar.transformer import InfinityStarBlock, InfinityStarTransformer


def init_weights(transformer: InfinityStarTransformer) -> None:
    """Fresh weights for training: small outputs of the residual branches.

    Args:
        transformer: Initialised in place.
    """
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=1.0 / math.sqrt(module.in_features))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.normal_(
        transformer.unconditional_text.weight, std=1.0 / math.sqrt(transformer.config.text_channels)
    )
    for head in (transformer.semantic_head, transformer.detail_head):
        head.weight.data.mul_(0.02)
    for block in transformer.blocks:
        for branch in (block.attention.output, block.feed_forward.down):
            branch.weight.data.div_(math.sqrt(2 * transformer.config.depth))


def teacher_inputs(steps: Sequence[QuantizedStep]) -> list[Tensor]:
    """What each step is given, as generation gives it: its clip's codes so far, each [B, D, t, h, w]."""
    return [resize_area(step.before, step.scale.grid) for step in steps]


def teacher_forced_logits(
    transformer: InfinityStarTransformer,
    text: Sequence[Tensor],
    inputs: Sequence[Tensor],
    steps: Sequence[VideoScale],
    schedule: VideoSchedule,
    kept: Sequence[Tensor | None] | None = None,
    compiled: bool = False,
) -> list[Tensor]:
    """Logits of all steps, each given the codes of the earlier ones of its clip.

    Args:
        transformer: The model.
        text: One [T_i, E] a video, without padding.
        inputs: Codes of a step's clip before it, resized to its grid, [B, D, t, h, w] a step.
        steps: The steps to run: all of the schedule, or some. A clip sees the last one of the clip before it
            that is run.
        schedule: The whole schedule.
        kept: Tokens to run at each step, [B, K] or None for all, where a training step shall cost less.
        compiled: Whether blocks go through torch.compile; text is then padded to its longest.

    Returns:
        One [B, N, d, 2] a step; N is t x h x w, or K where only some tokens are run.
    """
    kept = [None] * len(steps) if kept is None else kept
    longest = transformer.config.text_length if compiled else max(len(entry) for entry in text)
    hidden, padding = _embed_text(transformer, text, longest)
    rotary = transformer.rotary(schedule.position_grid, hidden.device)
    streams, tables = [hidden], [rotary.text(longest)]
    for step, codes, chosen in zip(steps, inputs, kept, strict=True):
        tokens = take_tokens(codes.flatten(2).mT, chosen)
        streams.append(transformer.embed_tokens(tokens.mT))
        table = rotary.scale(step)
        tables.append(table if chosen is None else take_tokens(table.expand(len(text), -1, -1), chosen))
    if any(chosen is not None for chosen in kept):
        tables = [table.expand(len(text), -1, -1) for table in tables]
    lengths = [part.shape[1] for part in streams]
    memory = BlockWindows(lengths, _visible(steps, schedule), padding)
    stream, table = torch.cat(streams, dim=1), torch.cat(tables, dim=1)
    run_block = _compiled_block() if compiled else _run_block
    for block in transformer.blocks:
        stream = run_block(block, stream, table, memory, transformer.compute_dtype)
    parts = stream.split(lengths, dim=1)[1:]
    return [transformer.logits(part, step.bits) for part, step in zip(parts, steps, strict=True)]


def _visible(steps: Sequence[VideoScale], schedule: VideoSchedule) -> list[tuple[int, ...]]:
    """For the text and every step, which earlier spans it sees; the text is span 0, step i is span i + 1."""
    chosen = {step.index for step in steps}
    ran = [scale.index in chosen for scale in schedule]
    last = {step.index: schedule.last_step(step.index, ran) for step in steps}
    return [
        (),
        *(
            (
                0,
                *(
                    1 + place
                    for place, earlier in enumerate(steps[:index])
                    if last[earlier.index] >= step.index
                ),
            )
            for index, step in enumerate(steps)
        ),
    ]


def _embed_text(
    transformer: InfinityStarTransformer, text: Sequence[Tensor], longest: int
) -> tuple[Tensor, Tensor | None]:
    """Projected text [B, L, C], and where it is none of the padding, [B, L]; None without padding."""
    padded = nn.utils.rnn.pad_sequence(list(text), batch_first=True)
    padded = functional.pad(padded, (0, 0, 0, longest - padded.shape[1]))
    lengths = torch.tensor([len(entry) for entry in text], device=padded.device)
    padding = torch.arange(longest, device=padded.device) < lengths[:, None]
    return transformer.embed_text(padded), None if bool(padding.all()) else padding


def _run_block(
    block: InfinityStarBlock, stream: Tensor, rotary: Tensor, memory: BlockWindows, dtype: torch.dtype
) -> Tensor:
    stream = stream + block.attend(stream, rotary, memory, dtype)
    return stream + block.feed(stream, dtype)


@cache
def _compiled_block() -> Callable[..., Tensor]:
    """One program for all blocks: norms, rotations, softmax and casts fused."""
    return torch.compile(_run_block, dynamic=False)
