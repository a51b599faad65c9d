"""A conversion that is killed at any moment leaves no half folder, and the next one succeeds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kills import killed
from stepvar.models.infinity.checkpoints import convert

TINY = Path(__file__).parents[1] / "golden" / "infinity" / "tiny_d16"


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_a_dozen_kills_leave_no_half_folder(tmp_path):
    output = tmp_path / "out"

    def work():
        convert(TINY / "transformer.safetensors", TINY / "vae.safetensors", None, output)

    kills = 0
    for operation in range(1, 14):
        kills += killed(work, tmp_path, operation)
        assert not output.exists()
        assert len(list(tmp_path.iterdir())) <= 1, "the next attempt removes what the one before left"
    assert kills == 13
    work()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (output / "model_index.json").is_file() and (output / "transformer" / "config.json").is_file()
