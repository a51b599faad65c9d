"""Memory that a published Infinity needs at 1024 x 1024, computed from its sizes: no weights and no GPU.

    python benchmarks/memory_table.py

Weights and KV cache are exact. The working memory of the VAE is the peak of its tensors, followed operation
by operation on tensors without content; that of the transformer is the largest layer's tensors at the last
scale. An allocator's fragmentation and CUDA's own context (about 0.5 GiB) come on top.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass

import torch
from diffusers.utils import logging
from torch.distributed._tools.mem_tracker import MemTracker

from stepvar import InfinityPipeline, InfinityTransformer, InfinityVAE

GIB = 2**30
PLANS = (None, "paper", "prune", "best")


@dataclass(frozen=True)
class Model:
    """A published model: sizes of its parts.

    Attributes:
        name: With its size.
        transformer, vae: Arguments of their classes.
        text_parameters: Of flan-t5-xl's encoder.
    """

    name: str
    transformer: dict[str, object]
    vae: dict[str, object]
    text_parameters: int = 1_223_527_424


MODELS = (
    Model(
        "Infinity-2B",
        {"depth": 32, "width": 2048, "heads": 16, "bits": 32, "block_chunks": 8},
        {"codebook_dim": 32},
    ),
    Model(
        "Infinity-8B",
        {"depth": 40, "width": 3584, "heads": 28, "bits": 56, "block_chunks": 8},
        {
            "codebook_dim": 14,
            "patchify": True,
            "encoder_multipliers": (1, 2, 4, 4),
            "decoder_multipliers": (1, 2, 4, 4),
        },
    ),
)


def weight_bytes(module: torch.nn.Module) -> int:
    """Bytes of a part in bfloat16, in which loading keeps some modules in float32."""
    exact = set(getattr(module, "_keep_in_fp32_modules", None) or ())
    return sum(
        value.numel() * (4 if exact & set(name.split(".")) else 2)
        for name, value in module.named_parameters()
    )


def decode_bytes(vae: InfinityVAE, cells: int) -> int:
    """Largest sum of the tensors that decoding one picture has at a time, weights left out."""
    tracker = MemTracker()
    latent = torch.empty(1, vae.config.codebook_dim, cells, cells, dtype=torch.float32, device="meta")
    with torch.no_grad(), tracker:
        vae.decode_pixels(latent)
    peak = tracker.get_tracker_snapshot("peak")
    return max(int(kinds["Total"]) for kinds in peak.values())


def layer_bytes(transformer: InfinityTransformer, tokens: int) -> int:
    """Tensors of one layer, both copies of guidance: residual stream, queries, keys, values, hidden units."""
    width, hidden = transformer.config.width, transformer.config.hidden_width or 4 * transformer.config.width
    return 2 * tokens * (4 * 2 * width + 2 * 4 * width + 2 * 2 * hidden)


def rows(model: Model) -> list[tuple[str, ...]]:
    """The table of one model: what each plan needs, in GiB."""
    with torch.device("meta"):
        transformer, vae = InfinityTransformer(**model.transformer), InfinityVAE(**model.vae)
    pipeline = InfinityPipeline(transformer.to(torch.bfloat16), vae.to(torch.bfloat16), None, None)
    final = pipeline.schedule(1024, 1024).final
    cells = final.height * (2 if vae.config.patchify else 1)
    text, picture = 2 * model.text_parameters, weight_bytes(vae) + decode_bytes(vae, cells)
    weights = weight_bytes(transformer)
    table = []
    for plan in PLANS:
        summary = pipeline.summary(plan, height=1024, width=1024)
        largest = max(entry.kept for entry in summary.plan.scales)
        running = weights + summary.cache_bytes + layer_bytes(transformer, largest)
        together = text + weights + weight_bytes(vae)
        together += max(running - weights, picture - weight_bytes(vae))
        sizes = (weights, summary.cache_bytes, picture, together, max(text, running, picture))
        table.append((model.name, plan or "dense", *(f"{size / GIB:.1f}" for size in sizes)))
    return table


def main() -> None:
    """Prints the table as Markdown."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    header = ("model", "plan", "transformer", "KV cache", "VAE at work", "all on the GPU", "with --offload")
    for row in (header, ("---",) * len(header), *(row for model in MODELS for row in rows(model))):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
