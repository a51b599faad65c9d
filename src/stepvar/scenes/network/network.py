"""The feature network of scenes as a whole: pictures and prompts in, features and attributes out."""

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
    Eye,
    SeenObjects,
    find_objects,
    to_input,
)
from stepvar.scenes.text_encoder import TEXT_LENGTH, build_word_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_BATCH = 32

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class SceneNetworkSize:
    """Sizes of the network.

    Attributes:
        channels: Of the eye's three stages.
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
    """What N pictures show, as probabilities.

    Attributes:
        background: [N, 4], in the order of `stepvar.scenes.BACKGROUNDS`.
        count: [N, 7], of 0 to 6 objects.
        shows: Whether there is an object with an attribute, by name "shape", "colour", "texture", "size":
            [N, classes]; and with two of them at once, by names joined with a space, such as
            "shape colour": [N, 6, 8].
    """

    background: Floats
    count: Floats
    shows: dict[str, Floats]


class SceneNetwork(nn.Module):
    """Looks at scenes and reads their prompts.

    It is an extractor of features for `stepvar.evaluation`: calling it gives features of pictures, `texts`
    those of prompts, and their dot product is how well they fit.

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
        self.eye = Eye(self.size.channels)
        self.picture_encoder = PictureEncoder(self.size.channels[-1], *shared)
        self.word_encoder = WordEncoder(len(self.words), *shared)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.eye.patches.weight.device

    def see(self, pictures: Tensor) -> SeenObjects:
        """Finds the objects of pictures uint8 [N, H, W, 3]."""
        return find_objects(self.eye(to_input(pictures.to(self.device))))

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
        parts = [self.picture_encoder.of(self.see(part)) for part in _parts(pictures)]
        return torch.cat(parts).float().cpu().numpy()

    __call__ = picture_features

    @torch.inference_mode()
    def text_features(self, prompts: Sequence[str]) -> Floats:
        """Unit features [N, F] of prompts in the words of scenes.

        Raises:
            ValueError: When there is no prompt, one is empty, or one has an unknown word.
        """
        if not prompts:
            raise ValueError("There is no prompt to read; give at least one.")
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
        """What pictures show; arguments and errors as for `picture_features`."""
        seen = [self.see(part) for part in _parts(pictures)]
        gates = torch.cat([part.gates for part in seen])
        objects = {name: torch.cat([part.attributes[name] for part in seen]) for name in OBJECT_ATTRIBUTES}
        shows = {name: _shown(gates[..., None] * values) for name, values in objects.items()}
        for first, second in (("shape", "colour"), ("shape", "texture"), ("colour", "texture")):
            both = torch.einsum("nk,nka,nkb->nkab", gates, objects[first], objects[second])
            shows[f"{first} {second}"] = _shown(both)
        background = torch.cat([part.background for part in seen])
        return SceneAttributes(background.cpu().numpy(), _count(gates).cpu().numpy(), shows)

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
            network.load_state_dict(load_file(folder / _WEIGHTS))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"'{folder}' holds no scene network that can be read ({error}).") from error
        return network.eval()


def _parts(pictures: Pixels) -> tuple[Tensor, ...]:
    if len(pictures) == 0:
        raise ValueError("There is no picture to look at; give at least one.")
    return torch.from_numpy(np.ascontiguousarray(pictures)).split(_BATCH)


def _shown(probabilities: Tensor) -> Floats:
    """At least one of the objects, [N, K, ...] -> [N, ...]."""
    return (1.0 - (1.0 - probabilities).prod(dim=1)).cpu().numpy()


def _count(gates: Tensor) -> Tensor:
    """Probability of every number of objects that are there with probabilities [N, K], [N, K + 1]."""
    counts = gates.new_zeros(len(gates), MAXIMUM_PEAKS + 1)
    counts[:, 0] = 1.0
    for gate in gates.unbind(dim=1):
        more = torch.cat((torch.zeros_like(counts[:, :1]), counts[:, :-1]), dim=1)
        counts = torch.lerp(counts, more, gate[:, None])
    return counts
