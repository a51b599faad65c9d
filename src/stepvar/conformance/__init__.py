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
        CaseError: When the folder is no golden case, contradicts itself, or is of a model that has no
            runner.
        CheckpointError: When its weights are missing or damaged.
    """
    case = Case.load(folder)
    repository = str(case.info.get("official_repo", "")).split(" ")[0]
    if repository in ("FoundationVision/Infinity", "csguoh/FastVAR"):
        from stepvar.conformance.infinity import run

        try:
            return run(case)
        except (LookupError, TypeError, RuntimeError) as error:
            raise CaseError(
                f"{folder} cannot be run, its case.json and its tensors do not fit together: {error!r}."
            ) from error
    raise CaseError(
        f"{folder} was made by {repository or 'an unnamed repository'}; "
        "cases of FoundationVision/Infinity and of its fork csguoh/FastVAR can be run."
    )
