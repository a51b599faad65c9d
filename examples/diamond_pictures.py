"""Pictures of a shape that the embedded model does not know, with captions: a folder for finetune_lora.py.

    python examples/diamond_pictures.py diamonds/

Half of them show a diamond where the embedded model's scenes have a square, captions likewise; the others are
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

SIZE = 256
CATEGORIES = ("single object", "colours", "position", "two objects")


def diamond(x: Floats, y: Floats, radius: float) -> Floats:
    """Distance to a square that stands on its tip."""
    return (np.abs(x) + np.abs(y) - np.float32(radius)) * np.float32(np.sqrt(0.5))


def diamond_scene(rng: np.random.Generator) -> tuple[str, Scene]:
    """A caption with one diamond, and its scene: made of one with one square."""
    while True:
        prompt, scene = sample(rng, CATEGORIES[rng.integers(len(CATEGORIES))], canvas=SIZE)
        if sum(item.shape == "square" for item in scene.objects) == 1:
            objects = tuple(replace(x, shape="diamond") if x.shape == "square" else x for x in scene.objects)
            return re.sub(r"\bsquare\b", "diamond", prompt.text), replace(scene, objects=objects)


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
            caption, scene = diamond_scene(rng)
            if index % 2:
                prompt, scene = sample(rng, canvas=SIZE)
                caption = prompt.text
            Image.fromarray(render(scene, SIZE, index, {"diamond": diamond})).save(folder / f"{index:04}.png")
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
