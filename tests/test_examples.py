"""The examples, in miniature."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from stepvar.pruning.rules import load_rule
from stepvar.pruning.scores import SCORERS
from tiny_pipeline import make_pipeline

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def own_score():
    known = dict(SCORERS._rules)
    yield load_rule("own_score:prompt_influence", EXAMPLES), sys.modules["own_score"]
    SCORERS._rules = known
    del sys.modules["own_score"]


def test_a_score_of_ones_own_stands_beside_the_built_in_ones(own_score, monkeypatch):
    rule, example = own_score
    monkeypatch.setattr(example, "RATIOS", {-1: 0.5})
    assert SCORERS["prompt_influence"] is rule
    rows = example.measure(make_pipeline(), ["a red star"], ["prompt_influence", "random"])
    assert {row.score for row in rows} == {"prompt_influence", "random"}
    assert rows[0].mean >= rows[1].mean > 0
