"""Provenance of a measurement: fingerprint of the weights, and versions of libraries."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from stepvar.generation.report import Report

_SAMPLE = 4096

PER_PICTURE = ("prompts", "negative_prompts", "class_labels", "source_sizes")
"""Settings in a report that are a list with one entry a picture."""


def picture_settings(report: Report, prompt: str, seed: int | None, index: int, batch: int) -> dict[str, Any]:
    """What a picture's file says of how it was drawn.

    Args:
        report: Of its batch.
        prompt, seed: Its own.
        index: Its place in the batch.
        batch: Pictures of the batch: in bfloat16 and float16 the last bits may depend on those beside it.
    """
    negatives, sources = report.settings.get("negative_prompts"), report.settings.get("source_sizes")
    return {
        "prompt": prompt,
        "negative_prompt": negatives[index] if negatives else None,
        **({"source_size": sources[index]} if sources else {}),
        "seed": seed,
        "batch": batch,
        **{key: value for key, value in report.settings.items() if key not in PER_PICTURE},
        "scales": [
            {"scale": str(entry.plan.scale), "kept": entry.plan.kept, "skipped": entry.plan.skipped}
            for entry in report.scales
        ],
        "versions": versions(),
    }


def fingerprint(pipeline: Any) -> str:
    """A short name of a pipeline's weights: two models with different weights have different ones.

    Reads every tensor once, but hashes only its start and its sums, which takes a second a gigabyte.
    """
    digest = hashlib.sha256()
    for part in sorted(pipeline.components):
        module = pipeline.components[part]
        if not isinstance(module, torch.nn.Module):
            continue
        for name, tensor in sorted(module.state_dict().items()):
            flat = tensor.detach().flatten()
            digest.update(f"{part}.{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            if flat.numel() and not flat.is_meta:
                wide = flat.float()
                sums = torch.stack([wide.sum(dtype=torch.float64), wide.abs().sum(dtype=torch.float64)])
                digest.update(wide[:_SAMPLE].cpu().numpy().tobytes())
                digest.update(f"{sums[0]:.9e} {sums[1]:.9e}".encode())
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions that a picture may depend on."""
    import diffusers
    import transformers

    import stepvar

    modules = (stepvar, torch, diffusers, transformers)
    return {module.__name__: str(module.__version__) for module in modules}
