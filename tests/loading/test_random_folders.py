"""Random damage to model folders: a picture or one sentence, never a traceback, in bounded time and memory.

A few seconds by default; STEPVAR_FUZZ_SECONDS=1200 for as long as that.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny_hart
import tiny_pipeline
import tiny_star
import tiny_switti
import tiny_var

SECONDS = float(os.environ.get("STEPVAR_FUZZ_SECONDS", "8"))
SEED = int(os.environ.get("STEPVAR_FUZZ_SEED", "0"))
LONGEST, MOST_BYTES = 60.0, 2 << 30

MODELS = {
    "infinity": (tiny_pipeline.make_pipeline, ("a red star",)),
    "infinitystar": (tiny_star.make_star_pipeline, ("a red star", "--seconds", "0")),
    "var": (tiny_var.make_var_pipeline, ("2",)),
    "hart": (tiny_hart.make_pipeline, ("a red ring",)),
    "switti": (tiny_switti.make_switti_pipeline, ("a red ring",)),
}

VALUES: list[Any] = [
    0,
    -1,
    1,
    2,
    3,
    7,
    10**3,
    10**9,
    2**63,
    -(10**9),
    0.5,
    -0.0,
    1e-42,
    1e30,
    True,
    False,
    None,
    "",
    "x",
    "../x",
    "/etc/passwd",
    "auto",
    "a" * 100_000,
    [],
    [[]],
    {},
    [1, 2],
    [1] * 2000,
    [[10**9, 1]],
    [None, None],
    [[1, 1]] * 50,
    {"a": {"b": []}},
    ["stepvar", "StepVAR"],
    ["os", "system"],
    ["transformers", "BertModel"],
    "bert",
    "float8",
    "gelu",
    float("nan"),
    float("inf"),
]
KEYS = [
    "auto_map",
    "quantization_config",
    "attn_implementation",
    "num_labels",
    "torch_dtype",
    "dtype",
    "vocab_file",
    "_name_or_path",
    "transformers_weights",
    "rope_scaling",
    "pruned_heads",
    "architectures",
    "is_decoder",
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A saved folder of every model."""
    place = tmp_path_factory.mktemp("models")
    for key, (make, _prompt) in MODELS.items():
        make().save_pretrained(place / key)
    return place


def change_json(random_: random.Random, file: Path) -> str:
    """Sets, removes, adds or doubles a field somewhere in a document."""
    try:
        content = json.loads(file.read_text())
    except (ValueError, OSError):
        return "nothing"
    place: Any = content
    while isinstance(place, dict) and place and random_.random() < 0.3:
        inner = [value for value in place.values() if isinstance(value, (dict, list)) and value]
        if not inner:
            break
        place = random_.choice(inner)
    value = random_.choice(VALUES)
    if isinstance(place, list) and place:
        place[random_.randrange(len(place))] = value
        done = f"an entry {str(value)[:60]!r}"
    elif isinstance(place, dict):
        key = random_.choice([*place, *KEYS])
        how = random_.choice(("set", "set", "set", "remove", "scale"))
        if how == "remove":
            place.pop(key, None)
        elif how == "scale" and isinstance(place.get(key), (int, float)):
            place[key] = place[key] * random_.choice((2, 10, -1, 0.5, 10**6))
        else:
            place[key] = value
        done = f"{how} {key} {str(value)[:60]!r}"
    else:
        content, done = value, f"all {str(value)[:60]!r}"
    text = json.dumps(content)
    if random_.random() < 0.05 and text.startswith("{") and len(text) > 2:
        text = text[:-1] + ', "_class_name": 1}'
    file.write_text(text)
    return done


