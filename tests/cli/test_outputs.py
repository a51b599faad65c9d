"""Output files: all or none, checked before any work, never an input."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors import SafetensorError

from stepvar.cli.errors import InputError
from stepvar.cli.outputs import Destination, write_outputs

RENAME_AND_STOP = """
import os, signal, sys
from pathlib import Path
from stepvar.cli.interrupts import install_signal_handlers
from stepvar.cli.outputs import write_outputs

install_signal_handlers()
rename = Path.replace
def interrupted(self, target):
    result = rename(self, target)
    os.kill(os.getpid(), int(sys.argv[1]))
    return result
Path.replace = interrupted
write_outputs({Path(f"{sys.argv[2]}/{number}.png"): b"x" for number in range(4)})
print("not reached")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("folder", ["present", "new"])
def test_a_signal_between_two_renames(tmp_path, program, number, folder):
    _, environment = program
    (tmp_path / "present").mkdir()
    ended = subprocess.run(
        [sys.executable, "-c", RENAME_AND_STOP, str(int(number)), folder],
        env=environment, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert "KeyboardInterrupt" in ended.stderr and ended.stdout == ""
    assert sorted(path.name for path in (tmp_path / folder).iterdir()) == [f"{n}.png" for n in range(4)]
    assert not list(tmp_path.rglob("*.partial"))


def test_two_processes_with_one_process_id(tmp_path, monkeypatch):
    """Containers share folders, and each numbers its processes from 1."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    first = {tmp_path / "a.png": b"first"}
    inner = Path.write_bytes

    def write_twice(path, content):
        if content == b"first":
            write_outputs({tmp_path / "b.png": b"second"})
        return inner(path, content)

    monkeypatch.setattr(Path, "write_bytes", write_twice)
    write_outputs(first)
    assert (tmp_path / "a.png").read_bytes() == b"first"
    assert (tmp_path / "b.png").read_bytes() == b"second"


def test_a_folder_with_the_name_of_a_numbered_output_is_found_before_drawing(
    run, model_folder, tmp_path, monkeypatch
):
    (tmp_path / "x-2.png").mkdir()
    monkeypatch.setattr(
        "stepvar.models.infinity.pipeline.InfinityPipeline.__call__", lambda *_, **__: pytest.fail("drawn")
    )
    result = run("generate", "a red star", "--model", model_folder, "-n", 3, "-o", "x.png")
    assert result.code == 2 and "'x-2.png' exists and is no ordinary file" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["x-2.png"]


@pytest.mark.parametrize("option", ["--image", "--video"])
@pytest.mark.parametrize("command", ["generate", "compare"])
def test_an_output_that_is_an_input(run, tmp_path, command, option):
    Image.new("RGB", (80, 48)).save(tmp_path / "clip.png")
    before = (tmp_path / "clip.png").read_bytes()
    (tmp_path / "link.png").symlink_to("clip.png")
    for name in ("clip.png", "./clip.png", "link.png"):
        # A picture is asked for by --seconds 0 where the command draws videos otherwise.
        result = run(command, "a red star", option, "clip.png", "--seconds", 0, "-o", name)
        assert result.code == 2 and "is read by this command" in result.stderr
    assert (tmp_path / "clip.png").read_bytes() == before


def test_numbered_outputs_are_compared_with_inputs(tmp_path):
    (tmp_path / "x-1.png").write_bytes(b"x")
    wanted = Destination(tmp_path, "x")
    wanted.check_names(1, [tmp_path / "x-1.png"])
    with pytest.raises(InputError, match=r"x-1\.png' is read by this command"):
        wanted.check_names(2, [tmp_path / "x-1.png", None])


def test_a_full_disk_while_converting(run, model_folder, tmp_path, monkeypatch):
    def fail(*_arguments, **_options):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    result = run("convert", model_folder / "transformer", model_folder / "vae", "new")
    assert result.code == 2, result.stderr
    assert (
        result.stderr
        == "Error: 'new' cannot be written, the disk is full: free some space, or choose another place.\n"
    )
    assert not list(tmp_path.iterdir())
