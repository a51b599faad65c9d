"""From published files to a folder that a pipeline loads: the one road of every model's `convert`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.modeling_utils import ModelMixin

from stepvar.checkpoints.errors import CheckpointError
from stepvar.checkpoints.folders import save_text_side, write_index
from stepvar.checkpoints.layouts import mapped_weights
from stepvar.files import staged_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class TextSide:
    """A text encoder that a model reads, with its tokenizer.

    Attributes:
        published: Name of the one that the published weights were trained with.
        load_encoder: Loads it from its folder.
        load_tokenizer: Loads its tokenizer from the folder, given the transformer's configuration.
        width: Field of the encoder's configuration with its channels.
        channels: How many of them the transformer reads, from its configuration.
    """

    published: str
    load_encoder: Callable[[PathLike], PreTrainedModel]
    load_tokenizer: Callable[[PathLike, Any], PreTrainedTokenizerBase]
    width: str
    channels: Callable[[Any], int]

    def save(self, path: PathLike, config: Any, folder: Path, suffix: str) -> dict[str, tuple[str, str]]:
        """Saves both in a pipeline's folder; returns their entries in its index.

        Raises:
            CheckpointError: When they cannot be loaded, or the transformer reads another width.
        """
        encoder, tokenizer = self.load_encoder(path), self.load_tokenizer(path, config)
        given, wanted = getattr(encoder.config, self.width), self.channels(config)
        if given != wanted:
            raise CheckpointError(
                f"The text encoder '{path}' gives {given} channels, but the transformer reads {wanted}; "
                f"give the one it was trained with, {self.published} for the published weights."
            )
        return save_text_side(encoder, tokenizer, folder, suffix)


@contextmanager
def _new_folder(output: PathLike) -> Iterator[Path]:
    """`staged_folder`, whose refusal of a folder that exists is an error of the conversion."""
    path = Path(output).expanduser()
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise CheckpointError(f"'{path}' exists already; give the name of a new folder.")
    with staged_folder(path) as folder:
        yield folder


@dataclass(frozen=True)
class Conversion:
    """Writes folders that the pipeline of a model loads.

    Attributes:
        pipeline: Class name of the pipeline.
        load_transformer, load_vae: Load what they are given the path of, and a number format.
        check_pair: Raises `CheckpointError` when the two do not belong together.
        text_sides: The text encoders, in their order.
        told_by_tokenizer: Arguments of `load_transformer` that only the visual tokenizer tells.
    """

    pipeline: str
    load_transformer: Callable[..., ModelMixin]
    load_vae: Callable[[PathLike], ModelMixin]
    check_pair: Callable[[Any, Any], None]
    text_sides: tuple[TextSide, ...] = ()
    told_by_tokenizer: Callable[[Any], Mapping[str, Any]] = lambda tokenizer: {}

    def __call__(
        self,
        transformer_path: PathLike,
        tokenizer_path: PathLike,
        text_encoder: PathLike | Sequence[PathLike] | None,
        output_dir: PathLike,
        dtype: torch.dtype | None = None,
    ) -> Path:
        """Writes a folder that the model's pipeline loads by `from_pretrained`.

        Nothing is half-written: the folder appears under its name when it is complete.

        Args:
            transformer_path: As for the model's `load_transformer`.
            tokenizer_path: As for its `load_vae`.
            text_encoder: Folder of the text encoder and its tokenizer, or several in their order; None leaves
                them out.
            output_dir: The new folder.
            dtype: Number format of the transformer; None keeps the file's. The others keep their own.

        Returns:
            The new folder.

        Raises:
            CheckpointError: When an input cannot be used, the inputs do not fit each other, or the folder
                exists.
        """
        return self.write(transformer_path, tokenizer_path, text_encoder, output_dir, dtype)

    def write(
        self,
        transformer_path: PathLike,
        tokenizer_path: PathLike,
        text_encoder: PathLike | Sequence[PathLike] | None,
        output_dir: PathLike,
        dtype: torch.dtype | None,
        settings: Callable[[Any], Mapping[str, Any]] = lambda transformer: {},
    ) -> Path:
        """The same, with arguments of the pipeline's constructor that follow from the transformer."""
        encoders = self._encoders(text_encoder)
        with mapped_weights(), _new_folder(output_dir) as folder:
            # Without a change of format nothing is read yet, so a wrong pair is refused at once.
            tokenizer = self.load_vae(tokenizer_path)
            told = self.told_by_tokenizer(tokenizer)
            transformer = self.load_transformer(transformer_path, None, **told)
            self.check_pair(transformer, tokenizer)
            own, config = settings(transformer), transformer.config
            components: dict[str, tuple[str | None, str | None]] = {
                "transformer": ("stepvar", type(transformer).__name__),
                "vae": ("stepvar", type(tokenizer).__name__),
            }
            for number, side in enumerate(self.text_sides):
                suffix = f"_{number + 1}" if number else ""
                components |= dict.fromkeys((f"text_encoder{suffix}", f"tokenizer{suffix}"), (None, None))
                if encoders:
                    components |= side.save(encoders[number], config, folder, suffix)
            if dtype is not None:
                transformer = self.load_transformer(transformer_path, dtype, **told)
            transformer.save_pretrained(folder / "transformer")
            tokenizer.save_pretrained(folder / "vae")
            write_index(folder, self.pipeline, components, own)
        return Path(output_dir).expanduser()

    def _encoders(self, given: PathLike | Sequence[PathLike] | None) -> list[PathLike]:
        """Folders of the text encoders, all or none."""
        encoders = [given] if isinstance(given, (str, os.PathLike)) else list(given or ())
        model, count = self.pipeline.removesuffix("Pipeline"), len(self.text_sides)
        if encoders and not count:
            raise CheckpointError(f"{model} reads no text: leave the text encoder out.")
        if len(encoders) not in (0, count):
            names = ", then ".join(side.published for side in self.text_sides)
            raise CheckpointError(
                f"{model} reads {count} text encoder{'s' if count > 1 else ''}, but {len(encoders)} "
                f"{'were' if len(encoders) > 1 else 'was'} given: give {names}."
            )
        return encoders
