"""Results of a call: pictures in the form asked for, time and memory they took, settings as JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput
from diffusers.video_processor import VideoProcessor
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stepvar.generation.loop import NonFiniteError
from stepvar.generation.progress import Observer, Stopwatch
from stepvar.generation.report import Report

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
STAGES = ("text", "scales", "decode")
CALLBACK_TENSORS = ("latents",)

StepCallback = Callable[[Any, int, int, dict[str, Tensor]], Mapping[str, Tensor] | None]
"""A callback of diffusers: (pipeline, step, timestep, tensors) -> tensors that replace them."""

Output = TypeVar("Output", bound=BaseOutput)


def changed_latent(changed: Any, latent: Tensor) -> Tensor:
    """The accumulated codes after a callback.

    Args:
        changed: What it returned.
        latent: The codes that it was given.

    Raises:
        ValueError: When it returned no dictionary, or codes of another shape.
    """
    if changed is None:
        return latent
    if not isinstance(changed, Mapping):
        raise ValueError(
            f"callback_on_step_end returned a {type(changed).__name__}: return a dictionary of the tensors "
            "that change, {} for none."
        )
    new = changed.get("latents", latent)
    if not isinstance(new, Tensor) or new.shape != latent.shape:
        shape = list(new.shape) if isinstance(new, Tensor) else type(new).__name__
        raise ValueError(f"callback_on_step_end returned latents of {shape}; give {list(latent.shape)}.")
    return new.to(latent)


@dataclass(frozen=True)
class CallOptions:
    """In which form a result is handed over, and what is called on the way.

    Attributes:
        output_type: One of `OUTPUT_TYPES`.
        observer: Called after each scale.
        return_dict: False for the output's fields as a tuple, as in diffusers.
        callback: Called as callback(pipeline, step, timestep, tensors) after each scale that ran; step and
            timestep are its index. Tensors that it returns replace those it was given.
        callback_tensors: Names of the tensors it is given: "latents", the accumulated codes.
        batch_invariant: Whether every picture is computed by itself.

    Raises:
        ValueError: When there is no such form, or no such tensor.
    """

    output_type: str = "pil"
    observer: Observer | None = None
    return_dict: bool = True
    callback: StepCallback | None = None
    callback_tensors: Sequence[str] = CALLBACK_TENSORS
    batch_invariant: bool = False

    def __post_init__(self) -> None:
        for name, called in (("callback_on_step_end", self.callback), ("observer", self.observer)):
            if called is not None and not callable(called):
                raise ValueError(f"{name} is of type {type(called).__name__}: give a function.")
        # Callbacks of diffusers' own say what they need.
        object.__setattr__(
            self, "callback_tensors", getattr(self.callback, "tensor_inputs", self.callback_tensors)
        )
        for name in self.callback_tensors:
            if name not in CALLBACK_TENSORS:
                raise ValueError(
                    f"callback_on_step_end_tensor_inputs has {name!r}; known are "
                    f"{', '.join(CALLBACK_TENSORS)}; changing guidance is guidance_scale=[...], one a scale."
                )
        if self.output_type not in OUTPUT_TYPES:
            raise ValueError(
                f"Unknown output_type {self.output_type!r}; known are {', '.join(OUTPUT_TYPES)}."
            )

    def packed(self, output: Output) -> Output:
        """The output, or its fields as a tuple."""
        return output if self.return_dict else output.to_tuple()  # type: ignore[return-value]  # as diffusers


@dataclass(repr=False)
class ImageOutput(BaseOutput):
    """Result of a pipeline that draws pictures.

    Attributes:
        images: PIL pictures, an array [B, H, W, 3] or a tensor [B, 3, H, W] in 0..1, or the accumulated codes
            [B, d, H, W], as was asked for.
        report: What ran, what it kept, how long it took.
    """

    images: list[Image.Image] | NDArray[np.float32] | Tensor
    report: Report

    def __repr__(self) -> str:
        return f"{type(self).__name__}({describe_media(self.images)}, {describe_run(self.report)})"


def describe_media(media: Any) -> str:
    """Pictures or videos in a few words."""
    if isinstance(media, (Tensor, np.ndarray)):
        return f"{type(media).__name__} of shape {tuple(media.shape)}"
    count, first = len(media), media[0]
    if isinstance(first, list):
        size = "x".join(map(str, first[0].size))
        return f"{count} video{'s' * (count > 1)} of {len(first)} frames of {size}"
    return f"{count} picture{'s' * (count > 1)} of {'x'.join(map(str, first.size))}"


def describe_run(report: Report) -> str:
    """Seeds, tokens and time in a few words."""
    kept = report.kept_tokens / max(report.total_tokens, 1)
    return f"seeds {list(report.seeds)}, {kept:.0%} of the tokens, {report.seconds:.2f} s"


@dataclass
class StageTimer:
    """Seconds of each stage of a call; a GPU is waited for only when they are read.

    Attributes:
        device: Where the call runs.
        spans: (stage, number of its first mark) of everything measured so far.
    """

    device: torch.device
    spans: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._watch = Stopwatch(self.device)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds what happens inside to a stage."""
        start = len(self._watch.marks)
        self._watch.mark()
        yield
        self._watch.mark()
        self.spans.append((name, start))

    def seconds(self) -> dict[str, float]:
        """Seconds by stage."""
        total = dict.fromkeys(STAGES, 0.0)
        for name, start in self.spans:
            total[name] = total.get(name, 0.0) + self._watch.seconds(start)
        return total


