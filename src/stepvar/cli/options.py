"""The options that commands share: which model, which plan, which size, how to sample."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stepvar.cli.errors import InputError
from stepvar.cli.values import parse_aspect, parse_numbers, parse_ratios, parse_scales, parse_size

if TYPE_CHECKING:
    import torch

    from stepvar.generation.pruner import PruningMethod

EMBEDDED_VIDEO = "embedded-video"
"""What --model calls the video model inside the package."""

DTYPES = ("float32", "bfloat16", "float16")

OPTION_NAMES = {
    "negative_prompt": "--negative",
    "temperature": "--temperature",
    "smooth": "--smooth",
    "aspect_ratio": "--aspect",
    "pixel_budget": "--budget",
    "seconds": "--seconds",
    "image": "--image",
    "video": "--video",
    "guidance_threshold": "--guidance-threshold",
    "posterior": "--posterior",
    "decode_tile": "--tile",
    "cascade": "--cascade",
}
"""Options that some models have no use for, by the argument of a pipeline's call."""

Prompt = Annotated[
    str, typer.Argument(help="What the picture shows; for a model of classes a class, by number or name.")
]
ExamplePrompt = Annotated[
    str | None, typer.Argument(help="What the pictures show, an example by default; all take the same time.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, and nothing else, on stdout.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE|DIR", help="A .png file, or a folder for named files."),
]
MediaOutput = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="FILE|DIR", help="A .png file (videos: .mp4 or .gif), or a folder."
    ),
]
Seed = Annotated[
    int | None, typer.Option(help="Seed of the first picture; the others count on. Default: a fresh one.")
]
FixedSeed = Annotated[int, typer.Option(help="Seed of the first picture; the others count on.")]
Number = Annotated[int, typer.Option("-n", "--number", min=1, max=1_000_000, help="Pictures of each prompt.")]


@dataclass(frozen=True)
class ModelOptions:
    """Which model, where it runs and in which number format."""

    model: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help=f"A folder that 'stepvar convert' wrote, or {EMBEDDED_VIDEO}. Default: embedded.",
        ),
    ] = None
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT", help="float32, bfloat16 or float16. Default: float32; on CUDA bfloat16."
        ),
    ] = None
    device: Annotated[str, typer.Option(help="cpu, cuda (cuda:1, ...) or auto.")] = "auto"
    offload: Annotated[
        bool, typer.Option("--offload", help="Keep on the GPU only the part that is working.")
    ] = False

    @property
    def embedded(self) -> Literal["pictures", "video"] | None:
        """Name of the embedded model that is asked for; None where a folder is."""
        if self.model is None:
            return "pictures"
        return "video" if str(self.model) == EMBEDDED_VIDEO else None

    def resolve_device(self) -> str:
        """The device as torch names it.

        Raises:
            InputError: When there is no such device here.
        """
        import torch

        present = torch.cuda.device_count() if torch.cuda.is_available() else 0
        device = ("cuda" if present else "cpu") if self.device == "auto" else self.device
        if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", device):
            raise InputError(
                f"Unknown --device {self.device!r}; known are cpu, cuda, cuda:1 and so on, auto."
            )
        if device != "cpu" and int(device.partition(":")[2] or 0) >= present:
            found = f"{present} CUDA device{'s'[: present != 1]}"
            raise InputError(f"--device {device} is not there, this machine has {found}; use --device cpu.")
        if self.offload and device == "cpu":
            raise InputError(
                "--offload moves parts between CPU and GPU, and there is no GPU in use: leave it out."
            )
        return device

    def resolve_dtype(self, device: str) -> torch.dtype:
        """The number format to load weights in."""
        import torch

        if self.dtype is None:
            # Embedded models stay in float32 everywhere, so that their pictures are the same everywhere.
            return torch.bfloat16 if device != "cpu" and self.embedded is None else torch.float32
        if self.dtype not in DTYPES:
            raise InputError(f"Unknown --dtype {self.dtype!r}; known are {', '.join(DTYPES)}.")
        return getattr(torch, self.dtype)


@dataclass(frozen=True)
class PlanOptions:
    """What to prune and what to skip."""

    pruning: Annotated[
        str | None,
        typer.Option(
            metavar="PRESET", help="paper, prune, skip, fastvar, another of the model's plans, or none."
        ),
    ] = None
    method_name: Annotated[
        str | None,
        typer.Option(
            "--method",
            metavar="METHOD",
            help="With --ratios or --skip: stepvar (default), fastvar or sparsevar-standin.",
        ),
    ] = None
    ratios: Annotated[
        str | None,
        typer.Option(
            metavar="SCALE=SHARE,...",
            help="Share of tokens to prune, by the scale's height in tokens, or counted from the end (-1 is "
            "the last); for videos count from the end, since many steps are equally high.",
        ),
    ] = None
    skip: Annotated[
        str | None,
        typer.Option(
            metavar="SCALE,...", help="Scales not to run at all, named likewise; for videos from the end."
        ),
    ] = None

    def method(self, default: str | None = None) -> PruningMethod | str | None:
        """What to pass as `pruning=`.

        Args:
            default: A preset's name for when nothing was asked.

        Raises:
            InputError: When a preset and a plan of one's own were given together.
        """
        if self.ratios is None and self.skip is None:
            if self.method_name is not None:
                raise InputError(f"--method {self.method_name} names no scale: give --ratios or --skip too.")
            return self.pruning or default
        if self.pruning is not None:
            raise InputError(
                f"--pruning {self.pruning} is a whole plan: give it, or --ratios and --skip, not both."
            )
        ratios = parse_ratios(self.ratios) if self.ratios is not None else {}
        skip = parse_scales(self.skip) if self.skip is not None else ()
        from stepvar.pruning.presets import with_scales

        return with_scales(self.method_name or "stepvar", ratios, skip)


