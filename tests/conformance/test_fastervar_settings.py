"""What FasterVAR's golden cases say of their settings is honoured."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from stepvar.conformance import CaseError
from stepvar.conformance.fastervar import _is_order, infinity_fork, star_fork
from stepvar.generation.schedule import ScaleSchedule
from stepvar.models.infinity.sizes import SizeTable

SQUARE = SizeTable.published().schedule(1.0, "1M")
DROPPED = [3.0] * 10 + [0.0] * 3
VIDEO = ScaleSchedule.from_grids([(1, 1), (2, 2), (3, 5), (3, 5)])


def described(**info) -> SimpleNamespace:
    return SimpleNamespace(case=SimpleNamespace(info=info, folder="case"))


@pytest.mark.parametrize("groups", [2, 3, 8])
def test_fewer_groups_take_the_first_shares_of_their_alpha(groups):
    low_rank = {f"s10.chunk{group}": {} for group in range(groups)}
    case = described(call={"alpha": "0.70"}, low_rank=low_rank)
    plan = infinity_fork(case, SQUARE, DROPPED).plan(SQUARE, 24)
    assert [rank for _, rank in plan[10].stages] == [11, 30, 48, 60, 67, 58, 64, 80][:groups]
    assert [entry.scale.width for entry in plan.scales if entry.skipped] == [48, 64]
    assert (plan.unguided, plan.remaining) == (10, "unconditional")


def test_guidance_that_goes_on_keeps_both_copies():
    plan = infinity_fork(described(call={"alpha": "0.96"}), SQUARE, [3.0] * 11 + [0.0] * 2).plan(SQUARE, 8)
    assert plan.unguided == 11
    guided = infinity_fork(described(call={"alpha": "0.96"}), SQUARE, [3.0] * 13).plan(SQUARE, 8)
    assert guided.unguided is None and guided[10].prunes


def test_scales_are_told_apart_by_their_width():
    """As in the authors' code: at other sizes less happens, or nothing."""
    half = SizeTable.published().schedule(1.0, "0.60M")
    plan = infinity_fork(described(call={"alpha": "0.96"}), half, [3.0] * len(half)).plan(half, 8)
    assert [(entry.scale.width, entry.skipped) for entry in plan.scales[-2:]] == [(40, False), (48, True)]
    small = SizeTable.published().schedule(1.0, "0.25M")
    assert infinity_fork(described(call={}), small, [3.0] * len(small)) is None
    dropped = infinity_fork(described(call={}), small, [3.0] * (len(small) - 2) + [0.0] * 2)
    assert not dropped.plan(small, 8).prunes


def test_an_unknown_alpha_is_refused_in_words():
    with pytest.raises(CaseError, match=r"alpha '0\.5'; known are 0\.999"):
        infinity_fork(described(call={"alpha": "0.5"}), SQUARE, DROPPED)


@pytest.mark.parametrize(
    ("args", "ranks"),
    [
        ({"fastervar_rp_rank_ratio": 0.26}, [3, 3]),
        ({"fastervar_rp_rank_ratio": 0.0}, [1, 1]),
        ({"fastervar_rp_rank_ratio": 0.26, "fastervar_rp_rank": 7}, [7, 7]),
        ({"fastervar_rp_rank_ratio": 1.0}, []),
        ({"fastervar_rp_rank": 15}, []),
        ({"fastervar_rp_rank_ratio": 0.26, "fastervar_rp_last_scale": 0}, []),
    ],
)
def test_ranks_of_videos(args, ranks):
    info = {"args": {"fastervar_rp_last_scale": 1, **args}, "transformer_ctor": {"block_chunks": 2}}
    method = star_fork(described(**info), VIDEO.scales, "abcd", [3.0, 3.0, 0.0, 0.0], [3], None)
    plan = method.plan(VIDEO, 4)
    assert [rank for _, rank in plan[3].stages] == ranks
    assert (plan.unguided, plan.remaining) == (2, "unconditional")


def test_an_order_may_differ_by_rounding_only():
    chances = torch.tensor([[0.9, 0.5, 0.5000001, 0.2, 0.1999999]])
    assert _is_order(torch.tensor([[0, 1, 2]]), chances)
    assert _is_order(torch.tensor([[0, 2, 1, 4]]), chances), "the last one that is chosen"
    for wrong in ([[1, 0, 2]], [[0, 1, 3]], [[0, 1, 1]], [[0, 1, 5]], [[0, 3, 1]]):
        assert not _is_order(torch.tensor(wrong), chances)
