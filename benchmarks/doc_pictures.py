"""The pictures of the documentation: what the embedded models draw at default settings, not chosen.

    python benchmarks/doc_pictures.py docs/images
    python benchmarks/doc_pictures.py docs/images --only edits edit

writes grid.png (the first sixteen prompts of `stepvar evaluate scenes`, with their seeds 0, 1, ...),
videos.png (first, middle and last frame of the first eight of `--model embedded-video`), edits.jpg (the first
ten edits of `stepvar evaluate edits`, before, box and after, whose list it prints) and edit.png (the README's
edit). The README's first picture is drawn by `make demo`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

import stepvar
from stepvar.editing.sheets import edit_sheet
from stepvar.evaluation.edit_score import SHOWN, evaluate_edits
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


def edits() -> Image.Image:
    """Ten edits, one a row; prints what each asks for."""
    scores = evaluate_edits(stepvar.load_embedded(), SHOWN, round_trip=False)
    for number, edit in enumerate(scores.edits, start=1):
        print(f"{number}. {edit.kind}: {edit.text}")
    return edit_sheet(scores.rows)


def edit() -> Image.Image:
    """The edit of the README."""
    pipeline = stepvar.load_embedded()
    before = pipeline("a red circle and a blue star on sand", seed=3).images[0]
    prompt, box = "a red circle and a striped green square on sand", (0.5, 0.125, 0.5, 0.75)
    result = pipeline.edit(prompt, image=before, box=box, seed=1)
    return edit_sheet([(before, result.masks[0], result.images[0])])


PICTURES = {
    "grid": ("grid.png", pictures),
    "videos": ("videos.png", videos),
    "edits": ("edits.jpg", edits),
    "edit": ("edit.png", edit),
}
"""File and function of each."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws the pictures of the documentation.")
    parser.add_argument("folder", type=Path, help="Where they go.")
    parser.add_argument("--only", nargs="+", choices=PICTURES, default=list(PICTURES))
    settings = parser.parse_args()
    for chosen in settings.only:
        name, draw = PICTURES[chosen]
        draw().save(settings.folder / name, optimize=True)
        print(settings.folder / name)


if __name__ == "__main__":
    main()
