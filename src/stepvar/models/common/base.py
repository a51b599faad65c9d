"""Base classes of the networks: typed configuration, typed lists of blocks, entry points beside `forward`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, cast

import torch
from accelerate.hooks import CpuOffload
from diffusers.configuration_utils import ConfigMixin
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

Config = TypeVar("Config", bound=Mapping[str, Any])
Module = TypeVar("Module", bound=nn.Module)
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class MultiMethodModule(nn.Module):
    """A module with several entry points beside one another, each marked by `through_forward`.

    A block's branches run apart, because pruning works between them, so that one `forward` is not enough.
    """

    def forward(self, method: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Runs a method of this module's class on the module."""
        return method(self, *args, **kwargs)


def through_forward(
    method: Callable[Concatenate[Any, Parameters], Result],
) -> Callable[Concatenate[Any, Parameters], Result]:
    """Marks a method of a `MultiMethodModule` that is called from outside.

    The call goes through the module's `__call__`, and so whatever wraps or hooks `forward` acts on it: moving
    weights to a device and back, storing them in another number format, compilation.
    """

    @wraps(method)
    def call(self: Any, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        if isinstance(getattr(self, "_hf_hook", None), CpuOffload):
            # It moves whole networks, which the pipeline has done once for all of them.
            return method(self, *args, **kwargs)
        return cast(Result, self(method, *args, **kwargs))

    return call


class ConfiguredModel(  # type: ignore[misc]  # two of diffusers' classes declare `config_name`
    MultiMethodModule, ModelMixin, ConfigMixin, PeftAdapterMixin, Generic[Config]
):
    """A network with its constructor's arguments as `config`, by name and as typed attributes.

    A subclass names the type of its configuration, `ConfiguredModel[VARConfig]`, and decorates its
    constructor with `register_to_config`. LoRA adapters come with the class: `load_lora_adapter`,
    `add_adapter`, `set_adapters`.
    """

    # diffusers declares these as None.
    _keep_in_fp32_modules: list[str] | None = None  # type: ignore[assignment]
    _no_split_modules: list[str] | None = None  # type: ignore[assignment]

    @property
    def config(self) -> Config:  # type: ignore[override]  # diffusers types it as a dictionary
        """The constructor's arguments."""
        return cast(Config, self._internal_dict)

    @property
    def compute_dtype(self) -> torch.dtype:
        """Number format of the matrix products and of the KV cache, in whatever format weights are stored."""
        return cast(torch.dtype, self.dtype)


class BlockList(nn.ModuleList, Generic[Module]):
    """`nn.ModuleList` whose entries have a type; nothing else differs."""

    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[Module]: ...

        def __getitem__(self, index: int) -> Module: ...  # type: ignore[override]  # slices are not needed
