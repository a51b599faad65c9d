"""Proof of fidelity: runs our models on golden cases of the official code and compares everything."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from stepvar.conformance.case import Case, CaseError
from stepvar.conformance.report import CaseReport

_RUNNERS = {
    "FoundationVision/Infinity": "stepvar.conformance.infinity",
    "FoundationVision/InfinityStar": "stepvar.conformance.infinitystar",
}
"""Module that runs the cases of a repository."""

__all__ = ["CaseError", "CaseReport", "run_case"]


def run_case(folder: Path) -> CaseReport:
    """Runs one golden case.

    Args:
        folder: Holds case.json and tensors.safetensors.

    Raises:
        CaseError: When the folder is no golden case, contradicts itself, or is of a model that has no
            runner.
        CheckpointError: When its weights are missing or damaged.
    """
    case = Case.load(folder)
    repository = str(case.info.get("official_repo", "")).split(" ")[0]
    if repository in _RUNNERS:
        runner = import_module(_RUNNERS[repository])
        try:
            return runner.run(case)
        except (LookupError, TypeError, RuntimeError) as error:
            raise CaseError(
                f"{folder} cannot be run, its case.json and its tensors do not fit together: {error!r}."
            ) from error
    raise CaseError(
        f"{folder} was made by {repository or 'an unnamed repository'}; "
        f"cases of {' and '.join(_RUNNERS)} can be run."
    )
