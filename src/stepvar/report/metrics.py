"""Networks that measure the pictures of a report, and renders of scenes to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stepvar.metrics.features import Extractor, TokenizerFeatures
from stepvar.metrics.perceptual import PerceptualDistance, scene_distance
from stepvar.scenes import Prompt, render, scene_for
from stepvar.scenes.network import load_scene_network

if TYPE_CHECKING:
    from stepvar.models.pipeline import NextScalePipeline
    from stepvar.scenes.network.network import SceneNetwork

Pixels = NDArray[np.uint8]

_RENDERING = 1
"""Tells the random numbers of renders from those of prompts."""


@dataclass(frozen=True)
class Metrics:
    """Networks that measure a batch of pictures.

    Attributes:
        extractor: Features for Fréchet distances and diversity.
        features: Name of the extractor.
        network: Scores pictures with their prompts, as CLIP would.
        scene_distance: The stand-in for LPIPS, over that network's image backbone.
        lpips: LPIPS itself; None where its weights were not given.
    """

    extractor: Extractor
    features: str
    network: SceneNetwork
    scene_distance: PerceptualDistance
    lpips: PerceptualDistance | None = None

    @classmethod
    def for_pipeline(
        cls,
        pipeline: NextScalePipeline,
        extractor: Extractor | None = None,
        lpips: PerceptualDistance | None = None,
    ) -> Metrics:
        """The metrics for a pipeline, on its device; features are by default its visual tokenizer's."""
        network = load_scene_network(device=pipeline._execution_device)
        if extractor is not None:
            name = str(getattr(extractor, "__name__", type(extractor).__name__))
        elif hasattr(pipeline.vae, "encode_features"):
            name, extractor = "tokenizer", TokenizerFeatures(pipeline.vae)
        else:
            # Visual tokenizers of videos have no features of a picture.
            name, extractor = "scenes", network
        return cls(extractor, name, network, scene_distance(network), lpips)

    def text_scores(self, pictures: Pixels, prompts: Sequence[str]) -> list[float]:
        """Cosine of each picture [N, H, W, 3] with its prompt."""
        return self.network.scores(pictures, list(prompts)).tolist()


def renders(prompts: Sequence[Prompt], seeds: Sequence[int], side: int) -> Pixels:
    """Real pictures of prompts, uint8 [N, side, side, 3]: scenes that show what is asked for."""
    pictures = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        random = np.random.default_rng([seed, _RENDERING])
        pictures.append(render(scene_for(random, prompt.spec, split="any", canvas=side), side, seed=seed))
    return np.stack(pictures)
