"""HART in the loop: what depends on what, parts of a map, residuals, and pruning on any schedule."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepvar.models.hart.sizes import part_counts
from stepvar.pruning.fastvar import FastVAR
from stepvar.pruning.scores import SCORERS
from stepvar.pruning.stepvar import StepVAR
from tiny_hart import CONTEXT, TALL, draw, make_context, make_hart, make_vae

PAPER = StepVAR(ratios={-2: 0.5, -1: 0.75})
FAST = FastVAR(ratios={-2: 0.5, -1: 0.75}, first_layer=0, dense_end=0)
VARIANTS = [
    {},
    {"modulation": "block", "pooling": "mean"},
    {"modulation": "table", "context_norm": False},
    {"cosine_attention": True, "level_table": True},
]


@pytest.fixture(scope="module")
def hart():
    return make_hart()


@pytest.fixture(scope="module")
def vae():
    return make_vae()


@pytest.fixture(scope="module")
def dense(hart, vae):
    return draw(hart, vae)


def same(left, right) -> bool:
    return torch.equal(left.latent, right.latent) and all(
        torch.equal(left.indices[scale], right.indices[scale]) for scale in left.indices
    )


def test_runs_are_repeatable_and_seeds_and_prompts_matter(hart, vae, dense):
    assert same(dense, draw(hart, vae))
    assert not same(dense, draw(hart, vae, seeds=[1]))
    assert not same(dense, draw(hart, vae, context=make_context(5, seed=1)))
    assert not same(dense, draw(hart, vae, negative=make_context(3, seed=2)))


@pytest.mark.parametrize("method", [StepVAR(ratios={-1: 0.0}), FastVAR(ratios={-1: 0.0})])
def test_ratio_zero_is_bit_identical_to_dense(hart, vae, dense, method):
    zero = draw(hart, vae, pruning=method)
    assert same(dense, zero)
    for landmark, tensor in dense.tensors.items():
        if isinstance(tensor, torch.Tensor):
            assert torch.equal(tensor, zero.tensors[landmark]), landmark


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("pruning", [None, PAPER, FAST])
def test_a_batch_equals_single_runs(vae, variant, pruning):
    model, lengths, seeds = make_hart(**variant), (3, 7, 1), [7, 8, 9]
    context = make_context(*lengths)
    batch = draw(model, vae, context=context, seeds=seeds, pruning=pruning, parts=1)
    for image, seed in enumerate(seeds):
        parts = (context.features, context.mask, context.positions)
        own = type(context)(*(part[image : image + 1] for part in parts))
        alone = draw(model, vae, context=own, seeds=[seed], pruning=pruning)
        for scale, index in alone.indices.items():
            assert torch.equal(batch.indices[scale][image], index[0])
        # Cold mixtures of codes and guided residuals amplify the rounding of another batch size.
        torch.testing.assert_close(batch.latent[image], alone.latent[0], rtol=0, atol=2e-2)


@given(
    grids=st.sampled_from([TALL, [(columns, rows) for rows, columns in TALL], [(1, 1), (3, 3), (5, 4)]]),
    ratios=st.tuples(st.floats(0.15, 0.9), st.floats(0.15, 0.9)),
    score=st.sampled_from(list(SCORERS)),
    guided=st.booleans(),
)
@settings(max_examples=12, deadline=None)
def test_pruning_works_on_other_schedules_and_aspect_ratios(grids, ratios, score, guided):
    model, vae = make_hart(depth=2), make_vae()
    method = StepVAR(ratios={-2: ratios[0], -1: ratios[1]}, score=score)
    drawing = draw(model, vae, grids=grids, pruning=method, guidance=2.0 if guided else 0.0, residual="kept")
    rows = 2 if guided else 1
    for report in drawing.result.scales[-2:]:
        entry = report.plan
        living = drawing.tensors["layer 1", entry.scale.index]
        assert living.shape[:2] == (rows, entry.kept)
        assert report.kept_index.shape == (1, entry.kept)
    assert drawing.latent.shape[-2:] == grids[-1]
    assert drawing.latent.isfinite().all()


@pytest.mark.parametrize("pruning", [None, PAPER, FAST, StepVAR(skip=(-1,))])
def test_the_cache_has_exactly_the_room_it_needs(hart, vae, pruning):
    drawing = draw(hart, vae, pruning=pruning)
    plan = [report.plan for report in drawing.result.scales]
    for layer, cache in enumerate(drawing.session.cache.layers):
        promised = sum(entry.tokens(layer) for entry in plan) + CONTEXT - 1
        assert cache.length == cache.capacity == promised


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_is_read_but_the_mask_decides_only_where_it_is_asked(vae, variant):
    """All context tokens enter the sequence; the mask matters to means and, through positions, to places."""
    model, context = make_hart(**variant), make_context(4)
    changed = context.features.clone()
    changed[:, -1] += 1.0
    other = type(context)(changed, context.mask, context.positions)
    assert not same(draw(model, vae, context=context), draw(model, vae, context=other))
    unmasked = type(context)(context.features, torch.ones_like(context.mask), context.positions)
    first, second = draw(model, vae, context=context), draw(model, vae, context=unmasked)
    assert same(first, second) == (variant.get("modulation") is None)


def test_the_first_scale_predicts_from_the_last_context_token(hart, vae, dense):
    hidden = dense.tensors["layer 2", 0]
    assert hidden.shape[1] == CONTEXT
    logits = dense.session.logits(hidden[:1])
    torch.testing.assert_close(dense.tensors["logits", 0], logits[:, -1:], rtol=0, atol=1e-5)


def test_maps_in_parts_cover_every_position_once(hart, vae):
    drawing = draw(hart, vae, parts=3)
    counts = part_counts(64, 3)
    places = torch.cat(drawing.session.parts, dim=1)
    assert [len(part[0]) for part in drawing.session.parts] == counts
    assert torch.equal(places.sort().values, torch.arange(64)[None])
    assert [report.plan.scale.part for report in drawing.result.scales[5:]] == counts
    torch.testing.assert_close(drawing.tensors["latent", 4], drawing.tensors["latent", 6], rtol=0, atol=0)
    added = drawing.latent - drawing.tensors["latent", 4]
    assert (added.abs().amax(1) > 0).all()
    assert drawing.session.cache.layers[0].length == CONTEXT + sum(side**2 for side in (2, 3, 4, 6, 8))


def test_later_parts_see_earlier_ones_through_the_cache_only(hart, vae):
    """The input of a part is the map as it was before the first part."""
    drawing = draw(hart, vae, parts=2)
    fixed = draw(hart, vae).tensors["input", 5][:1]
    for number, places in enumerate(drawing.session.parts):
        torch.testing.assert_close(drawing.tensors["input", 5 + number][:1], fixed[:, places[0]])


@pytest.mark.parametrize("method", [PAPER, StepVAR(skip=(-1,)), FAST])
def test_a_map_in_parts_is_not_pruned(hart, vae, method):
    with pytest.raises(ValueError, match="drawn in parts"):
        draw(hart, vae, parts=2, pruning=method)


def test_without_guidance_no_unconditional_copy_is_made(hart, vae):
    drawing = draw(hart, vae, guidance=0.0)
    assert {report.rows for report in drawing.result.scales} == {1}
    assert drawing.tensors["input", 5].shape[0] == 1


def test_residuals_move_the_last_scale_only(hart, vae, dense):
    bare = draw(hart, vae, residual="none")
    for scale in range(6):
        assert torch.equal(bare.indices[scale], dense.indices[scale])
    codes = bare.latent - bare.tensors["latent", 4]
    expected = bare.result.choices[5].codes.transpose(1, 2).unflatten(2, (8, 8))
    torch.testing.assert_close(codes, expected, rtol=0, atol=1e-5)
    assert (dense.latent - bare.latent).abs().max() <= 0.6 + 1e-5
    assert not torch.equal(dense.latent, bare.latent)


def test_recovered_positions_keep_their_bare_code_when_asked(hart, vae):
    runs = [draw(hart, vae, pruning=PAPER, residual=name) for name in ("all", "kept", "none")]
    index = runs[1].result.scales[-1].kept_index[0]
    chosen = torch.zeros(64, dtype=torch.bool)
    chosen[index] = True
    flat = [drawing.latent.flatten(2)[0] for drawing in runs]
    torch.testing.assert_close(flat[1][:, chosen], flat[0][:, chosen], rtol=0, atol=1e-5)
    torch.testing.assert_close(flat[1][:, ~chosen], flat[2][:, ~chosen], rtol=0, atol=0)
    assert not torch.equal(flat[0][:, ~chosen], flat[2][:, ~chosen])


def test_without_pruning_kept_positions_are_all(hart, vae, dense):
    assert same(dense, draw(hart, vae, residual="kept"))


def test_recovered_positions_draw_for_themselves(hart, vae):
    """Copies of one hidden state have the same logits, but codes and residuals of their own."""
    drawing = draw(hart, vae, pruning=StepVAR(ratios={-1: 0.95}), smooth=False)
    logits, index = drawing.tensors["logits", 5][0], drawing.indices[5][0]
    groups = torch.unique(logits, dim=0, return_inverse=True)[1]
    assert len(groups.unique()) < 64
    shared = groups == groups.mode().values
    assert len(index[shared].unique()) > 1
    values = drawing.latent.flatten(2)[0].T[shared]
    assert len(torch.unique(values, dim=0)) == int(shared.sum())


def test_every_order_of_parts_comes_from_the_image_alone(hart, vae):
    batch = draw(hart, vae, context=make_context(5, 5), seeds=[3, 4], parts=2)
    alone = draw(hart, vae, context=make_context(5, 5), seeds=[4, 3], parts=2)
    for left, right in zip(batch.session.parts, alone.session.parts, strict=True):
        assert torch.equal(left, right.flip(0))
