"""Batches for the training of the scene network, made in background processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import IterableDataset

from stepvar.scenes import SceneSpec, render, sample, sample_scene, split_words, write_prompt
from stepvar.training.common.crops import worker_generator
from stepvar.training.scene_network.prompts import AnnotatedScene, describe, hard_negative, truth_table
from stepvar.training.scene_network.targets import map_targets, spec_targets

CANVASES = (192, 256)
"""Sides of the pictures that the network is made for."""

# A picture with many objects teaches more and costs no more.
_COUNTS = (1, 2, 3, 4, 4, 4)

_LARGEST_BLUR, _LARGEST_NOISE, _LARGEST_SHADE = 0.8, 0.08, 0.06


@dataclass(frozen=True)
class MapBatch:
    """Pictures of one side, and the targets of their maps; fields as in `MapTargets`, stacked.

    Attributes:
        pictures: uint8 [B, side, side, 3].
    """

    pictures: Tensor
    centre: Tensor
    present: Tensor
    attributes: Tensor
    background: Tensor

    def to(self, device: torch.device) -> MapBatch:
        """The same on a device."""
        return MapBatch(*(value.to(device, non_blocking=True) for value in vars(self).values()))


class MapBatches(IterableDataset[MapBatch]):
    """An endless stream of rendered scenes with the targets of their maps.

    All combinations of attributes are shown, also those held out from the embedded model: a network that had
    not seen them would report its own errors as the model's.

    Args:
        batch: Pictures of 192 pixels in a batch; of larger ones there are fewer.
        seed: Start of the random stream; every process gets its own.
        canvases: Sides to choose from, batch by batch.
    """

    def __init__(self, batch: int, seed: int, canvases: Sequence[int] = CANVASES) -> None:
        super().__init__()
        self.batch, self.seed, self.canvases = batch, seed, tuple(canvases)

    def __iter__(self) -> Iterator[MapBatch]:
        random = worker_generator(self.seed)
        while True:
            canvas = self.canvases[random.integers(len(self.canvases))]
            count = max(2, round(self.batch * (CANVASES[0] / canvas) ** 2))
            scenes = [
                sample_scene(random, count=_COUNTS[random.integers(len(_COUNTS))], canvas=canvas, split="any")
                for _ in range(count)
            ]
            pictures = [render(scene, canvas, seed=int(random.integers(2**31))) for scene in scenes]
            targets = [map_targets(scene) for scene in scenes]
            yield MapBatch(
                torch.from_numpy(np.stack(pictures)),
                torch.from_numpy(np.stack([target.centre for target in targets])),
                torch.from_numpy(np.stack([target.present for target in targets])),
                torch.from_numpy(np.stack([target.attributes for target in targets])),
                torch.tensor([target.background for target in targets]),
            )


class RenderedScenes(IterableDataset[tuple[Tensor, list[AnnotatedScene]]]):
    """An endless stream of rendered scenes of random prompts, to be encoded.

    Yields:
        Pictures uint8 [batch, side, side, 3], and their scenes.
    """

    def __init__(self, batch: int, seed: int, canvases: Sequence[int] = CANVASES) -> None:
        super().__init__()
        self.batch, self.seed, self.canvases = batch, seed, tuple(canvases)

    def __iter__(self) -> Iterator[tuple[Tensor, list[AnnotatedScene]]]:
        random = worker_generator(self.seed)
        while True:
            canvas = self.canvases[random.integers(len(self.canvases))]
            drawn = [sample(random, split="any", canvas=canvas) for _ in range(self.batch)]
            pictures = [render(scene, canvas, seed=int(random.integers(2**31))) for _, scene in drawn]
            known = [AnnotatedScene.from_scene(scene, prompt.spec) for prompt, scene in drawn]
            yield torch.from_numpy(np.stack(pictures)), known


@dataclass(frozen=True)
class PromptBatch:
    """B scenes, each with one true prompt and N that are false by one attribute; M = B (1 + N).

    Attributes:
        scenes: int64 [B], which scenes.
        ids, lengths: [M, L] and [M], words of the prompts; a scene's true prompt comes first.
        truth: bool [B, M], which prompts are true of which scenes.
        scene_targets: float32 [B, T], see `spec_targets`; all are known.
        prompt_targets, prompt_known: [M, T].
    """

    scenes: Tensor
    ids: Tensor
    lengths: Tensor
    truth: Tensor
    scene_targets: Tensor
    prompt_targets: Tensor
    prompt_known: Tensor

    def to(self, device: torch.device) -> PromptBatch:
        """The same on a device."""
        return PromptBatch(*(value.to(device, non_blocking=True) for value in vars(self).values()))


class PromptBatches(IterableDataset[PromptBatch]):
    """An endless stream of scenes with prompts, in new words every time.

    Args:
        scenes: To choose from.
        vocabulary: Word -> id.
        end: Id of the closing token.
        batch: Scenes in a batch.
        negatives: False prompts of every scene.
        seed: Start of the random stream; every process gets its own.
    """

    def __init__(
        self,
        scenes: Sequence[AnnotatedScene],
        vocabulary: dict[str, int],
        end: int,
        batch: int,
        negatives: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.scenes, self.vocabulary, self.end = scenes, vocabulary, end
        self.batch, self.negatives, self.seed = batch, negatives, seed

    def __iter__(self) -> Iterator[PromptBatch]:
        random = worker_generator(self.seed)
        while True:
            chosen = random.integers(len(self.scenes), size=self.batch)
            scenes = [self.scenes[index] for index in chosen]
            specs = [spec for scene in scenes for spec in self._specs(random, scene)]
            rows = [self._ids(write_prompt(random, spec)) for spec in specs]
            scene_targets, _ = _stack_targets([scene.spec for scene in scenes])
            prompt_targets, known = _stack_targets(specs)
            yield PromptBatch(
                torch.from_numpy(chosen),
                torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
                torch.tensor([len(row) for row in rows]),
                torch.from_numpy(truth_table(scenes, specs)),
                scene_targets,
                prompt_targets,
                known,
            )

    def _specs(self, random: np.random.Generator, scene: AnnotatedScene) -> list[SceneSpec]:
        specs = [describe(random, scene)]
        while len(specs) < 1 + self.negatives:
            found = hard_negative(random, specs[0], scene)
            if found is not None:
                specs.append(found[0])
        return specs

    def _ids(self, text: str) -> Tensor:
        return torch.tensor([*(self.vocabulary[word] for word in split_words(text)), self.end])


def _stack_targets(specs: Sequence[SceneSpec]) -> tuple[Tensor, Tensor]:
    pairs = [spec_targets(spec) for spec in specs]
    values, known = zip(*pairs, strict=True)
    return torch.from_numpy(np.stack(values)), torch.from_numpy(np.stack(known))


def augment(pictures: Tensor, random: np.random.Generator) -> Tensor:
    """Every other batch is blurred, noisy or unevenly lit, as pictures of a model are.

    Args:
        pictures: float32 [B, H, W, 3] in -1..1.
        random: Chooses what happens and how much.
    """
    choice = random.integers(6)
    strength = float(random.random())
    if choice == 0:
        planes = F.avg_pool2d(pictures.permute(0, 3, 1, 2), 3, stride=1, padding=1, count_include_pad=False)
        return pictures.lerp(planes.permute(0, 2, 3, 1), _LARGEST_BLUR * strength)
    if choice == 1:
        return pictures + _LARGEST_NOISE * strength * torch.randn_like(pictures)
    if choice == 2:
        gain, shift = random.uniform(-_LARGEST_SHADE, _LARGEST_SHADE, (2, len(pictures), 1, 1, 3))
        gain, shift = (torch.from_numpy(part).to(pictures) for part in (gain, shift))
        return pictures * (1.0 + gain) + shift
    return pictures
