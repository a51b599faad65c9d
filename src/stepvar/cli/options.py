"""Options that commands share: which model, which plan, which size, how to sample.

An option for an argument that pipelines already take is one field of a `CallOptions` group below, and nothing
else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepvar.cli.errors import InputError
from stepvar.cli.groups import CallOptions, Parsed
from stepvar.cli.rules import RecoveryRule, ScoreRule, register_rules
from stepvar.cli.values import parse_aspect, parse_numbers, parse_ratios, parse_scales, parse_size, parse_text
from stepvar.embedded import EMBEDDED_NAMES

if TYPE_CHECKING:
    import torch

    from stepvar.pruning.presets import Pruning

DTYPES = ("float32", "bfloat16", "float16")

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
            metavar="MODEL",
            help="A folder that 'stepvar convert' wrote, owner/name on the hub, an official file, or "
            f"{', '.join(EMBEDDED_NAMES)} for a model inside the package. Default: embedded.",
        ),
    ] = None
    vae: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Visual tokenizer of an official file. Default: beside it."),
    ] = None
    text_encoder: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Its text encoder; again for a second one. Default: beside it."),
    ] = None
    kind: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="What an official file is, where its weights do not tell: varedit."
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
    def embedded(self) -> str | None:
        """Name of the embedded model that is asked for; None where a folder is."""
        return "pictures" if self.model is None else EMBEDDED_NAMES.get(str(self.model))

    @property
    def companions(self) -> dict[str, Any]:
        """What `stepvar.load` takes beside an official transformer."""
        given = {"vae": self.vae, "text_encoder": self.text_encoder, "kind": self.kind}
        return {name: value for name, value in given.items() if value}

    def resolve_device(self) -> str:
        """The device as torch names it.

        Raises:
            InputError: When there is no such device here.
        """
        from stepvar.checkpoints.devices import count_devices

        device = ("cuda" if count_devices("cuda") else "cpu") if self.device == "auto" else self.device
        if not re.fullmatch(r"cpu|mps|(cuda|xpu)(:\d{1,3})?", device):
            raise InputError(
                f"Unknown --device {self.device!r}; known are cpu, cuda, cuda:1 and so on, xpu, mps, auto."
            )
        kind, _, number = device.partition(":")
        present = count_devices(kind)
        if int(number or 0) >= present:
            found = f"{present} {kind.upper()} device{'s'[: present != 1]}"
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
            metavar="PRESET|FILE",
            help="best (fastest at about equal quality), faithful (nearest to dense), paper, prune, skip, "
            "another one that 'stepvar presets' lists, none, or a plan of 'stepvar calibrate', a .json file.",
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

    score: ScoreRule = None
    recovery: RecoveryRule = None
    values: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="What pruned positions draw: own (default), copied or expected."),
    ] = None
    unguided: Annotated[
        int | None,
        typer.Option(
            metavar="SCALE", help="First scale without classifier-free guidance, named as in --ratios."
        ),
    ] = None
    remaining: Annotated[
        str | None,
        typer.Option(
            metavar="COPY", help="What goes on alone from --unguided: conditional (default) or unconditional."
        ),
    ] = None

    @property
    def title(self) -> str:
        """The plan in words, as the options say it; "none" where none was given."""
        parts = {
            "": self.pruning,
            "method ": self.method_name,
            "ratios ": self.ratios,
            "skip ": self.skip,
            "score ": self.score,
            "recovery ": self.recovery,
            "values ": self.values,
            "unguided ": self.unguided,
            "remaining ": self.remaining,
        }
        given = [f"{name}{value}" for name, value in parts.items() if value is not None]
        return " ".join(given) or "none"

    def method(self, default: str | None = None) -> Pruning:
        """What to pass as `pruning=`.

        Rules, values and guidance change what the plan has: the preset, the ratios, or without either the
        preset "paper"; guidance may also be all that is dropped.

        Args:
            default: A preset's name for when nothing was asked.

        Raises:
            InputError, ValueError: When options contradict each other, or a rule is unknown.
        """
        changes: dict[str, Any] = register_rules(self.score, self.recovery)
        given = {"values": self.values, "unguided": self.unguided, "remaining": self.remaining}
        changes |= {name: value for name, value in given.items() if value is not None}
        if self.ratios is None and self.skip is None:
            if self.method_name is not None:
                raise InputError(f"--method {self.method_name} names no scale: give --ratios or --skip too.")
            return self._changed_preset(self.pruning or default, changes)
        if self.pruning is not None:
            raise InputError(
                f"--pruning {self.pruning} is a whole plan: give it, or --ratios and --skip, not both."
            )
        ratios = parse_ratios(self.ratios) if self.ratios is not None else {}
        skip = parse_scales(self.skip) if self.skip is not None else ()
        from stepvar.pruning.presets import changed, with_scales

        name = self.method_name or "stepvar"
        return changed(with_scales(name, ratios, skip), changes, f"--method {name}")

    @staticmethod
    def _changed_preset(name: str | None, changes: dict[str, Any]) -> Pruning:
        if not changes:
            return name
        if name == "none":
            raise InputError(f"--pruning none prunes nothing: leave --{next(iter(changes))} out.")
        from stepvar.pruning.presets import ChangedPreset, changed, with_scales

        if name is None and "unguided" in changes and changes.keys() <= {"unguided", "remaining"}:
            return changed(with_scales("stepvar", {}), changes, "a plan without ratios")
        return ChangedPreset(name or "paper", changes)


Lpips = Annotated[
    str | None,
    typer.Option(
        "--lpips",
        metavar="NET|FILE",
        help="LPIPS too: a file of torchvision's weights; or alex, vgg, squeeze, downloaded before.",
    ),
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
class SizeOptions(CallOptions):
    """How large the pictures are."""

    size: Annotated[
        str | None,
        typer.Option(metavar="WIDTHxHEIGHT", help="In pixels, such as 1024x768."),
        Parsed(parse_size),
    ] = None
    aspect_ratio: Annotated[
        str | None,
        typer.Option("--aspect", metavar="WIDTH:HEIGHT", help="Instead of a size, such as 4:3."),
        Parsed(parse_aspect),
    ] = None
    pixel_budget: Annotated[
        str | None,
        typer.Option("--budget", metavar="PIXELS", help="With --aspect: how many pixels, such as 1M."),
    ] = None

    def arguments(self) -> dict[str, Any]:
        """As in the base class, with the size as height and width."""
        if self.size is not None and not self.aspect_ratio is self.pixel_budget is None:
            raise InputError("Give --size, or --aspect and --budget, not both.")
        given = super().arguments()
        if "size" in given:
            given["height"], given["width"] = given.pop("size")
        return given


@dataclass(frozen=True)
class SamplingOptions(CallOptions):
    """How pictures are drawn from what the model predicts; what is not given is the model's default."""

    negative_prompt: Annotated[
        str | None,
        typer.Option("--negative", metavar="TEXT", help="What to steer away from."),
        Parsed(parse_text),
    ] = None
    guidance_scale: Annotated[
        str | None,
        typer.Option("--guidance", metavar="X[,X...]", help="Guidance, one number or one a scale; 1 is off."),
        Parsed(parse_numbers),
    ] = None
    temperature: Annotated[
        str | None,
        typer.Option(metavar="X[,X...]", help="Above 0, one number or one a scale."),
        Parsed(parse_numbers),
    ] = None
    top_k: Annotated[int | None, typer.Option(min=0, help="1 takes the likeliest; 0 is off.")] = None
    top_p: Annotated[float | None, typer.Option(help="Drops the rarest 1 - X; 0 is off.")] = None
    smooth: Annotated[
        bool | None, typer.Option("--smooth/--no-smooth", help="Mix codes instead of picking one.")
    ] = None

    def texts(self, prompts: Sequence[str]) -> list[str]:
        """Everything that the text encoder will read."""
        return [*prompts] if self.negative_prompt is None else [*prompts, self.negative_prompt]


