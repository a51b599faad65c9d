"""The search for the best plans: what it lets run, and that it can be stopped."""

from __future__ import annotations

import argparse
from dataclasses import replace

import pytest

import search_best
from search_best import Candidate, Search, faithful_candidates, fast_candidates, references, saving, unique
from stepvar.pruning.stepvar import StepVAR
from stepvar.report.folder import ReportFolder

OPTIONS = argparse.Namespace(pictures=[2, 4, 6], rounds=1, batch=2, seed=7, speedups=[0.0, 1e9])


@pytest.fixture(scope="module")
def pipeline():
    from tiny_pipeline import make_pipeline

    return make_pipeline()


def test_fast_candidates_save_enough_and_faithful_ones_cost_the_same_and_skip_nothing(pipeline):
    fast, faithful = unique(list(fast_candidates(pipeline, 2.0))), list(faithful_candidates(pipeline))
    assert len(fast) > 40 and len(faithful) > 40
    assert all(saving(pipeline, candidate.method) >= 2.2 for candidate in fast)
    assert {bool(candidate.method.skip) for candidate in fast} == {True, False}
    wanted = pipeline.summary(StepVAR(ratios=search_best.PRUNE)).flops
    for candidate in faithful:
        assert not candidate.method.skip
        assert 0.9 * wanted < pipeline.summary(candidate.method).flops <= wanted


def test_names_tell_plans_apart():
    plan = StepVAR(ratios={-1: 0.5})
    plans = [plan, replace(plan, values="expected"), replace(plan, recovery="anchor"), None]
    names = {Candidate("fast", entry).name for entry in plans}
    assert len(names) == 4 and "fast ratios={-1:0.5} recovery=anchor" in names and "dense" in names


def test_a_stopped_search_goes_on_and_ends_the_same(pipeline, tmp_path):
    configs = [
        *references(),
        *(Candidate("fast", StepVAR(ratios={-1: ratio}, skip=(-2,))) for ratio in (0.0, 0.2, 0.4, 0.6, 0.8)),
        *list(faithful_candidates(pipeline))[:5],
    ]
    folder = ReportFolder(tmp_path / "search", {})
    folder.start({})
    whole = Search(pipeline, folder, configs, OPTIONS).run()
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "search" / "raw").iterdir()}
    generated = {name for name in (file.stem for file in files) if name.startswith("pictures-")}
    assert {f"pictures-{index:03}-000" for index in range(len(configs))} <= generated
    assert sum(name.endswith("-002") for name in generated) < len(configs), "later rounds have fewer"

    removed = sorted(file for file in files if file.stem.startswith("pictures-"))[-3:]
    for file in removed:
        file.unlink()
    again = Search(pipeline, folder, configs, OPTIONS).run()
    assert again == whole
    kept = {file: file.stat().st_mtime_ns for file in files if file not in removed and file.exists()}
    assert all(files[file] == stamp for file, stamp in kept.items()), "nothing is measured twice"
    rows = {row["name"]: row for row in whole["candidates"]}
    assert rows["dense"]["speedup"]["value"] == 1.0 and rows["dense"]["scene_change"]["value"] == 0.0
    assert {row["n"] for row in rows.values()} == {6}
    # Times of a tiny model are noise, but every plan is faster than nothing, and none a billion times.
    winners = whole["winners"]
    assert winners["0 x"] in rows and winners["1e+09 x"] is None


def test_a_fast_plan_competes_in_the_highest_speed_that_it_reaches(pipeline, tmp_path):
    options = argparse.Namespace(**{**vars(OPTIONS), "speedups": [1.5, 2.0, 3.0]})
    search = Search(pipeline, ReportFolder(tmp_path / "search", {}), references(), options)
    fast = Candidate("fast", StepVAR(ratios={-1: 0.5}))
    assert [search.group(fast, speedup) for speedup in (1.4, 1.5, 2.9, 9.0)] == [None, 1.5, 2.0, 3.0]
    assert search.group(replace(fast, kind="faithful"), 9.0) == "faithful"
