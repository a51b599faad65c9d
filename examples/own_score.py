"""A score of one's own, measured against the built-in ones on the embedded model.

`prompt_influence` keeps the tokens that the prompt has moved most: classifier-free guidance computes every
token with and without the prompt, and the distance of the two is what the prompt says about that place.

    python examples/own_score.py                                     # a table of all scores
    stepvar compare "a red star on sand" --score own_score:prompt_influence    # run in this folder
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import stepvar
from stepvar.models.pipeline import NextScalePipeline
from stepvar.pruning.scores import SCORERS, ScoringInput, scorer

PROMPTS = (
    "two yellow stars above a striped blue ring on sand",
    "a large dotted red circle on grass",
    "three small green squares on sand",
    "a blue triangle to the left of a purple ring on grass",
)
RATIOS = {-2: 0.5, -1: 0.75}
"""Shares pruned of the last two scales; nothing is left out, so that only the score differs."""

logger = logging.getLogger("own_score")


@scorer("prompt_influence")
def prompt_influence(tokens: ScoringInput) -> Tensor:
    """Distance of each token's hidden state [B, N, C] with the prompt to that without it, [B, N]."""
    if tokens.unconditional is None:
        raise ValueError("prompt_influence compares with the unconditional copy: draw with guidance.")
    return (tokens.features.float() - tokens.unconditional.float()).norm(dim=-1)


@dataclass(frozen=True)
class Row:
    """What one score reached: PSNR to the dense picture in dB, mean and lowest over the prompts."""

    score: str
    mean: float
    lowest: float


def psnr(picture: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two pictures in 0..1."""
    error = (picture.float() - reference.float()).square().mean().clamp_min(1e-12)
    return float(-10.0 * torch.log10(error))


def measure(
    pipeline: NextScalePipeline, prompts: Sequence[str], scores: Sequence[str], seed: int = 7
) -> list[Row]:
    """Draws every prompt dense and with each score from the same seed; best score first."""
    dense = [pipeline(prompt, seed=seed, output_type="pt").images for prompt in prompts]
    rows = []
    for score in scores:
        method = stepvar.StepVAR(RATIOS, score=score)
        values = [
            psnr(pipeline(prompt, seed=seed, output_type="pt", pruning=method).images, reference)
            for prompt, reference in zip(prompts, dense, strict=True)
        ]
        rows.append(Row(score, sum(values) / len(values), min(values)))
    return sorted(rows, key=lambda row: -row.mean)


def main() -> None:
    """Prints the table."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    pipeline = stepvar.load_embedded()
    pipeline.set_progress_bar_config(disable=True)
    rows = measure(pipeline, PROMPTS, list(SCORERS))
    logger.info("PSNR to the dense picture, %d prompts, ratios %s", len(PROMPTS), RATIOS)
    logger.info("%-20s %10s %10s", "score", "mean", "lowest")
    for row in rows:
        logger.info("%-20s %7.2f dB %7.2f dB", row.score, row.mean, row.lowest)


if __name__ == "__main__":
    main()
