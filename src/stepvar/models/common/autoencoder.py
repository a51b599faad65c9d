"""Base of the visual tokenizers of all models: decoding as in diffusers, whole or part by part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.utils import BaseOutput
from torch import Tensor

from stepvar.models.common.base import ConfiguredModel

Config = TypeVar("Config", bound=Mapping[str, Any])


@dataclass
class DecoderOutput(BaseOutput):
    """What `decode` returns, under the name that diffusers has for it.

    Attributes:
        sample: Pixels.
    """

    sample: Tensor


class LatentConfig(FrozenDict):  # type: ignore[misc]  # diffusers has no annotations
    """Configuration of a visual tokenizer: latents are neither scaled nor shifted between decoder and call.

    Code that multiplies, divides or shifts by these numbers, as diffusers' pipelines do, so changes nothing.
    They are no entries, and not saved.
    """

    scaling_factor = 1.0
    shift_factor = 0.0


class Autoencoder(ConfiguredModel[Config], Generic[Config]):
    """A visual tokenizer.

    Attributes:
        use_tiling: Whether a picture is decoded in strips of rows, a video in tiles: less memory, more time.
        use_slicing: Whether the pictures of a batch are decoded one by one.
    """

    use_tiling = False
    use_slicing = False

    def register_to_config(self, **kwargs: Any) -> None:
        """Adds to the configuration."""
        super().register_to_config(**kwargs)
        self._internal_dict = LatentConfig(self._internal_dict)

    def enable_tiling(self) -> None:
        """Decodes part by part: pictures in strips of rows, videos in tiles."""
        self.use_tiling = True

    def disable_tiling(self) -> None:
        """Decodes as a whole again."""
        self.use_tiling = False

    def enable_slicing(self) -> None:
        """Decodes the pictures of a batch one after the other."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Decodes the pictures of a batch together again."""
        self.use_slicing = False

    def decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Decodes accumulated codes, such as a call gives with `output_type="latent"`.

        They are what the decoder reads: nothing is to be scaled or shifted before.

        Args:
            z: [B, d, (t,) h, w].
            return_dict: False returns the pixels in a tuple.

        Returns:
            Pixels [B, 3, (F,) H, W], float32 in -1..1.
        """
        parts = z.split(1) if self.use_slicing or self.use_tiling else (z,)
        pixels = [self.decode_part(part) for part in parts]
        sample = torch.cat(pixels) if len(pixels) > 1 else pixels[0]
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def decode_part(self, latent: Tensor) -> Tensor:
        """Pixels of some of the pictures, decoded as `use_tiling` says."""
        return self.decode_pixels(latent, in_strips=True) if self.use_tiling else self.decode_pixels(latent)

    def decode_pixels(self, latent: Tensor, in_strips: bool = False) -> Tensor:
        """Decodes accumulated codes to pixels, whatever the settings are.

        Args:
            latent: [B, d, h, w].
            in_strips: Decode strips of rows, one after the other: less memory, more time.

        Returns:
            Pixels [B, 3, H, W], float32 in -1..1.
        """
        raise NotImplementedError
