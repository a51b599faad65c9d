"""Teacher forcing: all scales of Infinity in one pass, for training.

Source: bitwise self-correction and the loss of FoundationVision/Infinity, trainer.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from stepvar.generation.attention import BlockCausal
from stepvar.generation.schedule import ScaleSchedule
from stepvar.generation.tokens import Tokens
from stepvar.models.infinity.transformer import InfinityTransformer
from stepvar.models.layers import padding_mask


def initialise(transformer: InfinityTransformer) -> None:
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
) -> list[Tensor]:
    """Logits of all scales, each given the codes of the coarser ones.

    Args:
        transformer: The model.
        text: One [T_i, E] a picture, without padding.
        inputs: Accumulated codes resized to scales 1, 2, ..., each [B, D, h, w] at token grids; as
            many scales are run as there are inputs, plus the first.
        schedule: The whole schedule.

    Returns:
        One [B, h x w, D, 2] a scale.
    """
    scales = schedule.scales[: len(inputs) + 1]
    text_mask, pooled, projected = _embed_text(transformer, text)
    hidden = [(pooled[:, None].float() + transformer.start_embedding) + transformer.level_embedding.weight[0]]
    for scale, codes in zip(scales[1:], inputs, strict=True):
        hidden.append(transformer.embed_tokens(codes.flatten(2).transpose(1, 2), scale))
    lengths = [scale.tokens for scale in scales]
    rotary = torch.cat([transformer.rotary(scale, schedule.position_grid) for scale in scales], dim=1)
    tokens, memory = Tokens(scales[-1], rotary), BlockCausal(lengths)
    stream = torch.cat(hidden, dim=1)
    shared = transformer.shared_modulations(pooled)
    for block in transformer.blocks:
        modulation = block.modulations(shared)
        constants = block.self_attention.constants()
        stream = stream + block.attend_self(stream, tokens, modulation, memory, constants)
        key, value = block.cross_attention.project(projected)
        stream = stream + block.attend_text(stream, key, value, text_mask)
        stream = stream + block.feed(stream, modulation)
    logits = transformer.logits(stream, transformer.head_modulations(pooled))
    return list(logits.split(lengths, dim=1))


def _embed_text(
    transformer: InfinityTransformer, text: Sequence[Tensor]
) -> tuple[Tensor | None, Tensor, Tensor]:
    padded = nn.utils.rnn.pad_sequence(list(text), batch_first=True)
    lengths = [len(entry) for entry in text]
    mask = padding_mask(lengths, padded.shape[1], padded.device)
    normed, projected = transformer.embed_text(padded)
    return mask, transformer.text_pool(normed, mask), projected


def bit_losses(
    logits: Sequence[Tensor], bits: Sequence[Tensor], weights: Sequence[Tensor] | None = None
) -> Tensor:
    """Mean cross entropy per bit of each scale.

    Args:
        logits: One [B, N, D, 2] a scale.
        bits: One [B, N, D] a scale, the labels.
        weights: One [B, N] a scale, the weights of the tokens; all alike by default.

    Returns:
        [scales] in nats.
    """
    losses = []
    for index, (scale_logits, labels) in enumerate(zip(logits, bits, strict=True)):
        difference = scale_logits[..., 1] - scale_logits[..., 0]
        each = functional.binary_cross_entropy_with_logits(difference, labels.float(), reduction="none")
        if weights is None:
            losses.append(each.mean())
        else:
            losses.append((each.mean(dim=-1) * weights[index]).sum() / weights[index].sum())
    return torch.stack(losses)
