"""Words of the prompt grammar and their meanings."""

from __future__ import annotations

import re

from stepvar.scenes.spec import BACKGROUNDS, COLOURS, SHAPES

SHAPE_WORDS: dict[str, str] = {shape: shape for shape in SHAPES}
PLURAL_WORDS: dict[str, str] = {"crosses" if shape == "cross" else f"{shape}s": shape for shape in SHAPES}
COLOUR_WORDS: dict[str, str] = {colour: colour for colour in COLOURS}
TEXTURE_WORDS: dict[str, str] = {
    "plain": "plain",
    "solid": "plain",
    "striped": "striped",
    "checked": "checked",
    "checkered": "checked",
    "dotted": "dotted",
    "spotted": "dotted",
}
SIZE_WORDS: dict[str, str] = {"small": "small", "tiny": "small", "large": "large", "big": "large"}
BACKGROUND_WORDS: dict[str, str] = {background: background for background in BACKGROUNDS}
COUNT_WORDS: dict[str, int] = {
    "a": 1, "an": 1, "the": 1, "one": 1, "1": 1, "two": 2, "2": 2, "three": 3, "3": 3, "four": 4, "4": 4,
}  # fmt: skip
PICTURE_WORDS: tuple[str, ...] = ("photo", "picture", "image")

RELATION_PHRASES: dict[tuple[str, ...], str] = {
    ("left", "of"): "left of",
    ("to", "the", "left", "of"): "left of",
    ("on", "the", "left", "of"): "left of",
    ("right", "of"): "right of",
    ("to", "the", "right", "of"): "right of",
    ("on", "the", "right", "of"): "right of",
    ("above",): "above",
    ("over",): "above",
    ("below",): "below",
    ("under",): "below",
    ("beneath",): "below",
}

VOCABULARY: tuple[str, ...] = tuple(
    sorted(
        {"and", "of", "on", *PICTURE_WORDS}
        | {word for phrase in RELATION_PHRASES for word in phrase}
        | set().union(
            SHAPE_WORDS, PLURAL_WORDS, COLOUR_WORDS, TEXTURE_WORDS, SIZE_WORDS, BACKGROUND_WORDS, COUNT_WORDS
        )
    )
)
"""Every word a prompt can consist of, lower case, sorted: the table of a word-level tokenizer."""

_PUNCTUATION = re.compile(r"[\s,.;:!?]+")


def split_words(text: str) -> list[str]:
    """Split a prompt into lower-case words; white space and punctuation separate them and are dropped."""
    return [word for word in _PUNCTUATION.split(text.lower()) if word]


def spellings(table: dict[str, str], meaning: str) -> list[str]:
    """Return the words of a table that have a meaning, the plainest one first."""
    return [word for word, value in table.items() if value == meaning]
