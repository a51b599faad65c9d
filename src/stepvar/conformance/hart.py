"""Golden cases of HART: generation, dense and in FastVAR's fork; `hart_parts` has those of its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stepvar.conformance.case import Case, Comparison, DrawingSampler
from stepvar.conformance.fastvar import hart_fork
from stepvar.conformance.hart_parts import (
    build_quantizer,
    decode,
    run_diffusion_head,
    run_tokenizer,
)
from stepvar.conformance.report import TOLERANCE, CaseReport, compare
from stepvar.generation.guidance import Guidance
from stepvar.generation.loop import generate
from stepvar.generation.sampling import (
    CodebookChoice,
    filter_logits,
    gumbel_softmax,
    smoothing_temperature,
)
from stepvar.generation.schedule import Scale
from stepvar.models.common.resizing import resize_area
from stepvar.models.hart.checkpoints import official_format
from stepvar.models.hart.diffusion import DiffusionNoise
from stepvar.models.hart.official import level_numbers
from stepvar.models.hart.session import HARTSession, ResidualDraw, part_places
from stepvar.models.hart.sizes import levels, official_top_k, progress, scale_schedule
from stepvar.models.hart.text import ContextFeatures

TOKEN_STRIDE, LOGIT_STRIDE = 61, 244
"""Every how many tokens, or positions of a map, a ".slice" holds of hidden states and of logits, where a case
does not say."""

AMPLIFIED, MANY_TOKENS = 5e-4, 1000
"""Tolerance where guidance amplifies the rounding in the diffusion head, and from how many tokens on it is
needed: the more there are, the nearer one comes to where its first step is cut off."""

_FORK_BRANCHES = {"self_attention": "attn", "feed_forward": "ffn"}


@torch.inference_mode()
def run(case: Case) -> CaseReport:
    """Runs a HART case in float32 on the CPU and compares every stored tensor."""
    comparison = Comparison(case)
    if "transformer_config" in case.info:
        GenerationRun(comparison).run()
    elif "tokenizer_config" in case.info:
        run_tokenizer(comparison)
    else:
        run_diffusion_head(comparison)
    return comparison.finish()


class GenerationRun(DrawingSampler):
    """One generation, compared at every landmark.

    It is its own sampler: it draws as the official one does, then goes on with what is stored, so that an
    error shows at its own scale and does not blur the comparison of later ones.

    Args:
        comparison: Of a case that describes a transformer, a tokenizer and a call.
    """

    def __init__(self, comparison: Comparison) -> None:
        self.comparison, case = comparison, comparison.case
        self.call: dict[str, Any] = case.info["call"]
        settings = case.info["transformer_config"]
        weights = case.state("transformer", "weights_transformer.safetensors")
        self.transformer = official_format(settings).from_state(weights)
        self.tokenizer_state = case.state("tokenizer", "weights_tokenizer.safetensors")
        self.quantizer = build_quantizer(case.info["tokenizer_config"], self.tokenizer_state)
        sides = [(side, side) for side in settings["patch_nums"]]
        self.schedule = scale_schedule(sides, self.call.get("num_maskgit_iters", 1))
        self.levels, self.progress = levels(self.schedule), progress(self.schedule)
        self.top_k = official_top_k(self.schedule)
        # With one part the order of its positions makes no difference.
        self.orders = comparison.take("last.orders").long() if "last.orders" in case.tensors else None
        self.token_stride = int(case.info.get("token_stride", TOKEN_STRIDE))
        self.logit_stride = int(case.info.get("logit_stride", LOGIT_STRIDE))
        self.scale = self.schedule[0]
        final = self.schedule.final
        self.tolerance = AMPLIFIED if final.height * final.width >= MANY_TOKENS else TOLERANCE

    def run(self) -> None:
        residual = None
        if self.call.get("final_stage", 0) == 0:
            residual = ResidualDraw(self._stored_noise(), self.call["cfg"] * self.progress[-1])
        model = self.transformer

        def replace_condition(_module: Any, _inputs: Any, output: Tensor) -> Tensor | None:
            return None if residual is None else self._check_residual(residual, output)

        handle = model.residual_norm.register_forward_hook(replace_condition)
        context, images = self._context(), self.call["B"]
        normed = context.features if model.text_norm is None else model.text_norm(context.features)
        self.check("context_norm_out", normed)
        self.session = HARTSession(
            model, self.quantizer, context, images, self.schedule, residual, self.orders
        )
        self.check("context_embed_out", self.session.context)
        vectors = torch.stack([model.level_embedding(level) for level in range(self.levels[-1] + 1)])
        self.check("lvl_embed_out", vectors[level_numbers(model.config)][None])
        guidance = Guidance(tuple(1.0 + self.call["cfg"] * share for share in self.progress), release=False)
        # The fork changes blocks without modulation only.
        forked = "fastvar" in str(self.comparison.case.info.get("model"))
        pruned = forked and model.config.modulation == "none"
        pruning = hart_fork(self.schedule, self.watch_fork) if pruned else None
        result = generate(self.session, guidance=guidance, sampler=self, pruning=pruning, probe=self.probe)
        handle.remove()
        self.check("f_hat_final", result.latent, self.tolerance)
        if "decoder.conv_in.weight" in self.tokenizer_state:
            self._check_picture(result.latent)

    def check(self, name: str, computed: Tensor, tolerance: float = TOLERANCE) -> None:
        """Compares a full tensor with what is stored of it: all, every so many positions, a digest."""
        self.comparison.check(name, computed, tolerance)
        stored = self.comparison.case.tensors.get(f"{name}.slice")
        if stored is not None:
            shown = sliced(name, computed, stored.shape, self.token_stride, self.logit_stride)
            self.comparison.check(f"{name}.slice", shown, tolerance)
        digest = self.comparison.case.info.get("digests", {}).get(name)
        # The digest of the diffusion head's result includes unconditional rows, which cannot be computed.
        if digest is not None and digest["shape"] == list(computed.shape):
            error = compare(digest_of(computed, digest["l1"]), stored_digest(digest))
            self.comparison.report.tensors[f"{name} (digest)"] = error

    def _context(self) -> ContextFeatures:
        take = self.comparison.take
        features = take("context").float()
        given = ContextFeatures(features, take("context_mask").bool(), take("context_position_ids").long())
        images, tokens, channels = features.shape
        return given.joined(ContextFeatures.empty(images, tokens, channels, features.device))

    def _stored_noise(self) -> DiffusionNoise:
        """The stored noise of every part of the last map, by position."""
        take, images, final = self.comparison.take, self.call["B"], self.schedule.final
        tokens, channels = final.height * final.width, self.transformer.config.latent_channels
        whole = torch.arange(tokens).expand(images, -1)
        noise = torch.zeros(1 + len(self.transformer.residual_head.schedule), images, tokens, channels)
        for part, places in enumerate(part_places(self.schedule, self.orders) or [whole]):
            names = ["noise_init", *(f"noise_step{step}" for step in range(len(noise) - 1))]
            for target, name in zip(noise, names, strict=True):
                # Without guidance the official code draws for unconditional tokens too, which come last.
                stored = take(f"last.it{part}.diff_{name}").float()[: places.numel()]
                stored = stored.view(images, -1, channels)
                target.scatter_(1, places[..., None].expand_as(stored), stored)
        return DiffusionNoise(noise[0], noise[1:])

    def name(self, scale: Scale) -> str:
        """What the format calls a step."""
        last = self.levels[-1]
        return f"s{scale.index:02}" if scale.index < last else f"last.it{scale.index - last}"

    def temperature(self, scale: Scale) -> float:
        return 1.0

    def sample(self, logits: Tensor, scale: Scale) -> CodebookChoice:
        name = self.name(scale)
        filtered = self.filtered(logits, scale)
        if self.comparison.case.info["sampling_mode"] == "argmax":
            self.check(f"{name}.idx", filtered.argmax(dim=-1))
            index = self.comparison.case.tensors[f"{name}.idx"].long()
        else:
            index = self.comparison.take(f"{name}.idx").long()
        codes = self.quantizer.lookup(index)
        if self.call.get("more_smooth", False):
            share, noise = self.progress[scale.index], self.comparison.take(f"{name}.gumbel_exp").float()
            filtered = self.filtered(self.comparison.replayed(f"{name}.logits_cfg", logits), scale)
            weights = gumbel_softmax(filtered * (1.0 + share), noise, smoothing_temperature(share))
            codes = weights @ self.quantizer.codebook.weight
        if scale.part is None:
            self.check(f"{name}.h", codes.transpose(1, 2).unflatten(2, (scale.height, scale.width)))
        stored = self.comparison.case.tensors.get(f"{name}.h")
        return CodebookChoice(index, codes if stored is None else stored.flatten(2).transpose(1, 2))

    def filtered(self, logits: Tensor, scale: Scale) -> Tensor:
        return filter_logits(logits, self.top_k[scale.index], self.call.get("top_p", 0.0))

    def probe(self, name: str, scale: Scale, value: Any) -> None:
        self.scale, prefix = scale, self.name(scale)
        if name == "input":
            self.check(f"{prefix}.x_in", value)
        elif name == "layer 0":
            self.check(f"{prefix}.block0_out", value)
        if name == f"layer {self.session.depth - 1}":
            self.check(f"{prefix}.blockN_out", value)
            self.check(f"{prefix}.logits_raw", self.session.logits(value))
        elif name == "logits":
            self.check(f"{prefix}.logits_cfg", value)
        elif name == "latent" and scale.index < self.levels[-1]:
            self.check(f"{prefix}.f_hat", value)
            following = self.schedule[scale.index + 1]
            self.check(f"{prefix}.next_map", resize_area(value, (following.height, following.width)))

    def watch_fork(self, what: str, scale: int, layer: int, branch: str, value: Tensor) -> None:
        """Compares what FastVAR chose and cached."""
        name = f"layer{layer}.{_FORK_BRANCHES[branch]}"
        side = self.schedule[scale].height
        if what == "cache":
            self.check(f"cache{side}.{name}", value)
        elif what == "kept":
            self.comparison.check_set(f"w{side}.{name}.kept", value)
        else:
            self.comparison.check(f"w{side}.{name}.score", value)
            self.comparison.check(f"w{side}.{name}.score_slice", value[:, :: self.token_stride])

    def _check_residual(self, draw: ResidualDraw, condition: Tensor) -> Tensor:
        """Condition and result of the diffusion head [R, n, C]; the result's conditional half alone, since
        the noise of the other one is not stored, nor does it reach the picture. Goes on with what is stored,
        whose rounding the head enlarges ten thousand times in its first step."""
        name = self.name(self.scale)
        self.check(f"{name}.diff_cond", condition)
        condition = self.comparison.replayed(f"{name}.diff_cond", condition)
        tokens = condition.shape[0] // 2 * condition.shape[1]

        def take(what: str) -> Tensor:
            return self.comparison.take(f"{name}.diff_noise_{what}").float()[:tokens]

        steps = [take(f"step{step}") for step in range(len(draw.noise.steps))]
        noise = DiffusionNoise(take("init"), torch.stack(steps))
        drawn = self.transformer.residual_head.sample(condition.flatten(0, 1), noise, draw.guidance)
        stored = self.comparison.case.tensors.get(f"{name}.diff_out")
        if stored is None:
            self.check(f"{name}.diff_out", drawn, self.tolerance)
        else:
            error = compare(drawn, stored[: len(drawn)], tolerance=self.tolerance)
            self.comparison.report.tensors[f"{name}.diff_out"] = error
        return condition

    def _check_picture(self, latent: Tensor) -> None:
        config = self.comparison.case.info["tokenizer_config"]
        pixels = decode(config, self.tokenizer_state, latent)
        self.check("decoder_out_preclamp", pixels, self.tolerance)
        self.check("image", (pixels.clamp(-1.0, 1.0) + 1.0) / 2.0, self.tolerance)


def sliced(
    name: str,
    full: Tensor,
    stored: Sequence[int],
    token_stride: int = TOKEN_STRIDE,
    logit_stride: int = LOGIT_STRIDE,
) -> Tensor:
    """The positions that a ".slice" holds: of a map, of the rows of a result, or of the tokens.

    Args:
        stored: Shape of the slice; where the stride of the tensor's kind does not lead to it, the other does.
        token_stride, logit_stride: Of hidden states and maps, and of logits.
    """
    axis = 0 if name.endswith("diff_out") else 1
    if full.dim() == 4:
        full, axis = full.flatten(2), 2
    strides = (logit_stride, token_stride) if "logits" in name else (token_stride, logit_stride)
    kept = [full[(slice(None),) * axis + (slice(None, None, stride),)] for stride in strides]
    return next((part for part in kept if part.shape == stored), kept[0])


def digest_of(full: Tensor, unit: float) -> Tensor:
    """Sums over a whole tensor that any changed entry changes, in units of the sum of absolute values."""
    flat = full.double().flatten()
    waves = torch.cos(0.7310585 * torch.arange(len(flat), dtype=torch.float64))
    sums = torch.stack([flat.sum(), flat.abs().sum(), flat.norm(), flat @ waves])
    return sums / unit


def stored_digest(digest: Mapping[str, Any]) -> Tensor:
    """The same sums as case.json has them."""
    sums = [digest[name] for name in ("sum", "l1", "l2", "cosdot")]
    return torch.tensor(sums, dtype=torch.float64) / digest["l1"]
