"""What all tests share: tiny models, made once."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

# Set before torch is imported, and handed on to the programs that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


ASKED_FOR = ("browser", "schema", "ray", "comfyui")
"""Marks of tests that need more than the tests' packages; they run where -m names them, see the Makefile."""


def pytest_collection_modifyitems(config, items):
    """Leaves out what has to be asked for, whatever else -m says."""
    asked = set(re.findall(r"\w+", config.option.markexpr))
    unasked = set(ASKED_FOR) - asked
    wanted = [not unasked & {mark.name for mark in item.iter_markers()} for item in items]
    left_out = [item for item, stays in zip(items, wanted, strict=True) if not stays]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item, stays in zip(items, wanted, strict=True) if stays]


@pytest.fixture(scope="session")
def transformer():
    """A tiny transformer with random weights and the published table of sizes; tests must not change it."""
    from tiny_models import make_transformer

    return make_transformer()


@pytest.fixture(scope="session")
def golden():
    """The folder of Infinity's golden data."""
    return Path(__file__).parent / "golden" / "infinity"
