"""Reading of pictures: every mode, profile and orientation becomes 8-bit sRGB; other files are refused."""

import os

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, features
from PIL.PngImagePlugin import PngInfo

from stepvar.media.pictures import read_frames, read_picture

SIZE = (80, 48)


def grey_levels(picture):
    """The grey levels of a picture without colour."""
    values = np.asarray(picture)
    assert values.dtype == np.uint8 and values.shape == (SIZE[1], SIZE[0], 3)
    assert (values[..., :1] == values).all()
    return values[..., 0]


def ramp(largest, dtype):
    levels = np.linspace(0, largest, SIZE[0])
    return np.tile(levels, (SIZE[1], 1)).astype(dtype)


EXPECTED = np.rint(np.linspace(0, 255, SIZE[0]))


@pytest.mark.parametrize("through_file", [False, True])
@pytest.mark.parametrize(
    ("largest", "dtype", "suffix"),
    [
        (65535, np.uint16, ".png"),
        (65535, np.uint16, ".tif"),
        (65535, np.int32, ".tif"),
        (2**31 - 1, np.int32, ".tif"),
        (1.0, np.float32, ".tif"),
        (255.0, np.float32, ".tif"),
        (65535.0, np.float32, ".tif"),
    ],
)
def test_deep_grey_pictures_are_scaled(tmp_path, largest, dtype, suffix, through_file):
    picture = Image.fromarray(ramp(largest, dtype))
    if through_file:
        picture.save(tmp_path / f"deep{suffix}")
    read = read_picture(tmp_path / f"deep{suffix}" if through_file else picture)
    np.testing.assert_allclose(grey_levels(read)[0], EXPECTED, atol=1)
    [frame] = read_frames([picture])
    assert np.array_equal(frame, read)


def test_a_dark_file_of_sixteen_bits_stays_dark(tmp_path):
    Image.fromarray(np.full(SIZE[::-1], 200, dtype=np.uint16)).save(tmp_path / "dark.png")
    assert grey_levels(read_picture(tmp_path / "dark.png")).max() == 1


def test_integers_up_to_255_are_levels():
    picture = Image.fromarray(np.full(SIZE[::-1], 200, dtype=np.int32))
    assert (grey_levels(read_picture(picture)) == 200).all()


def test_values_that_are_not_finite_are_refused():
    picture = Image.fromarray(np.full(SIZE[::-1], np.nan, dtype=np.float32))
    with pytest.raises(ValueError, match="not finite"):
        read_picture(picture)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparent_pictures_are_composed_on_white(tmp_path, caplog, mode):
    picture = Image.new("RGBA", SIZE, (255, 0, 0, 0))
    picture.paste((0, 0, 0, 255), (0, 0, 40, 48))
    if mode == "P":
        picture = picture.quantize(8)
    elif mode == "PA":
        picture = picture.convert("RGBA").quantize(8).convert("PA")
        alpha = Image.new("L", SIZE, 0)
        alpha.paste(255, (0, 0, 40, 48))
        picture.putalpha(alpha)
    elif mode == "LA":
        picture = picture.convert("LA")
    read = read_picture(picture)
    assert read.getpixel((60, 20)) == (255, 255, 255) and read.getpixel((10, 20)) == (0, 0, 0)
    assert "transparent" in caplog.text and "white" in caplog.text


def test_an_opaque_alpha_channel_is_no_news(caplog):
    assert read_picture(Image.new("RGBA", SIZE, (1, 2, 3, 255))).getpixel((0, 0)) == (1, 2, 3)
    assert caplog.text == ""


