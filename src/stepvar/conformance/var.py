"""Golden cases of VAR: its tokenizer, generation and training."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stepvar.conformance.case import Case, Comparison, watch
from stepvar.conformance.codebook import (
    RELATIVE,
    ReplaySampler,
    check_landmark,
    compares_directions,
    read_tokenizer,
    with_levels,
)
from stepvar.conformance.report import CaseReport
from stepvar.generation.cache import BlockCausal
from stepvar.generation.guidance import Guidance
from stepvar.generation.loop import generate
from stepvar.models.common.vector_quantizer import map_tokens
from stepvar.models.var.checkpoints import FORMAT
from stepvar.models.var.official import official_keys
from stepvar.models.var.session import VARSession
from stepvar.models.var.training import drop_classes, teacher_forced_logits, token_losses
from stepvar.models.var.transformer import VARTransformer
from stepvar.models.var.vae import VARVAE


def run(case: Case) -> CaseReport:
    """Runs a VAR case in float32 on the CPU and compares every stored tensor."""
    comparison = Comparison(case, RELATIVE)
    tokenizer = read_tokenizer(case, VARVAE)
    arguments = case.info["constructor"].get("VAR")
    if arguments is None:
        _run_tokenizer(comparison, tokenizer)
        return comparison.finish()
    transformer = FORMAT.from_state(
        with_levels(case.state("transformer", "weights.safetensors"), arguments["patch_nums"]),
        heads=arguments["num_heads"],
        norm_eps=arguments.get("norm_eps", 1e-6),
    )
    if "teacher_input" in case.tensors:
        _run_training(comparison, transformer, tokenizer)
    else:
        with torch.inference_mode():
            _run_generation(comparison, transformer, tokenizer)
    return comparison.finish()


def _run_generation(comparison: Comparison, transformer: VARTransformer, tokenizer: VARVAE) -> None:
    call, last = comparison.case.info["run"], len(transformer.schedule) - 1
    progress = [scale / last for scale in range(last + 1)]
    # The official code carries the unconditional rows to the end, and so do the stored tensors.
    guidance = Guidance(tuple(1.0 + call["cfg"] * ratio for ratio in progress), release=False)
    sampler = ReplaySampler(
        comparison,
        tokenizer.quantizer.codebook.weight,
        call.get("g_seed"),
        call.get("top_k", 0),
        call.get("top_p", 0.0),
        progress if call.get("more_smooth") else [None] * len(progress),
    )
    session = VARSession(transformer, tokenizer.quantizer, _classes(call, transformer, sampler), guided=True)
    probe = partial(check_landmark, comparison, session)
    result = generate(session, guidance=guidance, sampler=sampler, probe=probe)
    comparison.check("image", (tokenizer.decode_pixels(result.latent) + 1) / 2)


def _classes(call: dict[str, Any], transformer: VARTransformer, sampler: ReplaySampler) -> Tensor:
    labels = call["label_B"]
    if labels is None:
        # Drawn before the first scale, with the same generator.
        shares = torch.full((transformer.config.classes,), 1.0 / transformer.config.classes)
        return torch.multinomial(shares, int(call["B"]), replacement=True, generator=sampler.generator)
    classes = torch.tensor([labels] * int(call["B"]) if isinstance(labels, int) else labels)
    return classes.masked_fill(classes < 0, transformer.unconditional_class)


@torch.inference_mode()
def _run_tokenizer(comparison: Comparison, tokenizer: VARVAE) -> None:
    """Compares encoding, quantising, teacher inputs and decoding."""
    grids = _grids(comparison.case)
    encoder, decoder, check = tokenizer.encoder, tokenizer.decoder, comparison.check
    coarsest = len(encoder.down) - 1
    watched = {
        f"enc.down{coarsest}_out": encoder.down[-1].attn[-1],
        "enc.mid_attn_out": encoder.mid.attn_1,
        "enc.out": encoder,
        "dec.mid_attn_out": decoder.mid.attn_1,
        f"dec.up{coarsest}_out": decoder.up[-1].attn[-1],
        "dec.conv_out_preclamp": decoder.conv_out,
        "dec.post_quant_conv_out": tokenizer.post_quant_conv,
    }
    handles = [watch(module, partial(check, name)) for name, module in watched.items()]
    features = tokenizer.encode_features(comparison.take("image_in").float())
    check("enc.quant_conv_out", features)
    code = tokenizer.quantizer.quantize(features, grids, compares_directions(comparison.case))
    for scale, (index, latent) in enumerate(zip(code.index, code.partial_latents, strict=True)):
        check(f"tokens.{scale:02}", index)
        check(f"f_hat.{scale:02}", latent)
    check("teacher_input", torch.cat(_teacher_inputs(code.partial_latents, grids), dim=1))
    check("recon", tokenizer.decode_pixels(code.latent))
    for handle in handles:
        handle.remove()
    for name in comparison.case.tensors:
        if match := re.fullmatch(r"recon_scale(\d+)", name):
            check(name, tokenizer.decode_pixels(code.partial_latents[int(match[1])][:1]))


def _grids(case: Case) -> list[tuple[int, int]]:
    """The schedule of a tokenizer's case: the pairs that its description lists, else the constructor's sides.

    Wherever they are listed, they have as many places as the stored tokens.
    """
    counts: list[int] = []
    while (tokens := case.tensors.get(f"tokens.{len(counts):02}")) is not None:
        counts.append(tokens.shape[-1])
    described = {key: value for key, value in case.info.items() if key not in ("tensors", "constructor")}
    for entry in described.values():
        found = re.findall(r"[\[(](\d+), ?(\d+)[\])]", json.dumps(entry))
        pairs = [(int(rows), int(columns)) for rows, columns in found]
        if pairs and (not counts or [rows * columns for rows, columns in pairs] == counts):
            return pairs
    sides = case.info["constructor"]["VQVAE"]["v_patch_nums"]
    return [(side, side) if isinstance(side, int) else (side[0], side[1]) for side in sides]


def _teacher_inputs(latents: list[Tensor], grids: list[tuple[int, int]]) -> list[Tensor]:
    return [map_tokens(latent, grid) for latent, grid in zip(latents[:-1], grids[1:], strict=True)]


def _run_training(comparison: Comparison, transformer: VARTransformer, tokenizer: VARVAE) -> None:
    check, schedule = comparison.check, transformer.schedule
    grids = [(scale.height, scale.width) for scale in schedule]
    lengths = [scale.tokens for scale in schedule]
    with torch.no_grad():
        features = tokenizer.encode_features(comparison.take("image_in").float())
        code = tokenizer.quantizer.quantize(features, grids, compares_directions(comparison.case))
    inputs = _teacher_inputs(code.partial_latents, grids)
    check("tokens", torch.cat(code.index, dim=1))
    check("teacher_input", torch.cat(inputs, dim=1))
    check("attn_bias_is_visible", _visible(lengths).to(torch.uint8))
    classes = torch.tensor(comparison.case.info["run"]["labels"])
    landmarks = {"input": ["x_in"], "layer 0": ["block0_out"]}
    landmarks.setdefault(f"layer {len(transformer.blocks) - 1}", []).append("blocklast_out")

    def probe(name: str, hidden: Tensor) -> None:
        for landmark in landmarks.get(name, ()):
            check(landmark, hidden)

    logits = teacher_forced_logits(transformer, classes, inputs, probe)
    check("logits", torch.cat(logits, dim=1))
    losses = token_losses(logits, code.index)
    check("ce_per_token", losses)
    check("loss", losses.mean().view(1))
    for name in comparison.case.tensors:
        if match := re.fullmatch(r"loss_label_smooth_(0?\.\d+)", name):
            check(name, token_losses(logits, code.index, float(match[1])).mean().view(1))
    _check_gradients(comparison, transformer, losses.mean())
    with torch.no_grad():
        _check_dropped(comparison, transformer, classes, inputs)


def _visible(lengths: list[int]) -> Tensor:
    """[L, L], which token sees which: attending with one-hot values shows the weights."""
    total = sum(lengths)
    flat = torch.zeros(1, 1, total, 4)
    return BlockCausal(lengths).attend(flat, flat, torch.eye(total)[None, None], scale=1.0)[0, 0] > 0


def _check_gradients(comparison: Comparison, transformer: VARTransformer, loss: Tensor) -> None:
    parameters = dict(transformer.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    names = official_keys(transformer.config)
    for ours, gradient in zip(parameters, gradients, strict=True):
        comparison.check(f"grad.{names[ours]}", gradient)
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    comparison.check("grad_total_norm", norm.view(1))


def _check_dropped(
    comparison: Comparison, transformer: VARTransformer, classes: Tensor, inputs: list[Tensor]
) -> None:
    """Dropping every label, and dropping some by stored uniform numbers."""

    def run(dropped: Tensor) -> Tensor:
        return torch.cat(
            teacher_forced_logits(transformer, drop_classes(classes, dropped, transformer), inputs), dim=1
        )

    every = run(torch.ones_like(classes, dtype=torch.bool))
    comparison.check("logits_all_labels_dropped", every)
    if "drop_uniforms" in comparison.case.tensors:
        dropped = comparison.take("drop_uniforms") < 0.5
        stored = comparison.case.tensors
        kept, lost = stored["logits"], stored.get("logits_all_labels_dropped", every)
        expected = torch.where(dropped[:, None, None], lost, kept)
        comparison.require("logits at rate 0.5", run(dropped), expected)
