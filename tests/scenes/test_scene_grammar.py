"""Prompts: drawing, reading, and the scenes that belong to them."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepvar.scenes import (
    BACKGROUNDS,
    CATEGORIES,
    COLOURS,
    RELATIONS,
    SHAPES,
    TEXTURES,
    VOCABULARY,
    Group,
    PromptError,
    Scene,
    SceneSpec,
    UnknownWordError,
    WordOrderError,
    evaluation_prompts,
    is_held_out,
    parse,
    sample,
    split_words,
    write_prompt,
)

_GROUPS = st.builds(
    Group,
    count=st.integers(1, 2),
    shape=st.sampled_from(SHAPES),
    colour=st.none() | st.sampled_from(COLOURS),
    texture=st.none() | st.sampled_from(TEXTURES),
    size=st.none() | st.sampled_from(("small", "large")),
)
_BACKGROUNDS = st.none() | st.sampled_from(BACKGROUNDS)
_SPECS = st.builds(
    SceneSpec, st.tuples(_GROUPS, _GROUPS), st.none() | st.sampled_from(RELATIONS), _BACKGROUNDS
) | st.builds(SceneSpec, st.tuples(_GROUPS), st.none(), _BACKGROUNDS)


def _assert_shows(scene: Scene, spec: SceneSpec) -> None:
    """The scene has the objects of the groups, in order, with the attributes they name."""
    assert len(scene.objects) == sum(group.count for group in spec.groups)
    assert spec.background in (None, scene.background)
    remaining = list(scene.objects)
    centres = []
    for group in spec.groups:
        members, remaining = remaining[: group.count], remaining[group.count :]
        assert len({item.combination for item in members}) == 1
        for item in members:
            assert item.shape == group.shape
            assert group.colour in (None, item.colour)
            assert group.texture in (None, item.texture)
            assert group.size in (None, item.size)
        centres.append(np.array([(item.x, item.y) for item in members]))
    axis, sign = {"left of": (0, 1), "right of": (0, -1), "above": (1, 1), "below": (1, -1)}.get(
        spec.relation or "", (0, 0)
    )
    if sign:
        assert (sign * centres[0][:, axis]).max() < (sign * centres[1][:, axis]).min()


@settings(max_examples=200, deadline=None)
@given(spec=_SPECS, seed=st.integers(0, 2**32))
def test_every_spec_can_be_written_and_read(spec: SceneSpec, seed: int) -> None:
    text = write_prompt(np.random.default_rng(seed), spec)
    assert parse(text) == spec
    assert parse(text.upper() + ".") == spec
    assert set(split_words(text)) <= set(VOCABULARY)


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("split", ["train", "heldout", "any"])
def test_samples_read_back_and_match_their_scene(category: str, split: str) -> None:
    rng = np.random.default_rng(3)
    for _ in range(60):
        prompt, scene = sample(rng, category, split=split)
        assert prompt.category == category
        assert parse(prompt.text) == prompt.spec
        _assert_shows(scene, prompt.spec)
        if split == "train":
            assert not prompt.held_out
            assert not is_held_out(scene)
        elif split == "heldout":
            assert prompt.held_out
            assert is_held_out(scene)


def test_training_prompts_are_balanced_and_rich() -> None:
    rng = np.random.default_rng(4)
    prompts = [sample(rng)[0] for _ in range(1200)]
    assert min(Counter(prompt.category for prompt in prompts).values()) > 150
    specs = [prompt.spec for prompt in prompts]
    assert 0.4 < np.mean([spec.background is not None for spec in specs]) < 0.6
    assert np.mean([any(group.colour for group in spec.groups) for spec in specs]) > 0.7
    assert 0.4 < np.mean([any(group.texture for group in spec.groups) for spec in specs]) < 0.65
    assert {word for prompt in prompts for word in split_words(prompt.text)} == set(VOCABULARY)


def test_groups_stand_in_relations() -> None:
    spec = parse("Two yellow stars, above a striped blue ring on sand.")
    two_stars, ring = Group(2, "star", "yellow"), Group(1, "ring", "blue", "striped")
    assert spec == SceneSpec((two_stars, ring), "above", "sand")


@pytest.mark.parametrize(
    ("text", "relation"),
    [
        ("a star on the left of a ring", "left of"),
        ("a star right of the ring", "right of"),
        ("a star over a ring", "above"),
        ("a star beneath a ring on stone", "below"),
    ],
)
def test_synonyms_of_relations(text: str, relation: str) -> None:
    assert parse(text).relation == relation


def test_unknown_word_is_named_with_the_closest_known_ones() -> None:
    with pytest.raises(UnknownWordError, match="'cicle' is not known; the closest known words are") as caught:
        parse("a red cicle on sand")
    assert caught.value.word == "cicle"
    assert caught.value.suggestions[0] == "circle"
    with pytest.raises(UnknownWordError, match="known shapes are 'circle'"):
        parse("a zebra")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("a red", "Expected a shape"),
        ("two star", "'stars' is needed"),
        ("stars on sand", "needs a count"),
        ("a red blue star", "second colour"),
        ("a star ring", "Expected 'and'"),
        ("a star on the left", "Expected a background"),
        ("a star above", "the prompt ends"),
        ("three stars and two rings", "at most 4"),
    ],
)
def test_words_in_no_order_are_explained(text: str, reason: str) -> None:
    with pytest.raises(WordOrderError, match=reason):
        parse(text)


@settings(max_examples=300, deadline=None)
@given(words=st.lists(st.sampled_from(VOCABULARY), max_size=9))
def test_any_known_words_are_read_or_refused(words: list[str]) -> None:
    try:
        spec = parse(" ".join(words))
    except PromptError as error:
        assert str(error).endswith(".")
    else:
        assert 1 <= sum(group.count for group in spec.groups) <= 4


def test_unknown_category_is_refused() -> None:
    with pytest.raises(ValueError, match="There is no category"):
        sample(np.random.default_rng(0), "texture")


def test_evaluation_prompts_are_fixed_distinct_and_balanced() -> None:
    prompts = evaluation_prompts(240, seed=7)
    assert prompts == evaluation_prompts(240, seed=7)
    assert prompts != evaluation_prompts(240, seed=8)
    assert len({prompt.text for prompt in prompts}) == 240
    assert set(Counter(prompt.category for prompt in prompts).values()) == {40}
    assert set(Counter(prompt.category for prompt in prompts if prompt.held_out).values()) == {10}
