"""The generation loop: what depends on what, and what must not."""

from __future__ import annotations

import gc

import pytest
import torch

from stepvar.pruning.scores import SCORERS
from stepvar.pruning.stepvar import StepVAR
from tiny_models import SMALL, bits, draw, make_text, make_transformer

LATE = StepVAR(ratios={-2: 0.4, -1: 0.6})


@pytest.fixture(scope="module")
def dense(transformer):
    return draw(transformer)


@pytest.mark.parametrize("score", SCORERS)
def test_ratio_zero_is_bit_identical_to_dense(transformer, dense, score):
    zero = draw(transformer, pruning=StepVAR(ratios={-3: 0.0, -2: 0.0, -1: 0.0}, score=score))
    assert zero.fingerprint() == dense.fingerprint()
    for landmark, tensor in dense.tensors.items():
        assert torch.equal(zero.tensors[landmark], tensor), landmark


def test_runs_are_repeatable_and_seeds_matter(transformer, dense):
    assert draw(transformer).fingerprint() == dense.fingerprint()
    assert draw(transformer, seeds=[1]).fingerprint() != dense.fingerprint()


@pytest.mark.parametrize("score", SCORERS)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_batch_of_ragged_prompts_equals_single_runs(transformer, score, guidance):
    pruning = StepVAR(ratios={-2: 0.4, -1: 0.6}, score=score)
    texts, seeds = make_text(3, 11, 6, 6), [7, 8, 9, 7]
    batch = draw(transformer, text=texts, seeds=seeds, pruning=pruning, guidance=guidance)
    for image, (text, seed) in enumerate(zip(texts, seeds, strict=True)):
        single = draw(transformer, text=[text], seeds=[seed], pruning=pruning, guidance=guidance)
        for scale, drawn in bits(single).items():
            assert torch.equal(bits(batch)[scale][image], drawn[0])
        for together, alone in zip(batch.reports, single.reports, strict=True):
            if alone.kept_index is not None:
                assert torch.equal(together.kept_index[image], alone.kept_index[0])
        torch.testing.assert_close(batch.result.latent[image], single.result.latent[0])


def test_an_image_does_not_depend_on_its_place_in_the_batch(transformer):
    first, second = make_text(4, 9)
    batch = draw(transformer, text=[first, second], seeds=[1, 2], pruning=LATE)
    swapped = draw(transformer, text=[second, first], seeds=[2, 1], pruning=LATE)
    for scale, drawn in bits(batch).items():
        assert torch.equal(drawn, bits(swapped)[scale].flip(0))


def test_equal_seeds_and_prompts_draw_equal_images_in_one_batch(transformer):
    (text,) = make_text(5)
    batch = draw(transformer, text=[text, text, text], seeds=[4, 5, 4], pruning=LATE)
    assert torch.equal(batch.result.latent[0], batch.result.latent[2])
    assert not torch.equal(batch.result.latent[0], batch.result.latent[1])


def test_an_observer_hears_of_every_scale_and_changes_nothing(transformer):
    pruning = StepVAR(ratios={-1: 0.5}, skip=(-2,))
    heard = []
    watched = draw(transformer, pruning=pruning, observer=heard.append)
    assert watched.fingerprint() == draw(transformer, pruning=pruning).fingerprint()
    assert [report.plan.scale for report in heard] == list(SMALL)
    assert [report.plan.skipped for report in heard] == [False] * 4 + [True, False]
    assert [report.rows for report in heard] == [2] * 4 + [0, 2]
    assert all(report.seconds > 0 for report in heard)
    assert heard == watched.reports


@pytest.mark.parametrize("score", SCORERS)
def test_scoring_does_not_touch_the_sampling_noise(transformer, dense, score):
    pruned = draw(transformer, pruning=StepVAR(ratios={-2: 0.4, -1: 0.6}, score=score))
    for scale in range(4):
        assert torch.equal(pruned.tensors["logits", scale], dense.tensors["logits", scale])
        assert torch.equal(bits(pruned)[scale], bits(dense)[scale])
    for left, right in zip(pruned_noise(score), pruned_noise(None), strict=True):
        assert torch.equal(left, right)


def pruned_noise(score: str | None) -> list[torch.Tensor]:
    """Bits of a model whose logits are constant: what remains is the noise."""
    model = make_transformer()
    model.head.weight.zero_()
    pruning = None if score is None else StepVAR(ratios={-2: 0.4, -1: 0.6}, score=score)
    return list(bits(draw(model, pruning=pruning)).values())


def test_the_seed_of_a_method_moves_its_own_choices_only(transformer):
    left = draw(transformer, pruning=StepVAR(ratios={-1: 0.5}, score="random", seed=0))
    right = draw(transformer, pruning=StepVAR(ratios={-1: 0.5}, score="random", seed=1))
    assert not torch.equal(left.reports[-1].kept_index, right.reports[-1].kept_index)
    for scale in range(5):
        assert torch.equal(bits(left)[scale], bits(right)[scale])


