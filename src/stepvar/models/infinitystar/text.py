"""Prompt template of the published weights: a duration mark before the prompt, a suffix after it.

Source: FoundationVision/InfinityStar (MIT), tools/infer_video_480p.py and tools/infer_interact_480p.py.
"""

from __future__ import annotations

SUFFIX = ", Close-up on big objects, emphasize scale and detail"
"""What the published scripts add to every prompt, but for interactive continuation."""


def format_prompt(prompt: str, seconds: float, suffix: str, marks_duration: bool) -> str:
    """A prompt as the weights read it.

    Args:
        seconds: Of the video; 0 for a picture, which has no duration.
        suffix: Added at the end.
        marks_duration: Whether the duration goes before the prompt.
    """
    mark = f"<<<t={seconds:g}s>>>" if seconds and marks_duration else ""
    return f"{mark}{prompt}{suffix}"
