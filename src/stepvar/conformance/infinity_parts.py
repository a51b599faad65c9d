"""Golden cases of Infinity's parts: the sampler's unit data, and the visual tokenizer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stepvar.conformance.case import Comparison, watch
from stepvar.generation.sampling import bit_probabilities
from stepvar.models.infinity.quantizer import latent_from_bits, quantize_multiscale
from stepvar.models.infinity.sizes import SizeTable
from stepvar.models.infinity.vae import InfinityVAE


def draw_bits(probability: Tensor, generator: torch.Generator | None) -> Tensor:
    """One multinomial call over all bits, as the official sampler makes it."""
    pairs = torch.stack([1.0 - probability, probability], dim=-1).view(-1, 2)
    drawn = torch.multinomial(pairs, 1, replacement=True, generator=generator)
    return drawn.view(probability.shape).bool()


def run_sampler_units(comparison: Comparison) -> None:
    """Unit data of the sampler: probabilities after filtering, and seeded draws."""
    if "sampler.logits" not in comparison.case.tensors:
        return
    logits = comparison.take("sampler.logits")
    for name in comparison.case.tensors:
        match = re.fullmatch(r"sampler\.(probs|idx)_k(\d+)(?:_p(\d+))?(?:_seed(\d+))?", name)
        if match is None:
            continue
        kind, top_k, top_p, seed = match.groups()
        share = float(f"{top_p[0]}.{top_p[1:]}") if top_p else 0.0
        probability = bit_probabilities(logits, int(top_k), share)
        if kind == "probs":
            comparison.check(name, torch.stack([1.0 - probability, probability], dim=-1))
        else:
            drawn = draw_bits(probability, torch.Generator().manual_seed(int(seed or 0)))
            comparison.check(name, drawn.to(torch.uint8))


def run_tokenizer(comparison: Comparison, tokenizer: InfinityVAE) -> None:
    """Encoding and decoding, with the activations between."""
    handles = _watch_convolutions(comparison, tokenizer)
    features = tokenizer.encode_features(comparison.take("input.image").float())
    grids = _tokenizer_grids(comparison.case.info.get("schedule"), tokenizer, features)
    code = quantize_multiscale(features, grids)
    comparison.check("enc.h", features)
    comparison.check("enc.z", code.latent)
    for index, (bits, residual) in enumerate(zip(code.bits, code.residuals, strict=True)):
        comparison.check(f"enc.bits{index}", bits.unsqueeze(1).to(torch.uint8))
        comparison.check(f"enc.residual{index}", residual.unsqueeze(2))
    for index, area in enumerate(code.area_inputs):
        comparison.check(f"enc.var_input{index}", area.unsqueeze(2))
    comparison.check("dec.recon", tokenizer.decode_pixels(code.latent))
    for handle in handles:
        handle.remove()
    summed = latent_from_bits(code.bits, grids[-1])
    comparison.check("dec.from_bits_summed_codes", summed.unsqueeze(2))
    comparison.check("dec.from_bits_recon", tokenizer.decode_pixels(summed))
    if "dec2.z" in comparison.case.tensors:
        comparison.check("dec2.recon", tokenizer.decode_pixels(comparison.take("dec2.z")))


def _tokenizer_grids(
    listed: Sequence[Sequence[int]] | None, tokenizer: InfinityVAE, features: Tensor
) -> list[tuple[int, int]]:
    """Latent grids of a tokenizer's case: those listed, of tokens or of the latent, or the published ones."""
    final = (features.shape[-2], features.shape[-1])
    if listed is None:
        pixels = (final[0] * tokenizer.stride, final[1] * tokenizer.stride)
        scales = SizeTable.published().at_size(*pixels)
        listed = [(1, scale.height, scale.width) for scale in scales]
    grids = [(int(entry[-2]), int(entry[-1])) for entry in listed]
    return grids if grids[-1] == final else tokenizer.latent_grids(listed)


def _watch_convolutions(comparison: Comparison, tokenizer: InfinityVAE) -> list[Any]:
    """Hooks on the activations that the official names describe."""
    handles = []
    for side, prefix, levels, resampling in (
        (tokenizer.encoder, "enc.encoder", tokenizer.encoder.down, "downsample"),
        (tokenizer.decoder, "dec.decoder", tokenizer.decoder.up, "upsample"),
    ):
        direction = resampling.removesuffix("sample")
        handles.append(watch(side.conv_in, partial(comparison.check, f"{prefix}_conv_in")))
        handles.append(watch(side.mid.block_2, partial(comparison.check, f"{prefix}_mid")))
        for index, level in enumerate(levels):
            name = f"{prefix}_{direction}{index}"
            handles.append(watch(level.block[-1], partial(comparison.check, f"{name}_last_block")))
            change = level.downsample or level.upsample
            if change is not None:
                handles.append(watch(change, partial(comparison.check, f"{name}_{resampling}")))
    return handles
