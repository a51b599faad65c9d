"""Conversion of published files to a folder that a pipeline loads, for every model."""

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
from stepvar.checkpoints.folders import write_folder
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
    load_encoder: Callable[..., PreTrainedModel]
    load_tokenizer: Callable[[PathLike, Any], PreTrainedTokenizerBase]
    width: str
    channels: Callable[[Any], int]

    def load(self, path: PathLike, config: Any, dtype: torch.dtype | None = None) -> tuple[Any, Any]:
        """The encoder and the tokenizer of a folder, in the encoder's own number format by default.

        Raises:
            CheckpointError: When they cannot be loaded, or the transformer reads another width.
        """
        encoder = self.load_encoder(path) if dtype is None else self.load_encoder(path, dtype)
        given, wanted = getattr(encoder.config, self.width), self.channels(config)
        if given != wanted:
            raise CheckpointError(
                f"The text encoder '{path}' gives {given} channels, but the transformer reads {wanted}; "
                f"give the one it was trained with, {self.published} for the published weights."
            )
        return encoder, self.load_tokenizer(path, config)


@dataclass(frozen=True)
class PipelineParts:
    """What a pipeline is built from.

    Attributes:
        components: By name; None for one that is left out.
        settings: Arguments of its constructor that follow from the checkpoint.
    """

    components: dict[str, Any]
    settings: dict[str, Any]


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
    """Loads the official checkpoints of a model, and writes folders that its pipeline loads.

    Attributes:
        pipeline: Class name of the pipeline.
        load_transformer, load_vae: Load what they are given the path of, and a number format.
        check_pair: Raises `CheckpointError` when the two do not belong together.
        text_sides: The text encoders, in their order.
        transformer_options: Names of arguments that only this model's `load_transformer` takes.
        setting_options: Names of arguments that `settings` takes.
        settings: (transformer, those arguments) -> arguments of the pipeline's constructor.
        options_from_vae: Arguments of `load_transformer` that follow from the visual tokenizer.
    """

    pipeline: str
    load_transformer: Callable[..., ModelMixin]
    load_vae: Callable[..., ModelMixin]
    check_pair: Callable[[Any, Any], None]
    text_sides: tuple[TextSide, ...] = ()
    transformer_options: tuple[str, ...] = ()
    setting_options: tuple[str, ...] = ()
    settings: Callable[..., dict[str, Any]] = lambda transformer: {}
    options_from_vae: Callable[[Any], dict[str, Any]] = lambda vae: {}

    @property
    def options(self) -> tuple[str, ...]:
        """Names of all arguments that only this model has."""
        return self.transformer_options + self.setting_options

    def __call__(
        self,
        transformer_path: PathLike,
        tokenizer_path: PathLike,
        text_encoder: PathLike | Sequence[PathLike] | None,
        output_dir: PathLike,
        dtype: torch.dtype | None = None,
        **options: Any,
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
            options: Arguments that only this model has.

        Returns:
            The new folder.

        Raises:
            CheckpointError: When an input cannot be used, the inputs do not fit each other, or the folder
                exists.
        """
        self._encoders(text_encoder)
        with mapped_weights(), _new_folder(output_dir) as folder:
            # Without a change of format nothing is read yet, so a wrong pair is refused at once.
            parts = self.load(transformer_path, tokenizer_path, text_encoder, **options)
            if dtype is not None:
                parts.components["transformer"] = self._transformer(
                    transformer_path, parts.components["vae"], dtype, options
                )
            write_folder(folder, self.pipeline, parts.components, parts.settings)
        return Path(output_dir).expanduser()

    def load(
        self,
        transformer_path: PathLike,
        tokenizer_path: PathLike,
        text_encoder: PathLike | Sequence[PathLike] | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> PipelineParts:
        """What the pipeline is built from, in memory.

        Args:
            dtype: Number format of all parts; None keeps the files' own.
            transformer_path, tokenizer_path, text_encoder, options: As for a conversion.

        Raises:
            CheckpointError: When an input cannot be used, or the inputs do not fit each other.
        """
        encoders = self._encoders(text_encoder)
        vae = self.load_vae(tokenizer_path, dtype=dtype)
        transformer = self._transformer(transformer_path, vae, dtype, options)
        self.check_pair(transformer, vae)
        own = {name: options[name] for name in self.setting_options if name in options}
        components: dict[str, Any] = {"transformer": transformer, "vae": vae}
        for number, side in enumerate(self.text_sides):
            suffix = f"_{number + 1}" if number else ""
            text = side.load(encoders[number], transformer.config, dtype) if encoders else (None, None)
            components |= {f"text_encoder{suffix}": text[0], f"tokenizer{suffix}": text[1]}
        return PipelineParts(components, self.settings(transformer, **own))

    def is_vae(self, path: PathLike) -> bool:
        """Whether a file or folder is a visual tokenizer of this model; its weights are not kept."""
        try:
            with mapped_weights():
                self.load_vae(path)
        except CheckpointError:
            return False
        return True

    def _transformer(
        self, path: PathLike, vae: Any, dtype: torch.dtype | None, options: Mapping[str, Any]
    ) -> ModelMixin:
        own = {name: options[name] for name in self.transformer_options if name in options}
        return self.load_transformer(path, dtype, **self.options_from_vae(vae), **own)

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
