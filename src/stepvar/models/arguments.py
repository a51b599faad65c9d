"""Arguments of a call: one signature for `check` and `__call__`; unsupported ones and what replaces them."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

from stepvar.models.output import reset_peak_memory

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")

_STEPS = "the scales of the size are the steps"
_ATTENTION = "attention takes no arguments; pipe.set_adapters(name, weight) weighs a LoRA"
_NO_TEXTS = "this model reads no texts; pass class_labels"
_NO_CONTROL = "no ControlNet exists for this model"
_SIZE = "pass height and width, or aspect_ratio where the model has several shapes"
_COUNT = "pass num_images_per_prompt, or a list of prompts"

_INSTEAD: Mapping[str, str] = {
    "num_inference_steps": "the scales of the size are the steps; leave some out by a plan, pruning='skip'",
    "timesteps": _STEPS,
    "sigmas": _STEPS,
    "mu": _STEPS,
    "denoising_start": "nothing is denoised; a cascade draws the first scales with another model",
    "denoising_end": "nothing is denoised; a callback may end a run by pipe._interrupt = True",
    "decode_timestep": "nothing is denoised by the decoder",
    "steps": _STEPS,
    "num_steps": _STEPS,
    "latents": "the random numbers of a picture follow from its seed; pass seed or generator",
    "eta": "nothing is denoised; pass temperature, top_k or top_p where the model has them",
    "strength": "nothing is denoised; edit() takes it, for variations of a picture",
    "guidance_rescale": "pass guidance_scale, one number or one a scale",
    "true_cfg_scale": "pass guidance_scale",
    "guidance_scale_2": "pass guidance_scale",
    "cfg": "pass guidance_scale",
    "cfg_scale": "pass guidance_scale",
    "tau": "pass temperature where the model has it",
    "clip_skip": "the text encoder's last layer is read, as in training",
    "prompt_2": "pass prompt, which all text encoders read",
    "prompt_3": "pass prompt, which all text encoders read",
    "negative_prompt_2": "pass negative_prompt, which all text encoders read",
    "negative_prompt_3": "pass negative_prompt, which all text encoders read",
    "num_videos_per_prompt": "pass num_images_per_prompt, which counts videos too",
    "num_images_per_label": "pass num_images_per_prompt, which counts pictures of a class too",
    "class_labels": "this model reads texts; pass prompt",
    "prompt": _NO_TEXTS,
    "prompt_embeds": _NO_TEXTS,
    "prompt_attention_mask": _NO_TEXTS,
    "negative_prompt": _NO_TEXTS,
    "negative_prompt_embeds": _NO_TEXTS,
    "negative_prompt_attention_mask": _NO_TEXTS,
    "pooled_prompt_embeds": "this model pools no texts",
    "negative_pooled_prompt_embeds": "this model pools no texts",
    "prompt_mask": "pass prompt_attention_mask",
    "prompt_embeds_mask": "pass prompt_attention_mask",
    "num_images": _COUNT,
    "batch_size": _COUNT,
    "num_samples": _COUNT,
    "video_length": "pass num_frames where the model draws videos",
    "original_size": _SIZE,
    "target_size": _SIZE,
    "negative_original_size": _SIZE,
    "negative_target_size": _SIZE,
    "crops_coords_top_left": _SIZE,
    "resolution": _SIZE,
    "use_resolution_binning": _SIZE,
    "num_frames": "this model draws pictures",
    "frame_rate": "the rate follows from the model; see frames_per_second of the output",
    "fps": "the rate follows from the model; see frames_per_second of the output",
    "callback": "pass callback_on_step_end",
    "callback_steps": "pass callback_on_step_end, which is called after every scale",
    "cross_attention_kwargs": _ATTENTION,
    "joint_attention_kwargs": _ATTENTION,
    "attention_kwargs": _ATTENTION,
    "max_sequence_length": "the longest prompt follows from the model",
    "ip_adapter_image": "no adapter of pictures exists for this model",
    "ip_adapter_image_embeds": "no adapter of pictures exists for this model",
    "control_image": _NO_CONTROL,
    "controlnet_conditioning_scale": _NO_CONTROL,
    "control_guidance_start": _NO_CONTROL,
    "control_guidance_end": _NO_CONTROL,
    "image": "pass it to edit() where the model has it; a call draws what the prompt says",
    "mask_image": "pass mask to edit(), where white may change",
}
"""What to do instead of arguments that pipelines of other libraries take, where they mean nothing here."""


class UnsupportedArgumentError(TypeError, ValueError):
    """An argument that a pipeline does not take; the message says what to use instead."""


def known_arguments(pipeline: str, given: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Arguments that a call takes; None for one that other pipelines have is as good as none.

    Raises:
        UnsupportedArgumentError: Naming the first one, and what to use instead.
    """
    unknown = [name for name in given if name not in known]
    for name in unknown:
        if given[name] is None and name in _INSTEAD:
            continue
        similar = difflib.get_close_matches(name, known, 1)
        hint = _INSTEAD.get(name) or (f"did you mean {similar[0]}?" if similar else "leave it out")
        raise UnsupportedArgumentError(f"{pipeline} takes no {name}: {hint}.".replace("?.", "?"))
    return {name: value for name, value in given.items() if name in known}


def with_arguments_of(
    check: Callable[Concatenate[Any, Arguments], Any],
) -> Callable[[Callable[..., Result]], Callable[Concatenate[Any, Arguments], Result]]:
    """Decorator of a pipeline's `__call__`, which takes the arguments of its `check` and hands them on.

    The call gets the signature and the documentation of `check`. It runs without gradients, and without an
    outer autocast: pictures depend on their settings alone.
    """
    signature = inspect.signature(check)

    def decorate(call: Callable[..., Result]) -> Callable[Concatenate[Any, Arguments], Result]:
        @functools.wraps(call)
        def wrapped(self: Any, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            taken: Any = known_arguments(type(self).__name__, kwargs, signature.parameters)
            with self.drawing():
                return call(self, *args, **taken)

        returned = inspect.signature(call).return_annotation
        vars(wrapped)["__signature__"] = signature.replace(return_annotation=returned)
        first, _, rest = (check.__doc__ or "").partition("\n\n")
        wrapped.__doc__ = f"{(call.__doc__ or first).strip()}\n\n{rest}"
        return wrapped

    return decorate


@contextmanager
def outside_of_training(device: torch.device) -> Iterator[None]:
    """Without gradients, and without an outer autocast: pictures depend on their settings alone."""
    reset_peak_memory(device)
    with torch.no_grad(), without_autocast(device):
        yield


@contextmanager
def without_autocast(device: torch.device) -> Iterator[None]:
    """Turns an outer `torch.autocast` off for a device."""
    if device.type in _AUTOCAST_DEVICES and torch.is_autocast_enabled(device.type):
        with torch.autocast(device.type, enabled=False):
            yield
    else:
        yield
