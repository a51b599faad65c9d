"""Names of files, made of prompts."""

from __future__ import annotations

import re

_LONGEST_NAME = 60


def slug(prompt: str) -> str:
    """A prompt as part of a file name."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")
    return words[:_LONGEST_NAME].rstrip("-") or "picture"
