"""One tiny model folder, and the command line run inside this process."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A saved pipeline with random weights; tests must not change it."""
    from tiny_pipeline import make_pipeline

    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Runs `stepvar` with arguments, in this process and in an empty folder."""
    from stepvar.cli.app import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STEPVAR_DEBUG", raising=False)

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            app([str(argument) for argument in arguments], prog_name="stepvar")
        seen = capsys.readouterr()
        return Result(int(stop.value.code or 0), seen.out, seen.err)

    return run


@pytest.fixture
def program():
    """The start of a command line that runs `stepvar` as a program, and its environment."""
    root = Path(__file__).parents[2]
    paths = [str(root / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("STEPVAR_DEBUG", None)
    return [sys.executable, "-m", "stepvar.cli"], environment
