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

from stepvar.checkpoints.devices import count_devices, present_accelerators
from stepvar.models.absent import ExplainedPipeline
from stepvar.models.arguments import outside_of_training
from stepvar.models.common.base import refuse_unused_forward
from stepvar.models.lora import LoraPipeline

_CALL: ContextVar[tuple[object, torch.device] | None] = ContextVar("pipeline_and_device", default=None)
"""The pipeline that draws right now, and its device."""

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from typing_extensions import Self


class PlacedPipeline(ExplainedPipeline, LoraPipeline):
    """A diffusers pipeline whose transformer is run layer by layer, never by its `forward`.

    Attributes:
        streams_layers: Whether it can run with layers that come to the device one by one.
    """

    streams_layers = False

    if TYPE_CHECKING:
        transformer: Any
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
        """As in diffusers, but parts that a model keeps in float32 stay exact in every number format.

        Raises:
            ValueError: When a device is not there.
        """
        for place in (*args, kwargs.get("device")):
            if isinstance(place, (str, torch.device)):
                _require_present(torch.device(place))
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
        """What a call runs in: no gradients, no outer autocast, one device.

        Raises:
            ValueError: When something has replaced the transformer's `forward`.
        """
        refuse_unused_forward(self.transformer)
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

    def enable_model_cpu_offload(self, *args: Any, **kwargs: Any) -> None:
        """Keeps on the device only the part that is working, as in diffusers.

        Raises:
            ValueError: When there is no device but the CPU.
        """
        _require_accelerator("enable_model_cpu_offload", args, kwargs)
        super().enable_model_cpu_offload(*args, **kwargs)

    def enable_sequential_cpu_offload(self, *args: Any, **kwargs: Any) -> None:
        """Keeps on the device only the layer that is working, where a model can run like that.

        Raises:
            ValueError: When it cannot, or there is no device but the CPU.
        """
        if not self.streams_layers:
            raise ValueError(
                f"{type(self).__name__} cannot move layer by layer: use enable_model_cpu_offload(), which "
                "moves part by part."
            )
        _require_accelerator("enable_sequential_cpu_offload", args, kwargs)
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


def _require_accelerator(call: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    device = kwargs.get("device", args[1] if len(args) > 1 else None)
    if device is None and not present_accelerators():
        raise ValueError(
            f"{call}() moves parts between the CPU and a GPU, and there is no GPU: leave it out."
        )


def _require_present(device: torch.device) -> None:
    present = count_devices(device.type)
    if (device.index or 0) >= present:
        found = f"{present} {device.type.upper()} device{'s'[: present != 1]}"
        raise ValueError(
            f"The device '{device}' is not there, this machine has {found}: use another, or 'cpu'."
        )


def _exact_tensors(part: Any) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Owner, name and values of what stays in float32 whatever the rest of a part is cast to."""
    names = set(getattr(part, "_keep_in_fp32_modules", None) or ()) if isinstance(part, nn.Module) else set()
    if not names:
        return
    for name, tensor in chain(part.named_parameters(), part.named_buffers()):
        if names & set(name.split(".")) and tensor.dtype == torch.float32:
            owner, _, leaf = name.rpartition(".")
            yield part.get_submodule(owner), leaf, tensor.data