def reset_peak_memory(device: torch.device) -> None:
    """Starts a new measurement of the peak memory where the device can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of the device on CUDA, of this process elsewhere; 0 where it is unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def require_finite_pixels(pixels: Tensor) -> Tensor:
    """Decoded pixels, which lie in a range of a few units.

    Raises:
        NonFiniteError: When one is no finite number; waits for the device.
    """
    if not pixels.is_meta and not bool(pixels.sum(dtype=torch.float32).isfinite()):
        raise NonFiniteError(
            "The visual tokenizer decoded pixels that are no finite numbers: its weights are damaged, or the "
            "number format is too small; load it again, or use float32."
        )
    return pixels


def to_output(pixels: Tensor, kind: str) -> list[Image.Image] | NDArray[np.float32] | Tensor:
    """Pixels [B, 3, H, W] in -1..1 as "pil" pictures, "np" array or "pt" tensor in 0..1."""
    scaled = (pixels.float() + 1.0) / 2.0
    if kind == "pt":
        return scaled
    if kind == "np":
        array: NDArray[np.float32] = scaled.permute(0, 2, 3, 1).cpu().numpy()
        return array
    # Truncation, as the official code converts.
    pictures = (scaled * 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in pictures]


class PictureProcessor(VaeImageProcessor):
    """The image processor of diffusers, but numbers are cut off to bytes, not rounded, as in a call."""

    @staticmethod
    def numpy_to_pil(images: NDArray[np.float32]) -> list[Image.Image]:
        """An array [B, H, W, 3] in 0..1 as pictures."""
        return [Image.fromarray(picture) for picture in (images * 255).astype(np.uint8)]


class FrameProcessor(PictureProcessor, VideoProcessor):
    """The same of videos, with `postprocess_video`."""


def as_json_value(value: Any) -> Any:
    """A setting in a form that JSON can hold."""
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if isinstance(value, Mapping):
        return {str(key): as_json_value(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [as_json_value(entry) for entry in value]
    settings = getattr(value, "settings", None)
    if callable(settings):
        # A method whose fields may be functions says itself how they are written down.
        return {"method": type(value).__name__, **as_json_value(settings())}
    if hasattr(value, "__dataclass_fields__"):
        fields = {name: as_json_value(getattr(value, name)) for name in value.__dataclass_fields__}
        return {"method": type(value).__name__, **fields}
    return str(value)
