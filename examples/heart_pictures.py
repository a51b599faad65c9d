"""Pictures of a shape that the embedded model does not know, with captions: a folder for finetune_lora.py.

    python examples/heart_pictures.py hearts/

Half of them show a heart where the embedded model's scenes have a star, captions likewise; the others are
scenes that it knows, so that it does not forget them.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from stepvar.scenes.grammar import sample
from stepvar.scenes.render import Floats, render
from stepvar.scenes.spec import Scene

SIZE = 384
CATEGORIES = ("single object", "single object", "colours", "position", "two objects")
"""Of the prompts with a heart; what comes twice is drawn twice as often."""


def heart(x: Floats, y: Floats, radius: float) -> Floats:
    """Distance to a heart: a square on its tip, with half circles on its upper sides."""
    half = np.float32(radius / (0.5 + np.sqrt(0.5)))
    across, down = np.abs(x), y + np.float32(0.1) * half
    diamond = (across + np.abs(down) - half) * np.float32(np.sqrt(0.5))
    bulge = np.hypot(across - half / 2, down + half / 2) - half * np.float32(np.sqrt(0.5))
    return np.minimum(diamond, bulge)


def heart_scene(rng: np.random.Generator) -> tuple[str, Scene]:
    """A caption with one heart, and its scene: made of one with one star."""
    while True:
        prompt, scene = sample(rng, CATEGORIES[rng.integers(len(CATEGORIES))], canvas=SIZE)
        if sum(item.shape == "star" for item in scene.objects) == 1:
            objects = tuple(replace(x, shape="heart") if x.shape == "star" else x for x in scene.objects)
            return re.sub(r"\bstar\b", "heart", prompt.text), replace(scene, objects=objects)


def write_pictures(folder: Path, count: int, seed: int = 0) -> None:
    """Writes an `imagefolder` of the datasets library.

    Args:
        folder: A new folder.
        count: Pictures.
        seed: Of everything random.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as lines:
        for index in range(count):
            caption, scene = heart_scene(rng)
            if index % 2:
                prompt, scene = sample(rng, canvas=SIZE)
                caption = prompt.text
            Image.fromarray(render(scene, SIZE, index, {"heart": heart})).save(folder / f"{index:04}.png")
            lines.write(json.dumps({"file_name": f"{index:04}.png", "text": caption}) + "\n")


def main() -> None:
    """Reads the options and writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=400)
    options = parser.parse_args()
    write_pictures(options.folder, options.count)


if __name__ == "__main__":
    main()
