"""`stepvar` as a program of its own: start-up, pipes, signals, poor surroundings."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

HEAVY = ("torch", "diffusers", "transformers", "rich", "numpy", "PIL")


def test_help_is_quick(program):
    command, environment = program
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown = subprocess.run([*command, "--help"], env=environment, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    for name in ("generate", "compare", "summary", "bench", "evaluate", "convert", "conformance"):
        assert name in shown.stdout
    # Processor time, so that a busy machine does not fail it; four times what it takes on a slow core.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0


def test_nothing_heavy_is_imported_before_a_command_runs(program):
    _, environment = program
    code = f"import sys, stepvar.cli.app; print([name for name in {HEAVY!r} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert shown.stdout.strip() == "[]", shown.stderr


def test_json_through_a_pipe_without_home_in_a_bare_environment(program, model_folder, tmp_path):
    command, environment = program
    bare = {"PYTHONPATH": environment["PYTHONPATH"], "OMP_NUM_THREADS": "1"}
    arguments = ["generate", "a red star", "--model", str(model_folder), "--seed", "1", "--json"]
    shown = subprocess.run([*command, *arguments], env=bare, cwd=tmp_path, capture_output=True, check=True)
    assert shown.stderr == b""
    document = json.loads(shown.stdout)
    assert [path.name for path in tmp_path.iterdir()] == [document["images"][0]["file"]]


def test_a_reader_that_has_gone(program, model_folder):
    command, environment = program
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as stdout:
        ended = subprocess.run(
            [*command, "summary", "--model", str(model_folder)],
            env=environment, stdout=stdout, stderr=subprocess.PIPE,
        )  # fmt: skip
    assert ended.returncode == 141 and ended.stderr == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout(program, model_folder):
    command, environment = program
    with Path("/dev/full").open("wb") as stdout:
        ended = subprocess.run(
            [*command, "summary", "--model", str(model_folder)],
            env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert ended.returncode == 2 and "disk is full" in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_a_full_disk_behind_the_help(program, option):
    command, environment = program
    with Path("/dev/full").open("wb") as stdout:
        ended = subprocess.run(
            [*command, option], env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True
        )
    assert ended.returncode == 2
    assert ended.stderr.startswith("Error: The output cannot be written, the disk is full")
    assert ended.stderr.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stderr(program):
    command, environment = program
    with Path("/dev/full").open("wb") as stderr:
        ended = subprocess.run(
            [*command, "summary", "--skip", "x"], env=environment, stdout=subprocess.PIPE, stderr=stderr
        )
    assert ended.returncode == 2 and ended.stdout == b""


def test_a_package_behind_a_symbolic_link(program, tmp_path):
    command, environment = program
    link = tmp_path / "linked"
    link.symlink_to(Path(__file__).parents[2] / "src", target_is_directory=True)
    ended = subprocess.run(
        [*command, "summary", "--skip", "x"],
        env={**environment, "PYTHONPATH": str(link)}, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 2 and ended.stderr.startswith("Error: --skip 'x' is not understood")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_while_importing(program, model_folder, tmp_path, number):
    command, environment = program
    arguments = ["generate", "a red star", "--model", str(model_folder)]
    running = subprocess.Popen(
        [*command, *arguments], env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    # As soon as torch's library is mapped, its import is under way.
    maps = Path(f"/proc/{running.pid}/maps")
    while running.poll() is None and "libtorch" not in maps.read_text():
        time.sleep(0.01)
    running.send_signal(number)
    stdout, stderr = running.communicate(timeout=60)
    assert running.returncode == 128 + number
    assert stdout == stderr == b""
    assert not list(tmp_path.iterdir())


def test_an_interrupt_while_drawing_leaves_whole_pictures(program, model_folder, tmp_path):
    command, environment = program
    arguments = ["generate", "a red star", "--model", str(model_folder), "-n", "3000", "--batch", "1"]
    running = subprocess.Popen(
        [*command, *arguments], env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while running.poll() is None and len(list(tmp_path.glob("*.png"))) < 3:
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    stdout, stderr = running.communicate(timeout=60)
    assert running.returncode == 130
    assert stdout == stderr == b""
    assert not list(tmp_path.glob(".*"))
    for path in tmp_path.iterdir():
        Image.open(path).load()


def test_an_interrupt_that_must_clean_up(monkeypatch, tmp_path):
    from stepvar.cli.interrupts import CleanupOnInterrupt, _SignalState
    from stepvar.cli.outputs import write_outputs

    interrupts = _SignalState()
    monkeypatch.setattr("stepvar.cli.interrupts._state", interrupts)

    def interrupted(path, content):
        interrupts.handle(signal.SIGINT, None)

    monkeypatch.setattr("pathlib.Path.write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_outputs({tmp_path / "new" / "x.png": b"x"})
    assert not list(tmp_path.iterdir())
    assert interrupts.cleanups == 0
    with CleanupOnInterrupt():
        assert interrupts.cleanups == 1