Lpips = Annotated[
    str | None,
    typer.Option(
        "--lpips",
        metavar="NET|FILE",
        help="LPIPS too: a file of torchvision's weights; or alex, vgg, squeeze, downloaded before.",
    ),
]
Seconds = Annotated[
    int | None, typer.Option(min=0, help="Of the whole video; 0 draws a picture. Default: the model's.")
]
Second = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="A second, smaller model of the same visual tokenizer: it goes on where the first one stops.",
    ),
]


@dataclass(frozen=True)
class CascadeOptions:
    """Two models, one after the other."""

    cascade: Second = None
    drafted: Annotated[
        int | None,
        typer.Option(min=1, help="With --cascade: scales that --model draws. Default: all but two."),
    ] = None

    def check(self) -> None:
        """Raises InputError when a number of scales was given, but no second model."""
        if self.drafted is not None and self.cascade is None:
            raise InputError(
                "--drafted says what the first of two models draws: name the other by --cascade."
            )


@dataclass(frozen=True)
class SizeOptions:
    """How large the pictures are."""

    size: Annotated[str | None, typer.Option(metavar="WIDTHxHEIGHT", help="In pixels, such as 1024x768.")] = (
        None
    )
    aspect: Annotated[
        str | None, typer.Option(metavar="WIDTH:HEIGHT", help="Instead of a size, such as 4:3.")
    ] = None
    budget: Annotated[
        str | None, typer.Option(metavar="PIXELS", help="With --aspect: how many pixels, such as 1M.")
    ] = None

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for a pipeline's call, its summary and its schedule."""
        arguments: dict[str, Any] = {}
        if self.size is not None:
            if self.aspect is not None or self.budget is not None:
                raise InputError("Give --size, or --aspect and --budget, not both.")
            arguments["height"], arguments["width"] = parse_size(self.size)
        if self.aspect is not None:
            arguments["aspect_ratio"] = parse_aspect(self.aspect)
        if self.budget is not None:
            arguments["pixel_budget"] = self.budget
        return arguments


@dataclass(frozen=True)
class SamplingOptions:
    """How pictures are drawn from what the model predicts; what is not given is the model's default."""

    negative: Annotated[str | None, typer.Option(metavar="TEXT", help="What to steer away from.")] = None
    guidance: Annotated[
        str | None,
        typer.Option(metavar="X[,X...]", help="Guidance, one number or one a scale."),
    ] = None
    temperature: Annotated[
        str | None, typer.Option(metavar="X[,X...]", help="Above 0, one number or one a scale.")
    ] = None
    top_k: Annotated[int | None, typer.Option(min=0, help="1 takes the likeliest; 0 is off.")] = None
    top_p: Annotated[float | None, typer.Option(help="Drops the rarest 1 - X; 0 is off.")] = None
    smooth: Annotated[
        bool | None, typer.Option("--smooth/--no-smooth", help="Mix codes instead of picking one.")
    ] = None

    def texts(self, prompts: Sequence[str]) -> list[str]:
        """Everything that the text encoder will read."""
        return [*prompts] if self.negative is None else [*prompts, self.negative]

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for a pipeline's call."""
        if self.negative is not None and not self.negative.strip():
            raise InputError("--negative is empty: say what to steer away from, or leave it out.")
        given = {
            "negative_prompt": self.negative,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "smooth": self.smooth,
        }
        arguments = {name: value for name, value in given.items() if value is not None}
        if self.guidance is not None:
            arguments["guidance_scale"] = parse_numbers(self.guidance, "--guidance")
        if self.temperature is not None:
            arguments["temperature"] = parse_numbers(self.temperature, "--temperature")
        return arguments


@dataclass(frozen=True)
class VideoOptions:
    """How long a video is, what it begins with, how it is drawn; only for models that draw videos."""

    seconds: Seconds = None
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A picture that the video begins with.")
    ] = None
    video: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A video to go on from: its first seconds are kept.")
    ] = None
    guidance_threshold: Annotated[
        float | None,
        typer.Option(help="Of a video's projected guidance; 0 is plain guidance. Default: the model's."),
    ] = None
    posterior: Annotated[
        str | None,
        typer.Option(
            metavar="sample|mean", help="How --image or --video is encoded; default: sample, by the seed."
        ),
    ] = None
    tile: Annotated[
        int | None,
        typer.Option(
            min=2,
            metavar="CELLS",
            help="Decode videos in tiles of so many latent cells a side, such as 24: takes less memory.",
        ),
    ] = None

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for a call of a pipeline that draws videos, and for its summary."""
        given = {
            "seconds": self.seconds,
            "image": self.image,
            "video": self.video,
            "guidance_threshold": self.guidance_threshold,
            "posterior": self.posterior,
            "decode_tile": self.tile,
        }
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class VideoFileOptions(VideoOptions):
    """A video, and how its file is written."""

    frames: Annotated[bool, typer.Option("--frames", help="Write each video as a folder of .png files.")] = (
        False
    )

    @property
    def given(self) -> list[str]:
        """Options that were given and ask for a video."""
        named = {"--seconds": self.seconds, "--image": self.image, "--video": self.video}
        return [name for name, value in named.items() if value is not None] + ["--frames"] * self.frames

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Endings of the files, the usual one first; empty for a folder of frames."""
        if self.frames:
            return ("",)
        return (".png",) if self.seconds == 0 else (".mp4", ".gif")
