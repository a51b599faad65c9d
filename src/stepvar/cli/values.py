"""Parsers of option values: lists, sizes, ratios by scale.

Each takes the text and the name of its option, for messages, and raises InputError when it is not understood.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from stepvar.cli.errors import InputError

_INTEGER = re.compile(r"[+-]?\d{1,9}")
_SIZE = re.compile(r"(\d{1,6})\s*[xX]\s*(\d{1,6})")


def parse_ratios(text: str, option: str = "--ratios") -> dict[int, float]:
    """Reads "24=0.5,32=0.75": share of tokens to prune, by scale."""
    ratios: dict[int, float] = {}
    for entry in _entries(text):
        name, sign, value = entry.partition("=")
        scale, ratio = _integer(name), _number(value)
        if not sign or scale is None or ratio is None:
            raise InputError(
                f"{option} {text!r} is not understood at {entry!r}: write pairs of a scale's height in "
                "tokens (or its place from the end, -1 for the last) and a share from 0 to 1, such as "
                "24=0.5,32=0.75."
            )
        if scale in ratios:
            raise InputError(f"{option} {text!r} names scale {scale} twice: give it one ratio.")
        ratios[scale] = ratio
    if not ratios:
        raise InputError(f"{option} is empty: write pairs such as 24=0.5,32=0.75.")
    return ratios


def parse_scales(text: str, option: str = "--skip") -> tuple[int, ...]:
    """Reads "24,32" or "-2,-1": scales by height in tokens, or from the end."""
    scales = [_integer(entry) for entry in _entries(text)]
    if not scales or None in scales:
        raise InputError(
            f"{option} {text!r} is not understood: write scales by their height in tokens, such as 18,24, "
            "or by their place from the end, such as -2,-1."
        )
    return tuple(scale for scale in scales if scale is not None)


def parse_numbers(text: str, option: str) -> float | list[float]:
    """Reads one number, or a comma list with one number a scale."""
    values = [_number(entry) for entry in _entries(text)]
    if not values or None in values:
        raise InputError(
            f"{option} {text!r} is not understood: give one number, or one a scale such as 3,3,2.5."
        )
    numbers = [value for value in values if value is not None]
    return numbers[0] if len(numbers) == 1 else numbers


def parse_integers(text: str, option: str, count: int) -> list[int]:
    """Reads so many whole numbers, such as "0,0,128,128"."""
    values = [_integer(entry) for entry in _entries(text)]
    if len(values) != count or None in values:
        example = ",".join(["0", "0", "128", "128"][:count])
        raise InputError(
            f"{option} {text!r} is not understood: give {count} whole numbers such as {example}."
        )
    return [value for value in values if value is not None]


def parse_box(text: str, option: str) -> list[int] | list[float]:
    """Reads four numbers: whole ones for pixels, such as "0,0,128,128", or shares, such as "0,0,0.5,0.5"."""
    pixels = [_integer(entry) for entry in _entries(text)]
    if len(pixels) == 4 and None not in pixels:
        return [value for value in pixels if value is not None]
    shares = [_number(entry) for entry in _entries(text)]
    if len(shares) != 4 or None in shares:
        raise InputError(
            f"{option} {text!r} is not understood: give 4 whole numbers such as 0,0,128,128, or shares of "
            "the picture's sides such as 0.25,0.25,0.5,0.5."
        )
    return [value for value in shares if value is not None]


def parse_text(text: str, option: str) -> str:
    """Reads a text that must say something."""
    if not text.strip():
        raise InputError(f"{option} is empty: say what to steer away from, or leave it out.")
    return text


def parse_size(text: str, option: str = "--size") -> tuple[int, int]:
    """Reads "1024x768", width x height; returns (height, width)."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InputError(
            f"{option} {text!r} is not understood: write WIDTHxHEIGHT in pixels, such as 1024x768."
        )
    return int(match[2]), int(match[1])


def parse_aspect(text: str, option: str = "--aspect") -> float:
    """Reads "4:3" or "1.333": width / height."""
    sides = [_number(side) for side in text.split(":")]
    if len(sides) > 2 or any(side is None or not side > 0 for side in sides):
        raise InputError(f"{option} {text!r} is not understood: write WIDTH:HEIGHT such as 4:3, or 1.333.")
    positive = [side for side in sides if side is not None]
    ratio = positive[0] / (positive[1] if len(positive) == 2 else 1.0)
    if not 1e-3 <= ratio <= 1e3:
        raise InputError(f"{option} {text!r} is out of range: no picture is that narrow.")
    return ratio


def _entries(text: str) -> Sequence[str]:
    return [entry.strip() for entry in text.split(",")] if text.strip() else []


def _integer(text: str) -> int | None:
    return int(text) if _INTEGER.fullmatch(text.strip()) else None


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
