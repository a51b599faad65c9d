"""Teacher forcing of VAR: all scales in one pass, for training.

Source: the training forward of FoundationVision/VAR, models/var.py and trainer.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from stepvar.generation.cache import BlockCausal
from stepvar.models.var.transformer import VARTransformer


def init_weights(transformer: VARTransformer, gate_scale: float = 1e-3) -> None:
    """Fresh weights for training, as the official code draws them.

    Args:
        transformer: Initialised in place.
        gate_scale: How small the gates of the residual branches start: 1e-3 for d16 and d20, 1e-4 for d24,
            1e-5 for d30, 5e-6 for d36.
    """
    width, depth = transformer.config.width, transformer.config.depth
    deviation = math.sqrt(1.0 / (3.0 * width))
    for module in transformer.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.trunc_normal_(module.weight, std=deviation)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    nn.init.trunc_normal_(transformer.start_embedding, std=deviation)
    nn.init.trunc_normal_(transformer.position_embedding, std=deviation)
    transformer.head.weight.data.mul_(0.02)
    transformer.head_modulation.weight.data.mul_(0.5)
    for block in transformer.blocks:
        block.self_attention.output.weight.data.div_(math.sqrt(2 * depth))
        block.feed_forward.down.weight.data.div_(math.sqrt(2 * depth))
        if isinstance(block.modulation, nn.Linear):
            block.modulation.weight.data[: 2 * width].mul_(gate_scale)
            block.modulation.weight.data[2 * width :].mul_(0.5)
        else:
            nn.init.normal_(block.modulation, std=1.0 / math.sqrt(width))
            block.modulation.data[:, :, :2].mul_(gate_scale)
            block.modulation.data[:, :, 2:].mul_(0.5)


def drop_classes(classes: Tensor, dropped: Tensor, transformer: VARTransformer) -> Tensor:
    """Replaces classes by the unconditional one, which classifier-free guidance needs.

    Args:
        classes: [B] int64.
        dropped: [B] bool, for example ``torch.rand(B) < 0.1``.
    """
    return classes.masked_fill(dropped, transformer.unconditional_class)


def teacher_forced_logits(
    transformer: VARTransformer,
    classes: Tensor,
    inputs: Sequence[Tensor],
    probe: Callable[[str, Tensor], None] | None = None,
) -> list[Tensor]:
    """Logits of all scales, each given the codes of the coarser ones.

    Args:
        transformer: The model.
        classes: [B] int64.
        inputs: Accumulated codes resized to scales 1, 2, ..., each [B, N, D], see `map_tokens`; as many
            scales are run as there are inputs, plus the first.
        probe: Called with "input" and "layer 0", "layer 1", ... and the hidden states [B, L, C] there.

    Returns:
        One [B, N, V] a scale.
    """
    scales = transformer.schedule.scales[: len(inputs) + 1]
    condition = transformer.embed_classes(classes)
    hidden = [transformer.embed_start(condition, scales[0])]
    for scale, codes in zip(scales[1:], inputs, strict=True):
        hidden.append(transformer.embed_tokens(codes, scale))
    lengths = [scale.tokens for scale in scales]
    memory, stream = BlockCausal(lengths), torch.cat(hidden, dim=1)
    show = probe or (lambda name, hidden: None)
    show("input", stream)
    modulations, dtype = transformer.modulations(condition), transformer.compute_dtype
    for layer, (block, modulation) in enumerate(zip(transformer.blocks, modulations, strict=True)):
        constants = block.self_attention.constants()
        stream = stream + block.attend_self(stream, modulation, memory, constants, dtype)
        stream = stream + block.feed(stream, modulation, dtype)
        show(f"layer {layer}", stream)
    logits = transformer.logits(stream, transformer.head_modulations(condition))
    return list(logits.split(lengths, dim=1))


def token_losses(logits: Sequence[Tensor], index: Sequence[Tensor], label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy of every token, [B, L] in nats; its mean is the official loss.

    Args:
        logits: One [B, N, V] a scale.
        index: One [B, N] a scale, the labels.
        label_smoothing: Share of the target that goes to all codes alike.
    """
    predicted, labels = torch.cat(list(logits), dim=1), torch.cat(list(index), dim=1)
    return functional.cross_entropy(
        predicted.transpose(1, 2), labels, reduction="none", label_smoothing=label_smoothing
    )
