"""Command line of the trainings: `python -m stepvar.training COMMAND`."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.logging import RichHandler

from stepvar.scenes.network import WEIGHTS, load_scene_network
from stepvar.training.common.accelerator import TRACKERS
from stepvar.training.common.options import checked_device, checked_tracker, settings_command
from stepvar.training.pictures.growth import PictureGrowth
from stepvar.training.pictures.sizes import SIZES
from stepvar.training.pictures.train import PictureTraining
from stepvar.training.pictures.vae import PictureVAETrainer, PictureVAETraining
from stepvar.training.scene_network.measure import SEED, measure
from stepvar.training.scene_network.train import SceneNetworkTrainer, SceneNetworkTraining
from stepvar.training.video.train import VideoTraining
from stepvar.training.video.vae import VideoVAETrainer, VideoVAETraining

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
logger = logging.getLogger(__name__)

Output = Annotated[Path, typer.Option(help="Checkpoints, logs and encoded scenes.")]
Minutes = Annotated[float, typer.Option(help="Budget of VAE and transformer together.")]
Scenes = Annotated[int, typer.Option(help="Scenes to encode for the transformer.")]
Weights = Annotated[
    Path | None, typer.Option(help="Folder of the finished model; by default OUTPUT/weights.")
]
Device = Annotated[
    str, typer.Option(help="cpu, cuda, or auto for CUDA where it is.", callback=checked_device)
]
LogWith = Annotated[
    str,
    typer.Option(help=f"Experiment tracker: {', '.join(TRACKERS)}.", callback=checked_tracker),
]
Start = Annotated[Path | None, typer.Option(help="A finished model whose transformer is trained further.")]
Vae = Annotated[Path | None, typer.Option(help="A finished VAE to use instead of training one.")]
Processes = Annotated[int, typer.Option(help="Processes of the transformer's training on a CPU.")]
Compiled = Annotated[
    bool, typer.Option("--compile/--no-compile", help="Fuse the blocks; needs a C++ compiler on a CPU.")
]

_CORES = os.cpu_count() or 1
_HAS_COMPILER = shutil.which("g++") is not None


@app.callback()
def configure() -> None:
    """Trains the embedded models; a command given again continues where it stopped."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(show_path=False)])
    logging.getLogger("accelerate").setLevel(logging.WARNING)


@app.command()
def pictures(
    output: Output = Path("runs/pictures"),
    minutes: Minutes = 110.0,
    scenes: Scenes = 24_576,
    size: Annotated[str, typer.Option(help=f"Size of the model: {', '.join(SIZES)}.")] = "192",
    weights: Weights = None,
    device: Device = "auto",
    start: Start = None,
    vae: Vae = None,
    processes: Processes = _CORES,
    log_with: LogWith = "",
    compiled: Compiled = _HAS_COMPILER,
) -> None:
    """Trains the picture model: VAE, text encoder, transformer, packaging."""
    if size not in SIZES:
        raise typer.BadParameter(f"There is no size {size!r}; use one of {', '.join(SIZES)}.")
    PictureTraining(
        output, minutes, scenes, weights, device, start, vae, processes, log_with, compiled, size=size
    ).run()


@app.command()
def picture_growth(
    output: Output = Path("runs/growth"),
    factor: Annotated[float, typer.Option(help="Multiplies the budgets of all sizes.")] = 1.0,
    device: Device = "auto",
    processes: Processes = _CORES,
    log_with: LogWith = "",
    compiled: Compiled = _HAS_COMPILER,
    describe: Annotated[
        bool, typer.Option("--describe", help="Only show the steps and what is spent.")
    ] = False,
) -> None:
    """Trains the picture model size by size, 192 to 384 pixels, each from the weights before."""
    growth = PictureGrowth(
        output, factor=factor, device=device, processes=processes, log_with=log_with, compiled=compiled
    )
    typer.echo(growth.describe())
    if not describe:
        growth.run()


@app.command()
def video(
    output: Output = Path("runs/video"),
    minutes: Minutes = 150.0,
    scenes: Scenes = 8_192,
    weights: Weights = None,
    device: Device = "auto",
    start: Start = None,
    vae: Vae = None,
    processes: Processes = _CORES,
    log_with: LogWith = "",
    compiled: Compiled = _HAS_COMPILER,
) -> None:
    """Trains the video model: VAE, text encoder, transformer, packaging."""
    VideoTraining(output, minutes, scenes, weights, device, start, vae, processes, log_with, compiled).run()


def _train_picture_vae(settings: PictureVAETraining) -> None:
    logger.info("VAE saved to %s", PictureVAETrainer(settings).run())


def _train_video_vae(settings: VideoVAETraining) -> None:
    logger.info("VAE saved to %s", VideoVAETrainer(settings).run())


def _train_scene_network(settings: SceneNetworkTraining) -> None:
    logger.info("scene network saved to %s", SceneNetworkTrainer(settings).run())


app.command("picture-vae")(
    settings_command(PictureVAETraining, _train_picture_vae, "Trains the picture VAE alone.")
)
app.command("video-vae")(settings_command(VideoVAETraining, _train_video_vae, "Trains the video VAE alone."))
app.command("scene-network")(
    settings_command(SceneNetworkTraining, _train_scene_network, "Trains the network that scores scenes.")
)


@app.command()
def measure_scene_network(
    weights: Annotated[Path, typer.Option(help="Folder of the network.")] = WEIGHTS,
    pictures: Annotated[int, typer.Option(help="Renders to measure on.")] = 500,
    canvas: Annotated[int, typer.Option(help="Side of the renders in pixels.")] = 192,
    seed: Annotated[int, typer.Option(help="Chooses prompts and renders.")] = SEED,
) -> None:
    """Measures a scene network on renders that training never saw, and writes the figures as JSON."""
    typer.echo(json.dumps(measure(load_scene_network(weights), pictures, canvas, seed), indent=2))


if __name__ == "__main__":
    app()
