"""Training of the embedded tokenizer on rendered scenes, within a budget of minutes.

Run ``python -m stepvar.embedded.train_tokenizer --minutes 35 --output runs/tokenizer``; the same command
resumes an interrupted run. Works on a laptop's CPU (bfloat16 autocast, float32 weights) and on CUDA.

A quarter of every batch decodes only the first scales and is compared with the picture at the resolution
these scales stand for. So coarse scales carry layout and colour, and the last ones carry texture and edges.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from stepvar.embedded.architecture import SIZES
from stepvar.embedded.data import crop_batches, fixed_pictures, to_bytes, to_signed
from stepvar.embedded.losses import (
    bit_entropy,
    commitment_loss,
    entropy_loss,
    frequency_loss,
    gradient_loss,
    low_pass,
)
from stepvar.embedded.precision import mixed_precision
from stepvar.models.infinity.quantizer import MultiScaleCode
from stepvar.models.infinity.tokenizer import InfinityTokenizer

logger = logging.getLogger(__name__)

_CHECKPOINT = "checkpoint.pt"
_TRUNCATIONS = 5
_EMA_DECAY = 0.999
_EVALUATION_PICTURES = 16


@dataclass(frozen=True)
class TokenizerTraining:
    """Settings of a run.

    Attributes:
        output: folder of checkpoints, log and reconstruction sheets.
        minutes: budget of training time; the learning rate reaches zero at its end.
        device: torch device.
        threads: CPU threads of the main process.
        workers: processes that render.
        batch: crops per step while crops are small; full pictures per step hold the same number of pixels.
        crop: side in pixels of the crops.
        full_share: last part of the budget that trains on whole pictures.
        learning_rate: peak of AdamW.
        warmup_steps: steps of linear rise.
        truncated_share: part of the batch decoded from the first scales only.
        truncated_pixels: pixels per token side that such a picture is asked to resolve, up to eight. Fewer
            keep more detail for the last scales.
        gradient_weight, frequency_weight, commitment_weight, entropy_weight: weights of the loss terms
            beside the mean absolute error.
        log_every: steps between log lines.
        checkpoint_minutes: minutes between checkpoints.
        seed: of weights and scenes.
        size: name of the pictures' size, see `stepvar.embedded.architecture.SIZES`.
        start: folder of a finished tokenizer to go on from; empty for fresh weights.
    """

    output: str = "runs/tokenizer"
    minutes: float = 35.0
    device: str = "cpu"
    threads: int = 2
    workers: int = 1
    batch: int = 16
    crop: int = 64
    full_share: float = 0.15
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    truncated_share: float = 0.15
    truncated_pixels: int = 8
    gradient_weight: float = 1.0
    frequency_weight: float = 0.3
    commitment_weight: float = 0.25
    entropy_weight: float = 0.05
    log_every: int = 100
    checkpoint_minutes: float = 3.0
    seed: int = 0
    size: str = "192"
    start: str = ""


def build_tokenizer() -> InfinityTokenizer:
    """Build the embedded tokenizer with random weights: stride 8, 16 bits, 2.6 M parameters.

    torch's default initialisation shrinks the signal at every convolution, which costs such a small
    budget most of its first minutes; so variance is kept, and residual branches start small.
    """
    tokenizer = InfinityTokenizer(
        codebook_dim=16,
        base_channels=32,
        encoder_multipliers=(1, 2, 4),
        decoder_multipliers=(1, 2, 4),
        encoder_blocks=1,
        decoder_blocks=2,
        norm_groups=8,
        pixel_block=2,
    )
    for name, module in tokenizer.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            torch.nn.init.zeros_(module.bias)
            if ".conv2." in name or ".conv_out." in name:
                module.weight.data.mul_(0.2)
    return tokenizer


class TokenizerTrainer:
    """One run: the model, its moving average, the optimiser and what was reached so far."""

    def __init__(self, config: TokenizerTraining) -> None:
        torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.config, self.size = config, SIZES[config.size]
        self.folder = Path(config.output)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.device = torch.device(config.device)
        self.model = build_tokenizer().to(self.device)
        if config.start:
            finished = InfinityTokenizer.from_pretrained(config.start, torch_dtype=torch.float32)
            self.model.load_state_dict(finished.state_dict())
        self.average = build_tokenizer().to(self.device).eval().requires_grad_(False)
        self.average.load_state_dict(self.model.state_dict())
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), config.learning_rate, betas=(0.9, 0.98), weight_decay=1e-4, fused=True
        )
        self.step = 0
        self.seconds = 0.0
        if (self.folder / _CHECKPOINT).exists():
            self._restore()

    @property
    def progress(self) -> float:
        """Part of the budget that is spent."""
        return self.seconds / (60.0 * self.config.minutes)

    def run(self) -> Path:
        """Train until the budget is spent and return the folder of the saved tokenizer."""
        lines: list[dict[str, Tensor]] = []
        batches, side = self._batches()
        saved, logged = self.seconds, time.monotonic()
        while self.progress < 1.0:
            start = time.monotonic()
            if side != self._side():
                batches, side = self._batches()
            lines.append(self._train_step(to_signed(next(batches).to(self.device, non_blocking=True))))
            self.seconds += time.monotonic() - start
            if self.step % self.config.log_every == 0:
                self._log(lines, (time.monotonic() - logged) / len(lines))
                lines, logged = [], time.monotonic()
            if self.seconds - saved > 60.0 * self.config.checkpoint_minutes:
                self._checkpoint()
                saved, logged = self.seconds, time.monotonic()
        self._checkpoint()
        return self.folder / "tokenizer"

    def _side(self) -> int:
        return self.size.canvas if self.progress >= 1.0 - self.config.full_share else self.config.crop

    def _batches(self) -> tuple[Iterator[Tensor], int]:
        side = self._side()
        batch = max(1, round(self.config.batch * self.config.crop**2 / side**2))
        # The step is part of the seed, so that a resumed run sees new scenes.
        seed = self.config.seed + 1000 * self.step
        return crop_batches(batch, side, seed, self.size.canvas, self.config.workers), side

    def _learning_rate(self) -> float:
        warm = min(1.0, (self.step + 1) / self.config.warmup_steps)
        return self.config.learning_rate * warm * 0.5 * (1.0 + math.cos(math.pi * min(1.0, self.progress)))

    def _train_step(self, target: Tensor) -> dict[str, Tensor]:
        """Update the weights on pictures ``[B, 3, side, side]`` and return what to log."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        schedule = self.size.crop_grids(target.shape[-1])
        with mixed_precision(self.device):
            features = self.model.encoder(target).float()
            code = self.model.quantize(features, schedule)
            latent, target = self._truncate(code, target, schedule)
            picture = self.model.decoder(latent).float()
        parts = self._losses(picture, target, features, code)
        self.optimizer.zero_grad(set_to_none=True)
        parts["loss"].backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(_EMA_DECAY, self.step / (self.step + 10.0))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1.0 - decay)
        whole = target.shape[0] - self._truncated(target.shape[0])
        parts["squared_error"] = (picture[:whole].clamp(-1, 1) - target[:whole]).square().mean()
        parts["entropy"] = scale_entropies(code)
        return {name: value.detach() for name, value in parts.items()}

    def _truncated(self, batch: int) -> int:
        """How many pictures of a batch are decoded from their first scales."""
        share = self.config.truncated_share * batch
        # A batch of few pictures truncates one of them every so often.
        whole = int(share)
        return whole + int((self.step * (share - whole)) % 1.0 + (share - whole) >= 1.0)

    def _truncate(
        self, code: MultiScaleCode, target: Tensor, schedule: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Replace the last pictures of the batch by their first scales, and what they are compared with."""
        count = self._truncated(target.shape[0])
        if count == 0:
            return code.latent, target
        first = len(schedule) - 1 - _TRUNCATIONS
        last = first + int(torch.randint(_TRUNCATIONS, ()))
        rows, columns = (cells * self.config.truncated_pixels for cells in schedule[last])
        coarse = low_pass(target[-count:], (rows, columns))
        latent = torch.cat((code.latent[:-count], code.partial_latents[last][-count:]))
        return latent, torch.cat((target[:-count], coarse))

    def _losses(
        self, picture: Tensor, target: Tensor, features: Tensor, code: MultiScaleCode
    ) -> dict[str, Tensor]:
        config = self.config
        offset = tuple(torch.randint(16, (2,)).tolist())
        parts = {
            "absolute": (picture - target).abs().mean(),
            "gradient": gradient_loss(picture, target),
            "frequency": frequency_loss(picture, target, offset),
            "commitment": commitment_loss(features, code.latent),
            "balance": entropy_loss(code.residuals),
        }
        parts["loss"] = (
            parts["absolute"]
            + config.gradient_weight * parts["gradient"]
            + config.frequency_weight * parts["frequency"]
            + config.commitment_weight * parts["commitment"]
            + config.entropy_weight * parts["balance"]
        )
        return parts

    def _log(self, lines: list[dict[str, Tensor]], seconds_per_step: float) -> None:
        means = {name: torch.stack([line[name] for line in lines]).mean(0).tolist() for name in lines[0]}
        record = {
            "step": self.step,
            "minutes": round(self.seconds / 60.0, 2),
            "side": self._side(),
            "learning_rate": self._learning_rate(),
            "seconds_per_step": round(seconds_per_step, 3),
            "psnr": round(psnr(means.pop("squared_error")), 2),
            "entropy": [round(value, 3) for value in means.pop("entropy")],
        } | {name: round(value, 4) for name, value in means.items()}
        self._append(record)
        logger.info("%s", record)

    def _append(self, record: dict) -> None:
        with (self.folder / "log.jsonl").open("a") as stream:
            stream.write(json.dumps(record) + "\n")

    def _checkpoint(self) -> None:
        """Write the state of the run, the averaged tokenizer, its measures and a sheet of pictures."""
        state = {
            "config": asdict(self.config),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        temporary = self.folder / (_CHECKPOINT + ".part")
        torch.save(state, temporary)
        temporary.replace(self.folder / _CHECKPOINT)
        self.average.save_pretrained(self.folder / "tokenizer")
        pictures = fixed_pictures(_EVALUATION_PICTURES, self.size.canvas, seed=77)
        measures, sheet = evaluate(self.average, pictures, self.size.grids)
        Image.fromarray(sheet.numpy()).save(self.folder / f"sheet_{self.step:06d}.png")
        self._append({"step": self.step, "minutes": round(self.seconds / 60.0, 2)} | measures)
        logger.info("checkpoint at step %d: %s", self.step, measures)

    def _restore(self) -> None:
        state = torch.load(self.folder / _CHECKPOINT, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        logger.info("resumed at step %d, %.1f minutes", self.step, self.seconds / 60.0)


@torch.no_grad()
def evaluate(
    tokenizer: InfinityTokenizer, pictures: Tensor, grids: list[tuple[int, int]]
) -> tuple[dict, Tensor]:
    """Measure a tokenizer on whole pictures.

    Args:
        tokenizer: in evaluation mode.
        pictures: uint8 ``[B, 3, side, side]``, at least six.
        grids: scale schedule of these pictures.

    Returns:
        The measures (mean PSNR in dB after 5, 6, ... all scales, entropy of the bits per scale), and a sheet
        uint8 ``[rows, columns, 3]``: original, reconstruction, without the last, and the last two scales.
    """
    device = next(tokenizer.parameters()).device
    target = to_signed(pictures.to(device))
    code = tokenizer.encode(target, grids)
    decoded = [tokenizer.decode(latent) for latent in code.partial_latents[4:]]
    measures = {
        "evaluation_psnr": [round(mean_psnr(picture, target), 2) for picture in decoded],
        "evaluation_entropy": [round(value, 3) for value in scale_entropies(code).tolist()],
        "least_entropy": [
            round(bit_entropy(bits.float().mean(dim=(0, 1, 2))).min().item(), 3) for bits in code.bits
        ],
    }
    columns = [to_bytes(shown[:6]) for shown in (target, decoded[-1], decoded[-2], decoded[-3])]
    side = pictures.shape[-1]
    sheet = torch.stack(columns).permute(1, 3, 0, 4, 2).reshape(6 * side, len(columns) * side, 3)
    return measures, sheet.cpu()


def scale_entropies(code: MultiScaleCode) -> Tensor:
    """Mean entropy per bit of every scale over the batch, float32 ``[K]``, one bit at most."""
    return torch.stack([bit_entropy(bits.float().mean(dim=(0, 1, 2))).mean() for bits in code.bits])


def psnr(squared_error: float) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [-1, 1] with this mean squared error."""
    return 10.0 * math.log10(4.0 / max(squared_error, 1e-12))


def mean_psnr(pictures: Tensor, targets: Tensor) -> float:
    """Mean over the pictures of their peak signal-to-noise ratio in dB."""
    errors = (pictures - targets).square().mean(dim=(1, 2, 3)).tolist()
    return sum(psnr(error) for error in errors) / len(errors)


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for field in fields(TokenizerTraining):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default
        )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    trainer = TokenizerTrainer(TokenizerTraining(**vars(parser.parse_args(arguments))))
    logger.info("tokenizer saved to %s", trainer.run())


if __name__ == "__main__":
    main()
