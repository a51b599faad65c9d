"""LoRA of an Infinity model from a folder of pictures with captions, with bitwise self-correction.

    pip install peft datasets accelerate
    python examples/finetune_lora.py my-pictures/ --model infinity-2b/ -o my-lora/
    accelerate launch examples/finetune_lora.py my-pictures/ --model infinity-2b/ -o my-lora/   # many GPUs

The folder is an `imagefolder` of the datasets library: pictures, and a metadata.jsonl with a line
{"file_name": "a.png", "text": "its caption"} each. Without --model the embedded model is trained, which knows
the words of its scenes alone. The result is one file that every pipeline of the model loads:

    pipe.load_lora_weights("my-lora/", adapter_name="mine")
    pipe.set_adapters("mine", 0.8)
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import load_dataset
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image, ImageOps
from torch import Tensor, nn

import stepvar
from stepvar.generation.schedule import ScaleSchedule
from stepvar.models.common.training import bit_losses
from stepvar.models.infinity.pipeline import InfinityPipeline
from stepvar.models.infinity.training import teacher_forced_logits

logger = logging.getLogger("finetune_lora")


@dataclass(frozen=True)
class Settings:
    """Settings of a training.

    Attributes:
        steps: Steps of the optimizer.
        batch: Pictures a step and device.
        rate: Learning rate.
        rank: Of the adapter.
        flips: Most of the bits of a picture that enter its sum flipped, so that later scales learn to repair.
        dropped: Share of the captions replaced by the unconditional text, which guidance needs.
        seed: Of everything random.
    """

    steps: int = 500
    batch: int = 4
    rate: float = 1e-3
    rank: int = 16
    flips: float = 0.3
    dropped: float = 0.1
    seed: int = 0


class BitLoss(nn.Module):
    """The loss of pictures with captions: mean cross entropy of a bit, over all scales."""

    def __init__(self, pipeline: InfinityPipeline, schedule: ScaleSchedule, settings: Settings) -> None:
        super().__init__()
        self.transformer = pipeline.transformer
        self.schedule, self.settings = schedule, settings
        self.patch = 2 if pipeline.vae.config.patchify else 1
        # Outside the modules of this one: the parts that are not trained.
        self.frozen = {"pipeline": pipeline}

    def forward(self, pictures: Tensor, captions: Sequence[str]) -> Tensor:
        """pictures [B, 3, H, W] in -1..1 -> the loss in nats."""
        pipeline, vae = self.frozen["pipeline"], self.frozen["pipeline"].vae
        grids = [(scale.height, scale.width) for scale in self.schedule]
        with torch.no_grad():
            flips = torch.rand(len(pictures), device=pictures.device) * self.settings.flips
            code = vae.quantize(vae.encode_features(pictures), grids, flips)
            texts = [text.to(pictures.device) for text in pipeline.encode(captions)]
        for index, text in enumerate(texts):
            if torch.rand(()) < self.settings.dropped:
                texts[index] = self.transformer.unconditional(len(text))
        inputs = [functional.pixel_unshuffle(latent, self.patch) for latent in code.teacher_inputs]
        logits = teacher_forced_logits(self.transformer, texts, inputs, self.schedule)
        bits = [vae.tokens_from_latent_bits(scale).flatten(1, 2) for scale in code.bits]
        return bit_losses(logits, bits).mean()


def read_pictures(folder: Path, height: int, width: int) -> list[tuple[Tensor, str]]:
    """Pictures [3, H, W] in -1..1, cut to a size, with their captions.

    Raises:
        ValueError: When the folder has no captions.
    """
    pictures = load_dataset("imagefolder", data_dir=str(folder), split="train")
    if "text" not in pictures.column_names:
        raise ValueError(f"'{folder}' has no captions: add a metadata.jsonl with file_name and text.")
    return [(to_tensor(row["image"], height, width), row["text"]) for row in pictures]


def to_tensor(picture: Image.Image, height: int, width: int) -> Tensor:
    """The middle of a picture at a size, [3, H, W] in -1..1."""
    fitted = ImageOps.fit(picture.convert("RGB"), (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 127.5 - 1.0


def batches(pictures: Sequence[tuple[Tensor, str]], size: int) -> Iterator[tuple[Tensor, list[str]]]:
    """Random batches without end; every picture once before any comes again."""
    order: list[int] = []
    while True:
        while len(order) < size:
            order += torch.randperm(len(pictures)).tolist()
        chosen, order = order[:size], order[size:]
        yield torch.stack([pictures[i][0] for i in chosen]), [pictures[i][1] for i in chosen]


def train(
    pipeline: InfinityPipeline, folder: Path, output: Path, settings: Settings, dtype: str = "no"
) -> list[float]:
    """Trains an adapter and saves it.

    Args:
        pipeline: The model; the adapter stays on it.
        folder: The pictures, see `read_pictures`.
        output: The new folder of the adapter.
        settings: How to train.
        dtype: Mixed precision, as for accelerate.

    Returns:
        The loss of every step.
    """
    accelerator = Accelerator(mixed_precision=dtype)
    set_seed(settings.seed, device_specific=True)
    schedule = pipeline.schedule()
    pictures = read_pictures(folder, *pipeline.pixels(schedule))
    pipeline.to(accelerator.device)
    for part in (pipeline.transformer, pipeline.vae, pipeline.text_encoder):
        part.requires_grad_(False)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.rank,
        target_modules=["qkv", "query", "key_value", "output", "up", "down"],
    )
    pipeline.transformer.add_adapter(config)
    trained = [weight for weight in pipeline.transformer.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.rate, weight_decay=0.0)
    loss_of, optimizer = accelerator.prepare(BitLoss(pipeline, schedule, settings), optimizer)
    losses = []
    for step, (batch, captions) in zip(
        range(settings.steps), batches(pictures, settings.batch), strict=False
    ):
        loss = loss_of(batch.to(accelerator.device), captions)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 20 == 0:
            logger.info("step %d of %d: loss %.4f nats a bit", step, settings.steps, loss.item())
    if accelerator.is_main_process:
        adapter = get_peft_model_state_dict(pipeline.transformer)
        pipeline.save_lora_weights(output, adapter, transformer_lora_adapter_metadata=config.to_dict())
    return losses


def main() -> None:
    """Reads the options, trains, and draws a picture with and without the adapter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--model", help="a folder of an Infinity pipeline; the embedded model by default")
    parser.add_argument("-o", "--output", type=Path, default=Path("lora"))
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--batch", type=int, default=Settings.batch)
    parser.add_argument("--rate", type=float, default=Settings.rate)
    parser.add_argument("--rank", type=int, default=Settings.rank)
    parser.add_argument("--mixed-precision", choices=("no", "bf16", "fp16"), default="no")
    parser.add_argument("--prompt", help="draws before.png and after.png into the output folder")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    pipeline = InfinityPipeline.from_pretrained(options.model) if options.model else stepvar.load_embedded()
    settings = Settings(options.steps, options.batch, options.rate, options.rank)
    options.output.mkdir(parents=True, exist_ok=True)
    if options.prompt:
        pipeline(options.prompt, seed=0).images[0].save(options.output / "before.png")
    train(pipeline, options.pictures, options.output, settings, options.mixed_precision)
    if options.prompt:
        pipeline(options.prompt, seed=0).images[0].save(options.output / "after.png")
    logger.info("saved in %s", options.output)


if __name__ == "__main__":
    main()
