"""Decoding in strips: the same pixels with less memory."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tiny_hart
import tiny_switti
import tiny_var
from stepvar.models.common import strip_decoding
from stepvar.models.infinity.vae import InfinityVAE
from stepvar.models.switti.vae import SwittiVAE
from tiny_pipeline import make_pipeline

MAKERS = {
    "infinity": lambda: make_pipeline().vae,
    "var": tiny_var.make_vq_vae,
    "hart": tiny_hart.make_vae,
    "switti": lambda: tiny_switti.make_vq_vae(kind=SwittiVAE),
}


@pytest.mark.parametrize("rows", [4, 7, 1000])
@pytest.mark.parametrize("name", MAKERS)
@torch.no_grad()
def test_strips_give_the_pixels_of_a_whole_decode(name, rows, monkeypatch):
    vae = MAKERS[name]()
    channels = vae.config.get("codebook_dim") or vae.config["channels"]
    latent = torch.randn(2, channels, 9, 7, generator=torch.Generator().manual_seed(0))
    expected = vae.decode_pixels(latent)
    height = expected.shape[2]
    monkeypatch.setattr(
        strip_decoding,
        "strips",
        lambda plane: ((a, min(a + rows, plane.shape[2])) for a in range(0, plane.shape[2], rows)),
    )
    for stored in (0, 2**40):
        monkeypatch.setattr(strip_decoding, "STORED_BYTES", stored)
        found = vae.decode_pixels(latent, in_strips=True)
        assert (found.shape == expected.shape and height > rows) or rows == 1000
        assert (found - expected).abs().max() <= 1e-4 < 2 / 255


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[int, torch.multiprocessing.reductions.StorageWeakRef]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in torch.utils._pytree.tree_leaves(result):
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                reference = torch.multiprocessing.reductions.StorageWeakRef(storage)
                self.alive[reference.cdata] = (storage.nbytes(), reference)
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[1].expired()}
        self.peak = max(self.peak, sum(size for size, _ in self.alive.values()))
        return result


@torch.no_grad()
def test_strips_of_a_published_decoder_need_less_than_a_gibibyte_for_a_megapixel():
    """Counted on the meta device, where nothing is computed and every size is real."""
    with torch.device("meta"):
        vae = InfinityVAE(codebook_dim=32)
    whole, parts = LiveBytes(), LiveBytes()
    latent = torch.empty(1, 32, 64, 64, device="meta")
    with whole:
        vae.decode_pixels(latent)
    with parts:
        pixels = vae.decode_pixels(latent, in_strips=True)
    assert pixels.shape == (1, 3, 1024, 1024)
    assert parts.peak < 2**30 < whole.peak / 2
