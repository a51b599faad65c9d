"""Pictures on their way into an edit and back: masks, borders, fits, compositing."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from PIL import Image

from stepvar.editing.pictures import (
    Canvas,
    composite,
    describe_fit,
    fit_window,
    fitted,
    open_canvas,
    weights_of,
)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def box_mask(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", (width, height))
    mask.paste(255, box)
    return mask


def test_a_mask_of_the_same_shape_is_resized_with_a_note(tmp_path):
    box_mask(40, 30, (0, 0, 20, 15)).save(tmp_path / "mask.png")
    canvas = open_canvas(noise(80, 60), tmp_path / "mask.png")
    assert canvas.mask.shape == (60, 80) and canvas.mask.mean() == 0.25
    assert canvas.notes == ["the mask was resized from 40x30 to 80x60"]


def test_a_box_is_a_mask():
    canvas = open_canvas(noise(80, 60), box=(10, 20, 30, 40))
    assert canvas.mask[20:60, 10:40].all() and canvas.mask.sum() == 1200
    shares = open_canvas(noise(80, 60), box=(0.125, 1 / 3, 0.375, 2 / 3))
    assert np.array_equal(shares.mask, canvas.mask)
    assert open_canvas(noise(80, 60), box=(0, 0, 1.0, 0.5)).mask.mean() == 0.5


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"mask": box_mask(80, 80, (0, 0, 9, 9))}, "The mask is 80x80 pixels and the picture 80x60"),
        ({"mask": Image.new("L", (80, 60))}, "The mask is empty"),
        ({"mask": Image.new("L", (80, 60), 255)}, "The mask covers the whole picture"),
        ({"box": (0, 0, 80, 60)}, "The box covers the whole picture"),
        ({"box": (70, 0, 20, 20)}, "does not lie in the picture"),
        ({"box": (0, 0, 0, 20)}, "does not lie in the picture"),
        ({"box": (0, 0, 20)}, "give left, top, width and height"),
        ({"box": (0, 0, "9", 20)}, "give left, top, width and height"),
        ({"box": (0, 0, 1.5, 20)}, "or shares of the picture's sides such as 0.25"),
        ({"box": (0.5, 0.5, 0.6, 0.5)}, "does not lie in the picture"),
        ({"box": (0.5, 0.5, -0.1, 0.5)}, "does not lie in the picture"),
        ({"box": (0.0, 0.0, 1e-9, 0.5)}, "does not lie in the picture"),
        ({"box": (0.0, 0.0, float("nan"), 0.5)}, "does not lie in the picture"),
        ({"box": (0.0, 0.0, 1.0, 1.0)}, "The box covers the whole picture"),
        ({"box": (0, 0, 9, 9), "mask": Image.new("L", (80, 60))}, "mask and box were both given"),
        ({"outpaint": (0, 0, 0, 0)}, "a border of 1 pixel or more"),
        ({"outpaint": (-5, 0, 9, 0)}, "nowhere less than 0"),
        ({"outpaint": (5, 0)}, "left, top, right and bottom in whole pixels"),
        ({"outpaint": (10**6, 0, 0, 0)}, "make it smaller"),
        ({"mask": "nowhere.png"}, "There is no picture 'nowhere.png'"),
    ],
)
def test_what_cannot_be_edited_is_said_in_one_sentence(given, words):
    with pytest.raises(ValueError, match=words) as caught:
        open_canvas(noise(80, 60), **given)
    assert "\n" not in str(caught.value)


def test_what_was_done_to_a_picture_is_told(tmp_path, caplog):
    phone = noise(40, 20)
    exif = Image.Exif()
    exif[0x0112] = 6
    phone.save(tmp_path / "phone.png", exif=exif)
    assert open_canvas(tmp_path / "phone.png", box=(0, 0, 5, 5)).size == (20, 40)
    with caplog.at_level(logging.ERROR):
        clear = open_canvas(Image.new("RGBA", (20, 20), (1, 2, 3, 4)), box=(0, 0, 5, 5))
    deep = open_canvas(Image.fromarray(np.full((20, 20), 40000, np.uint16)), box=(0, 0, 5, 5))
    notes = [open_canvas(tmp_path / "phone.png", box=(0, 0, 5, 5)).notes, clear.notes, deep.notes]
    assert notes == [
        ["the picture was turned upright as its EXIF data says"],
        ["the picture was composed on white where it is transparent"],
        ["the picture was scaled to 8 bits"],
    ]


def test_a_new_border_is_free_and_the_picture_stays_in_place():
    picture = noise(30, 20)
    canvas = open_canvas(picture, outpaint=(4, 0, 6, 2))
    assert canvas.size == (40, 22) and canvas.outside
    assert not canvas.mask[:20, 4:34].any() and canvas.mask.sum() == 40 * 22 - 600
    assert np.array_equal(np.asarray(canvas.picture)[:20, 4:34], np.asarray(picture))


def test_a_crop_is_in_the_middle_and_moves_to_hold_the_mask():
    canvas = open_canvas(noise(100, 50), box=(45, 0, 9, 9))
    assert fit_window(canvas, (64, 64)).left == 25
    canvas = open_canvas(noise(100, 50), box=(90, 0, 10, 9))
    assert fit_window(canvas, (64, 64)).left == 50
    assert fit_window(open_canvas(noise(50, 100), box=(0, 3, 9, 9)), (64, 64)).top == 3
    wide = open_canvas(noise(100, 50), box=(10, 0, 80, 9))
    window = fit_window(wide, (64, 64))
    assert (window.left, window.right) == (25, 75)
    assert any("only the part inside is edited" in note for note in describe_fit(wide, window, (64, 64)))


def test_a_padded_picture_is_seen_whole():
    canvas = open_canvas(noise(100, 50), box=(0, 0, 10, 10))
    window = fit_window(canvas, (64, 64), "pad")
    assert (window.left, window.top, window.size) == (0, -25, (100, 100))
    pixels, coverage = fitted(canvas, window, (64, 64))
    assert pixels.shape == (3, 64, 64) and coverage[:16].min() == 1.0 and coverage[20:40, 10:].max() == 0.0
    with pytest.raises(ValueError, match="Unknown fit 'squeeze'; known are crop, pad"):
        fit_window(canvas, (64, 64), "squeeze")


def test_a_picture_of_the_models_size_is_read_as_it_is():
    canvas = open_canvas(noise(64, 64), box=(0, 0, 10, 10))
    window = fit_window(canvas, (64, 64))
    pixels, coverage = fitted(canvas, window, (64, 64))
    assert describe_fit(canvas, window, (64, 64)) == []
    back = ((pixels + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(back, np.asarray(canvas.picture)) and coverage.sum() == 100


def test_a_weight_rises_inside_of_the_mask_and_the_edge_of_the_picture_is_no_border():
    mask = np.zeros((9, 9), dtype=bool)
    mask[:, :6] = True
    weights = weights_of(mask, 3)
    assert weights[4].tolist() == [1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0, 0.0]
    assert np.array_equal(weights_of(mask, 0), mask.astype(np.float32))


@pytest.mark.parametrize(("width", "height", "fit"), [(64, 64, "crop"), (131, 70, "crop"), (50, 91, "pad")])
def test_pixels_outside_of_the_mask_are_the_pictures(width, height, fit):
    canvas = open_canvas(noise(width, height), box=(5, 5, 30, 30))
    window = fit_window(canvas, (64, 64), fit)
    result = composite(canvas, window, noise(64, 64, seed=1), feather=4)
    before, after = np.asarray(canvas.picture), np.asarray(result)
    assert after.shape == before.shape
    assert np.array_equal(after[~canvas.mask], before[~canvas.mask])
    assert (after[canvas.mask] != before[canvas.mask]).mean() > 0.9


def test_without_a_mask_all_of_the_window_is_new():
    canvas = Canvas(noise(64, 64))
    drawn = noise(64, 64, seed=1)
    assert np.array_equal(composite(canvas, fit_window(canvas, (64, 64)), drawn), np.asarray(drawn))
