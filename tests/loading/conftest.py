"""A tiny saved pipeline, and a copy of it to damage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A saved Infinity pipeline with random weights; tests must not change it."""
    from tiny_pipeline import make_pipeline

    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(tiny_folder, tmp_path):
    """A copy of the folder."""
    folder = tmp_path / "copy"
    shutil.copytree(tiny_folder, folder)
    return folder


@pytest.fixture
def edit() -> Callable[..., None]:
    """Changes fields of a JSON file; None removes one."""

    def edit(file: Path, **changes: Any) -> None:
        content = {**json.loads(file.read_text()), **changes}
        file.write_text(json.dumps(content))

    return edit
