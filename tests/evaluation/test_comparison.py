"""Dense and pruned side by side, and the figure of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stepvar.evaluation.comparison import compare, kept_mask
from stepvar.evaluation.figure import DECODE_STAGE, MARGIN, draw_comparison
from stepvar.pruning.stepvar import StepVAR


@pytest.fixture(scope="module")
def comparison():
    from tiny_pipeline import make_pipeline

    plan = StepVAR(ratios={4: 0.25, 6: 0.5}, skip=(8,))
    return compare(make_pipeline(), "a red star", plan, seed=1, repeats=2)


def test_masks_show_what_ran(comparison):
    masks = {str(report.plan.scale): kept_mask(report) for report in comparison.pruned.report.scales}
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {
        "1x1": 1, "2x2": 4, "3x3": 9, "4x4": 12, "6x6": 18, "8x8": 0,
    }  # fmt: skip
    assert masks["6x6"].shape == (6, 6)
    kept = comparison.pruned.report.scales[4].kept_index[0].tolist()
    assert sorted(kept) == np.flatnonzero(masks["6x6"]).tolist()


def test_numbers_of_a_comparison(comparison):
    document = comparison.as_json()
    assert document["dense"]["tokens"] == 130 and document["pruned"]["tokens"] == 1 + 4 + 9 + 12 + 18
    assert [str(report.plan.scale) for report in comparison.changed_scales] == ["4x4", "6x6", "8x8"]
    assert [name for name, _ in comparison.pruned.stages] == [
        "text", "1x1", "2x2", "3x3", "4x4", "6x6", "decode",
    ]  # fmt: skip
    assert comparison.speedup == pytest.approx(comparison.dense.seconds / comparison.pruned.seconds)


def test_the_figure_shows_the_pictures_pixel_by_pixel(comparison):
    figure = np.asarray(draw_comparison(comparison))
    enlarged = comparison.dense.pixels.repeat(6, axis=0).repeat(6, axis=1)
    strip = figure[:, MARGIN : MARGIN + enlarged.shape[1]]
    starts = [row for row in range(len(strip) - 384) if np.array_equal(strip[row : row + 384], enlarged)]
    assert len(starts) == 1
    assert (figure == DECODE_STAGE).all(axis=2).any()


@pytest.mark.parametrize("prompt", ["x" * 500, "red " * 200, "\u661f\u661f on sand"])
def test_any_prompt_fits(comparison, prompt):
    width = draw_comparison(comparison).width
    figure = np.asarray(draw_comparison(replace(comparison, prompt=prompt)))
    assert figure.shape[1] == width
    assert (figure[:, -MARGIN:] == 255).all()


def test_large_and_wide_pictures_are_shrunk(comparison):
    pixels = np.random.default_rng(0).integers(0, 256, (1024, 2048, 3), dtype=np.uint8)
    large = replace(comparison.dense, pixels=pixels), replace(comparison.pruned, pixels=255 - pixels)
    figure = draw_comparison(replace(comparison, dense=large[0], pruned=large[1]))
    assert figure.width < 3 * 768 + 200


def test_equal_pictures(comparison):
    same = replace(comparison, pruned=replace(comparison.pruned, pixels=comparison.dense.pixels))
    assert same.psnr is None and same.ssim == pytest.approx(1.0)
    draw_comparison(same)
