"""Golden cases of Infinity: generation, dense and in its forks, and the visual tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stepvar.conformance import fastervar, fastvar
from stepvar.conformance.case import Case, Comparison, DrawingSampler, watch
from stepvar.conformance.infinity_parts import draw_bits, run_sampler_units, run_tokenizer
from stepvar.conformance.report import CaseReport
from stepvar.generation.guidance import Guidance, per_scale
from stepvar.generation.loop import generate
from stepvar.generation.pruner import PruningMethod
from stepvar.generation.sampling import bit_probabilities
from stepvar.generation.schedule import Scale, ScaleSchedule
from stepvar.models.infinity.checkpoints import transformer_from_state, vae_from_state
from stepvar.models.infinity.quantizer import latent_bits_from_tokens, tokens_from_latent_bits
from stepvar.models.infinity.session import InfinitySession, TextCondition
from stepvar.models.infinity.sizes import SizeTable
from stepvar.models.infinity.transformer import InfinityTransformer
from stepvar.models.infinity.vae import InfinityVAE
from stepvar.pruning.fastvar import FastVAR


@torch.inference_mode()
def run(case: Case) -> CaseReport:
    """Runs an Infinity case in float32 on the CPU and compares every stored tensor."""
    comparison = Comparison(case)
    tokenizer = vae_from_state(case.state("vae", "vae.safetensors"))
    if "call" in case.info:
        transformer = transformer_from_state(case.state("transformer", "transformer.safetensors"))
        run_generation(comparison, transformer, tokenizer)
        run_sampler_units(comparison)
    else:
        run_tokenizer(comparison, tokenizer)
    return comparison.finish()


class _ReplaySampler(DrawingSampler):
    """Draws as the official sampler does, then goes on with the stored bits.

    So a flipped bit shows at its own scale and does not blur the comparison of later ones.
    """

    def __init__(self, comparison: Comparison, call: dict[str, Any], patchify: bool) -> None:
        self.comparison = comparison
        self.filters = (int(call.get("top_k") or 0), float(call.get("top_p") or 0.0))
        self.forced = int(call.get("gt_leak") or 0)
        self.patch = 2 if patchify else 1
        self.temperatures = per_scale(call["tau_list"], len(call["scale_schedule"]), "tau_list")
        seed = next((call[name] for name in ("g_seed", "seed", "generator_seed") if name in call), None)
        self.is_random = self.filters[0] != 1
        # Without a seed, what was drawn at random cannot be drawn again.
        self.generator = None if self.is_random and seed is None else torch.Generator()
        if self.generator is not None:
            self.generator.manual_seed(int(seed or 0))

    def temperature(self, scale: Scale) -> float:
        return self.temperatures[scale.index]

    def sample(self, logits: Tensor, scale: Scale) -> Tensor:
        prefix = f"s{scale.index:02}"
        if self.is_random:
            logits = self.comparison.replayed(f"{prefix}.logits", logits)
        # Drawn also where bits are given: the generator goes on.
        bits = draw_bits(bit_probabilities(logits, *self.filters), self.generator)
        name = f"{prefix}.bits"
        stored = self.comparison.case.tensors.get(name)
        if scale.index < self.forced:
            given = self.comparison.given(scale.index, bits.numel())
            if given is None:
                return self._token_bits(self.comparison.take(name))
            given = given.view(len(bits), 1, scale.height * self.patch, scale.width * self.patch, -1)
            self.comparison.check(name, given)
            return self._token_bits(given)
        if stored is not None and stored.numel() != bits.numel():
            stored = None
        if self.generator is None and stored is not None:
            return self._token_bits(self.comparison.take(name))
        shown = latent_bits_from_tokens(bits.unflatten(1, (scale.height, scale.width)), self.patch > 1)
        self.comparison.check(name, shown.unsqueeze(1).to(torch.uint8))
        return bits if stored is None else self._token_bits(stored)

    def _token_bits(self, stored: Tensor) -> Tensor:
        """[B, 1, H, W, d] at latent resolution -> [B, N, D]."""
        return tokens_from_latent_bits(stored.squeeze(1).bool(), self.patch > 1).flatten(1, 2)


MakeSession = Callable[[InfinityTransformer, TextCondition, ScaleSchedule, bool], InfinitySession]


def run_generation(
    comparison: Comparison,
    transformer: InfinityTransformer,
    tokenizer: InfinityVAE,
    make_session: MakeSession = InfinitySession,
) -> None:
    """Generates as a case says, and compares what the text, the blocks and the loop show.

    Args:
        make_session: Starts the model on text, schedule and patchify; Infinity's own by default.
    """
    call = comparison.case.info["call"]
    patchify = transformer.config.bits != tokenizer.config.codebook_dim
    schedule = _schedule(call)
    guidance = _guidance(call, len(schedule), len(transformer.blocks))
    condition = _condition(comparison, call, transformer)
    handles = _watch_text(comparison, transformer)
    session = make_session(transformer, condition, schedule, patchify)
    for handle in handles:
        handle.remove()
    # Before the first scale comes the pass over a source picture, where a model has one.
    scale_name: list[str] = ["src"]
    handles = _watch_blocks(comparison, transformer, scale_name)
    probe = partial(_probe, comparison, session, scale_name)
    sampler = _ReplaySampler(comparison, call, patchify)
    pruning = _pruning(comparison, schedule, session.depth, guidance)
    if (ended := int(call.get("trunk_scale", len(schedule)))) < len(schedule):
        pruning = FastVAR(skip=tuple(range(ended - len(schedule), 0)), first_layer=0, dense_end=0)
    result = generate(session, guidance=guidance, sampler=sampler, pruning=pruning, probe=probe)
    for handle in handles:
        handle.remove()
    comparison.check("final.summed_codes", result.latent)
    image = tokenizer.decode_pixels(result.latent)
    picture = ((image + 1) / 2 * 255).to(torch.uint8).permute(0, 2, 3, 1).flip(3)
    for name in comparison.case.tensors:
        if name.startswith("final.decoded"):
            comparison.check(name, image)
        elif name.startswith("final.image_uint8_bgr"):
            comparison.check(name, picture)


def _schedule(call: dict[str, Any]) -> ScaleSchedule:
    template = float(call["h_div_w_template"])
    position_grid = SizeTable.published().schedule(template, "1M").position_grid
    return ScaleSchedule.from_grids([(h, w) for _, h, w in call["scale_schedule"]], position_grid)


def _pruning(
    comparison: Comparison, schedule: ScaleSchedule, depth: int, guidance: Guidance
) -> PruningMethod | None:
    """The method of a fork, watched, in its cases; None in those of Infinity itself."""
    if fastervar.is_fork(comparison.case):
        return fastervar.infinity_fork(comparison, schedule, guidance.weights)
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

    return fastvar.infinity_fork(schedule, depth, watch)


_FORK_BRANCHES = {"self_attention": "sa", "cross_attention": "ca", "feed_forward": "ffn"}


def _guidance(call: dict[str, Any], scales: int, depth: int) -> Guidance:
    entries = call["cfg_insertion_layer"]
    layers = frozenset(depth + entry for entry in entries if entry < 0)
    weights = per_scale(call["cfg_list"], scales, "cfg_list")
    # The official code carries the unconditional rows to the end, and so do the stored tensors; FasterVAR's
    # carries them alone from a weight of 0 on.
    return Guidance(weights, layers, at_logits=0 in entries, release=fastervar.drops_guidance(weights))


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
        negative = [transformer.unconditional(length) for length in call["lens"]]
    return TextCondition(tuple(positive), tuple(negative))


def _watch_text(comparison: Comparison, model: InfinityTransformer) -> list[Any]:
    check, width = comparison.check, model.config.width
    return [
        watch(model.text_norm, partial(check, "text.kv_after_text_norm")),
        watch(model.text_pool, partial(check, "text.cond_BD")),
        watch(model.text_projection[2], partial(check, "text.kv_for_ca")),
        watch(model.shared_modulation, lambda out: check("text.shared_gss", out.view(-1, 1, 6, width))),
    ]


def _watch_blocks(comparison: Comparison, model: InfinityTransformer, scale_name: list[str]) -> list[Any]:
    def watch_scale(module: nn.Module, name: str) -> Any:
        return watch(module, lambda output: comparison.check(f"{scale_name[0]}.{name}", output))

    handles = [watch_scale(model.head, "head_out")]
    for index, block in enumerate(model.blocks):
        handles.append(watch_scale(block.self_attention, f"block{index}_sa_out"))
        handles.append(watch_scale(block.cross_attention, f"block{index}_ca_out"))
        handles.append(watch_scale(block.feed_forward, f"block{index}_ffn_out"))
    return handles


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
