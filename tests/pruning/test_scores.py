"""What makes a token important: each score against a plain way of computing it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepvar.models.infinity.checkpoints import load_transformer
from stepvar.models.infinity.sizes import SizeTable
from stepvar.pruning.scores import (
    NORMALISATIONS,
    SCORERS,
    ScoringInput,
    change_scores,
    distance_to_mean,
    make_scorer,
    normalise,
    structure_scores,
    texture_scores,
)
from stepvar.pruning.selection import keep_highest
from tiny_models import draw, make_text

ITERATIONS = 5
GRIDS = [(1, 5, 7), (1, 1, 1), (1, 1, 6), (3, 4, 5), (2, 1, 1)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_features(grid=(1, 12, 10), batch: int = 2, channels: int = 16, seed: int = 0) -> torch.Tensor:
    tokens = grid[0] * grid[1] * grid[2]
    return torch.randn(batch, tokens, channels, generator=generator(seed))


def exact_structure(features: torch.Tensor) -> torch.Tensor:
    """|first principal coordinate| by a full decomposition in float64."""
    centred = features.double() - features.double().mean(dim=1, keepdim=True)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    return (centred @ directions[:, 0, :, None]).squeeze(-1).abs()


def shared_tokens(scores: torch.Tensor, others: torch.Tensor, ratio: float) -> float:
    """Smallest share of the kept tokens that two scores have in common, over the images."""
    count = scores.shape[1] - int(ratio * scores.shape[1])
    pairs = zip(keep_highest(scores, count).tolist(), keep_highest(others, count).tolist(), strict=True)
    return min(len(set(left) & set(right)) / count for left, right in pairs)


def with_spectrum(singular_values: torch.Tensor, tokens: int, seed: int = 0) -> torch.Tensor:
    """Random features with a common offset and these strengths of their principal directions."""
    drawn = generator(seed)
    channels = len(singular_values)
    rotation = torch.linalg.qr(torch.randn(channels, channels, generator=drawn)).Q
    features = (torch.randn(2, tokens, channels, generator=drawn) * singular_values) @ rotation
    return features + 3 * torch.randn(channels, generator=drawn)


@pytest.fixture(scope="module")
def golden_features(golden):
    """Hidden states of the golden weights at several scales and depths."""
    model = load_transformer(golden / "tiny_d16" / "transformer.safetensors", dtype=torch.float32).eval()
    schedule = SizeTable.published().schedule(1.0, "0.25M")
    text = make_text(9, channels=model.config.text_channels)
    tensors = draw(model, schedule, text=text).tensors
    names = ("input", "layer 0", "layer 2", "layer 4")
    return {(name, scale): tensors[name, scale][:1] for name in names for scale in (6, 8, 9)}


@pytest.mark.parametrize("ratio", [0.4, 0.5, 0.75])
def test_structure_keeps_what_a_decomposition_keeps_on_features_of_a_model(golden_features, ratio):
    for place, features in golden_features.items():
        exact = exact_structure(features)
        for seed in range(3):
            scores = structure_scores(features, ITERATIONS, generator(seed))
            assert shared_tokens(scores, exact, ratio) >= 0.99, place


@pytest.mark.parametrize("decay", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("ratio", [0.4, 0.75])
def test_structure_keeps_what_a_decomposition_keeps_on_power_law_spectra(decay, ratio):
    features = with_spectrum(torch.arange(1, 129).float() ** -decay, tokens=900)
    exact = exact_structure(features)
    for seed in range(3):
        assert shared_tokens(structure_scores(features, ITERATIONS, generator(seed)), exact, ratio) >= 0.99


def test_structure_tells_two_nearly_equal_components_apart():
    strengths = torch.cat([torch.tensor([1.0, 0.95, 0.9]), torch.full((61,), 0.2)])
    features = with_spectrum(strengths, tokens=1600)
    scores = structure_scores(features, ITERATIONS, generator())
    torch.testing.assert_close(scores, exact_structure(features).float(), rtol=0, atol=0.02)


@pytest.mark.parametrize(("tokens", "channels"), [(1, 4), (2, 4), (5, 1), (3, 64), (64, 3)])
def test_structure_of_few_tokens_or_channels_equals_the_decomposition(tokens, channels):
    features = random_features((1, 1, tokens), channels=channels)
    scores = structure_scores(features, 20, generator())
    torch.testing.assert_close(scores, exact_structure(features).float(), rtol=1e-3, atol=1e-3)


def test_structure_needs_no_luck_with_its_first_vectors():
    features = with_spectrum(torch.arange(1, 65).float().rsqrt(), tokens=400)
    runs = [structure_scores(features, ITERATIONS, generator(seed)) for seed in range(20)]
    for scores in runs[1:]:
        assert shared_tokens(scores, runs[0], 0.5) >= 0.99


def naive_texture(features: torch.Tensor, grid, kernel: int) -> torch.Tensor:
    """The texture score, token by token, from the neighbours that exist."""
    frames, height, width = grid
    reach = kernel // 2
    maps = features.double().view(len(features), frames, height, width, -1)
    scores = torch.zeros(maps.shape[:-1], dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            rows, columns = slice(max(y - reach, 0), y + reach + 1), slice(max(x - reach, 0), x + reach + 1)
            mean = maps[:, :, rows, columns].mean(dim=(2, 3))
            scores[:, :, y, x] = (maps[:, :, y, x] - mean).norm(dim=-1)
    return scores.flatten(1)


@pytest.mark.parametrize("grid", [*GRIDS, (1, 12, 10)])
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_texture_equals_a_plain_loop_over_existing_neighbours(grid, kernel):
    features = random_features(grid)
    expected = naive_texture(features, grid, kernel).float()
    torch.testing.assert_close(texture_scores(features, grid, kernel), expected, rtol=1e-4, atol=1e-5)


def test_texture_of_a_flat_map_is_zero_at_the_border_too():
    features = torch.full((1, 48, 8), 5.0)
    assert texture_scores(features, (1, 6, 8)).max() < 1e-5


def test_texture_finds_the_detail():
    features = torch.zeros(1, 8, 8, 4)
    features[0, 5, 2] = 1.0
    assert texture_scores(features.flatten(1, 2), (1, 8, 8)).argmax() == 5 * 8 + 2


def test_distance_to_mean_is_the_squared_distance():
    features = random_features()
    expected = torch.stack([(image - image.mean(dim=0)).square().sum(dim=1) for image in features])
    torch.testing.assert_close(distance_to_mean(features), expected)


def test_change_compares_directions_of_codes():
    previous, current = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    previous[0, 0], current[0, 0] = 1.0, 5.0
    current[0, :, 1, 1] = torch.tensor([-2.0, 0.0, 0.0])
    current[0, :, 0, 1] = torch.tensor([0.0, 3.0, 0.0])
    assert change_scores(previous, current, (1, 2, 2)).tolist() == [[0.0, 1.0, 0.0, 2.0]]
    pooled = change_scores(previous, current, (1, 1, 2))
    assert pooled.tolist() == [[0.0, 1.5]], "averaged down to the grid of the scale"


def test_change_without_a_history_treats_all_tokens_alike():
    current = torch.randn(2, 3, 4, 4)
    assert torch.equal(change_scores(None, current, (1, 2, 3)), torch.ones(2, 6))
    from_nothing = change_scores(torch.zeros_like(current), current, (1, 2, 3))
    torch.testing.assert_close(from_nothing, torch.ones(2, 6))


def test_change_works_on_clips():
    previous, current = torch.randn(2, 3, 4, 6, 6), torch.randn(2, 3, 4, 6, 6)
    scores = change_scores(previous, current, (2, 3, 3))
    whole = 1 - torch.nn.functional.cosine_similarity(previous, current, dim=1)
    expected = whole.view(2, 2, 2, 3, 2, 3, 2).mean(dim=(2, 4, 6)).flatten(1)
    torch.testing.assert_close(scores, expected)


@given(
    st.sampled_from(["structure", "texture", "distance", "structure+texture"]),
    st.floats(-50, 50),
    st.floats(0.01, 100),
)
@settings(max_examples=40, deadline=None)
def test_adding_a_constant_and_scaling_do_not_change_the_choice(name, offset, factor):
    grid = (1, 12, 10)
    features = random_features(grid)
    shift = offset * torch.randn(16, generator=generator(9))
    scorer = make_scorer(name)
    scores = scorer(ScoringInput(features, grid, (None, features), generator()))
    moved = scorer(ScoringInput(factor * (features + shift), grid, (None, features), generator()))
    power = {"structure": 1, "texture": 1, "distance": 2, "structure+texture": 0}[name]
    allowed = 2e-3 * float(scores.max())
    torch.testing.assert_close(moved / factor**power, scores, rtol=5e-3, atol=allowed)


@pytest.mark.parametrize("how", NORMALISATIONS)
def test_normalising_keeps_the_order_and_treats_images_apart(how):
    scores = torch.rand(3, 50, generator=generator())
    result = normalise(scores, how)
    assert torch.equal(result.argsort(dim=1), scores.argsort(dim=1))
    louder = normalise(scores * torch.tensor([[1.0], [1000.0], [0.001]]), how)
    torch.testing.assert_close(louder, result, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(normalise(scores[1:2], how), result[1:2])


def test_ranges_after_normalising():
    scores = torch.tensor([[4.0, 1.0, 3.0, 3.0, 2.0]])
    torch.testing.assert_close(normalise(scores, "minmax"), torch.tensor([[1.0, 0.0, 2 / 3, 2 / 3, 1 / 3]]))
    torch.testing.assert_close(normalise(scores, "rank"), torch.tensor([[0.8, 0.0, 0.4, 0.4, 0.2]]))
    standard = normalise(scores, "deviation")
    assert float(standard.mean()) == pytest.approx(0, abs=1e-6)
    assert float(standard.square().mean()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("how", NORMALISATIONS)
def test_equal_scores_stay_equal(how):
    result = normalise(torch.full((2, 30), 0.7), how)
    assert torch.isfinite(result).all()
    assert (result == result[:, :1]).all(), "no position is preferred for its place"


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_every_score_works_on_every_kind_of_grid(name, grid, normalisation):
    features = random_features(grid, batch=3)
    maps = tuple(torch.randn(3, 4, *grid, generator=generator(seed)) for seed in (1, 2))
    scorer = make_scorer(name, normalisation=normalisation)
    scores = scorer(ScoringInput(features, grid, maps, generator()))
    assert scores.shape == features.shape[:2]
    assert scores.dtype == torch.float32
    assert torch.isfinite(scores).all()
    again = scorer(ScoringInput(features[1:2], grid, tuple(part[1:2] for part in maps), generator()))
    torch.testing.assert_close(again, scores[1:2], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SCORERS)
def test_featureless_maps_give_finite_scores(name):
    features = torch.ones(2, 35, 16)
    maps = (torch.ones(2, 4, 5, 7), torch.ones(2, 4, 5, 7))
    for normalisation in NORMALISATIONS:
        scorer = make_scorer(name, normalisation=normalisation)
        assert torch.isfinite(scorer(ScoringInput(features, (1, 5, 7), maps, generator()))).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [name for name in SCORERS if name != "random"])
def test_half_precision_features_score_about_the_same(name, dtype):
    grid = (1, 12, 10)
    features = random_features(grid).to(dtype)
    maps = (random_features(grid, seed=1).mT.unflatten(2, (12, 10)), features.mT.unflatten(2, (12, 10)))
    scorer = make_scorer(name)
    scores = scorer(ScoringInput(features, grid, maps, generator()))
    full = scorer(ScoringInput(features.float(), grid, tuple(part.float() for part in maps), generator()))
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, full, rtol=1e-2, atol=1e-2)


def test_the_weight_of_structure_goes_from_texture_to_structure():
    grid, features = (1, 12, 10), random_features()
    inputs = (features, grid, (None, features))

    def kept(name: str, **fields) -> list:
        return keep_highest(make_scorer(name, **fields)(ScoringInput(*inputs, generator())), 40).tolist()

    assert kept("structure+texture", structure_weight=1.0) == kept("structure")
    assert kept("structure+texture", structure_weight=0.0) == kept("texture")
    assert kept("structure+texture") not in (kept("structure"), kept("texture"))