@dataclass(frozen=True)
class BatchOptions(CallOptions):
    """What pictures that are drawn at a time may have to do with each other."""

    batch_invariant: Annotated[
        bool | None,
        typer.Option(
            "--batch-invariant",
            help="Compute every picture by itself: no bit of it depends on the batch, in any number format.",
        ),
    ] = None


@dataclass(frozen=True)
class PictureOptions(CallOptions):
    """A picture that is given: a video begins with it, or an instruction says how to edit it."""

    image: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A picture that the video begins with, or that the prompt edits."),
    ] = None
    fit: Annotated[
        str | None,
        typer.Option(
            metavar="pad|crop",
            help="How a picture to edit comes onto the model's square; default: pad, with white.",
        ),
    ] = None


@dataclass(frozen=True)
class VideoOptions(CallOptions):
    """How long a video is, what it goes on from, how it is drawn; only for models that draw videos."""

    seconds: Annotated[
        int | None, typer.Option(min=0, help="Of the whole video; 0 draws a picture. Default: the model's.")
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
    decode_tile: Annotated[
        int | None,
        typer.Option(
            "--tile",
            min=2,
            metavar="CELLS",
            help="Decode videos in tiles of so many latent cells a side, such as 24: takes less memory.",
        ),
    ] = None

    @property
    def asking(self) -> list[str]:
        """Options that were given and ask for a video; the others only say how one is drawn."""
        named = {"--seconds": self.seconds, "--video": self.video}
        return [name for name, value in named.items() if value is not None]


OPTION_NAMES = {
    **SizeOptions.option_names(),
    **SamplingOptions.option_names(),
    **BatchOptions.option_names(),
    **PictureOptions.option_names(),
    **VideoOptions.option_names(),
    "height": "--size",
    "width": "--size",
    "cascade": "--cascade",
}
"""What an argument of a pipeline's call is called on the command line."""
