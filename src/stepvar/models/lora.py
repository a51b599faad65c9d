"""LoRA adapters of a pipeline, loaded and saved under the names and in the file format of diffusers."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from diffusers.loaders.lora_base import LoraBaseMixin
from safetensors import SafetensorError
from torch import Tensor

from stepvar.checkpoints.errors import first_line
from stepvar.checkpoints.hub import refuse_missing_path
from stepvar.generation.loop import NonFiniteError

WEIGHT_NAME = "pytorch_lora_weights.safetensors"
PREFIX = "transformer"


class LoraPipeline(LoraBaseMixin):
    """Loads, weighs, fuses and unloads LoRA adapters of the transformer.

    Inherited from diffusers: `set_adapters`, `disable_lora`, `enable_lora`, `delete_adapters`, `fuse_lora`,
    `unfuse_lora`, `unload_lora_weights`.
    """

    _lora_loadable_modules = [PREFIX]  # noqa: RUF012

    if TYPE_CHECKING:
        transformer: Any

    def load_lora_weights(  # type: ignore[override]  # diffusers types it as taking anything
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike[str] | Mapping[str, Tensor],
        adapter_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Loads an adapter and activates it.

        Args:
            pretrained_model_name_or_path_or_dict: A folder, a hub id, a safetensors file or a state dict, of
                keys that begin with "transformer.".
            adapter_name: Name of the adapter; None numbers it.
            kwargs: As for `load_lora_adapter` of a diffusers model: `weight_name`, `hotswap`, ...

        Raises:
            ValueError: When there is no weight of the transformer in it, or it is damaged, of other shapes,
                or not finite; then nothing is loaded.
        """
        source = pretrained_model_name_or_path_or_dict
        refuse_missing_path(source)
        if isinstance(source, Mapping):
            source = dict(source)
        # Nothing but safetensors: other files could run code.
        kwargs.setdefault("use_safetensors", True)
        before = set(getattr(self.transformer, "peft_config", {}))
        try:
            self.transformer.load_lora_adapter(
                source, prefix=PREFIX, adapter_name=adapter_name, _pipeline=self, **kwargs
            )
            self._require_finite_adapters(_name(source))
        except (SafetensorError, RuntimeError, LookupError, NonFiniteError) as error:
            if added := set(getattr(self.transformer, "peft_config", {})) - before:
                super().delete_adapters(sorted(added))
            if isinstance(error, NonFiniteError):
                raise
            raise ValueError(
                f"{_name(source)} holds no LoRA that fits this transformer: {first_line(error)}."
            ) from error
        if not kwargs.get("hotswap") and set(getattr(self.transformer, "peft_config", {})) == before:
            raise ValueError(
                f"There is no LoRA of the transformer in {_name(source)}: keys must begin with '{PREFIX}.'."
            )

    def _require_finite_adapters(self, source: str) -> None:
        """Raises NonFiniteError, naming the first weight of an adapter that is NaN or infinite."""
        for name, weight in self.transformer.named_parameters():
            if "lora_" in name and not weight.is_meta and not bool(torch.isfinite(weight).all()):
                raise NonFiniteError(f"The LoRA in {source} is not finite at {name}; fetch it again.")

    @classmethod
    def save_lora_weights(  # type: ignore[override]  # as above
        cls,
        save_directory: str | os.PathLike[str],
        transformer_lora_layers: Mapping[str, Tensor],
        weight_name: str = WEIGHT_NAME,
        transformer_lora_adapter_metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Saves an adapter so that `load_lora_weights` loads it.

        Args:
            save_directory: The folder.
            transformer_lora_layers: State dict of the adapter, from peft's `get_peft_model_state_dict`.
            weight_name: Name of the file in it.
            transformer_lora_adapter_metadata: Configuration of the adapter, `LoraConfig(...).to_dict()`.
        """
        cls._save_lora_weights(
            save_directory=save_directory,
            lora_layers={PREFIX: dict(transformer_lora_layers)},
            lora_metadata={PREFIX: dict(transformer_lora_adapter_metadata or {})},
            is_main_process=True,
            weight_name=weight_name,
            save_function=None,  # type: ignore[arg-type]  # diffusers chooses one
            safe_serialization=True,
        )

    @property
    def _adapters(self) -> list[str]:
        """Names of the adapters of the transformer."""
        return list(getattr(self.transformer, "peft_config", {}))

    def _require_adapters(self, names: str | Sequence[str] = ()) -> None:
        """Raises ValueError when there is no adapter, or none of a name."""
        asked, loaded = [names] if isinstance(names, str) else list(names), self._adapters
        if not loaded:
            raise ValueError("No adapter is loaded: call load_lora_weights() first.")
        if unknown := [name for name in asked if name not in loaded]:
            raise ValueError(f"There is no adapter {unknown[0]!r}; loaded are {', '.join(loaded)}.")

    def set_adapters(
        self,
        adapter_names: str | list[str],
        adapter_weights: float | dict[str, Any] | list[float] | list[dict[str, Any]] | None = None,
    ) -> None:
        """Activates adapters with weights; see diffusers.

        Raises:
            ValueError: When there is no such adapter, a weight is not finite, or is given to another part.
        """
        self._require_adapters(adapter_names)
        several = adapter_weights if isinstance(adapter_weights, list) else [adapter_weights]
        for weights in several:
            if isinstance(weights, float) and not math.isfinite(weights):
                raise ValueError(f"adapter_weights has {weights}; give finite numbers.")
            other = set(weights) - {PREFIX} if isinstance(weights, dict) else set()
            if other:
                raise ValueError(f"adapter_weights has {min(other)!r}; adapters are of the {PREFIX} alone.")
        super().set_adapters(adapter_names, adapter_weights)

    def enable_lora(self) -> None:
        """Turns the active adapters on again.

        Raises:
            ValueError: When there is none.
        """
        self._require_adapters()
        super().enable_lora()

    def delete_adapters(self, adapter_names: str | list[str]) -> None:
        """Removes adapters.

        Raises:
            ValueError: When there is no such adapter.
        """
        self._require_adapters(adapter_names)
        super().delete_adapters(adapter_names)

    def set_lora_device(self, adapter_names: list[str], device: torch.device | str | int) -> None:
        """Moves adapters to a device.

        Raises:
            ValueError: When there is no such adapter.
        """
        self._require_adapters(adapter_names)
        super().set_lora_device(adapter_names, device)

    def fuse_lora(self, components: list[str] | None = None, **kwargs: Any) -> None:  # type: ignore[override]
        """Adds the active adapters to the weights; see diffusers.

        Raises:
            ValueError: When there is none.
        """
        self._require_adapters(kwargs.get("adapter_names") or ())
        super().fuse_lora(components=components or [PREFIX], **kwargs)

    def unfuse_lora(self, components: list[str] | None = None, **kwargs: Any) -> None:
        """Takes them out of the weights again."""
        super().unfuse_lora(components=components or [PREFIX], **kwargs)


def _name(source: object) -> str:
    return "the state dict" if isinstance(source, Mapping) else f"'{source}'"
