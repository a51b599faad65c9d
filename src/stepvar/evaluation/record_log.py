"""A file of records that a stopped measurement goes on with: lines of JSON, one a finished unit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepvar.evaluation.text_files import parse_object, read_text
from stepvar.files import write_atomically


class RecordLog:
    """Records by the number of their unit, behind a first line that says what all of them depend on.

    A line that an interruption cut off is dropped.

    Args:
        path: Of the file; a new one, or one of the same measurement.
        settings: What the records depend on, in a form that JSON can hold.

    Raises:
        ValueError: When the file is something else, or of another measurement.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        header = json.loads(json.dumps(settings))
        self.records: dict[int, dict[str, Any]] = {}
        if path.exists():
            self._read(header)
        lines = [header, *({"number": number, **record} for number, record in self.records.items())]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in lines).encode())

    def _read(self, header: dict[str, Any]) -> None:
        first, *lines = read_text(self.path, "file of records").split("\n")
        found = parse_object(first, f"The first line of '{self.path}'") if first.strip() else {}
        if found != header:
            differing = sorted(key for key in {*found, *header} if found.get(key) != header.get(key))
            raise ValueError(
                f"'{self.path}' holds something else, or records of another measurement (its "
                f"{', '.join(differing)} differ{'s' * (len(differing) == 1)}): name another file."
            )
        for line in lines:
            try:
                record = parse_object(line, "a line")
            except ValueError:
                continue
            number = record.pop("number", None)
            if isinstance(number, int):
                self.records[number] = record

    def add(self, number: int, record: Mapping[str, Any]) -> None:
        """Writes a record at the end of the file."""
        self.records[number] = dict(record)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"number": number, **record}) + "\n")
