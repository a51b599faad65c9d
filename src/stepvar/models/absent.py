"""Names of diffusers' pipelines that these lack, with what to use instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stepvar.checkpoints.checked_pipeline import CheckedPipeline

_SCHEDULER = (
    "the scales of the size are the steps; temperature, top_k and top_p of a call say how they are drawn"
)
_NETWORK = "its network is .transformer"
_FILTER = "nothing filters its pictures; look at them yourself"
_PICTURES = "no adapter of pictures exists for it; edit() varies a picture, where the model has it"
_CONTROL = "no ControlNet exists for it"
_ATTENTION = "attention takes no arguments; set_adapters(name, weight) weighs a LoRA"
_EDITS = "edit() draws a part of a picture anew, where the model has it"
_CACHE = "no scale repeats another one; pass pruning to leave tokens out"
_MOVE = "move it by .to(device), or .to(dtype)"

_PARTS: Mapping[str, str] = {
    "scheduler": _SCHEDULER,
    "unet": _NETWORK,
    "safety_checker": _FILTER,
    "feature_extractor": _FILTER,
    "image_encoder": _PICTURES,
    "controlnet": _CONTROL,
    "adapter": _CONTROL,
}
"""Components that a user may also set; nothing would read them."""

_ABSENT: Mapping[str, str] = {
    **_PARTS,
    "text_encoder": "it reads no texts; pass class_labels",
    "tokenizer": "it reads no texts; pass class_labels",
    "text_encoder_2": "it has no second text encoder",
    "tokenizer_2": "it has no second text encoder",
    "text_encoder_3": "it has no third text encoder",
    "tokenizer_3": "it has no third text encoder",
    "transformer_2": _NETWORK,
    "video_processor": "it draws pictures; use .image_processor",
    "tokenizer_max_length": "the longest prompt is .text_length",
    "load_ip_adapter": _PICTURES,
    "set_ip_adapter_scale": _PICTURES,
    "unload_ip_adapter": _PICTURES,
    "prepare_latents": "the random numbers of a picture follow from its seed; pass seed or generator",
    "decode_latents": "call vae.decode(latents).sample, and image_processor.postprocess",
    "prepare_image_latents": _EDITS,
    "prepare_mask_latents": _EDITS,
    "check_inputs": "check() takes the arguments of a call, and says what is wrong with them",
    "retrieve_timesteps": _SCHEDULER,
    "guidance_rescale": "pass guidance_scale, one number or one a scale",
    "clip_skip": "the text encoder's last layer is read, as in training",
    "attention_kwargs": _ATTENTION,
    "cross_attention_kwargs": _ATTENTION,
    "joint_attention_kwargs": _ATTENTION,
    "fuse_qkv_projections": "products of attention run through their own layers, as trained",
    "unfuse_qkv_projections": "products of attention run through their own layers, as trained",
    "enable_cache": _CACHE,
    "disable_cache": _CACHE,
    "cuda": _MOVE,
    "cpu": _MOVE,
    "half": _MOVE,
    "float": _MOVE,
    "bfloat16": _MOVE,
    "eval": "its parts are in evaluation mode when they are loaded",
}
"""Attribute of other pipelines -> what to know or to use instead."""


class ExplainedPipeline(CheckedPipeline):
    """A pipeline that says what to use instead of what other pipelines have."""

    def __getattr__(self, name: str) -> Any:
        """Names that are not there.

        Raises:
            AttributeError: Saying what to use instead, so that `hasattr` and `getattr` with a default work.
        """
        if name in _ABSENT:
            raise AttributeError(f"{type(self).__name__} has no {name}: {_ABSENT[name]}.")
        return super().__getattr__(name)

    if not TYPE_CHECKING:
        # A type checker would believe that every attribute may be set.

        def __setattr__(self, name: str, value: Any) -> None:
            """Refuses parts that nothing would read; None is what they are."""
            if name in _PARTS and value is not None and name not in self._get_signature_keys(type(self))[0]:
                raise AttributeError(f"{type(self).__name__} has no {name}: {_ABSENT[name]}.")
            super().__setattr__(name, value)

    def enable_attention_slicing(self, *args: Any, **kwargs: Any) -> None:
        """Raises ValueError: attention is never sliced here."""
        raise ValueError(
            "Attention is not sliced: its kernels need no memory for scores; to save memory use "
            "enable_vae_tiling() or enable_model_cpu_offload()."
        )

    set_attention_slice = enable_attention_slicing

    def disable_attention_slicing(self) -> None:
        """Attention is never sliced here."""

    def enable_xformers_memory_efficient_attention(self, *args: Any, **kwargs: Any) -> None:
        """Raises ValueError: torch's own attention is used."""
        raise ValueError(
            "xFormers is not used: torch's scaled_dot_product_attention needs as little memory; leave it out."
        )

    def enable_freeu(self, *args: Any, **kwargs: Any) -> None:
        """Raises ValueError: it is for U-Nets."""
        raise ValueError("FreeU changes U-Nets, and this model has none: leave it out.")

    def disable_freeu(self) -> None:
        """There is none here."""
