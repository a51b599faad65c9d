"""Golden cases of InfinityStar: pictures, clips, continuation, and the video tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stepvar.conformance import fastervar
from stepvar.conformance.case import Case, Comparison, DrawingSampler
from stepvar.conformance.report import CaseReport
from stepvar.generation.guidance import Guidance, ProjectedGuidance, per_scale
from stepvar.generation.loop import generate
from stepvar.generation.plan import GenerationPlan
from stepvar.generation.pruner import PruningMethod, plan_generation
from stepvar.generation.sampling import bit_probabilities
from stepvar.generation.schedule import Scale
from stepvar.generation.tokens import Tokens
from stepvar.models.infinitystar.checkpoints import transformer_from_state, vae_from_state
from stepvar.models.infinitystar.frames import to_bytes
from stepvar.models.infinitystar.interactive import Continuation
from stepvar.models.infinitystar.quantizer import codes_from_bits, expand, quantize
from stepvar.models.infinitystar.schedules import PyramidSettings
from stepvar.models.infinitystar.session import InfinityStarSession, TextPrefix
from stepvar.models.infinitystar.transformer import InfinityStarTransformer
from stepvar.models.infinitystar.vae import InfinityStarVAE


@torch.inference_mode()
def run(case: Case) -> CaseReport:
    """Runs an InfinityStar case in float32 on the CPU and compares every stored tensor."""
    comparison = Comparison(case)
    tokenizer = vae_from_state(case.state("vae", "vae.safetensors"))
    if "transformer_ctor" in case.info:
        transformer = transformer_from_state(case.state("transformer", "transformer.safetensors"))
        if "former_clip_features" in case.tensors:
            _run_continuation(comparison, transformer, tokenizer)
        else:
            _run_generation(comparison, transformer, tokenizer)
    elif "schedules" in case.info:
        _run_quantizer(comparison, tokenizer)
    else:
        _run_tokenizer(comparison, tokenizer)
    return comparison.finish()


class _ReplaySampler(DrawingSampler):
    """Draws as the official sampler does, then goes on with the stored bits.

    So a flipped bit shows at its own step and does not blur the comparison of later ones.

    Args:
        comparison: Of the case.
        temperatures: One a step.
        step_names: Names of the steps in the case.
        encoded: Bits [B, N, d] of the steps that are given, by index: of a picture, or of a video's start.
    """

    def __init__(
        self,
        comparison: Comparison,
        temperatures: Sequence[float],
        step_names: list[str],
        encoded: Mapping[int, Tensor],
    ) -> None:
        self.comparison = comparison
        self.temperatures = temperatures
        self.step_names = step_names
        self.encoded = encoded
        seed = comparison.case.info.get("g_seed")
        self.is_random = "argmax" not in str(comparison.case.info.get("sampling", "argmax"))
        self.generator = None if seed is None else torch.Generator().manual_seed(int(seed))

    def temperature(self, scale: Scale) -> float:
        return self.temperatures[scale.index]

    def sample(self, logits: Tensor, scale: Scale) -> Tensor:
        check, name = self.comparison.check, self.step_names[scale.index]
        probability = bit_probabilities(logits)
        check(f"{name}.prob1", probability.flatten())
        bits = self._draw(probability, f"{name}.prob1", f"{name}.bits_sampled")
        stored = self.comparison.case.tensors
        if scale.index in self.encoded:
            return self.encoded[scale.index].view_as(bits)
        given = self.comparison.given(int(name[1:]), bits.numel())
        if given is not None:
            return given.bool().view_as(bits)
        if f"{name}.codes" in stored:
            # What the official code went on with, which is not what it drew where bits were given.
            return (stored[f"{name}.codes"].flatten(2).transpose(1, 2) > 0).view_as(bits)
        return stored.get(f"{name}.bits_sampled", bits).bool().view_as(bits)

    def _draw(self, probability: Tensor, name: str, sampled: str) -> Tensor:
        """What the official sampler draws, compared; what was drawn at random without a seed is an input."""
        if not self.is_random:
            bits = probability > 0.5
        elif self.generator is None:
            return self.comparison.take(sampled).bool().view_as(probability)
        else:
            share = self.comparison.replayed(name, probability)
            pairs = torch.stack([1.0 - share, share], dim=-1).view(-1, 2)
            bits = torch.multinomial(pairs, 1, replacement=True, generator=self.generator)
        self.comparison.check(sampled, bits.flatten().to(torch.uint8))
        return bits.view(probability.shape).bool()


def _settings(info: dict[str, Any]) -> PyramidSettings:
    args = info["args"]
    # Visual steps count from the longest text on, whatever the rows of the learned one.
    text_length = info.get("transformer_ctor", {}).get("text_maxlen", 512)
    return PyramidSettings(
        int(args["semantic_scales"]),
        int(args["detail_scale_min_tokens"]),
        tuple(json.loads(args["image_scale_repetition"])),
        tuple(json.loads(args["video_scale_repetition"])),
        int(args["frames_inner_clip"]),
        int(args.get("max_repeat_times", 10000)),
        int(args["semantic_scale_dim"]),
        int(args["detail_scale_dim"]),
        int(text_length),
    )


def _clips(grids: Sequence[Sequence[int]]) -> tuple[list[list[tuple[int, int]]], list[int]]:
    """Grids and frames of each clip, from the official flat list of (t, h, w)."""
    final = tuple(grids[-1][1:])
    length = next(index for index, grid in enumerate(grids) if tuple(grid[1:]) == final) + 1
    parts = [grids[start : start + length] for start in range(0, len(grids), length)]
    return [[(int(h), int(w)) for _, h, w in part] for part in parts], [int(part[0][0]) for part in parts]


def _guidance(info: dict[str, Any], weights: Sequence[float]) -> Guidance:
    # The official code carries the unconditional rows to the end, and so do the stored tensors; FasterVAR's
    # carries them alone from a weight of 0 on.
    release = fastervar.drops_guidance(weights)
    if int(info["args"]["use_apg"]):
        threshold = float(info["args"]["apg_norm_threshold"])
        return ProjectedGuidance(tuple(weights), release=release, threshold=threshold)
    return Guidance(tuple(weights), release=release)


def _step_names(info: dict[str, Any]) -> list[str]:
    return [f"s{step:02}" for step, _ in info["step_list"]]


def _per_step(info: dict[str, Any], values: float | Sequence[float], name: str) -> list[float]:
    """Values by official scale, spread over its repetitions."""
    spread = per_scale(values, len(info["scale_schedule"]), name)
    return [spread[scale] for _, scale in info["step_list"]]


def _weights(info: dict[str, Any]) -> list[float]:
    return _per_step(info, info.get("cfg_list", info["cfg"]), "cfg")


def _text(comparison: Comparison, transformer: InfinityStarTransformer) -> TextPrefix:
    positive, weights = comparison.take("text_features"), comparison.case.info["cfg"]
    # The official code looks at the whole list, also at entries beyond the schedule.
    if all(weight == 1 for weight in (weights if isinstance(weights, list) else [weights])):
        return TextPrefix(positive)
    if "negative_text_features" in comparison.case.tensors:
        return TextPrefix(positive, comparison.take("negative_text_features"))
    return TextPrefix(positive, transformer.unconditional(len(positive)))


def _run_generation(
    comparison: Comparison, transformer: InfinityStarTransformer, tokenizer: InfinityStarVAE
) -> None:
    info = comparison.case.info
    schedule = _settings(info).build_clips(*_clips(info["scale_schedule"]))
    weights = _weights(info)
    text = _text(comparison, transformer)
    session = InfinityStarSession(
        transformer, text, schedule, prefix_probe=partial(_prefix_probe, comparison)
    )
    temperatures = _per_step(info, _taus(info), "tau")
    _sample(comparison, session, _guidance(info, weights), temperatures, _encoded_bits(comparison, tokenizer))
    latent = session.video()
    comparison.check("summed_codes", latent)
    decoded = tokenizer.decode_pixels(latent)
    _check_frames(comparison, decoded)
    comparison.check("image_uint8_bgr", to_bytes(decoded[0])[None].flip(-1))


def _run_continuation(
    comparison: Comparison, transformer: InfinityStarTransformer, tokenizer: InfinityStarVAE
) -> None:
    info = comparison.case.info
    grids, [frames] = _clips(info["scale_schedule"])
    # Here the code book goes by the scale's place alone.
    settings = replace(_settings(info), detail_minimum=None)
    schedule = settings.build_continuation(grids[0], frames)
    before = Continuation(comparison.take("former_clip_features"), comparison.take("first_frame_features"))
    conditions = before.conditions(
        grids[0][int(info["semantic_scale_ind"])], settings.text_length, tuple(info["detail_frame_inds"])
    )
    weights, text = _weights(info), _text(comparison, transformer)
    probe = partial(_prefix_probe, comparison)
    session = InfinityStarSession(transformer, text, schedule, conditions=conditions, prefix_probe=probe)
    _sample(comparison, session, _guidance(info, weights), _per_step(info, _taus(info), "tau"))
    drawn = session.video()
    comparison.check("summed_codes", before.after(drawn).former)
    decoded = tokenizer.decode_pixels(before.joined(drawn))
    _check_frames(comparison, decoded, [0, 1, decoded.shape[2] - 1])
    shown = to_bytes(decoded[0])[-4 * frames :]
    comparison.check("image_uint8_bgr_frames", shown[[0, 1, 2, -1]][None].flip(-1))


def _encoded_bits(comparison: Comparison, tokenizer: InfinityStarVAE) -> dict[int, Tensor]:
    """Bits of the beginning of a video: encoded, compared, and by step where the case gives them."""
    case = comparison.case
    if "enc.x" not in case.tensors:
        return {}
    latent = tokenizer.encode(comparison.take("enc.x"), comparison.take("enc.eps"))
    schedule = _settings(case.info).build_clips(*_clips(case.info["encode_schedule"]))
    given_scales = int(case.info.get("gt_leak", len(case.info["encode_schedule"])))
    encoded = {}
    for number, step in enumerate(quantize(latent, schedule)):
        name, bits = f"enc.q{number:02}.bits", step.bits
        comparison.check(name, bits.unflatten(1, step.scale.grid).to(torch.uint8))
        # The official code replaces drawn bits in its first scales, each of which may be several steps.
        if case.info["step_list"][number][1] < given_scales:
            encoded[number] = case.tensors[name].bool().view_as(bits) if name in case.tensors else bits
    return encoded


def _taus(info: dict[str, Any]) -> float | Sequence[float]:
    return info["tau"] if "tau" in info else info["tau_list"]


def _sample(
    comparison: Comparison,
    session: InfinityStarSession,
    guidance: Guidance,
    temperatures: Sequence[float],
    encoded: Mapping[int, Tensor] = {},
) -> None:
    names = _step_names(comparison.case.info)
    sampler = _ReplaySampler(comparison, temperatures, names, encoded)
    pruning = _pruning(comparison, session, guidance)
    plan = plan_generation(pruning, session.schedule, session.depth)
    generate(
        session,
        guidance=guidance,
        sampler=sampler,
        pruning=pruning,
        probe=partial(_probe, comparison, session, names, plan),
    )


def _pruning(
    comparison: Comparison, session: InfinityStarSession, guidance: Guidance
) -> PruningMethod | None:
    """FasterVAR, watched, in cases of its fork; None in those of InfinityStar itself."""
    if not fastervar.is_fork(comparison.case):
        return None
    steps = comparison.case.info["step_list"]

    def seen(name: str, hidden: Tensor, tokens: Tokens | None) -> None:
        if tokens is None:
            comparison.check(f"{name}.logits", session.logits(hidden).flatten(2))
        elif tokens.positions is not None:
            comparison.check(f"{name}.rope", _cosine_sine(tokens.positions))

    last = [number for number, (_, scale) in enumerate(steps) if scale == steps[-1][1]]
    names = _step_names(comparison.case.info)
    return fastervar.star_fork(comparison, session.schedule.scales, names, guidance.weights, last, seen)


def _check_frames(comparison: Comparison, decoded: Tensor, places: Sequence[int] | None = None) -> None:
    places = comparison.case.info.get("decoded_frame_indices", places)
    comparison.check("decoded_frames", decoded if places is None else decoded[:, :, list(places)])


def _prefix_probe(comparison: Comparison, prefix: str, name: str, tensor: Tensor) -> None:
    official = "cond_t0" if prefix == "text" else f"cond_{prefix}"
    depth = comparison.case.info["transformer_ctor"]["depth"]
    _check_layer(comparison, official, name, tensor, depth)
    if name == "rotary":
        comparison.check(f"{official}.rope", _cosine_sine(tensor))


def _probe(
    comparison: Comparison,
    session: InfinityStarSession,
    names: Sequence[str],
    plan: GenerationPlan,
    name: str,
    scale: Scale,
    tensor: Tensor,
) -> None:
    prefix, step = names[scale.index], session.schedule[scale.index]
    _check_layer(comparison, prefix, name, tensor, session.depth)
    # At a low-rank step positions and the head's input are those that the method has made.
    projected = plan[scale.index].prunes
    if name == "input" and not projected:
        comparison.check(f"{prefix}.rope", _cosine_sine(session.rotary.scale(step)))
    elif name == f"layer {session.depth - 1}" and not projected:
        comparison.check(f"{prefix}.logits", session.logits(tensor).flatten(2))
    elif name == "logits":
        comparison.check(f"{prefix}.guided", tensor.flatten(2))
    elif name == "choice":
        comparison.check(f"{prefix}.codes", codes_from_bits(tensor, step.grid))
        channels, sides = session.transformer.config.detail_bits, session.schedule.position_grid
        comparison.check(f"{prefix}.codes_up", expand(tensor, step, channels, sides))


def _check_layer(comparison: Comparison, prefix: str, name: str, tensor: Tensor, depth: int) -> None:
    if name == "input":
        comparison.check(f"{prefix}.x_in", tensor)
    elif name.startswith("layer "):
        comparison.check(f"{prefix}.block{name.removeprefix('layer ')}", tensor)
    if name == f"layer {depth - 1}":
        comparison.check(f"{prefix}.block_last", tensor)


def _cosine_sine(table: Tensor) -> Tensor:
    return torch.cat([table.real, table.imag])


def _run_quantizer(comparison: Comparison, tokenizer: InfinityStarVAE) -> None:
    """Encoding a picture and a clip to the bits of every step."""
    info = comparison.case.info
    # Here the code book goes by the number of cells alone.
    settings = replace(_settings(info), semantic_scales=None)
    for name in _names(comparison.case, ".x"):
        latent = tokenizer.encode(comparison.take(f"{name}.x"), comparison.take(f"{name}.eps"))
        grids, clips = _clips(info["schedules"][str(latent.shape[2])])
        for number, step in enumerate(quantize(latent, settings.build_clips(grids, clips))):
            prefix, grid = f"{name}.q{number:02}", step.scale.grid
            comparison.check(f"{prefix}.residual_in", step.residual)
            comparison.check(f"{prefix}.bits", step.bits.unflatten(1, grid).to(torch.uint8))
            comparison.check(f"{prefix}.quantized", codes_from_bits(step.bits, grid))


def _run_tokenizer(comparison: Comparison, tokenizer: InfinityStarVAE) -> None:
    """Encoding and decoding, with everything that leaves a level."""

    def probe(side: str, name: str, tensor: Tensor) -> None:
        landmark = f"{side.split('.')[0]}.moments_patchified" if name == "moments" else f"{side}.{name}"
        comparison.check(landmark, tensor)

    for name in _names(comparison.case, ".x"):
        noise = comparison.take(f"{name}.eps")
        latent = tokenizer.encode(comparison.take(f"{name}.x"), noise, partial(probe, f"{name}.enc"))
        comparison.check(f"{name}.z", latent)
    for name in _names(comparison.case, ".decoded"):
        decoded = tokenizer.decode_pixels(comparison.take(f"{name}.z"), probe=partial(probe, f"{name}.dec"))
        places = _stored_frames(comparison.case, name)
        comparison.check(f"{name}.decoded", decoded if places is None else decoded[:, :, places])


def _names(case: Case, ending: str) -> list[str]:
    """First parts of the names of stored tensors with an ending."""
    return sorted({key.split(".")[0] for key in case.tensors if key.endswith(ending)})


def _stored_frames(case: Case, name: str) -> list[int] | None:
    """Which decoded frames were stored, from a description such as "decoded = frames [0, 1, last]"."""
    _, _, listed = str(case.info.get("decode_cases", {}).get(name, "")).partition("frames [")
    if not listed:
        return None
    words = listed.partition("]")[0].split(",")
    return [-1 if word.strip() == "last" else int(word) for word in words]
