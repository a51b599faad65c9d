"""Command line of the trainings."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from stepvar.training.__main__ import app
from stepvar.training.common.options import attribute_texts, settings_command
from stepvar.training.pictures.growth import PictureGrowth


@dataclass(frozen=True)
class Base:
    """Settings.

    Attributes:
        output: Folder of the run.
        first, second: Weights of
            two terms.
    """

    output: Path = Path("runs")
    first: float = 1.0
    second: float = 2.0


@dataclass(frozen=True)
class Special(Base):
    """Settings of a special run.

    Attributes:
        start: Where to begin.
    """

    start: Path | None = None


def test_every_field_of_the_settings_is_an_option(capsys):
    assert attribute_texts(Special) == {
        "output": "Folder of the run.",
        "first": "Weights of two terms.",
        "second": "Weights of two terms.",
        "start": "Where to begin.",
    }
    runs = []
    program = typer.Typer()
    program.command()(settings_command(Special, runs.append, "Runs."))
    assert CliRunner().invoke(program, ["--second", "0.5", "--start", "there"]).exit_code == 0
    assert runs == [Special(second=0.5, start=Path("there"))]


@pytest.mark.parametrize("name", ["pictures", "video", "picture-vae", "video-vae", "scene-network"])
def test_commands_describe_all_their_options(name):
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0 and "--output" in result.stdout


def test_an_unknown_size_is_refused():
    result = CliRunner().invoke(app, ["pictures", "--size", "7"])
    assert result.exit_code == 2 and "192, 256, 384" in result.output


def test_the_growth_is_described_and_knows_what_is_finished(tmp_path):
    result = CliRunner().invoke(app, ["picture-growth", "--describe", "--output", str(tmp_path)])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [
        ["192", "9", "1216"],
        ["256", "10", "2240"],
        ["384", "12", "6144"],
    ]
    first, second, _ = PictureGrowth(tmp_path).trainings()
    assert second.start == first.weights_folder and second.vae == first.weights_folder / "vae"
    assert not first.finished
    first.weights_folder.mkdir(parents=True)
    (tmp_path / "192" / "transformer").mkdir()
    record = {"step": 7, "spent": 60 * first.minutes}
    (tmp_path / "192" / "transformer" / "run.json").write_text(json.dumps(record))
    assert first.finished and not second.finished
    assert "finished" in PictureGrowth(tmp_path).describe()


@pytest.mark.parametrize("command", ["pictures", "picture-vae", "scene-network"])
def test_wrong_devices_and_trackers_are_reported_before_any_work(command):
    for option, value, message in (("--device", "tpu", "no device"), ("--log-with", "paper", "no tracker")):
        result = CliRunner().invoke(app, [command, option, value])
        assert result.exit_code == 2 and message in result.output
