"""Golden cases of VAR: its tokenizer, generation and training."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stepvar.conformance.case import Case, Comparison
from stepvar.conformance.codebook import RELATIVE, ReplaySampler, check_landmark, watch
from stepvar.conformance.report import CaseReport
from stepvar.generation.attention import BlockCausal
from stepvar.generation.guidance import Guidance
from stepvar.generation.loop import generate
from stepvar.models.var.checkpoints import FORMAT
from stepvar.models.var.official import official_keys
from stepvar.models.var.session import VARSession
from stepvar.models.var.tokenizer import VARTokenizer
from stepvar.models.var.training import drop_classes, teacher_forced_logits, token_losses
from stepvar.models.var.transformer import VARTransformer
from stepvar.models.vector_checkpoints import tokenizer_of_state
from stepvar.models.vector_quantizer import map_tokens


def run(case: Case) -> CaseReport:
    """Runs a VAR case in float32 on the CPU and compares every stored tensor."""
    comparison = Comparison(case, RELATIVE)
    share = abs(case.info["constructor"]["VQVAE"].get("quant_resi", 0.5))
    state = case.state("vqvae")
    tokenizer = tokenizer_of_state(VARTokenizer, state, refinement_share=share).requires_grad_(False)
    if "VAR" not in case.info["constructor"]:
        _run_tokenizer(comparison, tokenizer)
        return comparison.finish()
    arguments = case.info["constructor"]["VAR"]
    transformer = FORMAT.of_state(
        case.state("transformer"), heads=arguments["num_heads"], norm_eps=arguments["norm_eps"]
    )
    if "teacher_input" in case.tensors:
        _run_training(comparison, transformer, tokenizer)
    else:
        with torch.inference_mode():
            _run_generation(comparison, transformer, tokenizer)
    return comparison.finish()


def _run_generation(comparison: Comparison, transformer: VARTransformer, tokenizer: VARTokenizer) -> None:
    call, last = comparison.case.info["run"], len(transformer.schedule) - 1
    progress = [scale / last for scale in range(last + 1)]
    classes = _classes(call, transformer)
    # The official code carries the unconditional rows to the end, and so do the stored tensors.
    guidance = Guidance(tuple(1.0 + call["cfg"] * ratio for ratio in progress), release=False)
    session = VARSession(transformer, tokenizer.quantizer, classes, guided=True)
    sampler = ReplaySampler(
        comparison,
        tokenizer.quantizer.codebook.weight,
        call.get("g_seed"),
        call["top_k"],
        call["top_p"],
        progress if call.get("more_smooth") else [None] * len(progress),
    )
    probe = partial(check_landmark, comparison, session)
    result = generate(session, guidance=guidance, sampler=sampler, probe=probe)
    comparison.check("image", (tokenizer.decode(result.latent) + 1) / 2)


def _classes(call: dict[str, Any], transformer: VARTransformer) -> Tensor:
    labels = call["label_B"]
    labels = [labels] * int(call["B"]) if isinstance(labels, int) else labels
    classes = torch.tensor(labels)
    return classes.masked_fill(classes < 0, transformer.unconditional_class)


@torch.inference_mode()
def _run_tokenizer(comparison: Comparison, tokenizer: VARTokenizer) -> None:
    """Compares encoding, quantising, teacher inputs and decoding."""
    grids = _grids(comparison.case)
    coarsest, check = len(tokenizer.encoder.down) - 1, comparison.check
    handles = [
        watch(tokenizer.encoder.down[-1].attn[-1], comparison, f"enc.down{coarsest}_out"),
        watch(tokenizer.encoder.mid.attn_1, comparison, "enc.mid_attn_out"),
        watch(tokenizer.encoder, comparison, "enc.out"),
        watch(tokenizer.decoder.mid.attn_1, comparison, "dec.mid_attn_out"),
        watch(tokenizer.decoder.up[-1].attn[-1], comparison, f"dec.up{coarsest}_out"),
        watch(tokenizer.decoder.conv_out, comparison, "dec.conv_out_preclamp"),
        watch(tokenizer.post_quant_conv, comparison, "dec.post_quant_conv_out"),
    ]
    features = tokenizer.encode_features(comparison.take("image_in").float())
    check("enc.quant_conv_out", features)
    code = tokenizer.quantizer.quantize(features, grids)
    for scale, (index, latent) in enumerate(zip(code.index, code.partial_latents, strict=True)):
        check(f"tokens.{scale:02}", index)
        check(f"f_hat.{scale:02}", latent)
    check("teacher_input", torch.cat(_teacher_inputs(code.partial_latents, grids), dim=1))
    check("recon", tokenizer.decode(code.latent))
    for handle in handles:
        handle.remove()
    for name in comparison.case.tensors:
        if match := re.fullmatch(r"recon_scale(\d+)", name):
            check(name, tokenizer.decode(code.partial_latents[int(match[1])][:1]))


def _grids(case: Case) -> list[tuple[int, int]]:
    """The schedule of a tokenizer's case: the pairs that it lists, else the sides of the constructor."""
    sides = case.info["constructor"]["VQVAE"]["v_patch_nums"]
    pairs = re.findall(r"[\[(](\d+), ?(\d+)[\])]", json.dumps(case.info.get("schedule", "")))
    if not pairs:
        return [(side, side) for side in sides]
    return [(int(rows), int(columns)) for rows, columns in pairs]


def _teacher_inputs(latents: list[Tensor], grids: list[tuple[int, int]]) -> list[Tensor]:
    return [map_tokens(latent, grid) for latent, grid in zip(latents[:-1], grids[1:], strict=True)]


def _run_training(comparison: Comparison, transformer: VARTransformer, tokenizer: VARTokenizer) -> None:
    check, schedule = comparison.check, transformer.schedule
    grids = [(scale.height, scale.width) for scale in schedule]
    lengths = [scale.tokens for scale in schedule]
    with torch.no_grad():
        code = tokenizer.encode(comparison.take("image_in").float(), grids)
    inputs = _teacher_inputs(code.partial_latents, grids)
    check("tokens", torch.cat(code.index, dim=1))
    check("teacher_input", torch.cat(inputs, dim=1))
    check("attn_bias_is_visible", _visible(lengths).to(torch.uint8))
    classes = torch.tensor(comparison.case.info["run"]["labels"])
    first = transformer.blocks[0]
    handles = [
        first.register_forward_pre_hook(lambda _module, inputs: check("x_in", inputs[0])),
        watch(first, comparison, "block0_out"),
        watch(transformer.blocks[-1], comparison, "blocklast_out"),
    ]
    logits = teacher_forced_logits(transformer, classes, inputs)
    for handle in handles:
        handle.remove()
    check("logits", torch.cat(logits, dim=1))
    losses = token_losses(logits, code.index)
    check("ce_per_token", losses)
    check("loss", losses.mean().view(1))
    check("loss_label_smooth_0.1", token_losses(logits, code.index, 0.1).mean().view(1))
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
        expected = torch.where(dropped[:, None, None], stored["logits_all_labels_dropped"], stored["logits"])
        comparison.require("logits at rate 0.5", run(dropped), expected)
