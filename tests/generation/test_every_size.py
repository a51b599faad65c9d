"""Every aspect ratio x pixel budget x preset: the promised tokens run, whatever ran before, and pruning
never comes to nothing without a word."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import stepvar
from stepvar.generation.loop import plan_generation
from stepvar.models.infinity.costs import scale_costs
from stepvar.models.infinity.presets import PRESETS
from stepvar.models.infinity.sizes import SizeTable
from stepvar.models.infinity.transformer import InfinityTransformer
from stepvar.pruning.stepvar import StepVAR
from tiny_models import draw, make_text, make_transformer

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden" / "infinity" / "scale_schedules.json"
TABLE = {float(name): entry for name, entry in json.loads(GOLDEN.read_text())["schedules"].items()}
TEMPLATES = list(TABLE)
SIZES = [(template, budget) for budget in ("0.06M", "0.25M", "0.60M", "1M") for template in TEMPLATES]
SMALL_SIZES = [(template, "0.06M") for template in TEMPLATES]
MIDDLE_SIZES = [(1.0, "0.25M"), (0.333, "0.25M"), (1.75, "0.25M")]

PROMISED = {"none": {}, "paper": {-4: 0.4, -3: 0.5, -2: 1.0, -1: 1.0}, "prune": {-2: 0.5, -1: 0.75}}
PROMISED["skip"] = {-2: 1.0, -1: 1.0}
"""Share of tokens that each preset prunes, by scale from the end; all of them means skipped."""


def preset(name: str) -> StepVAR | None:
    return PRESETS[name].method if name in PRESETS else None


def promised_tokens(template: float, budget: str, name: str) -> list[int]:
    """Tokens that each scale keeps, from the published table alone."""
    tokens = [height * width for height, width in TABLE[template][budget]["scales_h_w"]]
    for scale, ratio in PROMISED[name].items():
        tokens[scale] -= int(ratio * tokens[scale] + 1e-9)
    return tokens


def run(transformer: InfinityTransformer, template: float, budget: str, name: str, seed: int = 3):
    schedule = SizeTable.published().schedule(template, budget)
    return draw(transformer, schedule, text=make_text(6), seeds=[seed], pruning=preset(name))


def fingerprints(transformer: InfinityTransformer, sizes, names=tuple(PROMISED)) -> dict[str, str]:
    """What every size and preset draws, in the order given."""
    return {
        f"{template} {budget} {name}": run(transformer, template, budget, name).fingerprint()
        for template, budget in sizes
        for name in names
    }


@pytest.fixture(scope="module")
def drawn(transformer):
    return fingerprints(transformer, SMALL_SIZES)


@pytest.fixture(scope="module")
def largest():
    """The 2B model without memory: its costs can be asked for."""
    with torch.device("meta"):
        return InfinityTransformer.published("2B")


@pytest.mark.parametrize("name", PROMISED)
def test_every_plan_keeps_the_promised_tokens(largest, name):
    depth = len(largest.blocks)
    for template, budget in SIZES:
        schedule = SizeTable.published().schedule(template, budget)
        promised = promised_tokens(template, budget, name)
        plan = plan_generation(preset(name), schedule, depth)
        assert [entry.kept for entry in plan.scales] == promised
        assert [entry.skipped for entry in plan.scales] == [count == 0 for count in promised]
        tokens = [scale.tokens for scale in schedule]
        assert plan.cached_tokens(depth - 1) == sum(promised)
        run_at_all = [full if count else 0 for full, count in zip(tokens, promised, strict=True)]
        assert plan.cached_tokens(0) == sum(run_at_all), "layer 0 stays dense, skipped scales do not run"


@pytest.mark.parametrize("name", ["paper", "prune", "skip"])
def test_every_preset_saves_work_and_memory_at_every_size(largest, name):
    depth = len(largest.blocks)
    for template, budget in SIZES:
        schedule = SizeTable.published().schedule(template, budget)
        rows = [2] * len(schedule)
        costs = scale_costs(largest, plan_generation(preset(name), schedule, depth), rows, 16)
        dense = scale_costs(largest, plan_generation(None, schedule, depth), rows, 16)
        for cost, full, scale in zip(costs, dense, range(-len(schedule), 0), strict=True):
            if scale in PROMISED[name]:
                assert cost.flops < full.flops
                assert cost.cache_bytes < full.cache_bytes
            else:
                assert cost == full
        assert sum(cost.flops for cost in costs) < 0.9 * sum(cost.flops for cost in dense)


@pytest.mark.parametrize("name", PROMISED)
@pytest.mark.parametrize(("template", "budget"), SMALL_SIZES + MIDDLE_SIZES)
def test_every_layer_runs_the_promised_tokens(transformer, template, budget, name):
    drawing = run(transformer, template, budget, name)
    promised = promised_tokens(template, budget, name)
    depth = drawing.session.depth
    assert len(drawing.reports) == len(promised)
    for report, layers, kept in zip(drawing.reports, drawing.layer_tokens, promised, strict=True):
        full = report.plan.scale.tokens if kept else 0
        assert layers == [full] + [kept] * (depth - 1)
        assert report.plan.kept == kept
        assert report.plan.skipped == (kept == 0)
        if report.kept_index is None:
            assert kept in (0, full)
            continue
        assert report.kept_index.shape == (1, kept)
        positions = report.kept_index[0].tolist()
        assert positions == sorted(set(positions))
        assert 0 <= positions[0] <= positions[-1] < full
    stored = [sum(column) for column in zip(*drawing.layer_tokens, strict=True)]
    assert drawing.cache_lengths == [(length, length) for length in stored]
    assert drawing.result.choices.keys() == {index for index, kept in enumerate(promised) if kept}


def test_naming_scales_by_height_prunes_them_or_says_why_not(transformer):
    squares_only = StepVAR(ratios={32: 0.4, 40: 0.5}, skip=(48, 64))
    done = []
    for template, budget in SIZES:
        schedule = SizeTable.published().schedule(template, budget)
        heights = [scale.height for scale in schedule]
        if all(heights.count(height) == 1 for height in (32, 40, 48, 64)):
            plan = squares_only.plan(schedule, 3)
            assert [plan[heights.index(height)].prunes for height in (32, 40)] == [True, True]
            assert [plan[heights.index(height)].skipped for height in (48, 64)] == [True, True]
            done.append((template, budget))
        else:
            with pytest.raises(ValueError, match=r"No scale is \d+ tokens high|scales are \d+ tokens high"):
                squares_only.plan(schedule, 3)
    assert done == [(1.0, "1M")]


def test_no_preset_comes_to_nothing(drawn):
    for template, budget in SMALL_SIZES:
        pictures = {drawn[f"{template} {budget} {name}"] for name in PROMISED}
        assert len(pictures) == len(PROMISED)


def test_the_order_of_runs_changes_nothing(transformer, drawn):
    backwards = fingerprints(transformer, SMALL_SIZES[::-1], tuple(PROMISED)[::-1])
    assert backwards == drawn


def test_another_picture_before_changes_nothing(transformer, drawn):
    for template, budget in SMALL_SIZES:
        for name in PROMISED:
            run(transformer, 1.0, "0.06M", "paper", seed=99)
            after_another = fingerprints(transformer, [(template, budget)], [name])
            assert after_another.items() <= drawn.items()


def test_a_fresh_process_draws_the_same(drawn):
    program = "import test_every_size as here; here.print_fingerprints()"
    folders = [str(Path(stepvar.__file__).parents[1]), str(HERE.parent), str(HERE)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(folders),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == drawn


def print_fingerprints() -> None:
    """What the fresh process runs; prunes first, so that nothing of a dense run can be lying about."""
    names = ("prune", "paper", "none", "skip")
    sys.stdout.write(json.dumps(fingerprints(make_transformer(), SMALL_SIZES[::-1], names)))


@pytest.mark.parametrize(("template", "budget"), MIDDLE_SIZES)
def test_larger_pictures_do_not_depend_on_what_ran_before(transformer, template, budget):
    first = fingerprints(transformer, [(template, budget)])
    run(transformer, 2.0, "0.25M", "prune", seed=5)
    assert fingerprints(transformer, [(template, budget)], tuple(PROMISED)[::-1]) == first
