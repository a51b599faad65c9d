"""A golden case on disk: what the official code computed on small random weights."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as functional
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from stepvar.conformance.report import TOLERANCE, CaseReport, compare


class CaseError(ValueError):
    """A folder that is not a golden case, or one we have no runner for."""


@dataclass(frozen=True)
class Case:
    """A golden case.

    Attributes:
        folder: Where it lies.
        info: Its case.json.
        tensors: The stored tensors by name.
    """

    folder: Path
    info: dict[str, Any]
    tensors: dict[str, Tensor]

    @classmethod
    def load(cls, folder: Path) -> Case:
        """Reads case.json and tensors.safetensors, or inputs.safetensors and outputs.safetensors.

        Raises:
            CaseError: When either is missing or unreadable.
        """
        try:
            info = json.loads((folder / "case.json").read_text(encoding="utf-8"))
            names = ("inputs", "outputs") if (folder / "inputs.safetensors").is_file() else ("tensors",)
            files = [load_file(folder / f"{name}.safetensors") for name in names]
        except (OSError, ValueError, SafetensorError) as error:
            raise CaseError(
                f"{folder} is not a readable golden case (case.json and tensors.safetensors): {error}."
            ) from error
        if not isinstance(info, dict):
            raise CaseError(f"{folder / 'case.json'} describes no case: it holds a {type(info).__name__}.")
        return cls(folder, info, {name: tensor for file in files for name, tensor in file.items()})

    @property
    def repository(self) -> str:
        """The official repository, owner/name; empty when the case names none."""
        official = self.info.get("official_repo") or self.info.get("official", "")
        named = official.get("repo", "") if isinstance(official, dict) else official
        return str(named).split(" ")[0]

    def state(self, part: str) -> dict[str, Tensor]:
        """Official weights of a part, "transformer" for example, in float32: the stored values are exact.

        Raises:
            CaseError: When the case does not name them, or the file cannot be read.
        """
        weights = self.info.get("weights")
        named = weights.get(part, weights.get("file")) if isinstance(weights, dict) else weights
        named = named.get("file") if isinstance(named, dict) else named
        if not isinstance(named, str):
            raise CaseError(f"{self.folder / 'case.json'} does not say where the weights of {part!r} are.")
        try:
            state = load_file(self.folder / named)
        except (OSError, SafetensorError) as error:
            raise CaseError(f"The weights '{self.folder / named}' cannot be read: {error}.") from error
        return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}

    @property
    def weights(self) -> Path:
        """Folder or file that `case.json` names as the weights; the case's own folder by default."""
        named = str(self.info.get("weights", ".")).split(" ")[0]
        return (self.folder / named).resolve()

    def described(self, name: str) -> str:
        """Meaning and slicing of a stored tensor, in the words of case.json."""
        entry = self.info.get("tensors", {}).get(name, {})
        return f"{entry.get('meaning', '')} {entry.get('stored_slice', '')}"

    def sliced(self, name: str, full: Tensor) -> Tensor:
        """Cuts a full tensor down to what was stored, as its description says."""
        words = self.described(name)
        if "flattened" in words and (match := re.search(r"every (\d+)\w\w element", words)):
            return full.flatten()[:: int(match[1])]
        if match := re.search(r"every (\d+)\w\w element of dim (\d+) starting at (\d+)", words):
            step, dim, start = (int(group) for group in match.groups())
            return full[(slice(None),) * dim + (slice(start, None, step),)]
        if match := re.search(r"avg_pool2d\([^,]*, ?(\d+)\)", words):
            return functional.avg_pool2d(full, int(match[1]))
        if match := re.search(r"\[B, (\d*):(\d*), (\d*):(\d*), 3\]", words):
            rows, columns = _slices(match.groups())
            return full[:, rows, columns]
        if match := re.search(r"\[\.\.\., (\d*):(\d*), (\d*):(\d*)\]", words):
            rows, columns = _slices(match.groups())
            return full[..., rows, columns]
        return full


def _slices(bounds: tuple[str, ...]) -> tuple[slice, slice]:
    numbers = [int(bound) if bound else None for bound in bounds]
    return slice(numbers[0], numbers[1]), slice(numbers[2], numbers[3])


class Comparison:
    """Collects the comparisons of one case.

    Args:
        case: The case.
        relative: See `compare`.
    """

    def __init__(self, case: Case, relative: float | None = None) -> None:
        self.case = case
        self.relative = relative
        self.report = CaseReport(str(case.folder))

    def take(self, name: str) -> Tensor:
        """A stored tensor, used as an input.

        Raises:
            CaseError: When the case does not hold it.
        """
        if name not in self.case.tensors:
            raise CaseError(f"{self.case.folder} lacks the tensor {name!r}.")
        if name not in self.report.inputs:
            self.report.inputs.append(name)
        return self.case.tensors[name]

    def check(self, name: str, computed: Tensor, tolerance: float = TOLERANCE) -> None:
        """Compares a full computed tensor with what is stored under a name, if anything is."""
        stored = self.case.tensors.get(name)
        if stored is None:
            return
        picture = "uint8" in name
        shown = self.case.sliced(name, computed.detach())
        self.report.tensors[name] = compare(shown, stored, picture, self.relative, tolerance)

    def check_set(self, name: str, computed: Tensor) -> None:
        """Compares positions [..., K] with stored ones whose order does not matter."""
        stored = self.case.tensors.get(name)
        if stored is not None:
            self.report.tensors[name] = compare(computed.sort().values, stored.sort().values)

    def require(self, name: str, computed: Tensor, expected: Tensor) -> None:
        """Compares with what follows from stored tensors, under a name of our own."""
        self.report.tensors[name] = compare(computed.detach(), expected, relative=self.relative)

    def finish(self) -> CaseReport:
        """Names what was neither compared nor used."""
        done = {*self.report.tensors, *self.report.inputs}
        self.report.uncompared = sorted(set(self.case.tensors) - done)
        return self.report
