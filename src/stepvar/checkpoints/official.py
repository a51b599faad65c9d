"""Reading official transformers strictly, whatever the model: sizes off the weights, names by a key map."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from stepvar.checkpoints.layouts import build_empty, build_saved, fill, require_same_layout, saved_config
from stepvar.checkpoints.weights import Checkpoint, TensorMap
from stepvar.checkpoints.wrappers import Routes

Transformer = TypeVar("Transformer", bound=ModelMixin)


@dataclass(frozen=True)
class OfficialFormat(Generic[Transformer]):
    """How the official code of a model stores its transformer.

    Attributes:
        kind: Our class.
        infer_config: (official state dict, what errors call it) -> our constructor's arguments.
        to_official: (our state dict, configuration) -> official state dict.
        rename: (part of an official state dict, configuration, what errors call it) -> it under our keys.
        told_by: Buffers whose values `infer_config` looks at.
        optional: Whether an official key may be missing or present without a difference.
        routes: Where training checkpoints keep the state dict.
    """

    kind: type[Transformer]
    infer_config: Callable[[Mapping[str, Tensor], str], dict[str, Any]]
    to_official: Callable[[Mapping[str, Tensor], Mapping[str, Any]], TensorMap]
    rename: Callable[[Mapping[str, Tensor], Mapping[str, Any], str], TensorMap]
    told_by: frozenset[str]
    optional: Callable[[str], bool]
    routes: Routes = ()

    def from_state(
        self, state: Mapping[str, Tensor], source: str = "The state dict", **overrides: Any
    ) -> Transformer:
        """A transformer with the weights of an official state dict, checked strictly.

        Args:
            overrides: Arguments of the constructor that the weights do not tell.

        Raises:
            CheckpointError: When it belongs to another architecture, or something is missing, unexpected or
                of another shape.
        """
        transformer = self._empty(state, source, overrides)
        transformer.load_state_dict(self.rename(state, transformer.config, source), assign=True)
        return transformer.eval()

    def load(
        self,
        path: str | os.PathLike[str],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        **overrides: Any,
    ) -> Transformer:
        """Loads a transformer; its size is read off the weights.

        Args:
            path: A state dict (.pth, .safetensors), a training checkpoint, a folder of shards with an index,
                or a folder that `save_pretrained` wrote.
            dtype: Number format; None keeps the file's. What the model keeps in float32 is so in any case.
            device: Where the weights go; None is the CPU.
            overrides: Arguments of the constructor that an official file does not tell.

        Returns:
            The transformer in evaluation mode.

        Raises:
            CheckpointError: When the file is missing, damaged, executable, or of another architecture.
        """
        path = Path(path).expanduser()
        source = f"'{path}'"
        checkpoint = Checkpoint.open(path, self.routes)
        config = saved_config(path, self.kind)
        if config is not None:
            transformer = build_saved(self.kind, checkpoint, config)
            fill(transformer, checkpoint, dtype=dtype, device=device)
            return transformer.eval()
        state = dict(checkpoint.layout)
        if self.told_by & state.keys():
            for shard in checkpoint.shards():
                state |= {key: shard[key] for key in self.told_by if key in shard}
        transformer = self._empty(state, source, overrides)
        fill(
            transformer,
            checkpoint,
            lambda part: self.rename(part, transformer.config, source),
            dtype,
            device,
        )
        return transformer.eval()

    def _empty(self, state: Mapping[str, Tensor], source: str, overrides: Mapping[str, Any]) -> Transformer:
        """A transformer on the meta device that an official state dict fits."""
        config = {**self.infer_config(state, source), **overrides}
        transformer = build_empty(self.kind, config, source)
        expected = self.to_official(transformer.state_dict(), transformer.config)
        require_same_layout(
            {key: value for key, value in state.items() if not self.optional(key)},
            {key: value for key, value in expected.items() if not self.optional(key)},
            source,
        )
        return transformer


@dataclass(frozen=True)
class OfficialObjects:
    """Builds our models on the weights of a model's official objects, which stay as they are.

    Attributes:
        transformer: (official state dict, official object, our visual tokenizer, options) -> our transformer.
        vae: (official state dict, official object) -> our visual tokenizer.
        options: Names of arguments of `transformer` that an object does not tell.
    """

    transformer: Callable[..., ModelMixin]
    vae: Callable[[Mapping[str, Tensor], Any], ModelMixin]
    options: tuple[str, ...] = ()
