"""Teacher forcing: what training computes in one pass is what generation computes scale by scale."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as functional

from stepvar.generation.schedule import ScaleSchedule
from stepvar.models.common.training import bit_losses, take_tokens
from stepvar.models.infinity import training
from stepvar.models.infinity.quantizer import quantize_multiscale
from stepvar.models.infinity.sizes import SizeTable
from stepvar.models.infinity.training import init_weights, teacher_forced_logits
from tiny_models import SMALL, bits, draw, make_text, make_transformer

GRIDS = [(scale.height, scale.width) for scale in SMALL]


def forced_run(model, text, schedule=SMALL, seed: int = 0, **settings):
    """A run that repeats random values, and the inputs that teacher forcing gets for the same values."""
    generator = torch.Generator().manual_seed(seed)
    forced = {
        scale.index: torch.rand(len(text), scale.tokens, 4, generator=generator) < 0.5 for scale in schedule
    }
    seeds = range(len(text))
    drawing = draw(model, schedule, text=text, seeds=seeds, guidance=1.0, forced=forced, **settings)
    inputs = [
        functional.interpolate(
            drawing.tensors["latent", scale.index - 1], size=(scale.height, scale.width), mode="bilinear"
        )
        for scale in schedule.scales[1:]
    ]
    return drawing, inputs


@pytest.mark.parametrize("lengths", [(5,), (6, 6), (3, 11, 7)])
@pytest.mark.parametrize("schedule", [SMALL, SizeTable.published().schedule(0.571, "0.06M")])
def test_teacher_forced_logits_are_those_of_generation(transformer, lengths, schedule):
    text = make_text(*lengths)
    drawing, inputs = forced_run(transformer, text, schedule)
    logits = teacher_forced_logits(transformer, text, inputs, schedule)
    assert len(logits) == len(schedule)
    for scale in schedule:
        expected = drawing.tensors["logits", scale.index]
        assert logits[scale.index].shape == (len(text), scale.tokens, 4, 2)
        torch.testing.assert_close(logits[scale.index], expected, rtol=1e-4, atol=1e-4)


def test_a_prefix_of_the_scales_gives_the_same_logits(transformer):
    text = make_text(3, 8)
    _, inputs = forced_run(transformer, text)
    whole = teacher_forced_logits(transformer, text, inputs, SMALL)
    first = teacher_forced_logits(transformer, text, inputs[:2], SMALL)
    assert len(first) == 3
    for left, right in zip(first, whole, strict=False):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_all_tokens_in_any_order_give_the_logits_of_whole_scales(transformer):
    text = make_text(3, 8)
    _, inputs = forced_run(transformer, text)
    generator = torch.Generator().manual_seed(3)
    orders = [
        torch.stack([torch.randperm(scale.tokens, generator=generator) for _ in text]) for scale in SMALL
    ]
    kept = [None, None, *orders[2:]]
    whole = teacher_forced_logits(transformer, text, inputs, SMALL)
    shuffled = teacher_forced_logits(transformer, text, inputs, SMALL, kept)
    for scale in SMALL:
        expected = whole[scale.index]
        if kept[scale.index] is not None:
            expected = take_tokens(expected.flatten(2), kept[scale.index]).view_as(expected)
        torch.testing.assert_close(shuffled[scale.index], expected, rtol=1e-4, atol=1e-4)


def test_dropped_tokens_of_the_last_scale_are_missed_by_their_own_scale_alone(transformer):
    text = make_text(3, 8)
    _, inputs = forced_run(transformer, text)
    kept = [None] * 5 + [torch.tensor([[0, 7, 50], [3, 4, 5]])]
    whole = teacher_forced_logits(transformer, text, inputs, SMALL)
    some = teacher_forced_logits(transformer, text, inputs, SMALL, kept)
    assert some[-1].shape[1] == 3
    for scale in range(5):
        torch.testing.assert_close(some[scale], whole[scale], rtol=1e-4, atol=1e-5)


def test_compiled_blocks_compute_the_same(monkeypatch):
    # The whole program is captured and run without a C++ compiler: seconds instead of a minute.
    compile_eagerly = partial(torch.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(training.torch, "compile", compile_eagerly)
    training._compiled_block.cache_clear()
    model = fresh_model()
    text = make_text(3, 8)
    features = torch.randn(2, 4, 12, 10, generator=torch.Generator().manual_seed(1))
    code = quantize_multiscale(features, GRIDS)
    results = []
    for compiled in (False, True):
        logits = teacher_forced_logits(model, text, code.teacher_inputs, SMALL, compiled=compiled)
        logits[-1].square().mean().backward()
        results.append((logits, model.blocks[0].self_attention.qkv.weight.grad.clone()))
        model.zero_grad()
    for plain, fused in zip(*(logits for logits, _ in results), strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-3, atol=1e-6)
    training._compiled_block.cache_clear()


def test_no_scale_sees_a_finer_one(transformer):
    text = make_text(4, 4)
    _, inputs = forced_run(transformer, text)
    plain = teacher_forced_logits(transformer, text, inputs, SMALL)
    changed = [*inputs[:3], inputs[3] + 1.0, *inputs[4:]]
    moved = teacher_forced_logits(transformer, text, changed, SMALL)
    for scale in range(6):
        assert torch.equal(plain[scale], moved[scale]) == (scale < 4)


def test_losses_are_mean_cross_entropies_of_the_bits(transformer):
    text = make_text(4, 9)
    drawing, inputs = forced_run(transformer, text)
    logits = teacher_forced_logits(transformer, text, inputs, SMALL)
    labels = [bits(drawing)[scale] for scale in range(6)]
    losses = bit_losses(logits, labels)
    for scale in range(6):
        pairs, targets = logits[scale].reshape(-1, 2), labels[scale].flatten().long()
        torch.testing.assert_close(losses[scale], functional.cross_entropy(pairs, targets))


def fresh_model():
    torch.manual_seed(0)
    model = make_transformer().requires_grad_(True)
    init_weights(model)
    return model.train()


def test_fresh_weights_know_nothing_and_every_weight_learns():
    model = fresh_model()
    features = torch.randn(2, 4, 12, 10, generator=torch.Generator().manual_seed(1))
    code = quantize_multiscale(features, GRIDS)
    labels = [scale.flatten(1, 2) for scale in code.bits]
    text = make_text(4, 9)
    losses = bit_losses(teacher_forced_logits(model, text, code.teacher_inputs, SMALL), labels)
    assert losses.tolist() == pytest.approx([math.log(2)] * 6, abs=0.02)
    losses.sum().backward()
    untouched = {name for name, value in model.named_parameters() if value.grad is None}
    assert untouched == {"unconditional_text"}, "it is learned from dropped prompts only"


def test_a_few_steps_learn_a_picture_that_generation_then_draws():
    model = fresh_model()
    features = torch.randn(1, 4, 6, 5, generator=torch.Generator().manual_seed(1))
    schedule = ScaleSchedule.from_grids(GRIDS[:4])
    code = quantize_multiscale(features, GRIDS[:4])
    labels, text = [scale.flatten(1, 2) for scale in code.bits], make_text(5)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(110):
        loss = bit_losses(teacher_forced_logits(model, text, code.teacher_inputs, schedule), labels).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.05
    drawn = draw(model.eval(), schedule, text=text, guidance=1.0, top_k=1)
    for scale, expected in enumerate(labels):
        assert torch.equal(bits(drawn)[scale], expected)
