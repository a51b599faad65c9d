"""What all tests share: tiny models, made once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Set before torch is imported, and handed on to the programs that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def transformer():
    """A tiny transformer with random weights and the published table of sizes; tests must not change it."""
    from tiny_models import make_transformer

    return make_transformer()


@pytest.fixture(scope="session")
def golden():
    """The folder of Infinity's golden data."""
    return Path(__file__).parent / "golden" / "infinity"
