"""`stepvar generate` and `stepvar summary`: pictures from prompts, and what drawing them costs."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepvar.cli import display
from stepvar.cli.errors import InputError, report_errors
from stepvar.cli.groups import with_option_groups
from stepvar.cli.models import (
    check_options,
    note_other_aspect,
    open_cascade,
    quiet_libraries,
    require_prompts,
)
from stepvar.cli.options import (
    BatchOptions,
    CascadeOptions,
    Json,
    MediaOutput,
    ModelOptions,
    Number,
    PictureOptions,
    PlanOptions,
    SamplingOptions,
    Seed,
    SizeOptions,
    VideoOptions,
)
from stepvar.cli.outputs import (
    SUFFIX,
    VIDEO_SUFFIXES,
    Destination,
    encode_media,
    versions,
    write_outputs,
)
from stepvar.cli.runs import RunRequest, WorkOptions, carry_out
from stepvar.media.names import slug

if TYPE_CHECKING:
    from PIL.Image import Image

    from stepvar.evaluation.benchmark_task import Task
    from stepvar.generation.report import Report
    from stepvar.models.pipeline import NextScalePipeline

Prompts = Annotated[
    list[str] | None,
    typer.Argument(help="What the pictures show, one prompt or several; classes for a model of classes."),
]
PromptsFile = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        metavar="FILE",
        help="A file of prompts, one a line, or a .jsonl of objects with a prompt and a size: drawn into the "
        "folder -o, which a stopped run goes on with.",
    ),
]
Frames = Annotated[bool, typer.Option("--frames", help="Write each video as a folder of .png files.")]
Batch = Annotated[int, typer.Option(min=1, max=4096, help="Pictures drawn at a time: more take more memory.")]

FRESH_SEEDS = 2**31


@report_errors
@with_option_groups
def generate(
    model: ModelOptions,
    plan: PlanOptions,
    size: SizeOptions,
    sampling: SamplingOptions,
    picture: PictureOptions,
    video: VideoOptions,
    cascade: CascadeOptions,
    together: BatchOptions,
    work: WorkOptions,
    prompt: Prompts = None,
    prompts: PromptsFile = None,
    frames: Frames = False,
    seed: Seed = None,
    number: Number = 1,
    batch: Batch = 4,
    output: MediaOutput = None,
    json: Json = False,
) -> None:
    """Draw pictures, or videos, of prompts, or of classes; or edit a picture as the prompt says.

    Each is written with its settings inside, by default named after its prompt and seed. With --prompts they
    are numbered, and manifest.jsonl in their folder holds the settings.
    """
    if prompts is not None:
        foreign: dict[str, Any] = {"PROMPT...": prompt, "--frames": frames, "--cascade": cascade.cascade}
        foreign |= {
            "--image": picture.image,
            "--fit": picture.fit,
            "--video": video.video,
            "--drafted": cascade.drafted,
        }
        task = _task(prompts, foreign, output, seed, number)
        others = {**video.arguments(), **together.arguments()}
        run = RunRequest(task, output or Path(), model, plan, size, sampling, others, True)
        carry_out(run, work, batch, json)
        return
    if work.given:
        raise InputError(f"{work.given[0]} is for a run of many prompts: name a file of them with --prompts.")
    if not prompt:
        raise InputError("No prompt was given: describe a picture, or name a file of prompts with --prompts.")
    require_prompts(prompt)
    dimensions = size.arguments()
    settings = {
        **dimensions,
        **sampling.arguments(),
        **picture.arguments(),
        **video.arguments(),
        **together.arguments(),
        "pruning": plan.method(),
    }
    wanted = Destination.parse(output, _suffixes(video, frames))
    first = secrets.randbelow(FRESH_SEEDS) if seed is None else seed
    repeated = [entry for entry in prompt for _ in range(number)]
    jobs = [(entry, first + index) for index, entry in enumerate(repeated)]
    wanted.check_names(len(jobs), (picture.image, video.video))
    suggestions = [f"{slug(entry)}-{own_seed}" for entry, own_seed in jobs]
    with quiet_libraries():
        pipeline, drafter = open_cascade(model, cascade, dimensions)
        settings |= drafter
        check_options(pipeline, settings)
        note_other_aspect(pipeline, dimensions)
        destination = check_media(pipeline, video, frames, wanted)
        if destination.kind == SUFFIX and pipeline.draws_videos:
            settings["seconds"] = 0
        pipeline.check_prompts(prompt, sampling.texts([]), settings.get("seconds"))
        paths = destination.names(suggestions)
        single = pipeline.draws_videos or bool(together.batch_invariant)
        drawn = draw_all(pipeline, jobs, paths, 1 if single else batch, settings)
    if json:
        display.print_json(drawn.as_json())
    else:
        typer.echo(drawn.describe())


def _task(prompts: Path, foreign: dict[str, Any], output: Path | None, seed: int | None, number: int) -> Task:
    """What a file of prompts asks for; what is wrong is said before a model is loaded."""
    from stepvar.evaluation.benchmark_task import Task
    from stepvar.evaluation.own_prompts import PROMPTS
    from stepvar.evaluation.run_folder import check_run_folder

    for name, value in foreign.items():
        if value:
            raise InputError(f"{name} and --prompts were both given: give one of them.")
    if output is None:
        raise InputError("--prompts draws into a folder: name a new one with -o, or one to go on with.")
    if seed is not None and seed < 0:
        raise InputError(f"The seed {seed} is out of range: use 0 or more.")
    check_run_folder(output)
    # Not a fresh one: the same command goes on with the folder.
    return Task.load(PROMPTS, prompts, seed or 0, number)


def _suffixes(video: VideoOptions, frames: bool) -> tuple[str, ...]:
    """Endings that -o may have, the usual one first; which model draws is not known yet."""
    if frames:
        return ("",)
    if video.seconds == 0:
        return (SUFFIX,)
    return VIDEO_SUFFIXES if video.asking else (SUFFIX, *VIDEO_SUFFIXES)


def check_media(
    pipeline: NextScalePipeline, video: VideoOptions, frames: bool, wanted: Destination
) -> Destination:
    """Where a pipeline's results go: a video's own ending, where none was asked for.

    Raises:
        InputError, VideoSupportError: When videos are asked of a model of pictures, or cannot be written.
    """
    given = video.asking + ["--frames"] * frames
    if not pipeline.draws_videos:
        asked = given or [f"-o {wanted.stem}{wanted.suffix}"] * (wanted.kind in VIDEO_SUFFIXES)
        if asked:
            raise InputError(f"{asked[0]} is for models that draw videos, and this one draws pictures.")
        return wanted
    if wanted.stem is None and wanted.suffix == SUFFIX and video.seconds != 0:
        wanted = replace(wanted, suffix=VIDEO_SUFFIXES[0])
    if wanted.kind == VIDEO_SUFFIXES[0]:
        from stepvar.media.video import require_writer

        require_writer(wanted.kind)
    return wanted


@dataclass
class Drawn:
    """Everything that one command drew, in batches.

    Attributes:
        jobs: Prompt and seed of each picture.
        paths: File of each picture.
        reports: One a batch, as JSON: a report itself holds every drawn bit.
    """

    jobs: Sequence[tuple[str, int]]
    paths: Sequence[Path]
    reports: list[dict[str, Any]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        document = self._merged()
        document["images"] = [
            {"file": str(path), "prompt": prompt, "seed": seed}
            for path, (prompt, seed) in zip(self.paths, self.jobs, strict=True)
        ]
        document["versions"] = versions()
        return document

    def _merged(self) -> dict[str, Any]:
        """The reports of all batches as one: times add up, tokens are those of one picture."""
        from stepvar.evaluation.provenance import PER_PICTURE

        merged, *others = copy.deepcopy(self.reports)
        for other in others:
            merged["seconds"] += other["seconds"]
            merged["peak_bytes"] = max(merged["peak_bytes"], other["peak_bytes"])
            merged["cache_bytes"] = max(merged["cache_bytes"], other["cache_bytes"])
            merged["seeds"] += other["seeds"]
            for name in PER_PICTURE:
                if other["settings"].get(name) is not None:
                    merged["settings"][name] += other["settings"][name]
            for stage, spent in other["stages"].items():
                merged["stages"][stage] += spent
            for scale, more in zip(merged["scales"], other["scales"], strict=True):
                scale["seconds"] += more["seconds"]
        return merged

    def describe(self) -> str:
        """The report as a table, and the files."""
        merged = self._merged()
        rows: list[display.Row] = [
            (stage, "", "", display.format_seconds(merged["stages"][stage]))
            for stage in ("text", "encode")
            if stage in merged["stages"]
        ]
        rows += [
            (
                f"scale {scale['scale']}",
                f"{scale['tokens']:,}",
                display.format_kept(scale["kept"], scale["skipped"]),
                "" if scale["skipped"] else display.format_seconds(scale["seconds"]),
            )
            for scale in merged["scales"]
        ]
        rows.append(("decode", "", "", display.format_seconds(merged["stages"]["decode"])))
        kept, total = merged["tokens"]["kept"], merged["tokens"]["total"]
        rows += [(), ("total", f"{total:,}", f"{kept:,}", display.format_seconds(merged["seconds"]))]
        peak = display.format_bytes(merged["peak_bytes"])
        lines = [
            display.format_table(("stage", "tokens", "kept", "time"), rows),
            f"{kept / total:.0%} of the tokens kept; peak memory {peak}",
        ]
        lines += [f"{path} (seed {seed})" for path, (_, seed) in zip(self.paths, self.jobs, strict=True)]
        return "\n".join(lines)


def draw_all(
    pipeline: NextScalePipeline,
    jobs: Sequence[tuple[str, int]],
    paths: Sequence[Path],
    batch: int,
    settings: dict[str, Any],
    call: Callable[..., Any] | None = None,
) -> Drawn:
    """Draws all pictures; each batch is encoded and written while the next one is drawn.

    Args:
        settings: Arguments of the call.
        call: What draws; by default the pipeline itself.
    """
    from stepvar.media.encoding import BackgroundEncoder

    drawn = Drawn(jobs, paths)
    batches = range(0, len(jobs), batch)
    summary = pipeline.summary(**settings)
    progress = display.scale_progress("drawing", summary, len(batches))
    with progress as observer, BackgroundEncoder[dict[Path, bytes]]() as encoder:
        for start in batches:
            part = jobs[start : start + batch]
            result = (call or pipeline)(
                [prompt for prompt, _ in part],
                seed=[seed for _, seed in part],
                observer=observer,
                **settings,
            )
            drawn.reports.append(result.report.as_json())
            media = result.frames if pipeline.draws_videos else result.images
            pace = result.frames_per_second if pipeline.draws_videos else 0
            encode = partial(_encode, media, part, paths[start : start + batch], result.report, pace)
            encoder.add(encode, write_outputs)
    return drawn


def _encode(
    media: Sequence[Image | Sequence[Image]],
    jobs: Sequence[tuple[str, int]],
    paths: Sequence[Path],
    report: Report,
    frames_per_second: float,
) -> dict[Path, bytes]:
    """Files of one batch, with their settings inside."""
    from stepvar.evaluation.provenance import picture_settings

    contents: dict[Path, bytes] = {}
    for index, (drawn, (prompt, seed), path) in enumerate(zip(media, jobs, paths, strict=True)):
        own = picture_settings(report, prompt, seed, index, len(jobs))
        contents |= encode_media(drawn, path, own, frames_per_second)
    return contents


@report_errors
@with_option_groups
def summary(
    model: ModelOptions,
    plan: PlanOptions,
    size: SizeOptions,
    sampling: SamplingOptions,
    cascade: CascadeOptions,
    picture: PictureOptions,
    video: VideoOptions,
    together: BatchOptions,
    number: Annotated[int, typer.Option("-n", "--number", min=1, max=4096, help="Pictures in a batch.")] = 1,
    json: Json = False,
) -> None:
    """Show what a plan would run, without running it.

    Tokens, FLOPs and cache bytes of every scale.
    """
    settings = {
        **size.arguments(),
        **sampling.arguments(),
        **picture.arguments(),
        **video.arguments(),
        **together.arguments(),
        "pruning": plan.method(),
    }
    with quiet_libraries():
        pipeline, drafter = open_cascade(model, cascade, size.arguments())
        settings |= drafter
        check_options(pipeline, settings)
        note_other_aspect(pipeline, size.arguments())
        found = pipeline.summary(images=number, **settings)
    if json:
        display.print_json(found.as_json())
    else:
        typer.echo(str(found))
