"""Golden cases of Switti: generation, and text conditioning."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stepvar.conformance.case import Case, CaseError, Comparison, watch
from stepvar.conformance.codebook import (
    RELATIVE,
    ReplaySampler,
    check_landmark,
    read_tokenizer,
    with_levels,
)
from stepvar.conformance.report import CaseReport
from stepvar.generation.guidance import Guidance
from stepvar.generation.loop import generate
from stepvar.generation.schedule import Scale
from stepvar.models.switti.checkpoints import FORMAT
from stepvar.models.switti.session import SwittiSession, TextFeatures
from stepvar.models.switti.text import encode_ids
from stepvar.models.switti.transformer import SwittiTransformer
from stepvar.models.switti.vae import SwittiVAE


@torch.inference_mode()
def run(case: Case) -> CaseReport:
    """Runs a Switti case in float32 on the CPU and compares every stored tensor."""
    comparison = Comparison(case, RELATIVE)
    if "Switti" not in case.info["constructor"]:
        _run_text(comparison)
        return comparison.finish()
    arguments = case.info["constructor"]["Switti"]
    transformer = FORMAT.from_state(
        with_levels(case.state("transformer", "weights.safetensors"), arguments["patch_nums"]),
        heads=arguments["num_heads"],
        causal=arguments.get("use_ar", False),
        rotary_theta=arguments.get("rope_theta", 10000.0),
        rotary_extent=arguments.get("rope_size", 128.0),
        norm_eps=arguments.get("norm_eps", 1e-6),
    )
    _run_generation(comparison, transformer, read_tokenizer(case, SwittiVAE))
    return comparison.finish()


@dataclass(frozen=True)
class _OfficialGuidance(Guidance):
    """Computes unconditional copies up to a scale, whether or not they are mixed there.

    Attributes:
        stop: First scale without them.
    """

    stop: int = 0

    def rows(self, scale: int, images: int, copies: int) -> slice:
        return slice(0, images if scale >= self.stop else images * copies)


def _run_generation(comparison: Comparison, transformer: SwittiTransformer, tokenizer: SwittiVAE) -> None:
    call, scales = comparison.case.info["run"], len(transformer.schedule)
    start, stop = call.get("turn_on_cfg_start_si", 0), call.get("turn_off_cfg_start_si", 10)
    progress = [scale / (scales - 1) for scale in range(scales)]
    weights = [
        1.0 + call.get("cfg", 6.0) * ratio if start <= scale < stop else 1.0
        for scale, ratio in enumerate(progress)
    ]
    positive, negative = _features(comparison)
    _check_constants(comparison, transformer)
    session = SwittiSession(transformer, tokenizer.quantizer, positive, negative)
    comparison.check("cond_vector", session.condition)
    guidance = _OfficialGuidance(tuple(weights), stop=stop)
    mixes_from = call.get("smooth_start_si", 0) if call.get("more_smooth") else scales
    late = call.get("last_scale_temp")
    sampler = ReplaySampler(
        comparison,
        tokenizer.quantizer.codebook.weight,
        call.get("seed"),
        call.get("top_k", 400),
        call.get("top_p", 0.95),
        [ratio if mixes_from <= scale < stop else None for scale, ratio in enumerate(progress)],
        filters_mixed=False,
        temperature=[late if late and scale >= max(start, stop) else 1.0 for scale in range(scales)],
    )
    scale_name: list[str] = [""]
    handles = _watch_branches(comparison, transformer, scale_name)

    def probe(name: str, scale: Scale, value: Any) -> None:
        scale_name[0] = f"s{scale.index:02}"
        check_landmark(comparison, session, name, scale, value)

    result = generate(session, guidance=guidance, sampler=sampler, probe=probe)
    for handle in handles:
        handle.remove()
    comparison.check("image", (tokenizer.decode_pixels(result.latent) + 1) / 2)


def _features(comparison: Comparison) -> tuple[TextFeatures, TextFeatures]:
    features = comparison.take("prompt_embeds").float()
    pooled = comparison.take("pooled_prompt_embeds").float()
    lengths = comparison.take("prompt_mask").sum(1).tolist()
    tokens = [row[:length] for row, length in zip(features, lengths, strict=True)]
    images = len(tokens) // 2
    positive = TextFeatures(tuple(tokens[:images]), pooled[:images])
    return positive, TextFeatures(tuple(tokens[images:]), pooled[images:])


def _check_constants(comparison: Comparison, transformer: SwittiTransformer) -> None:
    """What neither the text nor the seed changes: the crop, and rotary positions."""
    if transformer.config.crop_condition:
        comparison.check("crop_embed", transformer.crop_features())
        crop = transformer.embed_crop()
        if crop is not None:
            comparison.check("crop_cond", crop)
    if transformer.config.rotary:
        rotary = (transformer.rotary(scale) for scale in transformer.schedule)
        tables = [table[0] for table in rotary if table is not None]
        comparison.check("freqs_cis_real_imag", torch.view_as_real(torch.cat(tables)))


def _watch_branches(
    comparison: Comparison, transformer: SwittiTransformer, scale_name: list[str]
) -> list[Any]:
    first = transformer.blocks[0]

    def check(name: str, output: Tensor) -> None:
        comparison.check(f"{scale_name[0]}.block0_{name}_out", output)

    return [
        watch(first.self_attention, partial(check, "selfattn")),
        watch(first.cross_attention, partial(check, "crossattn")),
        watch(first.feed_forward, partial(check, "ffn")),
    ]


def _run_text(comparison: Comparison) -> None:
    """Two text encoders on stored token ids: prompts, then the null prompt once for each of them."""
    from transformers import CLIPTextConfig, CLIPTextModel

    case, names = comparison.case, ("enc1", "enc2")
    weights, encoders = case.state("encoders", "weights.safetensors"), []
    for name in names:
        encoder = CLIPTextModel(CLIPTextConfig(**case.info["constructor"][name]["CLIPTextConfig"])).eval()
        _fill(encoder, weights, f"{name}.")
        encoders.append(encoder)
    ids, masks = (
        [comparison.take(f"{name}.{kind}") for name in names] for kind in ("input_ids", "attention_mask")
    )
    features, pooled = encode_ids(encoders, ids, masks)
    prompts = len(features) - 1
    order = torch.tensor([*range(prompts), *[prompts] * prompts])
    comparison.check("prompt_embeds", features[order])
    comparison.check("pooled_prompt_embeds", pooled[order])
    comparison.check("prompt_mask", masks[1][order].to(torch.uint8))


def _fill(encoder: torch.nn.Module, weights: dict[str, Tensor], prefix: str) -> None:
    """Loads an encoder whatever the version of transformers that stored it called its modules."""
    given = {
        key.removeprefix(prefix).removeprefix("text_model."): value
        for key, value in weights.items()
        if key.startswith(prefix)
    }
    wanted = {key.removeprefix("text_model."): key for key in encoder.state_dict()}
    if wanted.keys() - given.keys():
        raise CaseError(f"The weights of {prefix[:-1]} lack {sorted(wanted.keys() - given.keys())[:3]}.")
    encoder.load_state_dict({key: given[name] for name, key in wanted.items()})
