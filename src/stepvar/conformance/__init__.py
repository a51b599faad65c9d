"""Proof of fidelity: runs our models on golden cases of the official code and compares everything."""

from __future__ import annotations

from pathlib import Path

from stepvar.conformance.case import Case, CaseError
from stepvar.conformance.report import CaseReport

__all__ = ["CaseError", "CaseReport", "run_case"]


def run_case(folder: Path) -> CaseReport:
    """Runs one golden case.

    Args:
        folder: Holds case.json and tensors.safetensors.

    Raises:
        CaseError: When the folder is no golden case, or of a model that has no runner.
    """
    case = Case.load(folder)
    repository = str(case.info.get("official_repo", "")).split(" ")[0]
    if repository == "FoundationVision/Infinity":
        from stepvar.conformance.infinity import run

        return run(case)
    raise CaseError(
        f"{folder} was made by {repository or 'an unnamed repository'}; "
        "cases of FoundationVision/Infinity can be run."
    )