def test_colour_profiles_are_converted(tmp_path, caplog):
    lab = ImageCms.createProfile("LAB")
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    picture = Image.new("RGB", SIZE, (200, 90, 40))
    picture.save(tmp_path / "srgb.png", icc_profile=srgb.tobytes())
    assert read_picture(tmp_path / "srgb.png").getpixel((0, 0)) == (200, 90, 40)
    picture.save(tmp_path / "other.png", icc_profile=ImageCms.ImageCmsProfile(lab).tobytes())
    assert read_picture(tmp_path / "other.png").mode == "RGB"
    assert "cannot be used" in caplog.text
    caplog.clear()
    picture.save(tmp_path / "damaged.png", icc_profile=b"no profile")
    assert read_picture(tmp_path / "damaged.png").getpixel((0, 0)) == (200, 90, 40)
    assert "cannot be used" in caplog.text


def test_exif_orientation_is_applied(tmp_path):
    note = Image.Exif()
    note[ExifTags.Base.Orientation] = 6
    Image.new("RGB", SIZE).save(tmp_path / "phone.jpg", exif=note)
    assert read_picture(tmp_path / "phone.jpg").size == (48, 80)


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (20_000, 20_000), (1, 500)])
def test_impossible_sizes_are_refused(size):
    picture = Image.new("1", size)
    with pytest.raises(ValueError, match=f"is {size[0]}x{size[1]} pixels") as caught:
        read_picture(picture)
    assert str(caught.value).count(".") == 1
    with pytest.raises(ValueError, match="Frame 1 of the video"):
        read_frames([picture])


def test_a_picture_is_refused_by_its_header(tmp_path):
    header = b"P6 60000 60000 255\n"
    (tmp_path / "huge.ppm").write_bytes(header + bytes(100))
    with pytest.raises(ValueError, match=r"60000x60000 pixels|not a picture"):
        read_picture(tmp_path / "huge.ppm")


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match="no regular file"):
        read_picture(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match="no regular file"):
        read_picture("/dev/zero")
    with pytest.raises(ValueError, match="is a folder"):
        read_picture(tmp_path)
    with pytest.raises(ValueError, match="There is no picture"):
        read_picture(tmp_path / "missing.png")
    (tmp_path / "picture.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    with pytest.raises(ValueError, match="not a picture"):
        read_picture(tmp_path / "picture.eps")


def test_what_is_no_picture_is_refused():
    with pytest.raises(ValueError, match="image is a int"):
        read_picture(3)
    with pytest.raises(ValueError, match="list of PIL pictures"):
        read_frames([])
    with pytest.raises(ValueError, match="one size; the first is 80x48 pixels, number 2 is 48x80"):
        read_frames([Image.new("RGB", SIZE), Image.new("RGB", SIZE[::-1])])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "tif", "bmp", "ppm", "avif"])
def test_damaged_pictures_are_refused_in_one_sentence(tmp_path, suffix):
    if suffix in ("webp", "avif") and not (suffix in features.modules and features.check(suffix)):
        pytest.skip("Pillow was built without it")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"whole.{suffix}")
    content = (tmp_path / f"whole.{suffix}").read_bytes()
    for number in range(60):
        random = np.random.default_rng(number)
        damaged = bytearray(content[: random.integers(1, len(content))] if number % 4 == 0 else content)
        for place in random.integers(0, min(len(damaged), 120), size=random.choice([1, 3, 20])):
            damaged[place] ^= 1 << random.integers(8)
        (tmp_path / f"x.{suffix}").write_bytes(bytes(damaged))
        try:
            read_picture(tmp_path / f"x.{suffix}")
        except ValueError as error:
            assert str(error).startswith("'") and str(error).endswith(".")


def test_a_picture_with_a_long_text_inside_is_refused_in_one_sentence(tmp_path):
    info = PngInfo()
    info.add_text("x", "a" * (3 << 20), zip=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "text.png", pnginfo=info)
    with pytest.raises(ValueError, match=r"text.png' is not a picture that can be read"):
        read_picture(tmp_path / "text.png")


def test_premultiplied_grey_is_read():
    picture = Image.new("LA", (8, 8), (200, 255)).convert("La")
    assert read_picture(picture).getpixel((0, 0)) == (200, 200, 200)
