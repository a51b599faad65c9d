"""Time and price of a benchmark's pictures on several GPUs, computed: nothing is measured here.

    python benchmarks/scale_costs.py [--pictures 30000] [--share 0.3] [--gpus 8]

FLOPs of the transformer (both copies of guidance, from the published sizes and schedules) over the GPU's peak
in bfloat16 without sparsity, times the share of it that is assumed to be reached. Text encoder, decoder,
loading and writing are left out. Prices are assumptions too: see `PRICES`.
"""

from __future__ import annotations

import argparse

from stepvar.report.published_costs import published_costs

PEAKS = {"L4": 121e12, "A100": 312e12, "H100": 989e12}
"""FLOP/s in bfloat16, dense, of NVIDIA's data sheets."""

PRICES = {"L4": 0.8, "A100": 1.8, "H100": 2.5}
"""Dollars for an hour of one GPU, assumed: put in your own."""


def rows(pictures: int, share: float, gpus: int) -> list[tuple[str, ...]]:
    """Model, plan, GPU, TFLOPs a picture, hours on one GPU and on several, dollars."""
    found = []
    for model in published_costs():
        if "1024" not in model.name:
            continue
        for plan, flops in (("dense", sum(model.dense)), (model.plan, sum(model.pruned))):
            for name, peak in PEAKS.items():
                hours = pictures * flops / (peak * share) / 3600
                found.append(
                    (
                        model.name.partition(",")[0],
                        plan,
                        name,
                        f"{flops / 1e12:.0f}",
                        f"{hours:.1f}",
                        f"{hours / gpus:.1f}",
                        f"{hours * PRICES[name]:.0f}",
                    )
                )
    return found


def main() -> None:
    """Prints the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=30_000)
    parser.add_argument("--share", type=float, default=0.3, help="of the peak that is assumed to be reached")
    parser.add_argument("--gpus", type=int, default=8)
    given = parser.parse_args()
    header = (
        "model", "plan", "GPU", "TFLOPs a picture", "hours on one", f"hours on {given.gpus}", "dollars"
    )  # fmt: skip
    print(f"| {' | '.join(header)} |\n|{'---|' * 3}{'--:|' * 4}")
    for row in rows(given.pictures, given.share, given.gpus):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