def test_global_random_numbers_are_neither_used_nor_moved(transformer, dense):
    torch.manual_seed(123)
    state = torch.get_rng_state()
    drawing = draw(transformer, pruning=StepVAR(ratios={-1: 0.5}, score="random"))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(321)
    again = draw(transformer, pruning=StepVAR(ratios={-1: 0.5}, score="random"))
    assert again.fingerprint() == drawing.fingerprint()


def snapshot(model) -> dict[str, object]:
    """Everything that could stay on a model: attributes, hooks, buffers, values of its weights."""
    seen: dict[str, object] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            held = sorted(value) if isinstance(value, dict) and "hooks" not in key else repr(value)
            seen[f"{name}.{key}"] = held
    seen["weights"] = {name: value.clone() for name, value in model.state_dict().items()}
    return seen


def assert_unchanged(model, before: dict[str, object]) -> None:
    after = snapshot(model)
    weights, kept = after.pop("weights"), before["weights"]
    assert after == {name: value for name, value in before.items() if name != "weights"}
    assert all(torch.equal(weights[name], value) for name, value in kept.items())


def living_tensors() -> int:
    gc.collect()
    return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())


def test_nothing_stays_after_a_call(transformer):
    draw(transformer, pruning=LATE)
    before, tensors = snapshot(transformer), living_tensors()
    draw(transformer, pruning=LATE, layers=[1], at_logits=False)
    draw(transformer)
    assert living_tensors() <= tensors
    assert_unchanged(transformer, before)


@pytest.mark.parametrize("fails_at", [0, 3, 5])
def test_nothing_stays_after_an_exception(transformer, dense, fails_at):
    class Stop(Exception):
        pass

    def stop(report):
        if report.plan.scale.index == fails_at:
            raise Stop

    before, tensors = snapshot(transformer), living_tensors()
    with pytest.raises(Stop):
        draw(transformer, pruning=LATE, observer=stop)
    assert living_tensors() <= tensors
    assert_unchanged(transformer, before)
    assert draw(transformer).fingerprint() == dense.fingerprint()
    assert draw(transformer, pruning=LATE).fingerprint() == fresh_drawing().fingerprint()


def fresh_drawing():
    return draw(make_transformer(), pruning=LATE)


@pytest.mark.parametrize("skipped", [1, 3, 4])
def test_a_middle_scale_can_be_skipped(transformer, dense, skipped):
    drawing = draw(transformer, pruning=StepVAR(skip=(skipped - 6,)))
    assert bits(drawing).keys() == set(range(6)) - {skipped}
    assert drawing.layer_tokens[skipped] == [0, 0, 0]
    for scale in range(skipped):
        assert torch.equal(bits(drawing)[scale], bits(dense)[scale])
    following = skipped + 1
    assert not torch.equal(drawing.tensors["logits", following], dense.tensors["logits", following])
    # What the next scale sees is what the scales before the skipped one have left.
    session = drawing.session
    session.latent = drawing.tensors["latent", skipped - 1]
    hidden, _ = session.embed(SMALL[following], slice(0, 1))
    torch.testing.assert_close(hidden, drawing.tensors["input", following][:1])


def test_skipped_last_scales_leave_the_codes_of_the_others(transformer, dense):
    drawing = draw(transformer, pruning=StepVAR(skip=(-2, -1)))
    assert torch.equal(drawing.result.latent, dense.tensors["latent", 3])


def test_cfg_copies_keep_the_same_tokens(transformer):
    texts = make_text(4, 7)
    drawing = draw(transformer, text=texts, seeds=[0, 1], pruning=LATE)
    kept = drawing.reports[-1].kept_index
    assert kept.shape == (2, 48)
    entering = drawing.tensors["layer 0", 5]
    assert entering.shape[0] == 4
    # Run layer 1 by hand on the kept positions of every row: both copies, same places.
    session, scale = drawing.session, SMALL[5]
    _, tokens = session.embed(scale, slice(0, 4))
    rows = kept.repeat(2, 1)
    narrowed = tokens.narrow(rows)
    hidden = entering.gather(1, rows[..., None].expand(-1, -1, entering.shape[-1]))
    layer = session.cache[1]
    layer.length -= kept.shape[1]
    for _, branch in session.branches(1, layer, slice(0, 4)):
        hidden = hidden + branch(hidden, narrowed)
    torch.testing.assert_close(hidden, drawing.tensors["layer 1", 5])


def test_pruned_positions_take_the_logits_of_their_nearest_kept_token(transformer):
    drawing = draw(transformer, pruning=LATE)
    kept = drawing.reports[-1].kept_index[0]
    logits = drawing.tensors["logits", 5][0]
    _, height, width = SMALL[5].grid
    place = torch.stack([torch.arange(height * width) // width, torch.arange(height * width) % width], dim=1)
    distance = (place[:, None] - place[kept]).square().sum(-1)
    assert torch.equal(logits, logits[kept[distance.argmin(dim=1)]])