def change_bytes(random_: random.Random, file: Path) -> str:
    """Cuts, flips, lies about the length of a header, or takes the content of another file."""
    content = bytearray(file.read_bytes())
    how = random_.choice(("cut", "flip", "head", "length", "empty", "other"))
    if how == "cut":
        content = content[: random_.randrange(len(content) + 1)]
    elif how == "empty":
        content = bytearray()
    elif how == "length":
        content[:8] = struct.pack("<Q", random_.choice((0, 1, 2**20, 2**40, 2**63)))
    elif how == "other":
        others = [path for path in file.parents[1].rglob("*") if path.is_file()]
        content = bytearray(random_.choice(others).read_bytes())
    else:
        reach = len(content) if how == "flip" else min(len(content), 3000)
        for _ in range(random_.choice((1, 3, 30)) if reach else 0):
            content[random_.randrange(reach)] ^= 1 << random_.randrange(8)
    file.write_bytes(bytes(content))
    return how


def change_tree(random_: random.Random, file: Path) -> str:
    """Removes, renames or replaces a file or a part."""
    how = random_.choice(("remove", "rename", "folder", "link", "loop", "part", "double"))
    if how == "part":
        shutil.rmtree(file.parent) if file.parent.parent.name == "copy" else file.unlink()
    elif how == "double":
        shutil.copy(file, file.with_name(f"other{file.suffix}"))
    else:
        moved = file.with_name(random_.choice(("x", "model.bin", "pytorch_model.bin", "a.pth")))
        file.rename(moved)
        if how == "remove":
            moved.unlink()
        elif how == "folder":
            file.mkdir()
        elif how == "link" and not os.path.lexists(file):
            file.symlink_to(random_.choice(("/etc/passwd", moved.name, "../../outside", "/dev/zero")))
        elif how == "loop" and not os.path.lexists(file):
            file.symlink_to(file.name)
    return how


def damage(random_: random.Random, folder: Path) -> list[str]:
    """One to three changes; what was done."""
    done = []
    for _ in range(random_.choice((1, 1, 1, 2, 3))):
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "README.md")
        texts = [path for path in files if path.suffix == ".json"]
        change: Callable[[random.Random, Path], str] = random_.choice(
            (change_json, change_json, change_json, change_bytes, change_tree)
        )
        if not texts or not files:
            break
        file = random_.choice(texts if change is change_json else files)
        done.append(f"{file.relative_to(folder)}: {change(random_, file)}")
    return done


# The suite's own limit is shorter than a long run.
@pytest.mark.timeout(SECONDS + 300)
def test_random_folders(folders, tmp_path, capsys, monkeypatch):
    from stepvar.cli.app import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STEPVAR_DEBUG", raising=False)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked something"))
    failures: list[str] = []
    end, count, drawn = time.monotonic() + SECONDS, 0, 0
    while time.monotonic() < end:
        number = SEED * 1_000_000 + count
        random_ = random.Random(number)
        key = random_.choice(list(MODELS))
        copy = tmp_path / "copy"
        shutil.copytree(folders / key, copy)
        done = damage(random_, copy)
        capsys.readouterr()
        start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        arguments = ["generate", *MODELS[key][1], "--model", str(copy), "--seed", "1"]
        with pytest.raises(SystemExit) as stop:
            app(arguments, prog_name="stepvar")
        seen = capsys.readouterr()
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        story = f"number {number}, {key}: {done}\n{seen.out}{seen.err}"
        code = int(stop.value.code or 0)
        sentence = code == 0 or (seen.out == "" and "\nError: " in f"\n{seen.err}")
        if code not in (0, 2) or "Traceback" in seen.err or not sentence:
            failures.append(story)
        if time.monotonic() - start > LONGEST or grown > MOST_BYTES:
            failures.append(f"{time.monotonic() - start:.0f} s, {grown >> 20} MiB more: {story}")
        count, drawn = count + 1, drawn + (not stop.value.code)
        shutil.rmtree(copy)
        for path in tmp_path.iterdir():
            path.unlink() if path.is_file() else shutil.rmtree(path)
    assert not failures, f"{len(failures)} of {count} folders:\n" + "\n".join(failures)
    assert count
