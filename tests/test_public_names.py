"""Public names: one list, loaded on first use, and known to type checkers."""

from __future__ import annotations

import ast
import importlib.metadata
from pathlib import Path

import pytest

import stepvar
from stepvar.models import MODELS


def names_for_type_checkers():
    tree = ast.parse(Path(stepvar.__file__).read_text("utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    return {alias.name for node in block.body for alias in node.names}


def test_type_checkers_see_the_names_that_there_are():
    assert names_for_type_checkers() == set(stepvar.__all__)


@pytest.mark.parametrize("name", stepvar.__all__)
def test_every_name_loads(name):
    assert getattr(stepvar, name) is not None
    assert name in dir(stepvar)


def test_a_model_is_exported_by_its_spec():
    for spec in MODELS:
        assert spec.pipeline_name in stepvar.__all__
        assert getattr(stepvar, spec.pipeline_name) is spec.pipeline_class


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'StepVAT'"):
        _ = stepvar.StepVAT


def test_the_version_has_one_source():
    assert (
        "version = "
        not in Path(__file__).parents[1].joinpath("pyproject.toml").read_text().split("[tool.")[0]
    )
    assert importlib.metadata.version("stepvar") == stepvar.__version__
