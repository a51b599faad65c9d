"""Masks at every scale: which tokens are drawn, and which run."""

from __future__ import annotations

import pytest
import torch

from stepvar.editing.masks import RegionRule, covered_shares, free_tokens, grown, kept_scales, latent_places
from stepvar.generation.schedule import ScaleSchedule

SCHEDULE = ScaleSchedule.from_grids([(1, 1), (2, 2), (4, 4), (6, 8), (8, 8)])


def box_mask(left: int, top: int, width: int, height: int) -> torch.Tensor:
    mask = torch.zeros(1, 64, 64)
    mask[:, top : top + height, left : left + width] = 1.0
    return mask


def test_a_share_is_the_covered_part_of_a_cell():
    share = covered_shares(box_mask(0, 0, 20, 64), SCHEDULE[2])
    assert share.view(4, 4)[0].tolist() == [1.0, 0.25, 0.0, 0.0]


def test_coarse_tokens_need_half_a_cell_and_late_ones_any_touch():
    free = free_tokens(box_mask(0, 0, 41, 33), SCHEDULE, late_scales=2)
    assert [int(mask.sum()) for mask in free[:2]] == [0, 1]
    assert free[2].view(4, 4).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [0] * 4, [0] * 4]
    # 41 pixels reach into the sixth column of eight, 33 into the fifth row of eight and the fourth of six.
    assert free[4].view(8, 8).any(dim=0).sum() == 6 and free[4].view(8, 8).any(dim=1).sum() == 5
    assert free[3].view(6, 8).any(dim=1).sum() == 4


def test_a_thin_line_is_drawn_at_late_scales():
    free = free_tokens(box_mask(10, 0, 1, 64), SCHEDULE, late_scales=1)
    assert free[-1].sum() == 8 and not any(mask.any() for mask in free[:-1])


def test_a_larger_mask_never_makes_a_token_known():
    small, large = (free_tokens(box_mask(8, 8, side, side), SCHEDULE) for side in (17, 30))
    for first, second in zip(small, large, strict=True):
        assert not (first & ~second).any()


def test_kept_scales_have_no_free_tokens():
    free = free_tokens(torch.ones(1, 64, 64), SCHEDULE, keep=2)
    assert [bool(mask.all()) for mask in free] == [False, False, True, True, True]


@pytest.mark.parametrize(("strength", "kept"), [(1.0, 0), (0.5, 2), (0.4, 3), (0.01, 4)])
def test_the_last_scales_are_drawn_in_proportion_to_the_strength(strength, kept):
    assert kept_scales(strength, SCHEDULE) == kept


@pytest.mark.parametrize("strength", [0.0, -1.0, 1.5, float("nan")])
def test_a_strength_out_of_range_is_refused(strength):
    with pytest.raises(ValueError, match="above 0 and up to 1"):
        kept_scales(strength, SCHEDULE)


def test_a_region_is_the_free_tokens_and_a_margin():
    free = free_tokens(box_mask(0, 0, 8, 8), SCHEDULE)
    regions = RegionRule(margin=1, late_scales=1).regions(free, SCHEDULE)
    assert regions[:4] == (None,) * 4 and regions[4].tolist() == [[0, 1, 8, 9]]
    assert RegionRule(margin=7).regions(free, SCHEDULE)[4] is None, "all of them are no region"
    assert RegionRule(late_scales=0).regions(free, SCHEDULE) == (None,) * 5
    assert grown(free[4], SCHEDULE[4], 0) is free[4]


def test_anchors_run_too():
    regions = RegionRule(0, 1).regions(free_tokens(box_mask(0, 0, 8, 8), SCHEDULE), SCHEDULE, anchor_stride=4)
    assert regions[4].tolist() == [[0, 18, 22, 50, 54]]


def test_regions_of_different_sizes_do_not_run_together():
    masks = torch.cat([box_mask(0, 0, 8, 8), box_mask(0, 0, 32, 32)])
    with pytest.raises(ValueError, match="Masks of different areas"):
        RegionRule(1, 1).regions(free_tokens(masks, SCHEDULE), SCHEDULE)


def test_negative_numbers_are_refused():
    with pytest.raises(ValueError, match="both are 0 or more"):
        RegionRule(margin=-1)


def test_a_token_of_several_latent_positions_is_free_as_a_whole():
    free = free_tokens(box_mask(0, 0, 8, 8), SCHEDULE)
    places = latent_places(free[4], SCHEDULE.final, (16, 16))
    assert places.shape == (1, 1, 16, 16) and places.sum() == 4 and places[0, 0, :2, :2].all()
