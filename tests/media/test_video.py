"""Video files: colours, times, rates, sizes, and files that are no videos."""

import io
import os
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from stepvar.media.video import Video, encode_gif, encode_mp4, encode_video, read_video

av = pytest.importorskip("av")

TOLERANCE = 2 if hasattr(av.video.reformatter.Interpolation, "ACCURATE_RND") else 4
"""Older PyAV cannot ask FFmpeg to round."""


def solid(colour, count=3, size=(80, 48)):
    return [Image.new("RGB", size, colour) for _ in range(count)]


@pytest.mark.parametrize("size", [(1280, 720), (80, 48)])
@pytest.mark.parametrize(
    "colour", [(220, 30, 30), (20, 200, 60), (30, 40, 220), (128, 128, 128), (250, 250, 250)]
)
def test_colours_come_back_and_are_tagged_as_bt709(tmp_path, size, colour):
    (tmp_path / "solid.mp4").write_bytes(encode_mp4(Video(solid(colour, 2, size), 16)))
    with av.open(str(tmp_path / "solid.mp4")) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.colorspace, codec.color_primaries, codec.color_trc) == (1, 1, 1)
    for frame in read_video(tmp_path / "solid.mp4").frames:
        assert np.abs(np.asarray(frame, dtype=int) - colour).max() <= TOLERANCE


def write_with_times(path, times, base=1000):
    """An MKV file whose frame k has the red level 10 k and appears at times[k] seconds."""
    with av.open(str(path), mode="w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 80, 48, "yuv420p"
        stream.options = {"crf": "0"}
        stream.codec_context.time_base = Fraction(1, base)
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_image(Image.new("RGB", (80, 48), (10 * index, 0, 0)))
            frame.pts, frame.time_base = round(time * base), Fraction(1, base)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def reds(frames):
    return [round(frame.getpixel((40, 24))[0] / 10) for frame in frames]


def test_seconds_are_counted_by_timestamps(tmp_path):
    times = [0.0, 0.5, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9]
    write_with_times(tmp_path / "uneven.mkv", times)
    first = read_video(tmp_path / "uneven.mkv", seconds=1.0)
    assert reds(first.frames) == [0, 1] and first.duration == pytest.approx(1.0)
    assert [first.frame_at(time) for time in (0.0, 0.49, 0.5, 0.9)] == [0, 0, 1, 1]
    last = read_video(tmp_path / "uneven.mkv", seconds=0.5, from_end=True)
    assert reds(last.frames)[-1] == 11 and last.duration == pytest.approx(0.5, abs=1e-2)
    whole = read_video(tmp_path / "uneven.mkv")
    assert whole.times[:-1] == pytest.approx(times, abs=2e-3)
    assert whole.frame_at(0.9) == 1 and whole.frame_at(1.35) == 5


def test_the_frame_that_shows_when_a_part_begins_belongs_to_it(tmp_path):
    write_with_times(tmp_path / "slow.mkv", [0.0, 1.0, 3.0])
    last = read_video(tmp_path / "slow.mkv", seconds=1.0, from_end=True)
    assert reds(last.frames)[0] == 1 and last.times[0] == 0.0
    assert last.duration == pytest.approx(1.0)


@pytest.mark.parametrize("rate", [7.5, 24000 / 1001, 30000 / 1001, 16.0])
def test_fractional_rates_are_kept(tmp_path, rate):
    for suffix in (".mp4", ".gif"):
        video = Video([Image.new("RGB", (80, 48), (5 * k, 9 * k, 0)) for k in range(24)], rate)
        (tmp_path / f"clip{suffix}").write_bytes(encode_video(video, suffix))
        read = read_video(tmp_path / f"clip{suffix}")
        assert len(read.frames) == 24
        tolerance = 1e-6 if suffix == ".mp4" else 0.02
        assert read.frames_per_second == pytest.approx(rate, rel=tolerance)
        assert read.duration == pytest.approx(24 / rate, rel=1e-2)


def test_transparent_frames_are_composed_on_white(tmp_path):
    frames = [Image.new("RGBA", (80, 48), (255, 0, 0, 0)) for _ in range(2)]
    frames[0].putpixel((0, 0), (0, 0, 0, 255))
    frames[0].save(tmp_path / "clear.gif", save_all=True, append_images=frames[1:], duration=100)
    for frame in read_video(tmp_path / "clear.gif").frames:
        assert frame.getpixel((40, 24)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (Video([], 16), "no frames"),
        (Video(solid("red", size=(81, 48)), 16), "even sides, and the frames are 81x48 pixels"),
        (Video(solid("red", size=(0, 0)), 16), "0x0 pixels"),
        (Video(solid("red"), 0.0), "0 frames per second"),
        (Video(solid("red"), float("nan")), "nan frames per second"),
        (Video([*solid("red"), *solid("red", size=(64, 64))], 16), "one size; these have 64x64, 80x48"),
    ],
)
def test_videos_that_cannot_be_written_are_refused(video, message):
    with pytest.raises(ValueError, match=message):
        encode_mp4(video)


