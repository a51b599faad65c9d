"""Layout and rendering of scenes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepvar.scenes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    TEXTURES,
    LayoutError,
    Scene,
    SceneObject,
    is_held_out,
    render,
    sample_scene,
)
from stepvar.scenes.layout import arrange, gap
from stepvar.scenes.palette import OBJECT_COLOURS, second_tone
from stepvar.scenes.render import texture_mask
from stepvar.scenes.spec import HELD_OUT, RADIUS_FRACTIONS


def _assert_laid_out(scene: Scene) -> None:
    """Objects lie inside of the canvas and keep their distance."""
    smallest = gap(scene.canvas) - 1e-6
    for index, item in enumerate(scene.objects):
        assert min(item.x, item.y) - item.radius > 0
        assert max(item.x, item.y) + item.radius < scene.canvas
        for other in scene.objects[:index]:
            apart = max(abs(item.x - other.x), abs(item.y - other.y))
            assert apart >= item.radius + other.radius + smallest


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 4), canvas=st.sampled_from([192, 256]))
def test_random_scenes_are_laid_out_without_overlap(seed: int, count: int, canvas: int) -> None:
    scene = sample_scene(np.random.default_rng(seed), count=count, canvas=canvas)
    assert len(scene.objects) == count
    _assert_laid_out(scene)


def test_four_large_objects_fit() -> None:
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng, count=4) for _ in range(600)]
    crowded = [scene for scene in scenes if all(item.size == "large" for item in scene.objects)]
    assert crowded
    for scene in crowded:
        _assert_laid_out(scene)


def test_split_decides_about_held_out_combinations() -> None:
    rng = np.random.default_rng(1)
    assert not any(is_held_out(sample_scene(rng)) for _ in range(300))
    assert all(is_held_out(sample_scene(rng, split="heldout")) for _ in range(50))


def test_impossible_layout_is_refused() -> None:
    large = RADIUS_FRACTIONS["large"] * 192
    with pytest.raises(LayoutError):
        arrange(np.random.default_rng(0), [large] * 3, [large], "left of", 192)
    with pytest.raises(ValueError, match="one to 4"):
        sample_scene(np.random.default_rng(0), count=5)


@pytest.mark.parametrize("size", [192, 256, 200])
def test_rendering_is_a_pure_function(size: int) -> None:
    scene = sample_scene(np.random.default_rng(2), count=3)
    picture = render(scene, size, seed=5)
    assert picture.shape == (size, size, 3)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, render(scene, size, seed=5))
    assert (picture != render(scene, size, seed=6)).any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [192, 256])
def test_object_stays_in_its_bounding_square(shape: str, size: int) -> None:
    item = SceneObject(shape, "red", "plain", "large", 90.0, 100.0, 40.0)
    scene = Scene("sand", (item,))
    changed = (render(scene, size) != render(replace(scene, objects=()), size)).any(axis=-1)
    rows, columns = np.nonzero(changed)
    scale = size / scene.canvas
    for positions, centre in ((rows, item.y), (columns, item.x)):
        assert positions.min() >= (centre - item.radius) * scale - 1
        assert positions.max() <= (centre + item.radius) * scale + 1
    extent = max(np.ptp(rows), np.ptp(columns))
    assert extent >= 1.7 * item.radius * scale


@pytest.mark.parametrize("texture", TEXTURES)
@pytest.mark.parametrize("colour", COLOURS)
def test_surface_follows_the_global_pixel_grid(texture: str, colour: str) -> None:
    item = SceneObject("square", colour, texture, "large", 91.3, 98.7, 40.0)
    for size in (192, 256):
        picture = render(Scene("stone", (item,)), size).astype(float)
        middle = slice(size // 2 - 16, size // 2 + 16)
        mask = texture_mask(texture, size)[middle, middle, None]
        base, second = np.asarray(OBJECT_COLOURS[colour]), np.asarray(second_tone(colour))
        np.testing.assert_allclose(picture[middle, middle], base + mask * (second - base), atol=1.0)
        assert mask.mean() <= 0.5


def test_background_is_textured_and_calm() -> None:
    for background in BACKGROUNDS:
        picture = render(Scene(background, ())).astype(float)
        assert 5 < picture.std(axis=(0, 1)).mean() < 25
        saturation = picture.max(axis=-1) - picture.min(axis=-1)
        assert saturation.mean() < 75


def test_held_out_share() -> None:
    assert len(HELD_OUT) == 19
    for shape in SHAPES:
        for colour in COLOURS:
            assert any((shape, colour, texture) not in HELD_OUT for texture in TEXTURES)
