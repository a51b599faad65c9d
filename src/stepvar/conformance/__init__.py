"""Runner of golden cases: our models on what official code computed, with every stored tensor compared."""

from __future__ import annotations

from pathlib import Path

from stepvar.checkpoints.components import load_reference
from stepvar.checkpoints.errors import CheckpointError
from stepvar.conformance.case import Case, CaseError
from stepvar.conformance.report import CaseReport
from stepvar.models import MODELS

FORKS = ("csguoh/FastVAR", "sen-mao/FasterVAR")
"""Repositories of forks: their cases name the model they are a fork of, as "hart+fastvar" does."""

__all__ = ["CaseError", "CaseReport", "run_case"]


def run_case(folder: Path) -> CaseReport:
    """Runs one golden case.

    Args:
        folder: Holds case.json and tensors.safetensors, or inputs.safetensors and outputs.safetensors.

    Raises:
        CaseError: When the folder is no golden case, contradicts itself, or is of a model that has no
            runner.
        CheckpointError: When its weights are missing or damaged.
    """
    case = Case.load(folder)
    runners = {model.repository: model.conformance for model in MODELS}
    repository = case.repository
    if repository in FORKS:
        forked = str(case.info.get("model", "infinity")).partition("+")[0].lower()
        repository = next((name for name in runners if name.lower().endswith(f"/{forked}")), repository)
    if repository not in runners:
        raise CaseError(
            f"{folder} was made by {case.repository or 'an unnamed repository'}; "
            f"cases of {', '.join(runners)} and of their forks {' and '.join(FORKS)} can be run."
        )
    try:
        return load_reference(runners[repository])(case)
    except (CaseError, CheckpointError):
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CaseError(
            f"{folder} cannot be run, its case.json and its tensors do not fit together: {error!r}."
        ) from error