def test_odd_sizes_can_be_read_and_written_as_gif(tmp_path):
    (tmp_path / "odd.gif").write_bytes(encode_gif(Video(solid((250, 0, 0), size=(81, 49)), 10)))
    assert read_video(tmp_path / "odd.gif").frames[0].size == (81, 49)


@pytest.mark.parametrize("name", ["playlist.mp4", "playlist.ffconcat", "playlist.m3u8", "text.mp4"])
def test_playlists_and_other_files_are_refused(tmp_path, name):
    (tmp_path / "real.mp4").write_bytes(encode_mp4(Video(solid("red"), 16)))
    contents = {
        "playlist.mp4": "ffconcat version 1.0\nfile real.mp4\n",
        "playlist.ffconcat": "ffconcat version 1.0\nfile real.mp4\n",
        "playlist.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nreal.mp4\n#EXT-X-ENDLIST\n",
        "text.mp4": "some text\n" * 50,
    }
    (tmp_path / name).write_text(contents[name])
    with pytest.raises(ValueError, match="not a video that can be read"):
        read_video(tmp_path / name)


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(ValueError, match="no regular file"):
        read_video(tmp_path / "pipe.mp4")
    with pytest.raises(ValueError, match="There is no video file"):
        read_video(tmp_path / "missing.mp4")
    Image.new("RGB", (80, 48)).save(tmp_path / "picture.png")
    with pytest.raises(ValueError, match="not a video"):
        read_video(tmp_path / "picture.png")


def test_a_damaged_video_is_refused(tmp_path):
    content = encode_mp4(Video(solid("red", 30), 16))
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"not a video that can be read|holds no frames"):
        read_video(tmp_path / "cut.mp4")
    assert io.BytesIO(content).read(8)[4:] == b"ftyp"


def test_a_file_of_few_bytes_does_not_fill_the_memory(tmp_path, monkeypatch):
    (tmp_path / "large.mp4").write_bytes(encode_mp4(Video(solid("red", 40, (640, 480)), 20)))
    monkeypatch.setattr("stepvar.media.video._MOST_PIXELS_HELD", 15 * 640 * 480)
    with pytest.raises(ValueError, match="scale it down, or cut out a shorter part"):
        read_video(tmp_path / "large.mp4")
    assert len(read_video(tmp_path / "large.mp4", seconds=0.5).frames) == 10
    assert len(read_video(tmp_path / "large.mp4", seconds=0.5, from_end=True).frames) == 10


@pytest.mark.parametrize("times", [[0.0, 5000.0], [0.0, 1.0, 1e5], [0.0, 3600.0, 7200.0]])
def test_frames_may_show_for_hours(tmp_path, times):
    write_with_times(tmp_path / "slow.mkv", times)
    video = read_video(tmp_path / "slow.mkv")
    assert video.frames_per_second > 0 and not video.duration < times[-1]


def test_damaged_videos_are_refused_in_one_sentence(tmp_path):
    write_with_times(tmp_path / "whole.mkv", [index / 10 for index in range(8)])
    (tmp_path / "whole.mp4").write_bytes(encode_mp4(Video(solid("red"), 16)))
    for suffix in (".mkv", ".mp4"):
        content = (tmp_path / f"whole{suffix}").read_bytes()
        for number in range(40):
            random = np.random.default_rng([number, len(suffix)])
            damaged = bytearray(content)
            for place in random.integers(0, min(len(content), 400), size=random.choice([1, 3, 20])):
                damaged[place] ^= 1 << random.integers(8)
            (tmp_path / f"x{suffix}").write_bytes(bytes(damaged))
            try:
                read_video(tmp_path / f"x{suffix}")
            except ValueError as error:
                assert str(error).endswith(".") and "\n" not in str(error)
