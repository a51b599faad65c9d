"""Base classes of the networks: typed configuration, typed lists of blocks, entry points beside `forward`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, cast

import torch
from accelerate.hooks import CpuOffload
from diffusers.configuration_utils import ConfigMixin
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import set_weights_and_activate_adapters
from torch import nn

from stepvar.checkpoints.errors import CheckpointError, listing
from stepvar.generation.attention import Kernel
from stepvar.models.common.attention_backends import NATIVE, active_backend, find_kernel

Config = TypeVar("Config", bound=Mapping[str, Any])
Module = TypeVar("Module", bound=nn.Module)
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_MISFITS = {
    "missing_keys": "weights are missing",
    "unexpected_keys": "are unexpected",
    "mismatched_keys": "have another shape",
}
"""What diffusers notices about weights without refusing them, in words."""

MOST_GRAPHS = 64
"""Graphs of one compiled method, over all scales and numbers of rows; further ones would run uncompiled."""


class MultiMethodModule(nn.Module):
    """A module with several entry points beside one another, each marked by `through_forward`.

    A block's branches run apart, because pruning works between them, so that one `forward` is not enough.
    """

    _compiled: _CompiledMethods | None = None

    def forward(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Runs a method of this module's class on the module.

        Raises:
            TypeError: When it is called with tensors, as other networks are.
        """
        if not callable(method) or isinstance(method, torch.Tensor):
            raise TypeError(
                f"{type(self).__name__} is not called as a whole: a pipeline runs the blocks of a "
                "transformer, and a visual tokenizer has encode and decode."
            )
        run = method if self._compiled is None else self._compiled[method]
        return run(self, *args, **kwargs)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles every method that is called through `forward`, when it is first called.

        Args:
            args, kwargs: As for `torch.compile`.
        """
        config = torch._dynamo.config
        limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
        # One graph serves the scales of most sizes; the first ones and each number of rows need their own.
        setattr(config, limit, max(getattr(config, limit), MOST_GRAPHS))
        self._compiled = _CompiledMethods(args, kwargs)


class _CompiledMethods(dict[Callable[..., Any], Callable[..., Any]]):
    """Compiled functions by what they were compiled from."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.options = (args, kwargs)

    def __missing__(self, method: Callable[..., Any]) -> Callable[..., Any]:
        args, kwargs = self.options
        compiled: Callable[..., Any] = torch.compile(method, *args, **kwargs)
        self[method] = compiled
        return compiled


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

    @classmethod
    def from_pretrained(  # type: ignore[override]  # diffusers returns a pair on request
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, **kwargs: Any
    ) -> Any:
        """Loads a saved model as diffusers does, and refuses weights that do not fit it.

        diffusers itself goes on with random numbers where weights are missing. This is also what its
        `DiffusionPipeline` calls for each component.

        Args:
            pretrained_model_name_or_path: A folder, or the name of a repository of the hub.
            kwargs: As in diffusers.

        Raises:
            CheckpointError: When weights are missing, unexpected or of another shape.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(
            pretrained_model_name_or_path, output_loading_info=True, **kwargs
        )
        model, info = loaded
        problems = [
            f"{len(info[kind])} {words} ({listing(map(str, info[kind]))})"
            for kind, words in _MISFITS.items()
            if info.get(kind)
        ]
        if problems:
            raise CheckpointError(
                f"'{pretrained_model_name_or_path}' does not fit {cls.__name__}: {'; '.join(problems)}; save "
                "the model anew, without adapters."
            )
        return (model, info) if wants_info else model

    def save_pretrained(  # type: ignore[override]  # diffusers names every option, which are handed on here
        self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> None:
        """Saves the model as diffusers does.

        Raises:
            ValueError: When it has an adapter, with which the folder could not be loaded again.
        """
        if getattr(self, "peft_config", None):
            raise ValueError(
                f"{type(self).__name__} has an adapter, and a folder saved with it could not be loaded: save "
                "the adapter by pipe.save_lora_weights(folder), and call pipe.unload_lora_weights() before "
                "this, after pipe.fuse_lora() where its effect shall stay."
            )
        super().save_pretrained(save_directory, *args, **kwargs)

    # diffusers looks at the signature for what it may pass on: variants, sizes of shards.
    vars()["save_pretrained"].__signature__ = inspect.signature(ModelMixin.save_pretrained)

    attention_backend = NATIVE
    """Name of the backend that computes attention, see `set_attention_backend`."""
    attention_kernel: Kernel | None = None

    def set_attention_backend(self, backend: str) -> None:
        """Chooses what computes attention in the loop over scales; `summary()` names it.

        Args:
            backend: Its name in diffusers: "native" (torch chooses), "flex", "flash_hub", "_native_math", ...

        Raises:
            ValueError: When there is no such backend, it cannot be used here, or the blocks are compiled.
        """
        if backend.lower() != NATIVE and any(block._compiled is not None for block in self._repeated()):
            raise ValueError(
                f"Compiled blocks have torch's own attention; load the model anew for {backend}."
            )
        self.attention_kernel = find_kernel(backend.lower())
        self.attention_backend = backend.lower()

    def attention_in_force(self) -> tuple[str, Kernel | None]:
        """Name of what computes attention, and its kernel; None is torch's own choice.

        That is what `set_attention_backend` chose, else what diffusers uses at the moment.

        Raises:
            ValueError: When blocks are compiled, which have torch's own.
        """
        active = active_backend()
        if self.attention_backend != NATIVE or active == NATIVE:
            return self.attention_backend, self.attention_kernel
        if any(block._compiled is not None for block in self._repeated()):
            raise ValueError(
                f"Compiled blocks have torch's own attention: leave {active} out for this model."
            )
        return active, find_kernel(active)

    def reset_attention_backend(self) -> None:
        """Goes back to the backend that torch chooses."""
        self.set_attention_backend(NATIVE)

    def enable_xformers_memory_efficient_attention(self, *args: Any, **kwargs: Any) -> None:
        """Raises ValueError: attention has backends of its own."""
        raise ValueError(
            "xFormers is not used: set_attention_backend() chooses what computes attention; leave it out."
        )

    def enable_layerwise_casting(
        self,
        storage_dtype: torch.dtype = torch.float8_e4m3fn,
        compute_dtype: torch.dtype | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Stores weights in one number format and computes in another, as in diffusers.

        Parts that are neither kept in float32 nor stored in the small format are cast to `compute_dtype`.

        Args:
            storage_dtype: Of the weights.
            compute_dtype: Of the matrix products; None is what the model computes in now.
            args, kwargs: As in diffusers.
        """
        compute = compute_dtype or self.compute_dtype
        kept = set(self._keep_in_fp32_modules or ())
        for name, parameter in self.named_parameters():
            if parameter.is_floating_point() and kept.isdisjoint(name.split(".")):
                parameter.data = parameter.data.to(compute)
        super().enable_layerwise_casting(storage_dtype, compute, *args, **kwargs)

    def compile_repeated_blocks(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the blocks that the loop over scales runs.

        Args:
            args, kwargs: As for `torch.compile`.

        Raises:
            ValueError: When the model has no blocks, or another attention backend was chosen.
        """
        if self.attention_backend != NATIVE:
            raise ValueError(
                f"Compiled blocks have torch's own attention, not {self.attention_backend}: call "
                "reset_attention_backend() first."
            )
        if not self._repeated():
            raise ValueError(f"{type(self).__name__} has no repeated blocks to compile.")
        for block in self._repeated():
            block.compile(*args, **kwargs)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """The same, under the name that every `nn.Module` has for it."""
        self.compile_repeated_blocks(*args, **kwargs)

    def _repeated(self) -> list[MultiMethodModule]:
        names = set(self._repeated_blocks)
        return [
            module
            for module in self.modules()
            if isinstance(module, MultiMethodModule) and type(module).__name__ in names
        ]

    def set_adapters(  # type: ignore[override]  # diffusers also takes weights by block
        self, adapter_names: list[str] | str, weights: float | list[float | None] | None = None
    ) -> None:
        """Activates adapters with the given weights.

        Args:
            adapter_names: One, or several.
            weights: One number for all, or one each; None is 1.

        Raises:
            ValueError: When their numbers differ.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        if unknown := [name for name in names if name not in getattr(self, "peft_config", {})]:
            loaded = listing(getattr(self, "peft_config", {})) or "none"
            raise ValueError(f"There is no adapter {unknown[0]!r}; loaded are {loaded}.")
        given = weights if isinstance(weights, list) else [weights] * len(names)
        if len(given) != len(names):
            raise ValueError(f"{len(names)} adapters were given {len(given)} weights; give one each.")
        scales = [1.0 if weight is None else weight for weight in given]
        set_weights_and_activate_adapters(self, names, scales)

    @property
    def compute_dtype(self) -> torch.dtype:
        """Number format of the matrix products and of the KV cache, in whatever format weights are stored."""
        return cast(torch.dtype, self.dtype)


def refuse_unused_forward(model: object) -> None:
    """Raises ValueError for a model whose `forward` something replaced, which the loop would never call."""
    if type(model).__name__ == "OptimizedModule":
        raise ValueError(
            "The transformer is wrapped by torch.compile(), which compiles its forward, while the loop over "
            "scales calls its blocks: use pipe.transformer.compile_repeated_blocks() instead."
        )
    # Hooks of accelerate and diffusers act on the parts inside as well.
    hooked = any(hasattr(model, name) for name in ("_hf_hook", "_diffusers_hook"))
    if "forward" in getattr(model, "__dict__", {}) and not hooked:
        raise ValueError(
            "The transformer's forward has been replaced, by a cache of denoising steps for example, and the "
            "loop over scales calls its blocks: load it anew; pruning= saves work here."
        )


class BlockList(nn.ModuleList, Generic[Module]):
    """`nn.ModuleList` whose entries have a type; nothing else differs."""

    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[Module]: ...

        def __getitem__(self, index: int) -> Module: ...  # type: ignore[override]  # slices are not needed
