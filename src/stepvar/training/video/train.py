"""Training of the embedded video model: its curriculum, stages and packaging."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch

from stepvar.models.infinitystar.pipeline import InfinityStarPipeline
from stepvar.models.infinitystar.vae import InfinityStarVAE
from stepvar.scenes.moving.grammar import VOCABULARY
from stepvar.training.common.curriculum import BatchSpec, Phase
from stepvar.training.common.prompted_model import PromptedModel
from stepvar.training.common.run import to_device
from stepvar.training.common.stages import ModelTraining
from stepvar.training.common.text_pretraining import LabelledPrompts
from stepvar.training.common.transformer_trainer import TransformerTraining
from stepvar.training.video.features import VideoFeatures, encode_videos
from stepvar.training.video.labels import VIDEO_PROMPTS
from stepvar.training.video.model import VideoModel
from stepvar.training.video.vae import VideoVAETrainer, VideoVAETraining

OBJECT_WEIGHT = 12.0
"""Objects are a tenth of a frame, and their outlines are what the model learns last."""

COARSE, FINE, WHOLE = BatchSpec(5, 16), BatchSpec(6, 10, share=0.4), BatchSpec(6, 6)
FIRST_FRAME = BatchSpec(6, 24, latent_frames=1)
"""The first frame decides layout and shapes, with a third of the tokens."""

FROM_SCRATCH = (
    Phase(0.2, (BatchSpec(4, 24),)),
    Phase(0.15, (FIRST_FRAME, COARSE)),
    Phase(0.5, (FIRST_FRAME, FINE, COARSE)),
    Phase(0.15, (WHOLE, FIRST_FRAME, COARSE)),
)
FINE_TUNING = (Phase(0.85, (FIRST_FRAME, FINE, COARSE)), Phase(0.15, (WHOLE, FIRST_FRAME, COARSE)))
"""For a model that was trained on the coarse scales already."""


@dataclass(frozen=True)
class VideoTraining(ModelTraining):
    """The stages for videos."""

    vae_share: ClassVar[float] = 0.25
    features: ClassVar[type[VideoFeatures]] = VideoFeatures
    vocabulary: ClassVar[Sequence[str]] = VOCABULARY
    prompts: ClassVar[LabelledPrompts] = VIDEO_PROMPTS

    def train_vae(self, folder: Path, minutes: float) -> Path:
        settings = self.vae_settings(VideoVAETraining(), folder, minutes)
        settings = replace(settings, pictures=self.batch_factor * settings.pictures)
        return VideoVAETrainer(settings).run()

    def encode(self, vae: Path, folder: Path, shards: int) -> Iterator[int]:
        return encode_videos(to_device(_load_vae(vae), self.place), folder, shards)

    def build_model(self) -> VideoModel:
        return VideoModel()

    def transformer_settings(self, minutes: float) -> TransformerTraining:
        return TransformerTraining(
            curriculum=FROM_SCRATCH if self.start is None else FINE_TUNING,
            minutes=minutes,
            batch_factor=self.batch_factor,
            object_weight=OBJECT_WEIGHT,
            compiled=self.compiled,
        )

    def assemble(self, vae: Path, model: PromptedModel) -> InfinityStarPipeline:
        return assemble(_load_vae(vae), model)


def assemble(vae: InfinityStarVAE, model: PromptedModel) -> InfinityStarPipeline:
    """A pipeline of a trained model and its VAE; prompts are the scenes' own, without additions."""
    return InfinityStarPipeline(
        model.transformer,
        vae.eval(),
        model.eval().text_encoder,
        model.words,
        guidance_scale=2.0,
        guidance_threshold=0.0,
        temperature=0.5,
        picture_temperature=0.5,
        prompt_suffix="",
        marks_duration=False,
    )


def _load_vae(folder: Path) -> InfinityStarVAE:
    return InfinityStarVAE.from_pretrained(folder, torch_dtype=torch.float32).eval()
