"""The pictures of the model card: what the embedded models draw at default settings, not chosen.

    python benchmarks/doc_pictures.py docs/images

writes grid.png (the first sixteen prompts of `stepvar evaluate scenes`, with their seeds 0, 1, ...) and
videos.png (first, middle and last frame of the first eight of `--model embedded-video`). The README's picture
is drawn by `make demo`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

import stepvar
from stepvar.evaluation.scene_score import MOVING, STILL

GAP = 8
"""Pixels between two videos."""


def sheet(rows: Sequence[Sequence[Image.Image]], gap: int = 0) -> Image.Image:
    """Pictures of one size in rows, `gap` pixels between columns."""
    width, height = rows[0][0].size
    columns = len(rows[0])
    canvas = Image.new("RGB", (columns * (width + gap) - gap, len(rows) * height), "white")
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            canvas.paste(picture, (column * (width + gap), row * height))
    return canvas


def pictures() -> Image.Image:
    """Sixteen pictures, four in a row."""
    pipeline = stepvar.load_embedded()
    prompts = [prompt.text for prompt in STILL.prompts(16, 0)]
    drawn = [pipeline(prompt, seed=seed).images[0] for seed, prompt in enumerate(prompts)]
    return sheet([drawn[start : start + 4] for start in range(0, 16, 4)])


def videos() -> Image.Image:
    """Eight videos, two in a row."""
    pipeline = stepvar.load_embedded("video")
    prompts = [prompt.text for prompt in MOVING.prompts(8, 0)]
    drawn = [pipeline(prompt, seed=seed).frames[0] for seed, prompt in enumerate(prompts)]
    strips = [sheet([[frames[0], frames[len(frames) // 2], frames[-1]]]) for frames in drawn]
    return sheet([strips[start : start + 2] for start in range(0, 8, 2)], GAP)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws the pictures of the model card.")
    parser.add_argument("folder", type=Path, help="Where grid.png and videos.png go.")
    folder = parser.parse_args().folder
    for name, draw in (("grid.png", pictures), ("videos.png", videos)):
        draw().save(folder / name, optimize=True)
        print(folder / name)


if __name__ == "__main__":
    main()
