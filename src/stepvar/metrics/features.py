"""Features of pictures, for Fréchet distances, diversity and text alignment.

An extractor is any callable from pictures uint8 [N, H, W, 3] to features [N, F]. Weights are read from
files that the user names; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Pixels = NDArray[np.uint8]
Extractor = Callable[[Pixels], NDArray[np.float32]]

EXTRACTORS = ("tokenizer", "scenes", "inception", "clip")
"""Names that `load_extractor` knows."""

_CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
_CLIP_DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)


class TokenizerFeatures:
    """Means and deviations over a picture of what a model's own visual tokenizer sees.

    A small network that knows the pictures in question: for the embedded model the only kind of network
    there is that was trained on scenes.

    Args:
        tokenizer: With `encode_features`, from [B, 3, H, W] in -1..1 to [B, d, h, w].
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @torch.no_grad()
    def __call__(self, pictures: Pixels) -> NDArray[np.float32]:
        """Features [N, 2 d]."""
        device = next(self.tokenizer.parameters()).device
        signed = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().to(device) / 127.5 - 1.0
        maps = self.tokenizer.encode_features(signed).float().flatten(2)
        return torch.cat([maps.mean(dim=2), maps.std(dim=2)], dim=1).cpu().numpy()


class InceptionFeatures:
    """The 2048 features of FID's Inception network, through torch-fidelity.

    Args:
        weights: Its weights, `weights-inception-2015-12-05-6726825d.pth` of toshas/torch-fidelity.

    Raises:
        ValueError: When torch-fidelity or the file is missing, or the file holds more than tensors.
    """

    def __init__(self, weights: Path, device: str = "cpu") -> None:
        require_tensors_only(weights, "Inception's weights")
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise ValueError(
                "Inception features need the package torch-fidelity: pip install torch-fidelity."
            ) from error
        network = FeatureExtractorInceptionV3(
            "inception", ["2048"], feature_extractor_weights_path=str(weights)
        )
        self.network, self.device = network.eval().to(device), device

    @torch.no_grad()
    def __call__(self, pictures: Pixels) -> NDArray[np.float32]:
        """Features [N, 2048]; the network resizes to 299 pixels itself, as the official FID does."""
        planes = torch.from_numpy(pictures).permute(0, 3, 1, 2).to(self.device)
        return self.network(planes)[0].float().cpu().numpy()


class ClipFeatures:
    """Picture and text features of a CLIP model, through transformers.

    Args:
        folder: A folder with a CLIP model and its tokenizer.

    Raises:
        ValueError: When the folder cannot be loaded.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        from transformers import AutoTokenizer, CLIPModel

        if not folder.is_dir():
            raise ValueError(
                f"There is no folder '{folder}' with a CLIP model: name one, such as a snapshot."
            )
        try:
            # Safetensors only: other formats could execute code.
            self.model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"'{folder}' holds no usable CLIP model ({error}).") from error
        self.model.eval().to(device)
        self.device = device
        # Their stubs allow configurations of other models, which have other fields.
        vision: Any = self.model.config.vision_config
        text: Any = self.model.config.text_config
        self.side = int(vision.image_size)
        self.longest = int(text.max_position_embeddings)

    @torch.no_grad()
    def __call__(self, pictures: Pixels) -> NDArray[np.float32]:
        """Unit features [N, F] of pictures."""
        side = self.side
        planes = np.stack([_clip_input(picture, side) for picture in pictures])
        inputs = torch.from_numpy(planes).permute(0, 3, 1, 2).to(self.device)
        return self._unit(self.model.get_image_features(pixel_values=inputs))

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """Unit features [N, F] of prompts, cut at CLIP's longest text."""
        encoded = self.tokenizer(
            list(prompts), padding=True, truncation=True, max_length=self.longest, return_tensors="pt"
        )
        inputs = {key: encoded[key].to(self.device) for key in ("input_ids", "attention_mask")}
        return self._unit(self.model.get_text_features(**inputs))

    @staticmethod
    def _unit(features: Any) -> NDArray[np.float32]:
        # Recent versions of transformers wrap the features.
        plain: Tensor = features if isinstance(features, Tensor) else features.pooler_output
        return (plain / plain.norm(dim=-1, keepdim=True)).float().cpu().numpy()


def _clip_input(picture: Pixels, side: int) -> NDArray[np.float32]:
    """A picture as CLIP's own processor prepares it: shorter side resized, centre cropped, normalised."""
    image = Image.fromarray(picture)
    factor = side / min(image.size)
    width, height = (max(side, int(length * factor)) for length in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    cropped = np.asarray(image.crop((left, top, left + side, top + side)), dtype=np.float32) / 255.0
    return (cropped - _CLIP_MEAN) / _CLIP_DEVIATION


def load_extractor(name: str, weights: Path | None, tokenizer: Any = None, device: str = "cpu") -> Extractor:
    """An extractor by name.

    Args:
        name: One of `EXTRACTORS`.
        weights: File of Inception's weights, or folder of a CLIP model.
        tokenizer: For "tokenizer": a pipeline's visual tokenizer.

    Raises:
        ValueError: When it is unknown, or what it needs is not given.
    """
    if name not in EXTRACTORS:
        raise ValueError(f"Unknown features {name!r}; known are {', '.join(EXTRACTORS)}.")
    if name == "tokenizer":
        if not hasattr(tokenizer, "encode_features"):
            raise ValueError(
                "This model's tokenizer gives no features: take inception or clip, with weights."
            )
        return TokenizerFeatures(tokenizer)
    if name == "scenes":
        from stepvar.scenes.network import load_scene_network

        return load_scene_network(device=device)
    if weights is None:
        wanted = "the file of Inception's weights" if name == "inception" else "the folder of a CLIP model"
        raise ValueError(f"The features {name!r} need weights: name {wanted}.")
    return InceptionFeatures(weights, device) if name == "inception" else ClipFeatures(weights, device)


def extract(extractor: Extractor, pictures: Sequence[Pixels], batch: int = 16) -> NDArray[np.float32]:
    """Features [N, F] of pictures of one size, some at a time."""
    parts = [extractor(np.stack(pictures[start : start + batch])) for start in range(0, len(pictures), batch)]
    return np.concatenate(parts)


def alignment(pictures: NDArray[np.float32], texts: NDArray[np.float32]) -> NDArray[np.float32]:
    """CLIP score of each picture with its prompt: the cosine of unit features, not below 0."""
    return np.maximum((pictures * texts).sum(axis=1), 0.0)


def diversity(features: NDArray[np.float32]) -> float:
    """How much pictures of one prompt differ from seed to seed: mean distance of all pairs.

    Args:
        features: [S, F], one row a seed.

    Raises:
        ValueError: When there are fewer than two seeds.
    """
    if len(features) < 2:
        raise ValueError(f"Diversity needs at least 2 seeds a prompt; got {len(features)}.")
    distances = np.linalg.norm(features[:, None] - features[None, :], axis=-1)
    return float(distances[np.triu_indices(len(features), 1)].mean())


def require_tensors_only(file: Path, what: str) -> None:
    """Raises ValueError when a file of weights is missing, damaged, or holds more than tensors."""
    if not file.is_file():
        raise ValueError(f"There is no file '{file}' with {what}: download it, and name it.")
    try:
        torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises almost any type for a damaged or executable file
        raise ValueError(
            f"'{file}' is no plain file of weights ({type(error).__name__}); nothing in it was run."
        ) from error
