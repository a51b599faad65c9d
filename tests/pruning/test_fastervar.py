"""FasterVAR: the authors' ranks, the projection and the restoration by hand, and what it refuses."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as functional

from stepvar.generation.guidance import Guidance
from stepvar.generation.plan import ScalePlan
from stepvar.generation.pruner import LateScalePruning, plan_generation
from stepvar.generation.schedule import Scale, ScaleSchedule
from stepvar.generation.tokens import Tokens
from stepvar.models.hart.presets import PRESETS as HART_PRESETS
from stepvar.models.infinity.presets import PRESETS
from stepvar.models.infinity.sizes import SizeTable
from stepvar.models.infinitystar.presets import PRESETS as STAR_PRESETS
from stepvar.models.infinitystar.sizes import VideoSizes
from stepvar.pruning import fastervar
from stepvar.pruning.fastervar import FasterVAR, FasterVARPruner, averaged, token_energy
from stepvar.pruning.stepvar import StepVAR
from tiny_models import SMALL, bits, draw, make_text, make_transformer

CPU = torch.device("cpu")
PUBLISHED = {
    "0.999": [33, 961, 1155, 1239, 1263, 1118, 877, 1077],
    "0.96": [27, 219, 337, 401, 410, 317, 252, 306],
    "0.70": [11, 30, 48, 60, 67, 58, 64, 80],
}
HART_RANKS = (
    [29, 36, 68, 152, 244, 319, 357, 364, 389, 415, 451, 504, 553, 606, 615, 630, 641, 656, 654, 602]
    + [535, 424, 412, 477]
)  # fmt: skip


def ranks(entry: ScalePlan) -> list[int]:
    return [rank for _, rank in entry.stages]


@pytest.fixture(scope="module")
def model():
    return make_transformer(depth=4)


@pytest.mark.parametrize(("alpha", "expected"), PUBLISHED.items())
@pytest.mark.parametrize("depth", [32, 40])
def test_infinitys_published_ranks(alpha, expected, depth):
    schedule = SizeTable.published().schedule(1.0, "1M")
    plan = FasterVAR.published(alpha).plan(schedule, depth)
    [low] = [entry for entry in plan.scales if entry.prunes]
    assert (low.scale.width, ranks(low)) == (40, expected)
    assert [start for start, _ in low.stages] == list(range(0, depth, depth // 8))
    assert [low.tokens(layer) for layer in range(depth)] == [
        rank for rank in expected for _ in range(depth // 8)
    ]
    assert [entry.scale.width for entry in plan.scales if entry.skipped] == [48, 64]
    assert (plan.unguided, plan.remaining) == (10, "unconditional")


@pytest.mark.parametrize("budget", ["0.25M", "1M"])
def test_every_aspect_ratio_gets_the_same_three_scales(budget):
    table = SizeTable.published()
    for template in (0.4, 0.75, 1.75, 2.5):
        schedule = table.schedule(template, budget)
        plan = PRESETS["fastervar"].method.plan(schedule, 32)
        assert [entry.scale.index - len(schedule) for entry in plan.scales if entry.prunes] == [-3]
        assert [entry.scale.index - len(schedule) for entry in plan.scales if entry.skipped] == [-2, -1]


def test_harts_published_ranks():
    sides = (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)
    schedule = ScaleSchedule.from_grids([(side, side) for side in sides])
    plan = HART_PRESETS["fastervar"].method.plan(schedule, 24)
    assert ranks(plan.scales[-1]) == HART_RANKS
    assert [entry.prunes for entry in plan.scales] == [False] * 13 + [True]
    assert plan.unguided == 12


@pytest.mark.parametrize(
    ("name", "preset", "unguided", "tokens"),
    [("480p", "fastervar", 6, 31_800), ("720p", "720p-fastervar", 4, 72_000)],
)
def test_infinitystars_published_ranks_and_last_three_scales(name, preset, unguided, tokens):
    sizes = VideoSizes.published(name)
    schedule = sizes.schedule(sizes.nearest_template(9 / 16), sizes.latents(5))
    plan = STAR_PRESETS[preset].method.plan(schedule, 36)
    assert ranks(plan.scales[-1]) == [tokens // 10] * 6
    assert plan.scales[-1].scale.tokens == tokens
    grids = [entry.scale.grid for entry in plan.scales]
    assert plan.unguided == len(grids) - unguided
    last = [grid for grid, _ in itertools.groupby(grids)][-3:]
    assert grids[plan.unguided :][0] == last[0] != grids[plan.unguided - 1], "three scales, all repetitions"


def test_shares_of_merged_groups_are_averaged():
    assert averaged((1.0, 2.0, 3.0, 4.0), 2) == [1.5, 3.5]
    assert averaged((1.0, 2.0), 4) == [1.0, 1.0, 2.0, 2.0]
    assert averaged((0.3, 0.1), 2) == [0.3, 0.1]
    merged = averaged(tuple(range(8)), 6)
    assert sum(merged) / 6 == pytest.approx(3.5)
    assert merged == sorted(merged)
    plan = FasterVAR(shares={-1: (0.1, 0.2, 0.3, 0.4)}, groups=3).plan(SMALL, 4)
    # Four layers make two groups of at most three.
    assert plan.scales[-1].stages == ((0, 19), (2, 43))


def test_a_group_by_hand():
    """Two scales of two layers, in the words of the description: draw, mix, put back."""
    method = FasterVAR(shares={-1: (0.3, 0.5)}, groups=2, seed=3)
    schedule = ScaleSchedule.from_grids([(1, 1), (3, 4), (5, 6)])
    plan = method.plan(schedule, 2)
    assert ranks(plan[2]) == [10, 16]
    pruner = method.start(plan, CPU)
    generator = torch.Generator().manual_seed(9)
    before, after = (torch.randn(2, 12, 7, generator=generator) for _ in range(2))
    pruner.begin_scale(plan[1], 1, torch.zeros(1))
    tokens = Tokens(schedule[1])
    for layer, hidden in enumerate((torch.randn(2, 12, 7), before)):
        assert pruner.enter(layer, tokens, hidden)[1] is hidden
    assert pruner.leave(tokens, after) is after
    hidden, places = torch.randn(2, 30, 7, generator=generator), torch.arange(30.0).view(1, 30, 1)
    pruner.begin_scale(plan[2], 1, torch.zeros(1))
    tokens, source, drawn = Tokens(schedule[2], places), hidden, torch.Generator().manual_seed(3)
    for group, base in enumerate((before, after)):
        rank = (10, 16)[group]
        tokens, mixed = pruner.enter(group, tokens, hidden)
        length = source.square().sum(-1)
        race = length / length.sum(-1, keepdim=True)
        race = race / torch.empty(2, 30).exponential_(generator=drawn)
        index = race.argsort(dim=1, descending=True)[:, :rank]
        weights = torch.stack([torch.randn(30, rank, generator=drawn) for _ in range(2)])
        torch.testing.assert_close(mixed, weights.transpose(1, 2) @ source / rank**0.5)
        assert torch.equal(tokens.index, index)
        assert torch.equal(tokens.positions.flatten(), torch.arange(float(rank))), "the first places"
        hidden = torch.randn(2, rank, 7, generator=generator)
        maps = functional.adaptive_avg_pool2d(base.transpose(1, 2).view(2, 7, 3, 4), (5, 6))
        source = maps.flatten(2).transpose(1, 2).clone()
        for row in range(2):
            source[row, index[row]] = hidden[row]
    assert torch.equal(pruner.leave(tokens, hidden), source)
    assert torch.equal(pruner.kept_index, index[:1])


def test_numbers_that_are_drawn_in_blocks_mix_the_same_tokens(monkeypatch):
    method = FasterVAR(shares={-1: (0.2,)}, groups=1)
    plan = method.plan(SMALL, 2)
    hidden = torch.randn(3, 120, 5)

    def mixed(images: int) -> torch.Tensor:
        pruner = method.start(plan, CPU)
        pruner.begin_scale(plan[5], images, torch.zeros(1))
        pruner.full = Tokens(SMALL[5])
        return pruner.project(0, hidden[:images])[1]

    whole = mixed(1)
    monkeypatch.setattr(fastervar, "DRAWN_AT_ONCE", 25 * 7)
    pruner = method.start(plan, CPU)
    pruner.begin_scale(plan[5], 1, torch.zeros(1))
    blocks = pruner.blocks(25)
    assert [block.start for block in blocks] == list(range(0, 120, 7))
    assert blocks[-1].stop == 120
    assert not torch.equal(mixed(1), whole), "another stream of numbers, of which all are used"
    assert torch.equal(mixed(3)[:1], mixed(1)), "pictures share them"
    assert mixed(1).std() == pytest.approx((120 / 25) ** 0.5, rel=0.25)


def test_representatives_are_drawn_by_their_energy():
    method = FasterVAR(shares={-1: (0.1,)}, groups=1)
    plan = method.plan(SMALL, 1)
    hidden = torch.ones(1, 120, 4)
    hidden[:, :12] *= 10.0
    energy = token_energy(hidden)
    assert energy.sum() == pytest.approx(1.0)
    assert float(energy[0, 0] / energy[0, 50]) == pytest.approx(100.0)
    strong = []
    for seed in range(20):
        pruner = FasterVARPruner(FasterVAR(shares={-1: (0.1,)}, groups=1, seed=seed), plan, CPU)
        pruner.begin_scale(plan[5], 1, torch.zeros(1))
        index = pruner.choose(0, energy, 13, 1)[0]
        assert len(index.unique()) == 13
        strong.append(int((index < 12).sum()))
    assert 8 < sum(strong) / 20 < 12


def test_scales_before_are_the_dense_run_and_seeds_are_the_methods_own(model):
    texts, method = make_text(5, 8), FasterVAR.published()
    dense = draw(model, text=texts, seeds=[0, 1])
    drawn = draw(model, text=texts, seeds=[0, 1], pruning=method)
    for scale in range(3):
        assert torch.equal(drawn.tensors["logits", scale], dense.tensors["logits", scale])
    assert [report.rows for report in drawn.reports] == [4, 4, 4, 2, 0, 0]
    assert drawn.reports[3].kept_index.shape == (2, drawn.reports[3].plan.kept)
    others = draw(model, text=texts, seeds=[0, 1], pruning=FasterVAR(**{**vars(method), "seed": 1}))
    assert not torch.equal(bits(drawn)[3], bits(others)[3])


@pytest.mark.parametrize("unguided", [None, -2, -3])
def test_scales_after_one_another_restore_from_the_one_before(model, unguided):
    """With guidance, both copies are mixed by numbers of their own; where it ends in between, one is left."""
    method = FasterVAR(
        shares={-2: (0.2, 0.3), -1: (0.3, 0.2)},
        groups=2,
        unguided=unguided,
        remaining="conditional" if unguided is None else "unconditional",
    )
    drawing = draw(model, text=make_text(4, 6), seeds=[0, 1], pruning=method)
    assert drawing.layer_tokens[4:] == [[13, 13, 19, 19], [37, 37, 25, 25]]
    assert [layer.length for layer in drawing.session.cache.layers] == [
        sum(row[layer] for row in drawing.layer_tokens) for layer in range(4)
    ]
    index = drawing.reports[-1].kept_index
    assert not torch.equal(index[0], index[1]), "pictures draw by their own energy"


def test_positions_may_be_those_of_the_representatives():
    method = FasterVAR(shares={-1: (0.1,)}, groups=1, places="representatives")
    plan = method.plan(SMALL, 1)
    pruner = method.start(plan, CPU)
    pruner.begin_scale(plan[5], 1, torch.zeros(1))
    pruner.full = Tokens(SMALL[5], torch.arange(120.0).view(1, 120, 1))
    tokens, _ = pruner.project(0, torch.randn(1, 120, 4))
    assert torch.equal(tokens.positions.squeeze(-1).long(), tokens.index)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FasterVAR(shares={-1: ()}), r"The shares of scale -1 are \(\); give one or more"),
        (lambda: FasterVAR(shares={-1: (1.0,)}), r"each 0 or more and below 1"),
        (lambda: FasterVAR(groups=0), r"groups is 0"),
        (lambda: FasterVAR(extra=-1), r"extra is -1"),
        (lambda: FasterVAR(places="last"), r"Unknown places 'last'; known are first, representatives"),
        (lambda: FasterVAR.published("0.5"), r"alpha '0\.5'; known are 0\.999, 0\.99"),
        (lambda: FasterVAR(remaining="unconditional"), r"name the first scale without it, unguided=-3"),
        (lambda: FasterVAR(unguided=-1, remaining="both"), r"Unknown copies 'both' in remaining"),
        (lambda: FasterVAR({-1: 0.5}, shares={-1: (0.5,)}).plan(SMALL, 2), r"Scale -1 has both"),
        (lambda: FasterVAR(shares={-1: (0.5,), 12: (0.5,)}).plan(SMALL, 2), r"12x10 is named twice"),
        (lambda: FasterVAR(shares={-6: (0.1,)}).plan(SMALL, 2), r"1x1 .* would change nothing"),
        (lambda: FasterVAR(shares={-5: (0.9,)}).plan(SMALL, 2), r"2x2 has 4 tokens, .* on 4 mixtures"),
        (lambda: FasterVAR(shares={-2: (0.9,)}, skip=(-2,)).plan(SMALL, 2), r"9x7 is named twice"),
    ],
)
def test_what_cannot_be_is_refused_in_words(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_the_first_scale_has_nothing_to_restore_from():
    schedule = ScaleSchedule((Scale(0, 4, 4), Scale(1, 8, 8)))
    with pytest.raises(ValueError, match=r"4x4 cannot be projected: no scale before it runs"):
        FasterVAR({-2: 0.5}).plan(schedule, 2)


def test_what_the_published_settings_save_and_what_their_skips_alone():
    """Rows times tokens through the layers: most of the saving is two skipped scales."""
    schedule = SizeTable.published().schedule(1.0, "1M")

    def work(method: LateScalePruning | None) -> float:
        plan = plan_generation(method, schedule, 32)
        until = () if plan.unguided is None else (plan.unguided,)
        guidance = Guidance((3.0,) * 13, until=until, remaining=plan.remaining)
        return sum(
            guidance.row_count(entry.scale.index, 1, 2) * sum(entry.tokens(layer) for layer in range(32))
            for entry in plan.scales
        )

    controls = {
        "published": FasterVAR.published(),
        "no guidance": StepVAR(skip=(-2, -1), unguided=-3, remaining="unconditional"),
        "one more skip": StepVAR(skip=(-3, -2, -1)),
        "skips": StepVAR(skip=(-2, -1)),
    }
    savings = {name: round(work(None) / work(method), 2) for name, method in controls.items()}
    assert savings == {"published": 3.95, "no guidance": 3.17, "one more skip": 4.17, "skips": 2.55}
