"""Recorded work of each scale, and the machine's limits."""

from __future__ import annotations

import pytest
import torch

from stepvar.evaluation.roofline import (
    FusedAttention,
    MachineLimits,
    Product,
    record_work,
    share_of_last_scales,
)
from tiny_pipelines import MAKERS, made


def recorded(name, pruning):
    """The work of one picture, and the summary of the same call."""
    pipeline, subject = made(name), MAKERS[name][1][:1]
    work = record_work(lambda observer: pipeline(subject, seed=0, pruning=pruning, observer=observer))
    tokens = len(pipeline.encode(subject)[0]) if name == "infinity" else 1
    return work, pipeline.summary(pruning, images=1, text_tokens=tokens)


@pytest.mark.parametrize("pruning", [None, "prune"])
@pytest.mark.parametrize("name", ["infinity", "var"])
def test_products_that_ran_are_those_that_the_summary_promised(name, pruning):
    work, summary = recorded(name, pruning)
    for scale, cost in list(zip(work, summary.costs, strict=True))[1:]:
        flops = sum(count * product.flops for product, count in scale.products.items())
        # Scoring and the recovered positions' logits come on top.
        assert 0.99 <= flops / cost.flops < (1.01 if pruning is None else 1.06)


def test_a_skipped_scale_has_no_work():
    work, _ = recorded("infinity", "skip")
    assert [bool(scale.products) for scale in work] == [True] * 4 + [False] * 2
    assert work[-1].operations == 0


def test_limits_are_times_of_the_products_alone():
    linear = Product(1, 64, 32, 16, torch.float32)
    scores = FusedAttention(4, 8, 12, 16, torch.float32)
    work, _ = recorded("infinity", None)
    work[1].products.clear()
    work[1].products.update({linear: 3, scores: 2})
    limits = MachineLimits.measure([work[1:2]], torch.device("cpu"))
    alone, fused = limits.product_seconds[linear], limits.product_seconds[scores]
    assert fused == pytest.approx(alone * scores.flops / linear.flops)
    described = limits.describe(work[1], 1.0)
    assert described["product_seconds"] == described["product_share"] == pytest.approx(3 * alone + 2 * fused)
    assert described["bytes"] == 3 * 4 * (64 * 32 + 32 * 16 + 64 * 16) + 2 * 4 * 4 * (2 * 8 + 2 * 12) * 16
    assert described["copy_share"] == pytest.approx(described["bytes"] / limits.copy_rate)


def test_the_last_scales_that_ran_are_summed_up():
    scales = [{"seconds": seconds, "roofline": {"product_seconds": 1.0}} for seconds in (9, 8, 4, 0, 2, 2, 2)]
    assert share_of_last_scales(scales) == pytest.approx(4 / 10)
    assert share_of_last_scales(scales[:1]) is None
