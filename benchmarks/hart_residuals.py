"""What HART's diffusion head should do with recovered positions, measured on the weights of golden cases.

Draws the same pictures dense, and pruned with four treatments of the positions whose hidden states were
copied from a kept neighbour. At those positions it compares the final latent with the dense one:

- error: root mean square of the difference, in units of the dense latent's deviation;
- texture: root mean square of the step from a position to its right neighbour, in units of the dense one.
  Below 1, detail is lost: copies of one value make patches.

    python benchmarks/hart_residuals.py

The weights are small and random, so this tells treatments apart by what they do to a distribution, not by the
look of pictures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from stepvar.conformance.hart_parts import build_quantizer
from stepvar.generation.loop import generate
from stepvar.generation.pruner import PruningMethod
from stepvar.generation.sampling import CodebookChoice, CodebookSampler
from stepvar.generation.schedule import Scale
from stepvar.generation.tokens import Tokens, gather_tokens
from stepvar.models.hart.checkpoints import load_transformer
from stepvar.models.hart.presets import PRESETS
from stepvar.models.hart.sampling import make_guidance, make_sampling
from stepvar.models.hart.session import HARTSession, ResidualDraw, draw_residual_noise
from stepvar.models.hart.sizes import scale_schedule
from stepvar.models.hart.text import ContextFeatures
from stepvar.pruning.interpolation import nearest_kept

CASES = Path(__file__).parents[1] / "tests" / "golden" / "hart"
TREATMENTS = ("own residual", "no residual", "neighbour's residual", "neighbour's code and residual")


class TreatedSession(HARTSession):
    """A session that treats recovered positions in one of several ways."""

    treatment = TREATMENTS[0]

    def commit(self, scale: Scale, choice: CodebookChoice, hidden: Tensor, tokens: Tokens) -> None:
        if tokens.index is None or self.level(scale) + 1 < self.levels:
            super().commit(scale, choice, hidden, tokens)
            return
        kept = tokens.index[: self.images]
        source = kept.gather(1, nearest_kept(kept, scale.grid))
        residual, codes = self._residuals(self.residual, scale, choice, hidden, tokens), choice.codes
        if self.treatment == "no residual":
            own = source == torch.arange(scale.tokens)
            residual = residual * own[..., None]
        elif self.treatment != "own residual":
            residual = gather_tokens(residual, source)
        if self.treatment == "neighbour's code and residual":
            codes = gather_tokens(codes, source)
        self.latent = self.latent + (codes + residual).transpose(1, 2).unflatten(2, self.grid)


class Model:
    """The weights of a golden case, and pictures drawn with them."""

    def __init__(self, name: str, seeds: int, smooth: bool) -> None:
        info = json.loads((CASES / name / "case.json").read_text("utf-8"))
        settings = info["transformer_config"]
        self.transformer = load_transformer(
            CASES / name / "weights_transformer.safetensors", torch.float32, official=settings
        )
        stored = load_file(CASES / name / "weights_tokenizer.safetensors")
        state = {key: value.float() for key, value in stored.items()}
        self.quantizer = build_quantizer(info["tokenizer_config"], state).requires_grad_(False)
        self.schedule = scale_schedule([(side, side) for side in settings["patch_nums"]])
        self.guidance = make_guidance(5.5, self.schedule)
        self.settings = make_sampling(self.schedule, 1.0, None, 0.0, smooth)
        self.seeds = range(seeds)

    @torch.no_grad()
    def draw(self, pruning: PruningMethod | None, treatment: str) -> tuple[Tensor, Tensor | None]:
        """Latents [B, D, H, W] of all seeds, and the kept positions of the last scale."""
        config, device = self.transformer.config, self.transformer.device
        generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        shape = (len(generators), config.context_tokens, config.context_channels)
        features = torch.randn(shape, generator=torch.Generator().manual_seed(99))
        context = ContextFeatures.from_mask(features, torch.ones(shape[:2]))
        sampler = CodebookSampler(
            self.settings, self.schedule, self.quantizer.codebook.weight, generators, device
        )
        steps = len(self.transformer.residual_head.schedule)
        noise = draw_residual_noise(
            generators, self.schedule.final.tokens, config.latent_channels, steps, device
        )
        session = TreatedSession(
            self.transformer,
            self.quantizer,
            context.joined(ContextFeatures.empty(*shape, device)),
            len(generators),
            self.schedule,
            ResidualDraw(noise, self.guidance.weights[-1] - 1.0),
        )
        session.treatment = treatment
        result = generate(session, guidance=self.guidance, sampler=sampler, pruning=pruning)
        return result.latent, result.scales[-1].kept_index


def compare(model: Model, treatment: str, dense: Tensor) -> tuple[float, float]:
    """Error and texture of recovered positions against the dense latent."""
    latent, kept = model.draw(PRESETS["paper"].method, treatment)
    recovered = torch.ones(len(latent), 1, latent.shape[-2] * latent.shape[-1], dtype=torch.bool)
    recovered.scatter_(2, kept[:, None], False)
    recovered = recovered.unflatten(2, latent.shape[-2:]).expand_as(latent)
    error = (latent - dense)[recovered].square().mean().sqrt() / dense.std()
    pairs = recovered[..., 1:] & recovered[..., :-1]
    steps = [value.diff(dim=-1)[pairs].square().mean().sqrt() for value in (latent, dense)]
    return float(error), float(steps[0] / steps[1])


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", default=["t2i_argmax", "t2i_smooth_maskgit"])
    parser.add_argument("--seeds", type=int, default=16, help="pictures")
    arguments = parser.parse_args()
    for name in arguments.cases:
        for smooth in (True, False):
            model = Model(name, arguments.seeds, smooth)
            dense, _ = model.draw(None, TREATMENTS[0])
            print(f"{name}, codes {'mixed' if smooth else 'picked'}")
            for treatment in TREATMENTS:
                error, texture = compare(model, treatment, dense)
                print(f"  {treatment:<32} error {error:.3f}  texture {texture:.3f}")


if __name__ == "__main__":
    main()
