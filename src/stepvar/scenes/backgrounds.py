"""Backgrounds assembled from banks of 8 x 8 pixel cells.

Every cell of the global 8-pixel grid takes one of a few hand-made patterns at random. The picture looks
irregular, and yet one token per cell can describe it, which random speckle would not allow.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from stepvar.scenes.palette import BACKGROUND_TONES

CELL: int = 8
_VARIANTS = 8
_STONE_CELLS = (2, 4)
_WATER_CELLS = 4

Bytes = NDArray[np.uint8]
Levels = NDArray[np.float64]


def background(name: str, size: int, rng: np.random.Generator) -> Bytes:
    """Return a textured background as uint8 [size, size, 3].

    Raises:
        KeyError: there is no background of that name.
    """
    bank = _bank(name)
    cells = -(-size // CELL)
    rows, columns = np.arange(cells)[:, None], np.arange(cells)[None, :]
    phase_rows, phase_columns, variants = bank.shape[:3]
    choice = rng.integers(0, variants, (cells, cells))
    picture = bank[rows % phase_rows, columns % phase_columns, choice]
    picture = picture.transpose(0, 2, 1, 3, 4).reshape(cells * CELL, cells * CELL, 3)
    return np.ascontiguousarray(picture[:size, :size])


@cache
def _bank(name: str) -> Bytes:
    """Return the patterns of a background, uint8 [phase rows, phase columns, variants, 8, 8, 3].

    The first two axes follow the regular part of the pattern (waves, joints), the third one is drawn.
    """
    makers = {"sand": _sand, "grass": _grass, "water": _water, "stone": _stone}
    levels = makers[name](np.random.default_rng(2024))
    tones = np.asarray(BACKGROUND_TONES[name], dtype=np.float64)
    colours = np.stack(
        [np.interp(levels, (-1.0, 0.0, 1.0), tones[:, channel]) for channel in range(3)], axis=-1
    )
    return np.round(colours).astype(np.uint8)


def _grains(rng: np.random.Generator, count: int, strength: float) -> Levels:
    """Return one cell with `count` darker and lighter grains of 2 x 2 pixels, wrapped at its borders."""
    cell = np.zeros((CELL, CELL))
    for index in range(count):
        row, column = rng.integers(0, CELL, 2)
        level = strength * rng.uniform(0.6, 1.0) * (1 if index % 2 else -1)
        for down in range(2):
            for across in range(2):
                cell[(row + down) % CELL, (column + across) % CELL] = level
    return cell


def _sand(rng: np.random.Generator) -> Levels:
    """Grains on an even ground."""
    return np.stack([_grains(rng, 6, 0.9) for _ in range(_VARIANTS)])[None, None]


def _grass(rng: np.random.Generator) -> Levels:
    """Short upright blades, two pixels wide, half of them in the shade, leaning either way."""
    bank = np.zeros((_VARIANTS, CELL, CELL))
    for cell in bank:
        for index in range(4):
            row, column = rng.integers(0, CELL), 2 * index + rng.integers(0, 2)
            length, lean = rng.integers(4, 7), rng.choice([-1, 0, 1])
            level = rng.uniform(0.6, 1.0) * (1 if rng.random() < 0.5 else -1)
            for step in range(length):
                shift = lean * step // 3
                for across in range(1 + (step < length // 2)):
                    cell[(row - step) % CELL, (column + shift + across) % CELL] = level * (
                        0.5 + 0.5 * step / length
                    )
    return bank[None, None]


def _water(rng: np.random.Generator) -> Levels:
    """Wave crests two pixels high that run over four cells, with a shade below; some cells are calm."""
    width = CELL * _WATER_CELLS
    columns = np.arange(width)
    crest = 2.0 + 1.5 * np.sin(2 * np.pi * columns / width)
    shade = crest + 3.0
    rows = np.arange(CELL)[:, None]
    # Distances wrap around, so that a crest leaving its cell at the top comes back at the bottom.
    light = np.clip(1.5 - np.abs((rows - crest + CELL / 2) % CELL - CELL / 2), 0, 1)
    dark = np.clip(1.5 - np.abs((rows - shade + CELL / 2) % CELL - CELL / 2), 0, 1)
    bank = np.zeros((2, _WATER_CELLS, _VARIANTS, CELL, CELL))
    for row in range(2):
        for column in range(_WATER_CELLS):
            start = ((column + 2 * row) % _WATER_CELLS) * CELL
            part = slice(start, start + CELL)
            for variant in range(_VARIANTS):
                strength = (0.25, 0.6, 0.9, 1.0)[variant % 4]
                bank[row, column, variant] = strength * light[:, part] - 0.7 * strength * dark[:, part]
    return bank


def _stone(rng: np.random.Generator) -> Levels:
    """Slabs of 32 x 16 pixels in a running bond, with dark joints two pixels wide and a fine speckle."""
    rows_of_cells, columns_of_cells = _STONE_CELLS
    height, width = rows_of_cells * CELL, columns_of_cells * CELL
    slab = np.zeros((2 * height, width))
    for course in range(2):
        top = course * height
        slab[top : top + 2] = -1.0
        left = course * width // 2
        slab[top : top + height, left : left + 2] = -1.0
    bank = np.zeros((2 * rows_of_cells, columns_of_cells, _VARIANTS, CELL, CELL))
    for row in range(2 * rows_of_cells):
        for column in range(columns_of_cells):
            joints = slab[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
            for variant in range(_VARIANTS):
                speckle = _grains(rng, 3, 0.8) * (1.0, 0.5)[variant % 2]
                bank[row, column, variant] = np.where(joints < 0, joints, speckle)
    return bank
