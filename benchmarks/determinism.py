"""Bits of a picture alone, in a batch, and with more threads: a table of plans and number formats.

    python benchmarks/determinism.py                       # the tables of docs/determinism.md
    python benchmarks/determinism.py --formats float32     # one number format

The first table looks for causes: whether a picture's values of one operation depend on how many pictures
are computed. For the second each picture is drawn alone on one thread, which is what the others are compared
with: drawn again, in a batch of all, and alone on more threads.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

import torch
import torch.nn.functional as functional
from torch import Tensor

import stepvar
from stepvar.models.pipeline import NextScalePipeline

PROMPTS = (
    "two yellow stars above a striped blue ring on sand",
    "a large dotted red circle on grass",
    "three small green squares on sand",
)
PLANS = ("none", "prune", "best")
FORMATS = ("float32", "bfloat16", "float16")
SEED = 7


def draw(pipeline: NextScalePipeline, plan: str, prompts: Sequence[str], first: int = 0) -> Tensor:
    """Pictures [B, 3, H, W] as bytes."""
    seeds = [SEED + first + index for index in range(len(prompts))]
    images = pipeline(list(prompts), seed=seeds, pruning=plan, output_type="pt").images
    return (images * 255).to(torch.uint8)


def draw_alone(pipeline: NextScalePipeline, plan: str) -> Tensor:
    return torch.cat([draw(pipeline, plan, [prompt], index) for index, prompt in enumerate(PROMPTS)])


def difference(pictures: Tensor, reference: Tensor) -> str:
    """Share of the values that differ, and the largest difference of 255."""
    apart = (pictures.int() - reference.int()).abs()
    if not apart.any():
        return "equal"
    return f"{(apart > 0).float().mean():.4%}, up to {int(apart.max())}"


def compare_pictures(
    formats: Sequence[str], plans: Sequence[str], threads: int
) -> Iterator[tuple[str, str, str, str, str]]:
    """One row a plan and format: again, in a batch, with more threads."""
    for name in formats:
        pipeline = stepvar.load_embedded(dtype=getattr(torch, name))
        pipeline.set_progress_bar_config(disable=True)
        for plan in plans:
            torch.set_num_threads(1)
            alone = draw_alone(pipeline, plan)
            again = difference(draw_alone(pipeline, plan), alone)
            batch = difference(draw(pipeline, plan, PROMPTS), alone)
            torch.set_num_threads(threads)
            threaded = difference(draw_alone(pipeline, plan), alone)
            yield name, plan, again, batch, threaded
    torch.set_num_threads(1)


def operations(dtype: torch.dtype) -> dict[str, Callable[[int], Tensor]]:
    """Operations of the models: each computes so many pictures, and returns the values of the first."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float32).to(dtype)

    tokens, channels, heads, longest = 64, 384, 6, 6
    features, weight = random(longest, tokens, channels), random(3 * channels, channels)
    single = random(longest, 1, channels)
    query, key, value = (random(longest, heads, tokens, channels // heads) for _ in range(3))
    maps, kernel = random(longest, 32, 24, 24), random(32, 32, 3, 3)
    words, longest_text = 7, 11

    def attend_text(images: int) -> Tensor:
        """The first picture's text is shorter than its neighbours', so that only beside them it is padded."""
        width = words if images == 1 else longest_text
        mask = torch.ones(images, 1, 1, width, dtype=torch.bool)
        mask[0, ..., words:] = False
        text = (part[:images, :, :width] for part in (key, value))
        return functional.scaled_dot_product_attention(query[:images], *text, attn_mask=mask)[0]

    return {
        "linear, 64 tokens": lambda images: functional.linear(features[:images], weight)[0],
        "linear, 1 token": lambda images: functional.linear(single[:images], weight)[0],
        "batched product": lambda images: (features[:images] @ features[:images].mT)[0],
        "attention": lambda images: functional.scaled_dot_product_attention(
            query[:images], key[:images], value[:images]
        )[0],
        "attention to a shorter text": attend_text,
        "layer norm": lambda images: functional.layer_norm(features[:images], (channels,))[0],
        "softmax": lambda images: features[:images].float().softmax(dim=-1)[0],
        "mean of tokens": lambda images: features[:images].mean(dim=1)[0],
        "convolution": lambda images: functional.conv2d(maps[:images], kernel, padding=1)[0],
        "group norm": lambda images: functional.group_norm(maps[:images], 4)[0],
    }


def compare_operations(formats: Sequence[str]) -> list[tuple[str, ...]]:
    """One row an operation: in which formats a picture's values depend on how many are computed."""
    found: dict[str, list[str]] = {}
    for name in formats:
        for title, run in operations(getattr(torch, name)).items():
            alone = run(1)
            equal = all(torch.equal(run(images), alone) for images in range(2, 7))
            found.setdefault(title, []).append("independent" if equal else "depends")
    return [(title, *columns) for title, columns in found.items()]


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints rows as a table in Markdown, each as soon as it is there."""
    for line in chain([header, ["---"] * len(header)], rows):
        print(f"| {' | '.join(line)} |", flush=True)
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--plans", nargs="+", default=PLANS)
    parser.add_argument("--threads", type=int, default=2, help="Of the last column.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}\n")
    print_table(("operation", *options.formats), compare_operations(options.formats))
    header = ("format", "plan", "again", f"in a batch of {len(PROMPTS)}", f"{options.threads} threads")
    print_table(header, compare_pictures(options.formats, options.plans, options.threads))


if __name__ == "__main__":
    main()
