"""Golden cases on disk: tensors that the official code computed on small random weights."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as functional
from safetensors.torch import load_file
from torch import Tensor, nn

from stepvar.conformance.report import TOLERANCE, CaseReport, compare
from stepvar.generation.schedule import Scale

HALF = "_half"
"""End of the names of tensors that hold every second row and column of the one named before it."""


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
        if not (folder / "case.json").is_file():
            raise CaseError(f"There is no golden case in '{folder}': name a folder with a case.json.")
        try:
            info = json.loads((folder / "case.json").read_text(encoding="utf-8"))
            names = [name for name in ("inputs", "outputs") if (folder / f"{name}.safetensors").is_file()]
            files = [read_file(folder / f"{name}.safetensors") for name in names or ["tensors"]]
        except (OSError, ValueError, RecursionError) as error:
            raise CaseError(
                f"{folder} is not a readable golden case (case.json and tensors.safetensors): {error}"
            ) from error
        if not isinstance(info, dict):
            raise CaseError(f"{folder / 'case.json'} describes no case: it holds a {type(info).__name__}.")
        return cls(folder, info, {name: tensor for file in files for name, tensor in file.items()})

    @property
    def repository(self) -> str:
        """The official repository, owner/name; empty when the case names none."""
        official = self.info.get("official_repo") or self.info.get("official", "")
        named = official.get("repo", "") if isinstance(official, dict) else official
        return str(named).split(" ")[0].removeprefix("https://github.com/").removesuffix(".git")

    def weights_file(self, part: str, usual: str) -> Path:
        """The file with the official weights of a part.

        Args:
            part: "transformer" for example.
            usual: What it is called in a folder; the case's own is the default.
        """
        weights = self.info.get("weights")
        named = weights.get(part, weights.get("file")) if isinstance(weights, dict) else weights
        named = named.get("file") if isinstance(named, dict) else named
        # A description may follow the name.
        place = self.folder / (str(named or ".").split(" ")[0].rstrip(",;") or ".")
        if not place.suffix or place.is_dir():
            return place / usual
        is_other = isinstance(weights, str) and part not in place.name
        return place.with_name(usual) if is_other and place.with_name(usual).is_file() else place

    def state(self, part: str, usual: str) -> dict[str, Tensor]:
        """Official weights of a part in float32: the stored values are exact; see `weights_file`.

        Raises:
            CaseError: When the file is missing or damaged.
        """
        state = read_file(self.weights_file(part, usual))
        return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}

    def described(self, name: str) -> str:
        """Meaning and slicing of a stored tensor, in the words of case.json."""
        tensors = self.info.get("tensors")
        entry = tensors.get(name) if isinstance(tensors, dict) else None
        if not isinstance(entry, dict):
            return str(entry or "")
        return f"{entry.get('meaning', '')} {entry.get('stored_slice', '')}"

    def sliced(self, name: str, full: Tensor) -> Tensor:
        """Cuts a full tensor down to what was stored, as its name or its description says."""
        if name in self.tensors and self.tensors[name].shape == full.shape:
            return full
        if name.endswith(HALF):
            return self._halved(name, full)
        words = self.described(name)
        if "flattened" in words and (match := re.search(r"every (\d+)\w\w element", words)):
            return full.flatten()[:: int(match[1])]
        if match := re.search(r"every (\d+)\w\w element of dim (\d+) starting at (\d+)", words):
            step, dim, start = (int(group) for group in match.groups())
            return full[(slice(None),) * dim + (slice(start, None, step),)]
        if match := re.search(r"avg_pool2d\([^,]*, ?(\d+)\)", words):
            return functional.avg_pool2d(full, int(match[1]))
        for match in re.finditer(r"\[([^\[\]]*)\]", words):
            if (cut := _cut(match[1])) is not None:
                return full[cut]
        return full

    def _halved(self, name: str, full: Tensor) -> Tensor:
        """Every second row and column of maps [..., H, W], or of pictures [..., H, W, 3]."""
        maps, pictures = full[..., ::2, ::2], full[..., ::2, ::2, :]
        return pictures if pictures.shape == self.tensors[name].shape else maps


def read_file(file: Path) -> dict[str, Tensor]:
    """Reads a safetensors file.

    Raises:
        CaseError: When it is missing or damaged.
    """
    try:
        return load_file(file)
    except Exception as error:  # besides its own type, whatever a damaged header leads to
        raise CaseError(f"'{file}' cannot be read ({error}).") from error


def _cut(words: str) -> tuple[Any, ...] | None:
    """What an index such as "..., 96:160, 0:64" or "B, 0:8, 0:8, 3" cuts out; None where it cuts nothing.

    A letter or a number stands for all of an axis, as in a shape.
    """
    cut: list[Any] = []
    for part in (part.strip() for part in words.split(",")):
        if part == "...":
            cut.append(Ellipsis)
        elif re.fullmatch(r"-?\d*:-?\d*(:\d+)?", part):
            cut.append(slice(*(int(bound) if bound else None for bound in part.split(":"))))
        elif re.fullmatch(r"\w+", part):
            cut.append(slice(None))
        else:
            return None
    return tuple(cut) if any(isinstance(part, slice) and part != slice(None) for part in cut) else None


class DrawingSampler:
    """Base of the samplers of golden cases, which draw and are never asked for an expected picture."""

    def expect(self, logits: Tensor, scale: Scale) -> Any:
        raise NotImplementedError("No golden case looks at a picture before it is finished.")


def watch(module: nn.Module, use: Callable[[Tensor], None]) -> Any:
    """Hands every output of a module on that is one tensor."""

    def hand_on(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            use(output)

    return module.register_forward_hook(hand_on)


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

    def replayed(self, name: str, computed: Tensor) -> Tensor:
        """What is stored under a name, where all of it is, else what was computed: what a draw goes on with.

        Rounding within the tolerance would flip a draw in a million, and low temperatures enlarge it.
        """
        stored = self.case.tensors.get(name)
        if stored is None or stored.numel() != computed.numel() or not stored.isfinite().all():
            return computed
        return stored.to(computed.dtype).view_as(computed)

    def given(self, step: int, values: int) -> Tensor | None:
        """Bits that were given for a step, not drawn, and so are an input: "gt.05" is one, for example.

        Args:
            step: Its number, the last one in the name.
            values: How many bits.
        """
        for name, stored in self.case.tensors.items():
            numbers = re.findall(r"\d+", name) if re.search(r"(^|[._])(gt|given|forced)", name) else []
            if numbers and int(numbers[-1]) == step and stored.numel() == values:
                return self.take(name)
        return None

    def check(self, name: str, computed: Tensor, tolerance: float = TOLERANCE) -> None:
        """Compares a full computed tensor with what is stored of it under a name, if anything is."""
        if f"{name}{HALF}" in self.case.tensors:
            self.check(f"{name}{HALF}", computed, tolerance)
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
