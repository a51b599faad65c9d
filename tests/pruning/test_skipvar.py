"""SkipVAR: the tabulated rule, and pictures that end apart; guidance dropped by plan."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from stepvar.generation.plan import GenerationPlan
from stepvar.generation.schedule import Scale, ScaleSchedule
from stepvar.models.request import check_plan
from stepvar.pruning.fastvar import FastVAR
from stepvar.pruning.skipvar import RULES, SkipVAR, SkipVARPruner, edge_change, fine_share
from stepvar.pruning.stepvar import StepVAR
from tiny_models import SMALL, bits, draw, make_text, same_bits

LATE = {-2: 0.4, -1: 0.6}


def limits(target: float, change: float, share: float, plan: GenerationPlan | None = None):
    plan = SkipVAR(target).plan(SMALL, 3) if plan is None else plan
    found = SkipVARPruner(SkipVAR(target), plan, None).limits([change], [share])
    return found.stop[0], found.unguided[0]


@pytest.mark.parametrize(
    ("target", "change", "share", "stop", "unguided"),
    [
        (0.84, 0.115321, 0.489232, 4, 6),  # both at their means: the largest intercept, two scales
        (0.88, 0.115321, 0.489232, 6, 3),  # more similar: all scales, guidance in none of the last three
        (0.84, 0.01, 0.30, 3, 6),  # a flat picture: three scales
        (0.84, 0.40, 0.70, 6, 5),  # a busy one: all scales, guidance dropped in the last
        (0.86, 0.10, 0.50, 5, 6),  # one in between: one scale
    ],
)
def test_flat_pictures_end_early_and_busy_ones_late(target, change, share, stop, unguided):
    assert limits(target, change, share) == (stop, unguided)


def test_stricter_targets_leave_out_less():
    for change in np.linspace(0.0, 0.4, 9):
        for share in np.linspace(0.2, 0.8, 7):
            stops = [limits(target, float(change), float(share))[0] for target in RULES]
            assert stops == sorted(stops)


def test_a_plan_that_drops_guidance_earlier_stays():
    plan = SkipVAR(0.84, StepVAR(unguided=-4)).plan(SMALL, 3)
    assert limits(0.84, 0.40, 0.70, plan) == (6, 2)


def test_the_two_numbers_are_the_published_ones():
    generator = np.random.default_rng(0)
    before, after = generator.uniform(-1, 1, (2, 3, 20, 16))

    def edges(picture):
        grey = np.pad(picture.mean(axis=0), 1)
        kernel = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]])
        magnitude = np.zeros((20, 16))
        for row in range(20):
            for column in range(16):
                patch = grey[row : row + 3, column : column + 3]
                magnitude[row, column] = np.hypot((patch * kernel).sum(), (patch * kernel.T).sum())
        return magnitude

    pictures = [torch.tensor(picture)[None] for picture in (before, after)]
    expected = np.abs(edges(after) - edges(before)).mean()
    assert edge_change(*pictures).item() == pytest.approx(expected, rel=1e-5)
    amplitude = np.abs(np.fft.fftshift(np.fft.fft2(after.mean(axis=0))))
    rows, columns = np.mgrid[-10:10, -8:8]
    fine = np.hypot(rows, columns) > int(0.4 * 16 / 2)
    expected = amplitude[fine].sum() / amplitude.sum()
    assert fine_share(pictures[1]).item() == pytest.approx(expected, rel=1e-5)


def preview(gain: float, codes: torch.Tensor) -> torch.Tensor:
    """Draws three channels of the codes with a pattern, so that a tiny model has pictures to judge."""
    pictures = torch.nn.functional.interpolate(codes[:, :3], scale_factor=8.0)
    pattern = torch.rand(pictures.shape[-2:], generator=torch.Generator().manual_seed(0))
    return gain * pictures * (1.0 + pattern)


WIDE = ScaleSchedule.from_grids([(1, 1), (2, 2), (4, 4), (8, 8), (12, 12), (16, 16)])


@pytest.mark.parametrize("inner", [None, StepVAR(ratios=LATE), FastVAR(ratios=LATE)])
def test_pictures_of_a_batch_end_as_if_each_were_alone(transformer, inner):
    method = SkipVAR(0.84, inner)
    look = partial(preview, 0.3)
    texts, seeds = make_text(*[4] * 8), list(range(8))
    batch = draw(transformer, WIDE, text=texts, seeds=seeds, pruning=method, preview=look)
    rows_seen = set()
    for image in range(8):
        single = draw(transformer, WIDE, text=[texts[image]], seeds=[image], pruning=method, preview=look)
        torch.testing.assert_close(batch.result.latent[image], single.result.latent[0])
        for scale, drawn in bits(single).items():
            assert torch.equal(bits(batch)[scale][image], drawn[0])
        rows_seen.add(tuple(report.rows for report in single.reports))
    assert len(rows_seen) > 2, "the pictures differ in what they need"
    together = [report.rows for report in batch.reports]
    most = [8 * max(column) for column in zip(*rows_seen, strict=True)]
    assert together == most, "what some need runs for all, no more"


def test_a_picture_that_ends_early_is_the_skipped_one(transformer):
    ended = draw(transformer, WIDE, pruning=SkipVAR(0.84), preview=partial(preview, 0.0))
    assert [report.plan.skipped for report in ended.reports] == [False] * 3 + [True] * 3
    assert ended.fingerprint() == draw(transformer, WIDE, pruning=StepVAR(skip=(-3, -2, -1))).fingerprint()


def test_a_picture_that_keeps_its_scales_may_lose_guidance(transformer):
    text = make_text(*[4] * 8)[:1]
    dropped = draw(transformer, WIDE, text=text, pruning=SkipVAR(0.84), preview=partial(preview, 0.3))
    assert [report.rows for report in dropped.reports] == [2] * 3 + [1] * 3
    planned = draw(transformer, WIDE, text=text, pruning=StepVAR(unguided=-3))
    assert dropped.fingerprint() == planned.fingerprint()


def test_without_a_preview_it_says_so(transformer):
    with pytest.raises(ValueError, match="SkipVAR looks at the picture so far, and here nothing draws it"):
        draw(transformer, pruning=SkipVAR())


def test_plans_that_cannot_be_are_refused_in_words():
    with pytest.raises(ValueError, match=r"no rule for a target of 0.9; known are 0.84, 0.86, 0.88"):
        SkipVAR(0.9)
    with pytest.raises(ValueError, match=r"compares two scales before the last 3; .* only 4 scales"):
        SkipVAR().plan(ScaleSchedule.from_grids([(1, 1), (2, 2), (3, 3), (4, 4)]), 3)
    with pytest.raises(ValueError, match="judges pictures; a clip has several"):
        SkipVAR().plan(ScaleSchedule(tuple(Scale(i, i + 1, 2, frames=2) for i in range(6))), 3)
    check_plan(SkipVAR().plan(SMALL, 3), SkipVAR())


@pytest.mark.parametrize(
    "method", [StepVAR(unguided=-2), StepVAR(ratios=LATE, unguided=9), FastVAR(LATE, (), -2)]
)
def test_guidance_is_dropped_by_plan(transformer, method):
    dropped = draw(transformer, pruning=method, seeds=[0, 1])
    assert [report.rows for report in dropped.reports] == [4] * 4 + [2] * 2
    plain = type(method)(method.ratios)
    by_weights = draw(
        transformer,
        pruning=plain if method.ratios else None,
        guidance=[3.0] * 4 + [1.0] * 2,
        seeds=[0, 1],
    )
    assert same_bits(dropped, by_weights)
    torch.testing.assert_close(dropped.result.latent, by_weights.result.latent)


def test_dropped_guidance_is_dropped_inside_too(transformer):
    dropped = draw(transformer, pruning=StepVAR(unguided=-2), layers=[1])
    by_weights = draw(transformer, guidance=[3.0] * 4 + [1.0] * 2, layers=[1])
    assert same_bits(dropped, by_weights)


def test_guidance_cannot_be_dropped_everywhere():
    with pytest.raises(ValueError, match="unguided names the first scale"):
        StepVAR(unguided=1).plan(SMALL, 3)
    assert StepVAR(unguided=-1).plan(SMALL, 3).changes
