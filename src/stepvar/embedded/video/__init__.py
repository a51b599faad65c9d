"""The embedded video model: a small InfinityStar that draws moving scenes."""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
