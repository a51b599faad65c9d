"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from safetensors import SafetensorError

from stepvar import files
from stepvar.files import Staging, is_staging, staged_folder, sweep, write_atomically, write_files

HOLDER = """
import sys, time
from pathlib import Path
from stepvar.files import Staging
with Staging(Path(sys.argv[1])) as staging:
    (staging.path / "half").write_bytes(b"x")
    print(staging.path.name, flush=True)
    time.sleep(60)
"""


def names(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def holder(tmp_path):
    """Another process that is just writing into the folder, and the name of its staging folder."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE) as process:
        yield process, process.stdout.readline().decode().strip()
        process.kill()


def test_a_folder_appears_when_it_is_complete(tmp_path):
    with staged_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("x")
        (folder / "file").chmod(0o600)
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "file").read_text() == "x"
    assert [child.name for child in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "file").stat().st_mode & 0o777 == (tmp_path / "out").stat().st_mode & 0o666
    with pytest.raises(ValueError, match="exists already"), staged_folder(tmp_path / "out"):
        pass
    (tmp_path / "empty").mkdir()
    with staged_folder(tmp_path / "empty") as folder:
        (folder / "file").write_text("y")
    assert (tmp_path / "empty" / "file").read_text() == "y"


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), staged_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("x")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_writes_is_not(tmp_path, holder):
    process, name = holder
    write_atomically(tmp_path / "mine", b"1")
    assert names(tmp_path / name) == ["half", "lock"]
    process.kill()
    process.wait()
    write_atomically(tmp_path / "mine", b"2")
    assert [child.name for child in tmp_path.iterdir()] == ["mine"]


def test_equal_process_numbers_do_not_share_names(tmp_path, monkeypatch):
    """Containers number their processes alike."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    with Staging(tmp_path) as first, Staging(tmp_path) as second:
        assert first.path != second.path and is_staging(first.path)
        first.write(tmp_path / "a" / "x.png", b"first")
        second.write(tmp_path / "b" / "x.png", b"second")
    assert (tmp_path / "a" / "x.png").read_bytes() == b"first"
    assert (tmp_path / "b" / "x.png").read_bytes() == b"second"


def test_folders_without_locks_are_removed_after_a_day(tmp_path, monkeypatch):
    def refuse(*_given):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with Staging(tmp_path) as staging:
        sweep(tmp_path)
        assert staging.path.is_dir()
        os.utime(staging.path, (time.time() - 90_000,) * 2)
        sweep(tmp_path)
        assert not staging.path.exists()


def test_a_sweep_between_making_and_locking_starts_again(tmp_path, monkeypatch):
    made = []
    make = files.tempfile.mkdtemp

    def swept(*given):
        made.append(make(*given))
        if len(made) == 1:
            sweep(tmp_path)
        return made[-1]

    monkeypatch.setattr(files.tempfile, "mkdtemp", swept)
    write_atomically(tmp_path / "file", b"x")
    assert len(made) == 2 and names(tmp_path) == ["file"]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_several_files_are_all_or_none(tmp_path, monkeypatch, failing):
    (tmp_path / "0").write_bytes(b"before")
    moved = []
    replace = files.Path.replace

    def fail(source, target):
        if target.name == str(failing) and source.name.startswith("new"):
            raise OSError(errno.EIO, "broken", str(source))
        moved.append(target.name)
        return replace(source, target)

    monkeypatch.setattr(files.Path, "replace", fail)
    contents = {tmp_path / str(number): b"after" for number in range(3)}
    with pytest.raises(OSError, match=f"{tmp_path}/{failing}"):
        write_files(contents)
    assert names(tmp_path) == ["0"] and (tmp_path / "0").read_bytes() == b"before"
    monkeypatch.undo()
    write_files(contents)
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"after"}


def test_files_of_a_new_folder_appear_in_one_step(tmp_path, monkeypatch):
    moved = []
    replace = files.Path.replace
    monkeypatch.setattr(files.Path, "replace", lambda *pair: moved.append(pair[1]) or replace(*pair))
    write_files({tmp_path / "new" / "deep" / f"{number}.png": b"x" for number in range(4)})
    assert moved == [tmp_path / "new"]
    assert names(tmp_path) == ["0.png", "1.png", "2.png", "3.png"]


def test_an_interrupt_waits_until_all_files_have_their_names(tmp_path, monkeypatch):
    rename = files._rename_all

    def interrupted(staged):
        os.kill(os.getpid(), signal.SIGINT)
        rename(staged)

    monkeypatch.setattr(files, "_rename_all", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_files({tmp_path / "a": b"1", tmp_path / "b": b"2"})
    assert names(tmp_path) == ["a", "b"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        SafetensorError('Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "x" })'),
        RuntimeError("[enforce fail] file write failed: [Errno 28] No space left on device"),
    ],
)
def test_a_full_disk_is_the_same_error_whoever_writes(tmp_path, error):
    with (
        pytest.raises(OSError, match=re.escape(str(tmp_path / "out"))) as caught,
        staged_folder(tmp_path / "out"),
    ):
        raise error
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_errors_about_other_files_keep_their_names(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"), staged_folder(tmp_path / "out"):
        (tmp_path / "absent").read_bytes()
    with pytest.raises(SafetensorError, match="header"), staged_folder(tmp_path / "out"):
        raise SafetensorError("Error while deserializing header: os error 2")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=r"file/a\.png"):
        write_atomically(tmp_path / "file" / "a.png", b"")


def test_a_link_that_is_named_like_a_staging_folder_is_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "run/.stepvar-x.partial").symlink_to(tmp_path / "home")
    sweep(tmp_path / "run")
    assert list((tmp_path / "home").iterdir()) == []
