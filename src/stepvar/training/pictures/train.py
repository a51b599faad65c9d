"""Training of the embedded picture model: its curriculum, stages and packaging."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch

from stepvar.models.infinity.pipeline import InfinityPipeline
from stepvar.models.infinity.vae import InfinityVAE
from stepvar.scenes import VOCABULARY
from stepvar.training.common.curriculum import BatchSpec, Phase
from stepvar.training.common.prompted_model import FINE_SCALE, PromptedModel
from stepvar.training.common.run import to_device
from stepvar.training.common.stages import ModelTraining
from stepvar.training.common.text_pretraining import LabelledPrompts
from stepvar.training.common.transformer_trainer import TransformerTraining
from stepvar.training.pictures.features import PictureFeatures, encode_pictures
from stepvar.training.pictures.labels import PICTURE_PROMPTS
from stepvar.training.pictures.model import PictureModel
from stepvar.training.pictures.sizes import SIZES, PictureModelSize
from stepvar.training.pictures.vae import PictureVAETrainer, PictureVAETraining

COARSE, FINE, WHOLE = BatchSpec(7, 24), BatchSpec(None, 10, share=0.4), BatchSpec(None, 6)
"""Coarse scales decide the layout, which takes many pictures, and a third of the time a picture."""

FROM_SCRATCH = (
    Phase(0.2, (BatchSpec(6, 32),)),
    Phase(0.15, (COARSE,)),
    Phase(0.5, (FINE, COARSE)),
    Phase(0.15, (WHOLE, COARSE)),
)
SPARSE, MIDDLE = BatchSpec(None, 8, share=0.15), BatchSpec(9, 12, share=0.6)
"""A few tokens of every scale, and the scales that decide outlines: half the cost of `FINE` a picture."""

FINE_TUNING = (Phase(1.0, (SPARSE, MIDDLE, COARSE)),)
"""For a model that was trained on these scales already, or on all but the finest."""

FINE_TUNING_RATE, FINE_TUNING_AVERAGE = 6e-4, 0.99
"""Half the learning rate of a fresh model; the averaged weights are those of fewer steps."""


_TOKENS_IN_MEMORY = 16_000
"""Of a pass through the transformer: about 10 GB of activations without fused kernels."""


def bound_memory(curriculum: Sequence[Phase], size: PictureModelSize) -> tuple[Phase, ...]:
    """A curriculum whose large batches run in several passes, so that they fit the memory of a laptop."""
    return tuple(
        replace(phase, batches=tuple(replace(batch, passes=_passes(batch, size)) for batch in phase.batches))
        for phase in curriculum
    )


def _passes(batch: BatchSpec, size: PictureModelSize) -> int:
    counts = [side**2 for side in size.sides[: batch.scales]]
    tokens = sum(count if count < FINE_SCALE else round(batch.share * count) for count in counts)
    return min(math.ceil(batch.examples * tokens / _TOKENS_IN_MEMORY), batch.examples)


@dataclass(frozen=True)
class PictureTraining(ModelTraining):
    """The stages for pictures.

    Attributes:
        size: Name of the model's size, see `stepvar.training.pictures.sizes.SIZES`.
    """

    size: str = "192"

    vae_share: ClassVar[float] = 0.35
    features: ClassVar[type[PictureFeatures]] = PictureFeatures
    vocabulary: ClassVar[Sequence[str]] = VOCABULARY
    prompts: ClassVar[LabelledPrompts] = PICTURE_PROMPTS

    def train_vae(self, folder: Path, minutes: float) -> Path:
        settings = self.vae_settings(PictureVAETraining(size=self.size), folder, minutes)
        return PictureVAETrainer(settings).run()

    def encode(self, vae: Path, folder: Path, shards: int) -> Iterator[int]:
        return encode_pictures(to_device(_load_vae(vae), self.place), folder, shards, SIZES[self.size].canvas)

    def build_model(self) -> PictureModel:
        return PictureModel(SIZES[self.size])

    def transformer_settings(self, minutes: float) -> TransformerTraining:
        usual = TransformerTraining(
            curriculum=bound_memory(FROM_SCRATCH, SIZES[self.size]),
            minutes=minutes,
            batch_factor=self.batch_factor,
            compiled=self.compiled,
        )
        if self.start is None:
            return usual
        return replace(
            usual,
            curriculum=bound_memory(FINE_TUNING, SIZES[self.size]),
            learning_rate=FINE_TUNING_RATE,
            average=FINE_TUNING_AVERAGE,
        )

    def assemble(self, vae: Path, model: PromptedModel) -> InfinityPipeline:
        return assemble(_load_vae(vae), model)


def assemble(vae: InfinityVAE, model: PromptedModel) -> InfinityPipeline:
    """A pipeline of a trained model and its VAE; its sampling settings were chosen by the scene score."""
    return InfinityPipeline(
        model.transformer,
        vae.eval(),
        model.eval().text_encoder,
        model.words,
        guidance_scale=1.5,
        temperature=0.5,
        top_k=0,
        top_p=0.0,
    )


def _load_vae(folder: Path) -> InfinityVAE:
    return InfinityVAE.from_pretrained(folder, torch_dtype=torch.float32).eval()
