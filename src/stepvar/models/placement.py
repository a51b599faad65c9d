"""Placement of a pipeline's parts: number formats, devices, and parts that come to a device when they run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stepvar.checkpoints.checked_pipeline import CheckedPipeline
from stepvar.models.arguments import outside_of_training
from stepvar.models.lora import LoraPipeline

_CALL: ContextVar[tuple[object, torch.device] | None] = ContextVar("pipeline_and_device", default=None)
"""The pipeline that draws right now, and its device."""

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from typing_extensions import Self


class PlacedPipeline(CheckedPipeline, LoraPipeline):
    """A diffusers pipeline whose transformer is run layer by layer, never by its `forward`.

    Attributes:
        streams_layers: Whether it can run with layers that come to the device one by one.
    """

    streams_layers = False

    if TYPE_CHECKING:
        vae: Any

    @property
    def model_cpu_offload_seq(self) -> str:  # type: ignore[override]  # diffusers types it as None
        """In which order the parts are needed on the device."""
        encoders = [name for name in self.spec.components if name.startswith("text_encoder")]
        return "->".join([*encoders, "transformer", "vae"])

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Self:
        """A pipeline with another one's components and settings; the other one stays as it is.

        Args:
            pipeline: The other one.
            kwargs: Components and settings to use instead of its own. `dtype` (or `torch_dtype`) is another
                number format: then the components are copied, and otherwise they are shared.

        Raises:
            ValueError: When it lacks a component that this kind of pipeline needs.
        """
        asked = [kwargs.pop(name, None) for name in ("dtype", "torch_dtype")]
        dtype = next((entry for entry in asked if entry is not None), None)
        required, settings = cls._get_signature_keys(cls)
        parts = {name: kwargs.pop(name, getattr(pipeline, name, None)) for name in required}
        lacking = [name for name in required if parts[name] is None and name not in cls._optional_components]
        if lacking:
            raise ValueError(
                f"{cls.__name__} needs {' and '.join(lacking)}, and {type(pipeline).__name__} has none: "
                "pass it."
            )
        if dtype is not None:
            parts = {name: deepcopy(part) for name, part in parts.items()}
        own = {name: pipeline.config[name] for name in settings if name in pipeline.config}
        made = cls(**parts, **{**own, **kwargs})
        if "_name_or_path" in pipeline.config:
            made.register_to_config(_name_or_path=pipeline.config["_name_or_path"])
        return made if dtype is None else made.to(dtype=dtype)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As in diffusers, but parts that a model keeps in float32 stay exact in every number format."""
        exact = [entry for part in self.components.values() for entry in _exact_tensors(part)]
        moved = super().to(*args, **kwargs)
        for owner, name, values in exact:
            tensor = getattr(owner, name)
            if tensor.dtype != values.dtype:
                tensor.data = values.to(tensor.device)
        return moved

    @property
    def _execution_device(self) -> torch.device:
        """Where a call runs; diffusers walks through all modules of all parts for it, so a call asks once."""
        call = _CALL.get()
        device: torch.device = super()._execution_device if call is None or call[0] is not self else call[1]
        return device

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """What a call runs in: no gradients, no outer autocast, one device."""
        device = self._execution_device
        token = _CALL.set((self, device))
        try:
            with outside_of_training(device):
                yield
        finally:
            _CALL.reset(token)

    def enable_vae_tiling(self) -> None:
        """Decodes pictures in strips of rows, and videos in tiles: less memory, more time.

        A picture of 1024 x 1024 pixels of Infinity then needs 0.85 GiB beside the weights in float32 instead
        of 3 (counted tensor by tensor), for 2.5 times the operations of the decoder. Its pixels are those of
        a whole decode but for rounding, at most 1/255. Tiles of videos are blended where they overlap.
        """
        self.vae.enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Decodes as a whole again."""
        self.vae.disable_tiling()

    def enable_vae_slicing(self) -> None:
        """Decodes the pictures of a batch one after the other; videos always are."""
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Decodes the pictures of a batch together again."""
        self.vae.disable_slicing()

    def enable_attention_slicing(self, *args: Any, **kwargs: Any) -> None:
        """Raises ValueError: attention is never sliced here."""
        raise ValueError(
            "Attention is not sliced: its kernels need no memory for scores; to save memory use "
            "enable_vae_tiling() or enable_model_cpu_offload()."
        )

    def enable_xformers_memory_efficient_attention(self, *args: Any, **kwargs: Any) -> None:
        """Raises ValueError: torch's own attention is used."""
        raise ValueError(
            "xFormers is not used: torch's scaled_dot_product_attention needs as little memory; leave it out."
        )

    def enable_freeu(self, *args: Any, **kwargs: Any) -> None:
        """Raises ValueError: it is for U-Nets."""
        raise ValueError("FreeU changes U-Nets, and this model has none: leave it out.")

    def enable_sequential_cpu_offload(self, *args: Any, **kwargs: Any) -> None:
        """Moves layer by layer to the device, where a model can run like that.

        Raises:
            ValueError: When it cannot.
        """
        if not self.streams_layers:
            raise ValueError(
                f"{type(self).__name__} cannot move layer by layer: use enable_model_cpu_offload(), which "
                "moves part by part."
            )
        super().enable_sequential_cpu_offload(*args, **kwargs)

    def load_to_device(self, part: object) -> None:
        """Moves a part onto its device, and the others away, where offloading does so at their `forward`.

        The loop calls the layers of a transformer one by one, never its `forward`.
        """
        hook = getattr(part, "_hf_hook", None)
        if hook is None:
            return
        for other in getattr(self, "_all_hooks", []):
            if other.model is not part:
                other.offload()
        hook.pre_forward(part)


def _exact_tensors(part: Any) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Owner, name and values of what stays in float32 whatever the rest of a part is cast to."""
    names = set(getattr(part, "_keep_in_fp32_modules", None) or ()) if isinstance(part, nn.Module) else set()
    if not names:
        return
    for name, tensor in chain(part.named_parameters(), part.named_buffers()):
        if names & set(name.split(".")) and tensor.dtype == torch.float32:
            owner, _, leaf = name.rpartition(".")
            yield part.get_submodule(owner), leaf, tensor.data
