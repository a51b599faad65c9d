"""The video tokenizer: what chunks and tiles may not change, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from stepvar.models.infinitystar.convolutions import Stream
from stepvar.models.infinitystar.frames import fit, spread_frames, to_bytes
from tiny_star import make_star_vae, random_video


@pytest.fixture(scope="module")
def tokenizer():
    return make_star_vae()


@pytest.fixture(scope="module")
def latent():
    return torch.randn(1, 64, 6, 1, 2, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 2, 5, 6])
def test_a_streamed_video_equals_one_that_is_decoded_at_once(tokenizer, latent, frames):
    part = latent[:, :, :frames]
    whole = tokenizer.decode_pixels(part, chunk=frames)
    assert whole.shape == (1, 3, 1 + 4 * (frames - 1), 16, 32)
    for chunk in (1, 2, 3):
        torch.testing.assert_close(tokenizer.decode_pixels(part, chunk=chunk), whole, atol=1e-6, rtol=0)


@torch.no_grad()
def test_a_stream_remembers_two_frames_a_convolution_whatever_the_length(tokenizer, latent):
    held = []
    for frames in (3, 5):
        stream = Stream()
        for start in range(0, frames, 1):
            tokenizer.decoder(tokenizer._positions(latent[:, :, start : start + 1]), stream)
        held.append(sum(kept.numel() for kept in stream.frames.values()))
        assert all(kept.shape[2] == 2 for kept in stream.frames.values())
    assert held[0] == held[1]


@torch.no_grad()
def test_what_comes_later_never_changes_earlier_frames(tokenizer, latent):
    changed = latent.clone()
    changed[:, :, 3:] += 1.0
    before, after = tokenizer.decode_pixels(latent[:, :, :5]), tokenizer.decode_pixels(changed[:, :, :5])
    assert torch.equal(before[:, :, :9], after[:, :, :9])
    assert not torch.allclose(before[:, :, 9:], after[:, :, 9:])


@torch.no_grad()
def test_tiles_with_a_wide_overlap_equal_the_whole_picture(tokenizer):
    latent = torch.randn(1, 64, 1, 1, 120, generator=torch.Generator().manual_seed(2))
    whole = tokenizer.decode_pixels(latent)
    [tiled] = tokenizer.decode_tiled(latent, tile=106, overlap=52)
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=0)


@torch.no_grad()
def test_tiles_with_a_narrow_overlap_are_close(tokenizer):
    latent = torch.randn(1, 64, 2, 1, 8, generator=torch.Generator().manual_seed(3))
    tiled = torch.cat(list(tokenizer.decode_tiled(latent, tile=5, overlap=2)), dim=2)
    whole = tokenizer.decode_pixels(latent)
    assert tiled.shape == whole.shape
    assert (tiled - whole).abs().mean() < 0.5 * whole.std()


def test_tiles_of_nothing_but_overlap_are_refused(tokenizer, latent):
    with pytest.raises(ValueError, match="take a tile of more than 4"):
        next(tokenizer.decode_tiled(latent, tile=4, overlap=2))


@torch.no_grad()
def test_the_mean_needs_no_noise_and_noise_moves_it(tokenizer):
    video = random_video(5, 16, 32)
    mean = tokenizer.encode(video)
    assert mean.shape == (1, 64, 2, 1, 2)
    assert torch.equal(mean, tokenizer.encode(video, torch.zeros(1, 64, 2, 1, 2)))
    assert not torch.allclose(mean, tokenizer.encode(video, torch.ones(1, 64, 2, 1, 2)))


@pytest.mark.parametrize("shape", [(4, 16, 32), (5, 24, 32), (5, 16, 40)])
def test_videos_that_do_not_divide_are_refused(tokenizer, shape):
    with pytest.raises(ValueError, match="cannot be encoded"):
        tokenizer.encode(torch.zeros(1, 3, *shape))


def test_weights_without_an_encoder_say_so():
    with pytest.raises(ValueError, match="no encoder"):
        make_star_vae(with_encoder=False).encode(torch.zeros(1, 3, 1, 16, 16))


def test_the_first_frame_of_a_video_is_replaced_and_a_picture_is_not():
    frames = torch.linspace(-1, 1, 3).view(1, 3, 1, 1).expand(3, 3, 2, 2)
    assert to_bytes(frames)[:, 0, 0, 0].tolist() == [127, 127, 255]
    assert to_bytes(frames[:, :1])[0, 0, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("size", [(100, 50), (50, 100), (80, 48), (79, 48), (33, 21)])
def test_pictures_are_covered_and_cut_in_the_middle(size):
    from PIL import Image

    picture, cut = fit(Image.new("RGBA", size), 48, 80)
    assert picture.size == (80, 48)
    assert picture.mode == "RGB"
    assert cut == (abs(size[0] / size[1] - 80 / 48) > 0.05)


def test_frames_are_spread_over_the_first_seconds():
    assert spread_frames(200, 30.0, 5.0, 81)[:4] == [0, 1, 3, 5]
    assert spread_frames(200, 30.0, 5.0, 81)[-1] == 149
    with pytest.raises(ValueError, match=r"lasts 2\.0 seconds, but 5 are needed"):
        spread_frames(60, 30.0, 5.0, 81)


@torch.no_grad()
def test_the_last_norm_is_shown_before_its_activation(tokenizer, latent):
    shown = {}
    decoded = tokenizer.decode_pixels(latent[:, :, :1], probe=shown.__setitem__)
    normed = shown["norm_out.chunk0"]
    assert (normed < -0.3).any(), "a SiLU never falls below -0.28"
    last = tokenizer.decoder.conv_out(torch.nn.functional.silu(normed), Stream())
    torch.testing.assert_close(last, decoded)
