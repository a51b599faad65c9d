"""Scene network: pictures and prompts in, features and attributes out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stepvar.scenes.network.alignment import PictureEncoder, WordEncoder
from stepvar.scenes.network.image_backbone import (
    MAXIMUM_PEAKS,
    OBJECT_ATTRIBUTES,
    ImageBackbone,
    ObjectProposals,
    find_objects,
    normalise_pixels,
)
from stepvar.scenes.text_encoder import TEXT_LENGTH, build_word_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_BATCH = 32

_FORMER_NAMES = {
    "eye.": "backbone.",
    "picture_encoder.places.": "picture_encoder.positions.",
    "picture_encoder.ground.": "picture_encoder.context.",
}
"""Prefixes of weights in the shipped file -> present prefixes."""

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class SceneNetworkSize:
    """Sizes of the network.

    Attributes:
        channels: Of the backbone's three stages.
        width, heads, depth: Of the transformers over objects and over words.
        features: Of the embedding.
    """

    channels: tuple[int, int, int] = (32, 64, 112)
    width: int = 128
    heads: int = 4
    depth: int = 2
    features: int = 128


@dataclass(frozen=True)
class SceneAttributes:
    """Attributes of N pictures, as probabilities.

    Attributes:
        background: [N, 4], in the order of `stepvar.scenes.BACKGROUNDS`.
        count: [N, 7], of 0 to 6 objects.
        presence: Whether there is an object with an attribute, by name "shape", "colour", "texture", "size":
            [N, classes]; and with two of them at once, by names joined with a space, such as
            "shape colour": [N, 6, 8].
    """

    background: Floats
    count: Floats
    presence: dict[str, Floats]


class SceneNetwork(nn.Module):
    """Feature extractor of scenes and their prompts.

    Calling it gives features of pictures, `texts` those of prompts; their dot product measures the match.

    Args:
        size: See `SceneNetworkSize`.
        words: Word tokenizer of the prompts; that of the embedded model by default.
    """

    def __init__(
        self, size: SceneNetworkSize | None = None, words: PreTrainedTokenizerFast | None = None
    ) -> None:
        super().__init__()
        self.size = size or SceneNetworkSize()
        self.words = words or build_word_tokenizer()
        shared = (self.size.width, self.size.heads, self.size.depth, self.size.features)
        self.backbone = ImageBackbone(self.size.channels)
        self.picture_encoder = PictureEncoder(self.size.channels[-1], *shared)
        self.word_encoder = WordEncoder(len(self.words), *shared)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.backbone.patches.weight.device

    def propose(self, pictures: Tensor) -> ObjectProposals:
        """Object proposals of pictures uint8 [N, H, W, 3]."""
        return find_objects(self.backbone(normalise_pixels(pictures.to(self.device))))

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Word ids [N, L] and lengths [N] of prompts.

        Raises:
            ValueError: When a prompt is empty, or has a word that scenes have no use for.
        """
        from stepvar.models.common.t5 import token_ids

        rows = [torch.tensor(token_ids(self.words, prompt, TEXT_LENGTH)) for prompt in prompts]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows])

    @torch.inference_mode()
    def picture_features(self, pictures: Pixels) -> Floats:
        """Unit features [N, F] of pictures uint8 [N, H, W, 3], sides multiples of 16, made for 192 and 256.

        Raises:
            ValueError: When they are no such pictures.
        """
        parts = [self.picture_encoder.encode(self.propose(part)) for part in _parts(pictures)]
        return torch.cat(parts).float().cpu().numpy()

    __call__ = picture_features

    @torch.inference_mode()
    def text_features(self, prompts: Sequence[str]) -> Floats:
        """Unit features [N, F] of prompts in the words of scenes.

        Raises:
            ValueError: When there is no prompt, one is empty, or one has an unknown word.
        """
        if not prompts:
            raise ValueError("There is no prompt to encode; give at least one.")
        ids, lengths = self.tokenize(prompts)
        return self.word_encoder(ids.to(self.device), lengths.to(self.device)).float().cpu().numpy()

    texts = text_features

    def scores(self, pictures: Pixels, prompts: Sequence[str]) -> Floats:
        """Cosine of each picture with its prompt, [N].

        Raises:
            ValueError: When there are not as many prompts as pictures.
        """
        if len(pictures) != len(prompts):
            raise ValueError(f"Each picture needs one prompt; got {len(pictures)} and {len(prompts)}.")
        return (self.picture_features(pictures) * self.text_features(prompts)).sum(axis=1)

    @torch.inference_mode()
    def attributes(self, pictures: Pixels) -> SceneAttributes:
        """Attributes that pictures show; arguments and errors as for `picture_features`."""
        found = [self.propose(part) for part in _parts(pictures)]
        objectness = torch.cat([part.objectness for part in found])
        objects = {name: torch.cat([part.attributes[name] for part in found]) for name in OBJECT_ATTRIBUTES}
        presence = {name: _any_object(objectness[..., None] * values) for name, values in objects.items()}
        for first, second in (("shape", "colour"), ("shape", "texture"), ("colour", "texture")):
            both = torch.einsum("nk,nka,nkb->nkab", objectness, objects[first], objects[second])
            presence[f"{first} {second}"] = _any_object(both)
        background = torch.cat([part.background for part in found])
        return SceneAttributes(background.cpu().numpy(), _count(objectness).cpu().numpy(), presence)

    def save(self, folder: Path) -> int:
        """Writes the weights as float16 and all that is needed to read them; returns the size in bytes."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _CONFIG).write_text(json.dumps(asdict(self.size), indent=2) + "\n")
        self.words.save_pretrained(folder)
        state = {
            name: (value.half() if value.is_floating_point() else value).contiguous()
            for name, value in self.state_dict().items()
        }
        save_file(state, folder / _WEIGHTS)
        return sum(file.stat().st_size for file in folder.iterdir())

    @classmethod
    def load(cls, folder: Path) -> SceneNetwork:
        """Reads what `save` wrote, in float32 and evaluation mode.

        Raises:
            ValueError: When the folder holds no such network.
        """
        from transformers import PreTrainedTokenizerFast

        try:
            config = json.loads((folder / _CONFIG).read_text())
            size = SceneNetworkSize(**config | {"channels": tuple(config["channels"])})
            network = cls(size, PreTrainedTokenizerFast.from_pretrained(folder))
            network.load_state_dict(_current_names(load_file(folder / _WEIGHTS)))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"'{folder}' holds no scene network that can be read ({error}).") from error
        return network.eval()


def _current_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights by their present names; files of version 0.1 have some former ones."""
    renamed = {}
    for name, value in state.items():
        for former, current in _FORMER_NAMES.items():
            if name.startswith(former):
                name = current + name.removeprefix(former)
        renamed[name] = value
    return renamed


def _parts(pictures: Pixels) -> tuple[Tensor, ...]:
    if len(pictures) == 0:
        raise ValueError("There is no picture to encode; give at least one.")
    return torch.from_numpy(np.ascontiguousarray(pictures)).split(_BATCH)


def _any_object(probabilities: Tensor) -> Floats:
    """Probability of at least one of K objects, [N, K, ...] -> [N, ...]."""
    return (1.0 - (1.0 - probabilities).prod(dim=1)).cpu().numpy()


def _count(objectness: Tensor) -> Tensor:
    """Distribution of the number of objects, [N, K + 1], of their probabilities [N, K]."""
    counts = objectness.new_zeros(len(objectness), MAXIMUM_PEAKS + 1)
    counts[:, 0] = 1.0
    for probability in objectness.unbind(dim=1):
        more = torch.cat((torch.zeros_like(counts[:, :1]), counts[:, :-1]), dim=1)
        counts = torch.lerp(counts, more, probability[:, None])
    return counts
