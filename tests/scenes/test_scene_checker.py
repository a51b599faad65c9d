"""The checker: right pictures pass, also slightly spoilt ones; pictures of something else do not."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from stepvar.scenes import (
    BACKGROUNDS,
    COLOURS,
    RELATIONS,
    SHAPES,
    TEXTURES,
    Group,
    Scene,
    SceneObject,
    SceneSpec,
    check,
    detect,
    parse,
    render,
    sample,
    sample_scene,
)

_OPPOSITES = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_ASPECTS = {
    "shape": SHAPES,
    "colour": COLOURS,
    "texture": TEXTURES,
    "size": ("small", "large"),
    "count": (1, 2, 3, 4),
}


def _another(rng: np.random.Generator, values: tuple, current: object) -> object:
    choices = [value for value in values if value != current]
    return choices[rng.integers(len(choices))]


def _with_one_change(rng: np.random.Generator, spec: SceneSpec) -> SceneSpec:
    """Change exactly one thing that the spec asks for."""
    named = [
        (aspect, index)
        for index, group in enumerate(spec.groups)
        for aspect in _ASPECTS
        if getattr(group, aspect) is not None
    ]
    named += [("relation", -1)] * (spec.relation is not None) + [("background", -1)] * (
        spec.background is not None
    )
    aspect, index = named[rng.integers(len(named))]
    if aspect == "relation":
        swapped = _OPPOSITES[spec.relation] if rng.random() < 0.5 else _another(rng, RELATIONS, spec.relation)
        return replace(spec, relation=swapped)
    if aspect == "background":
        return replace(spec, background=_another(rng, BACKGROUNDS, spec.background))
    group = spec.groups[index]
    changed = replace(group, **{aspect: _another(rng, _ASPECTS[aspect], getattr(group, aspect))})
    return replace(spec, groups=(*spec.groups[:index], changed, *spec.groups[index + 1 :]))


def _blurred(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return ndimage.gaussian_filter(picture, (1, 1, 0))


def _noisy(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return picture + rng.normal(0, 12, picture.shape)


def _shifted(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return picture + rng.choice([-8, 8], 3)


def _tinted(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return picture * rng.uniform(0.87, 1.13, 3)


def test_right_pictures_pass_and_changed_prompts_fail() -> None:
    rng = np.random.default_rng(20)
    passed = wrongly_passed = 0
    for seed in range(300):
        prompt, scene = sample(rng, split="any")
        picture = render(scene, seed=seed)
        passed += check(picture, prompt.spec).passed
        wrongly_passed += check(picture, _with_one_change(rng, prompt.spec)).passed
    assert passed >= 299
    assert wrongly_passed <= 1


@pytest.mark.parametrize("spoil", [_blurred, _noisy, _shifted, _tinted])
def test_slightly_spoilt_pictures_pass(spoil) -> None:
    rng = np.random.default_rng(21)
    passed = 0
    for seed in range(120):
        prompt, scene = sample(rng, split="any")
        picture = spoil(render(scene, seed=seed).astype(np.float32), rng)
        passed += check(np.clip(np.round(picture), 0, 255).astype(np.uint8), prompt.spec).passed
    assert passed >= 117


@pytest.mark.parametrize("size", [192, 256])
def test_everything_is_recognised(size: int) -> None:
    rng = np.random.default_rng(22)
    for seed in range(60):
        scene = sample_scene(rng, split="any")
        background, objects = detect(render(scene, size, seed=seed))
        assert background == scene.background
        expected = {(item.shape, item.colour, item.texture, item.size) for item in scene.objects}
        assert {(item.shape, item.colour, item.texture, item.size) for item in objects} == expected
        scale = size / scene.canvas
        for item in scene.objects:
            nearest = min(
                np.hypot(x - item.x * scale, y - item.y * scale) for x, y in (o.centre for o in objects)
            )
            assert nearest < 0.12 * item.radius * scale + 2


def _pair(first: SceneObject, second: SceneObject) -> np.ndarray:
    return render(Scene("stone", (first, second)))


def test_the_failing_aspect_is_named() -> None:
    star = SceneObject("star", "red", "plain", "large", 50, 60, 40)
    ring = SceneObject("ring", "blue", "striped", "medium", 140, 70, 29)
    picture = _pair(star, ring)
    spec = parse("a large plain red star to the left of a striped blue ring on stone")
    result = check(picture, spec)
    assert result.passed
    assert result.detected_background == "stone"
    wrong = {
        "count": "two large plain red stars to the left of a striped blue ring on stone",
        "shapes": "a large plain red star to the left of a striped blue circle on stone",
        "colours": "a large plain orange star to the left of a striped blue ring on stone",
        "textures": "a large plain red star to the left of a dotted blue ring on stone",
        "sizes": "a small plain red star to the left of a striped blue ring on stone",
        "position": "a large plain red star above a striped blue ring on stone",
        "background": "a large plain red star to the left of a striped blue ring on sand",
    }
    for aspect, text in wrong.items():
        failed = check(picture, parse(text))
        assert not failed.passed
        assert not getattr(failed, aspect)
        if aspect != "count":
            others = [name for name in wrong if name != aspect]
            assert all(getattr(failed, name) for name in others), (aspect, failed)


def test_attributes_must_belong_to_the_same_object() -> None:
    red_star = SceneObject("star", "red", "plain", "large", 50, 60, 40)
    blue_ring = SceneObject("ring", "blue", "plain", "large", 140, 130, 40)
    picture = _pair(red_star, blue_ring)
    assert check(picture, parse("a blue ring and a red star")).passed
    assert not check(picture, parse("a red ring and a blue star")).passed


def test_extra_objects_fail() -> None:
    star = SceneObject("star", "red", "plain", "large", 50, 60, 40)
    result = check(_pair(star, replace(star, x=140)), parse("a red star"))
    assert not result.count
    assert result.shapes
    assert result.colours


def test_objects_of_unknown_looks_are_none() -> None:
    picture = render(Scene("sand", ()))
    picture[60:120, 50:66] = (30, 120, 30)
    picture[60:76, 50:140] = (30, 120, 30)
    _, objects = detect(picture)
    assert [item.shape for item in objects] == [None]


@pytest.mark.parametrize("picture", ["black", "noise", "empty"])
def test_meaningless_pictures_fail_without_an_error(picture: str) -> None:
    pictures = {
        "black": np.zeros((192, 192, 3), dtype=np.uint8),
        "noise": np.random.default_rng(0).integers(0, 256, (192, 192, 3), dtype=np.uint8),
        "empty": render(Scene("grass", ())),
    }
    result = check(pictures[picture], SceneSpec((Group(1, "star", "red"),), None, "water"))
    assert not result.passed
    assert not result.background


def test_other_arrays_are_refused() -> None:
    spec = parse("a star")
    for array in (np.zeros((192, 192, 3)), np.zeros((192, 192), np.uint8), np.zeros((8, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match="8-bit RGB"):
            check(array, spec)


def test_malformed_specs_are_refused() -> None:
    with pytest.raises(ValueError, match="no shape 'hexagon'"):
        Group(1, "hexagon")
    with pytest.raises(ValueError, match="needs two groups"):
        SceneSpec((Group(1, "star"),), "above")
    with pytest.raises(ValueError, match="at least one"):
        SceneSpec(())
