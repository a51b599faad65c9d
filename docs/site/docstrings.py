"""Arguments that share a line of a docstring ("height, width: Pixels."), one entry each for mkdocstrings."""

from __future__ import annotations

import re
from typing import Any

import griffe

_SHARED = re.compile(r"^( +)(\w+(?:,\s+\w+)+)(:(?: .*)?(?:\n(?:\1 +.*| *(?=\n\1 +)))*)", re.MULTILINE)


class SharedEntries(griffe.Extension):
    """Repeats the text of a shared entry under each of its names."""

    def on_object(self, *, obj: griffe.Object, **_kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = _SHARED.sub(_apart, obj.docstring.value)


def _apart(found: re.Match[str]) -> str:
    indent, names, text = found.groups()
    return "\n".join(f"{indent}{name}{text}" for name in re.split(r",\s+", names))
