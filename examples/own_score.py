"""Draws one prompt with several scorers and reports how close each stays to the dense picture.

A scorer is one line to swap: pass `score=` to `StepVAR`. Run `python examples/own_score.py`.
"""

from __future__ import annotations

import logging

import torch

import stepvar
from stepvar.pruning.scores import SCORERS

PROMPT = "two yellow stars above a striped blue ring on sand"
logger = logging.getLogger("own_score")


def main() -> None:
    """Compares all scorers at the same number of kept tokens."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    pipe = stepvar.load_embedded()
    dense = pipe(PROMPT, seed=7, output_type="pt")
    for score in SCORERS:
        pruned = pipe(
            PROMPT, seed=7, output_type="pt", pruning=stepvar.StepVAR({-2: 0.5, -1: 0.75}, score=score)
        )
        error = torch.mean((pruned.images - dense.images) ** 2)
        decibels = -10.0 * torch.log10(error.clamp_min(1e-12))
        seconds = f"{pruned.report.seconds:.2f} s against {dense.report.seconds:.2f} s"
        logger.info("%-18s PSNR to dense %5.2f dB, %s", score, decibels, seconds)


if __name__ == "__main__":
    main()
