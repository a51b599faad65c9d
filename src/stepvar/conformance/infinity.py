"""Golden cases of Infinity: generation, dense and in FastVAR's fork, and the visual tokenizer."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stepvar.conformance.case import Case, Comparison
from stepvar.conformance.fastvar import infinity_fork
from stepvar.conformance.report import CaseReport
from stepvar.generation.guidance import Guidance, per_scale
from stepvar.generation.loop import generate
from stepvar.generation.sampling import bit_probabilities
from stepvar.generation.schedule import Scale, ScaleSchedule
from stepvar.models.infinity.checkpoints import load_tokenizer, load_transformer
from stepvar.models.infinity.quantizer import (
    latent_bits_from_tokens,
    latent_from_bits,
    quantize_multiscale,
    tokens_from_latent_bits,
)
from stepvar.models.infinity.session import InfinitySession, TextCondition
from stepvar.models.infinity.sizes import SizeTable
from stepvar.models.infinity.tokenizer import InfinityTokenizer
from stepvar.models.infinity.transformer import InfinityTransformer
from stepvar.pruning.base import PruningMethod


@torch.inference_mode()
def run(case: Case) -> CaseReport:
    """Runs an Infinity case in float32 on the CPU and compares every stored tensor."""
    comparison = Comparison(case)
    folder = case.weights if case.weights.is_dir() else case.weights.parent
    tokenizer = load_tokenizer(folder / "vae.safetensors", dtype=torch.float32).eval()
    if "call" in case.info:
        transformer = load_transformer(folder / "transformer.safetensors", dtype=torch.float32).eval()
        _run_generation(comparison, transformer, tokenizer)
        _run_sampler_units(comparison)
    else:
        _run_tokenizer(comparison, tokenizer)
    return comparison.finish()


class _ReplaySampler:
    """Draws as the official sampler does, then goes on with the stored bits.

    So a flipped bit shows at its own scale and does not blur the comparison of later ones.
    """

    def __init__(self, comparison: Comparison, call: dict[str, Any], patchify: bool) -> None:
        self.comparison = comparison
        self.call = call
        self.patchify = patchify
        self.temperatures = per_scale(call["tau_list"], len(call["scale_schedule"]), "tau_list")
        seed = next((call[name] for name in ("g_seed", "seed", "generator_seed") if name in call), None)
        self.generator = torch.Generator().manual_seed(int(seed or 0))

    def temperature(self, scale: Scale) -> float:
        return self.temperatures[scale.index]

    def sample(self, logits: Tensor, scale: Scale) -> Tensor:
        probability = bit_probabilities(logits, self.call["top_k"], self.call["top_p"])
        bits = _draw(probability, self.generator)
        name = f"s{scale.index:02}.bits"
        stored = self.comparison.case.tensors.get(name)
        if scale.index < self.call.get("gt_leak", 0):
            return self._token_bits(self.comparison.take(name))
        shown = latent_bits_from_tokens(bits.unflatten(1, (scale.height, scale.width)), self.patchify)
        self.comparison.check(name, shown.unsqueeze(1).to(torch.uint8))
        return bits if stored is None or stored.numel() != bits.numel() else self._token_bits(stored)

    def _token_bits(self, stored: Tensor) -> Tensor:
        """[B, 1, H, W, d] at latent resolution -> [B, N, D]."""
        return tokens_from_latent_bits(stored.squeeze(1).bool(), self.patchify).flatten(1, 2)


def _draw(probability: Tensor, generator: torch.Generator) -> Tensor:
    """One multinomial call over all bits, as the official sampler makes it."""
    pairs = torch.stack([1.0 - probability, probability], dim=-1).view(-1, 2)
    drawn = torch.multinomial(pairs, 1, replacement=True, generator=generator)
    return drawn.view(probability.shape).bool()


def _run_generation(
    comparison: Comparison, transformer: InfinityTransformer, tokenizer: InfinityTokenizer
) -> None:
    call = comparison.case.info["call"]
    patchify = transformer.config.bits != tokenizer.config.codebook_dim
    schedule = _schedule(call)
    guidance = _guidance(call, len(schedule), len(transformer.blocks))
    condition = _condition(comparison, call, transformer)
    handles = _watch_text(comparison, transformer)
    session = InfinitySession(transformer, condition, schedule, patchify)
    for handle in handles:
        handle.remove()
    scale_name: list[str] = [""]
    handles = _watch_blocks(comparison, transformer, scale_name)
    probe = partial(_probe, comparison, session, scale_name)
    sampler = _ReplaySampler(comparison, call, patchify)
    pruning = _pruning(comparison, schedule, session.depth)
    result = generate(session, guidance=guidance, sampler=sampler, pruning=pruning, probe=probe)
    for handle in handles:
        handle.remove()
    comparison.check("final.summed_codes", result.latent)
    image = tokenizer.decode(result.latent)
    for suffix in ("", "_crop", "_avgpool8", "_avgpool16"):
        comparison.check(f"final.decoded{suffix}", image)
    picture = ((image + 1) / 2 * 255).to(torch.uint8).permute(0, 2, 3, 1).flip(3)
    for suffix in ("", "_crop"):
        comparison.check(f"final.image_uint8_bgr{suffix}", picture)


def _schedule(call: dict[str, Any]) -> ScaleSchedule:
    template = float(call["h_div_w_template"])
    position_grid = SizeTable.published().schedule(template, "1M").position_grid
    return ScaleSchedule.from_grids([(h, w) for _, h, w in call["scale_schedule"]], position_grid)


def _pruning(comparison: Comparison, schedule: ScaleSchedule, depth: int) -> PruningMethod | None:
    """FastVAR, watched, in cases of its fork; None in those of Infinity itself."""
    if not str(comparison.case.info["official_repo"]).startswith("csguoh/FastVAR"):
        return None

    def watch(what: str, scale: int, layer: int, branch: str, tensor: Tensor) -> None:
        name = f"L{layer:02}.{_FORK_BRANCHES[branch]}"
        if what == "cache":
            comparison.check(f"cache.{name}", tensor)
        elif what == "kept":
            comparison.check_set(f"s{scale:02}.{name}.kept_indices", tensor)
        else:
            comparison.check(f"s{scale:02}.{name}.scores", tensor)

    return infinity_fork(schedule, depth, watch)


_FORK_BRANCHES = {"self_attention": "sa", "cross_attention": "ca", "feed_forward": "ffn"}


def _guidance(call: dict[str, Any], scales: int, depth: int) -> Guidance:
    entries = call["cfg_insertion_layer"]
    layers = frozenset(depth + entry for entry in entries if entry < 0)
    weights = per_scale(call["cfg_list"], scales, "cfg_list")
    # The official code carries the unconditional rows to the end, and so do the stored tensors.
    return Guidance(weights, layers, at_logits=0 in entries, release=False)


def _condition(
    comparison: Comparison, call: dict[str, Any], transformer: InfinityTransformer
) -> TextCondition:
    positive = comparison.take("input.kv_compact").float().split(call["lens"])
    weights = call["cfg_list"] if isinstance(call["cfg_list"], list) else [call["cfg_list"]]
    # The official code looks at the whole list, also at entries beyond the schedule.
    if all(weight == 1 for weight in weights):
        return TextCondition(tuple(positive))
    if "input.neg_kv_compact" in comparison.case.tensors:
        negative = comparison.take("input.neg_kv_compact").float().split(call["negative_lens"])
    else:
        negative = [transformer.unconditional_text[:length] for length in call["lens"]]
    return TextCondition(tuple(positive), tuple(negative))


def _watch(module: nn.Module, use: Callable[[Tensor], None]) -> Any:
    return module.register_forward_hook(lambda _module, _inputs, output: use(output))


def _watch_text(comparison: Comparison, model: InfinityTransformer) -> list[Any]:
    check, width = comparison.check, model.config.width
    return [
        _watch(model.text_norm, partial(check, "text.kv_after_text_norm")),
        _watch(model.text_pool, partial(check, "text.cond_BD")),
        _watch(model.text_projection[2], partial(check, "text.kv_for_ca")),
        _watch(model.shared_modulation, lambda out: check("text.shared_gss", out.view(-1, 1, 6, width))),
    ]


def _watch_blocks(comparison: Comparison, model: InfinityTransformer, scale_name: list[str]) -> list[Any]:
    def watch(module: nn.Module, name: str) -> Any:
        return _watch(module, lambda output: comparison.check(f"{scale_name[0]}.{name}", output))

    first = model.blocks[0]
    return [
        watch(first.self_attention, "block0_sa_out"),
        watch(first.cross_attention, "block0_ca_out"),
        watch(first.feed_forward, "block0_ffn_out"),
        watch(model.head, "head_out"),
    ]


def _probe(
    comparison: Comparison,
    session: InfinitySession,
    scale_name: list[str],
    name: str,
    scale: Scale,
    tensor: Tensor,
) -> None:
    prefix = scale_name[0] = f"s{scale.index:02}"
    if name == "input":
        comparison.check(f"{prefix}.block0_input", tensor)
    elif name.startswith("layer"):
        layer = int(name.split()[1])
        comparison.check(f"{prefix}.block{layer}_output", tensor)
        if layer == session.depth - 1:
            comparison.check(f"{prefix}.last_block_output", tensor)
    elif name == "logits":
        comparison.check(f"{prefix}.logits", tensor.flatten(1, 2))
    elif name == "latent":
        comparison.check(f"{prefix}.summed_codes", tensor.unsqueeze(2))
        if scale.index + 1 < len(session.schedule):
            following = session.resized_latent(session.schedule[scale.index + 1])
            comparison.check(f"{prefix}.next_input_codes", following.unsqueeze(2))


def _run_sampler_units(comparison: Comparison) -> None:
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
            drawn = _draw(probability, torch.Generator().manual_seed(int(seed or 0)))
            comparison.check(name, drawn.to(torch.uint8))


def _run_tokenizer(comparison: Comparison, tokenizer: InfinityTokenizer) -> None:
    grids = [(int(height), int(width)) for _, height, width in comparison.case.info["schedule"]]
    handles = _watch_convolutions(comparison, tokenizer)
    features = tokenizer.encode_features(comparison.take("input.image"))
    code = quantize_multiscale(features, grids)
    comparison.check("enc.h", features)
    comparison.check("enc.z", code.latent)
    for index, (bits, residual) in enumerate(zip(code.bits, code.residuals, strict=True)):
        comparison.check(f"enc.bits{index}", bits.unsqueeze(1).to(torch.uint8))
        comparison.check(f"enc.residual{index}", residual.unsqueeze(2))
    for index, area in enumerate(code.area_inputs):
        comparison.check(f"enc.var_input{index}", area.unsqueeze(2))
    comparison.check("dec.recon", tokenizer.decode(code.latent))
    for handle in handles:
        handle.remove()
    summed = latent_from_bits(code.bits, grids[-1])
    comparison.check("dec.from_bits_summed_codes", summed.unsqueeze(2))
    comparison.check("dec.from_bits_recon", tokenizer.decode(summed))
    if "dec2.z" in comparison.case.tensors:
        comparison.check("dec2.recon", tokenizer.decode(comparison.take("dec2.z")))


def _watch_convolutions(comparison: Comparison, tokenizer: InfinityTokenizer) -> list[Any]:
    """Hooks on the activations that the official names describe."""
    handles = []
    for side, prefix, levels, resampling in (
        (tokenizer.encoder, "enc.encoder", tokenizer.encoder.down, "downsample"),
        (tokenizer.decoder, "dec.decoder", tokenizer.decoder.up, "upsample"),
    ):
        direction = resampling.removesuffix("sample")
        handles.append(_watch(side.conv_in, partial(comparison.check, f"{prefix}_conv_in")))
        handles.append(_watch(side.mid.block_2, partial(comparison.check, f"{prefix}_mid")))
        for index, level in enumerate(levels):
            name = f"{prefix}_{direction}{index}"
            handles.append(_watch(level.block[-1], partial(comparison.check, f"{name}_last_block")))
            if hasattr(level, resampling):
                handles.append(
                    _watch(getattr(level, resampling), partial(comparison.check, f"{name}_{resampling}"))
                )
    return handles
