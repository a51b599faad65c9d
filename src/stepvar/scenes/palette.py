"""Colours of objects, of their second tones, of the outline and of the backgrounds (8-bit RGB)."""

from __future__ import annotations

RGB = tuple[int, int, int]

OBJECT_COLOURS: dict[str, RGB] = {
    "red": (216, 32, 40),
    "orange": (246, 126, 20),
    "yellow": (250, 206, 8),
    "green": (18, 158, 62),
    "blue": (34, 76, 214),
    "purple": (128, 40, 168),
    "pink": (250, 120, 184),
    "white": (246, 246, 248),
}

CREAM: RGB = (255, 244, 222)
DARK_GREY: RGB = (98, 100, 110)
OUTLINE: RGB = (22, 20, 26)

# Darker and lighter tones around the middle one; all stay desaturated, so that objects stand out.
BACKGROUND_TONES: dict[str, tuple[RGB, RGB, RGB]] = {
    "sand": ((178, 154, 118), (206, 184, 148), (224, 206, 176)),
    "grass": ((80, 104, 60), (114, 136, 88), (154, 172, 116)),
    "water": ((106, 142, 162), (126, 160, 178), (170, 194, 204)),
    "stone": ((106, 104, 106), (146, 144, 144), (166, 164, 162)),
}


def second_tone(colour: str) -> RGB:
    """Return the tone that alternates with `colour` in a textured object."""
    return DARK_GREY if colour == "white" else CREAM
