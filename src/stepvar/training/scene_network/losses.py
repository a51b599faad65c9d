"""Losses of the scene network."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar.scenes.network.image_backbone import ObjectMaps
from stepvar.training.scene_network.batches import MapBatch, PromptBatch
from stepvar.training.scene_network.targets import IGNORED

_CENTRE_WEIGHT, _SIZE_WEIGHT, _BACKGROUND_WEIGHT = 5.0, 0.5, 0.3


def map_losses(maps: ObjectMaps, batch: MapBatch) -> dict[str, Tensor]:
    """Cross entropies of the maps, "loss" being their weighted sum."""
    known = batch.present != IGNORED
    present = maps.present[known], batch.present[known].float()
    parts = {
        "centre": F.binary_cross_entropy_with_logits(maps.centre, batch.centre),
        "present": F.binary_cross_entropy_with_logits(*present),
        "background": F.cross_entropy(maps.background, batch.background),
    }
    inner = batch.attributes[..., 0] != IGNORED
    for index, (name, logits) in enumerate(maps.attributes.items()):
        parts[name] = F.cross_entropy(logits[inner], batch.attributes[inner][:, index])
    weights = {
        "centre": _CENTRE_WEIGHT,
        "present": _CENTRE_WEIGHT,
        "size": _SIZE_WEIGHT,
        "background": _BACKGROUND_WEIGHT,
    }
    parts["loss"] = torch.stack([weights.get(name, 1.0) * value for name, value in parts.items()]).sum()
    return parts


def alignment_losses(
    pictures: Tensor, prompts: Tensor, scale: Tensor, batch: PromptBatch
) -> dict[str, Tensor]:
    """Contrastive cross entropies, "loss" being their sum.

    Args:
        pictures: [B, F] unit vectors.
        prompts: [M, F] unit vectors.
        scale: Inverse temperature.
        batch: Prompts that are true of a picture by chance are left out of its negatives.

    Source: Radford et al., "CLIP", arXiv 2103.00020; negatives by one attribute as in Yuksekgonul et al.,
    "When and why vision-language models behave like bags-of-words", arXiv 2210.01936.
    """
    count, group = len(pictures), len(prompts) // len(pictures)
    rows = torch.arange(count, device=pictures.device)
    own = rows * group
    logits = scale * pictures @ prompts.T
    grouped = logits.view(count, count, group)[rows, rows]
    also_true = batch.truth.clone()
    also_true[rows, own] = False
    logits = logits.masked_fill(also_true, -math.inf)
    parts = {
        "pictures": F.cross_entropy(logits, own),
        "prompts": F.cross_entropy(logits[:, own].T, rows),
        "swaps": F.cross_entropy(grouped, torch.zeros_like(rows)),
    }
    parts["loss"] = torch.stack(list(parts.values())).sum()
    parts["swaps_right"] = (grouped.argmax(dim=1) == 0).float().mean()
    return parts


def target_loss(logits: Tensor, targets: Tensor, known: Tensor | None = None) -> Tensor:
    """Binary cross entropy of attributes read from embeddings, over what is known; all [N, T]."""
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return losses.mean() if known is None else (losses * known).sum() / known.sum().clamp(min=1)
