"""LoRA of an Infinity model from a folder of pictures with captions, with bitwise self-correction.

    pip install peft datasets accelerate
    python examples/finetune_lora.py my-pictures/ --model infinity-2b/ -o my-lora/
    accelerate launch examples/finetune_lora.py my-pictures/ --model infinity-2b/ -o my-lora/   # many GPUs

The folder is an `imagefolder` of the datasets library: pictures, and a metadata.jsonl with a line
{"file_name": "a.png", "text": "its caption"} each. The result is one file that every pipeline of the model
loads:

    pipe.load_lora_weights("my-lora/", adapter_name="mine")
    pipe.set_adapters("mine", 0.8)

Without --model the embedded model is trained, which knows the words of its scenes alone. --word adds one: its
embedding is trained with the adapter, and saved beside it (learned_embeds.safetensors).

    python examples/heart_pictures.py hearts/
    python examples/finetune_lora.py hearts/ -o heart-lora/ --word heart --like star --scales 8 --minutes 10

--scales trains the first scales alone in most steps: what is where, and the outlines of things, is decided
there, and the other scales have most of the tokens.

    pipe.load_textual_inversion("heart-lora/")
    pipe.load_lora_weights("heart-lora/")
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import load_dataset
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image, ImageOps
from safetensors.torch import save_file
from torch import Tensor, nn

import stepvar
from stepvar.generation.schedule import ScaleSchedule
from stepvar.models.common.t5 import token_ids
from stepvar.models.common.training import bit_losses, take_tokens
from stepvar.models.infinity.pipeline import InfinityPipeline
from stepvar.models.infinity.training import teacher_forced_logits

logger = logging.getLogger("finetune_lora")

FEWER = 4
"""A step of all scales has so many times fewer pictures, to bound its memory."""

WORD_FILE = "learned_embeds.safetensors"
"""What `load_textual_inversion` looks for in a folder."""


@dataclass(frozen=True)
class Settings:
    """Settings of a training.

    Attributes:
        steps: Steps of the optimizer.
        batch: Pictures of a step, a device.
        rate: Learning rate; it rises in the first steps and falls evenly to a tenth.
        word_rate: That of a new word's embedding, as a multiple.
        rank: Of the adapter. A small model needs one that is not far from its width.
        scales: How many scales most steps train, the coarse ones; None for all.
        fine: Share of the steps that train the others too, on a part of their tokens and fewer pictures.
        fine_tokens: That part.
        word_share: Share of the pictures of a step whose caption has the new word; the others are there so
            that what the model knows stays.
        flips: Most of the bits of a picture that enter its sum flipped, so that later scales learn to repair.
        dropped: Share of the captions replaced by the unconditional text, which guidance needs.
        minutes: The training ends after so many, if not by its steps.
        seed: Of everything random.
    """

    steps: int = 500
    batch: int = 4
    rate: float = 1e-3
    word_rate: float = 5.0
    rank: int = 16
    scales: int | None = None
    fine: float = 0.1
    fine_tokens: float = 0.25
    word_share: float = 0.75
    flips: float = 0.3
    dropped: float = 0.1
    minutes: float = float("inf")
    seed: int = 0


@dataclass(frozen=True)
class Example:
    """A picture, encoded once.

    Attributes:
        features: [1, d, h, w], what the visual tokenizer quantises.
        caption: The text.
    """

    features: Tensor
    caption: str


class BitLoss(nn.Module):
    """The loss of encoded pictures with captions: mean cross entropy of a bit, over the scales."""

    def __init__(self, pipeline: InfinityPipeline, schedule: ScaleSchedule, settings: Settings) -> None:
        super().__init__()
        self.transformer, self.text_encoder = pipeline.transformer, pipeline.text_encoder
        self.schedule, self.settings = schedule, settings
        self.patch = 2 if pipeline.vae.config.patchify else 1
        # Outside the modules of this one: the parts that are not trained.
        self.frozen = {"vae": pipeline.vae, "tokenizer": pipeline.tokenizer}

    def forward(self, examples: Sequence[Example], scales: int, whole: int) -> Tensor:
        """Pictures and their captions -> the loss of the first so many scales, in nats.

        Args:
            examples: The pictures.
            scales: How many scales are run.
            whole: How many of them with all tokens; of the others a part is drawn.
        """
        vae, device = self.frozen["vae"], self.transformer.device
        grids = [(scale.height, scale.width) for scale in self.schedule]
        flips = torch.rand(len(examples), device=device) * self.settings.flips
        features = torch.cat([example.features for example in examples]).to(device)
        code = vae.quantize(features, grids, flips)
        texts = self.encode([example.caption for example in examples])
        inputs = [functional.pixel_unshuffle(latent, self.patch) for latent in code.teacher_inputs]
        kept = [self.some_tokens(len(examples), scale, index < whole) for index, scale in enumerate(grids)]
        logits = teacher_forced_logits(
            self.transformer, texts, inputs[: scales - 1], self.schedule, kept[:scales]
        )
        bits = [vae.tokens_from_latent_bits(scale).flatten(1, 2) for scale in code.bits]
        labels = [take_tokens(*pair) for pair in zip(bits[:scales], kept[:scales], strict=True)]
        return bit_losses(logits, labels).mean()

    def some_tokens(self, pictures: int, grid: tuple[int, int], every: bool) -> Tensor | None:
        """Random tokens [B, K] of a scale; None for all."""
        count = grid[0] * grid[1]
        if every:
            return None
        order = torch.rand(pictures, count, device=self.transformer.device).argsort(dim=1)
        return order[:, : max(round(self.settings.fine_tokens * count), 1)]

    def encode(self, captions: Sequence[str]) -> list[Tensor]:
        """Text features [T_i, E] of captions, some of them replaced; gradients reach the text encoder."""
        tokenizer, texts = self.frozen["tokenizer"], []
        for caption in captions:
            ids = token_ids(tokenizer, caption, self.transformer.config.text_length)
            inputs = torch.tensor([ids], device=self.transformer.device)
            features = self.text_encoder(input_ids=inputs).last_hidden_state[0].float()
            replaced = torch.rand(()) < self.settings.dropped
            texts.append(self.transformer.unconditional(len(ids)) if replaced else features)
        return texts


def add_word(pipeline: InfinityPipeline, word: str, like: str) -> nn.Parameter:
    """Adds a word, which begins as a copy of another one; its embedding alone is to be trained.

    Returns:
        The table of embeddings, whose other rows get no gradients.
    """
    table = pipeline.text_encoder.get_input_embeddings().weight
    (known,) = pipeline.tokenizer.convert_tokens_to_ids([like])
    pipeline.load_textual_inversion({word: table[known].detach().clone()})
    table = pipeline.text_encoder.get_input_embeddings().weight
    chosen = torch.zeros_like(table)
    chosen[pipeline.tokenizer.convert_tokens_to_ids(word)] = 1.0
    table.requires_grad_(True)
    table.register_hook(lambda gradient: gradient * chosen.to(gradient.device))
    return table


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


@torch.no_grad()
def encode_pictures(pipeline: InfinityPipeline, pictures: Sequence[tuple[Tensor, str]]) -> list[Example]:
    """Encodes every picture once; the features stay in the memory of the CPU."""
    vae = pipeline.vae
    return [
        Example(vae.encode_features(picture[None].to(vae.device)).cpu(), caption)
        for picture, caption in pictures
    ]


def endlessly(examples: Sequence[Example]) -> Iterator[Example]:
    """The pictures in random order, each once before any comes again."""
    while examples:
        for index in torch.randperm(len(examples)).tolist():
            yield examples[index]


def batches(examples: Sequence[Example], word: str | None, settings: Settings) -> Iterator[list[Example]]:
    """The pictures of every step; of those with a new word as many as `settings.word_share` says.

    Raises:
        ValueError: When no caption has the word.
    """
    new = [example for example in examples if word is not None and word in example.caption.split()]
    if word is not None and not new:
        raise ValueError(f"No caption has the word {word!r}: add pictures of it.")
    known = [example for example in examples if word is None or word not in example.caption.split()]
    share = round(settings.batch * settings.word_share * bool(new)) if known else settings.batch
    queues = (endlessly(new), share), (endlessly(known), settings.batch - share)
    while True:
        yield [example for queue, count in queues for example in islice(queue, count)]


def rate_at(progress: float, step: int) -> float:
    """The learning rate of a step as a share of its highest.

    Args:
        progress: Share of the training that is over.
        step: Counts the steps; the first ten are slower.
    """
    return min((step + 1) / 10, 1.0) * (1.0 - 0.9 * min(progress, 1.0))


def train(
    pipeline: InfinityPipeline,
    folder: Path,
    output: Path,
    settings: Settings,
    dtype: str = "no",
    word: tuple[str, str] | None = None,
) -> list[float]:
    """Trains an adapter and saves it.

    Args:
        pipeline: The model; the adapter stays on it.
        folder: The pictures, see `read_pictures`.
        output: The new folder of the adapter.
        settings: How to train.
        dtype: Mixed precision, as for accelerate.
        word: A new word, and a known one whose embedding it begins with.

    Returns:
        The loss of every step.
    """
    start = time.monotonic()
    accelerator = Accelerator(mixed_precision=dtype)
    set_seed(settings.seed, device_specific=True)
    schedule = pipeline.schedule()
    pictures = read_pictures(folder, *pipeline.pixels(schedule))
    pipeline.to(accelerator.device)
    for part in (pipeline.transformer, pipeline.vae, pipeline.text_encoder):
        part.requires_grad_(False)
    table = [add_word(pipeline, *word)] if word else []
    queue = batches(encode_pictures(pipeline, pictures), word[0] if word else None, settings)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.rank,
        target_modules=["qkv", "query", "key_value", "output", "up", "down"],
    )
    pipeline.transformer.add_adapter(config)
    trained = [weight for weight in pipeline.transformer.parameters() if weight.requires_grad]
    groups = [{"params": trained, "scale": 1.0}, {"params": table, "scale": settings.word_rate}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.0)
    loss_of, optimizer = accelerator.prepare(BitLoss(pipeline, schedule, settings), optimizer)
    losses: list[float] = []
    # The same in all processes, so that none waits for another one's larger step.
    turns = torch.Generator().manual_seed(settings.seed)
    whole = min(settings.scales or len(schedule), len(schedule))
    for step in range(settings.steps):
        progress = max(step / settings.steps, (time.monotonic() - start) / (60.0 * settings.minutes))
        if progress >= 1.0:
            break
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * group["scale"] * rate_at(progress, step)
        fine = whole < len(schedule) and float(torch.rand((), generator=turns)) < settings.fine
        batch = next(queue)[:: FEWER if fine else 1]
        loss = loss_of(batch, len(schedule) if fine else whole, whole)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 20 == 0:
            logger.info("step %d of %d: loss %.4f nats a bit", step, settings.steps, loss.item())
    if accelerator.is_main_process:
        adapter = get_peft_model_state_dict(pipeline.transformer)
        pipeline.save_lora_weights(output, adapter, transformer_lora_adapter_metadata=config.to_dict())
        if word:
            row = pipeline.tokenizer.convert_tokens_to_ids(word[0])
            save_file({word[0]: table[0][row].detach().cpu().clone()}, output / WORD_FILE)
    logger.info("%d steps in %.1f minutes", len(losses), (time.monotonic() - start) / 60.0)
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
    parser.add_argument("--scales", type=int, help="how many scales most steps train; all by default")
    parser.add_argument("--fine", type=float, default=Settings.fine, help="share of steps for all scales")
    parser.add_argument("--minutes", type=float, default=Settings.minutes)
    parser.add_argument("--word", help="a new word of the captions")
    parser.add_argument("--like", help="a known word, as which the new one begins")
    parser.add_argument("--mixed-precision", choices=("no", "bf16", "fp16"), default="no")
    parser.add_argument("--prompt", help="draws before.png and after.png into the output folder")
    options = parser.parse_args()
    if options.scales is not None and options.scales < 1:
        parser.error("--scales counts scales from the first on: give 1 or more.")
    if bool(options.word) != bool(options.like):
        parser.error("--word and --like belong together: a new word begins as a known one.")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    pipeline = InfinityPipeline.from_pretrained(options.model) if options.model else stepvar.load_embedded()
    settings = Settings(
        options.steps,
        options.batch,
        options.rate,
        rank=options.rank,
        scales=options.scales,
        fine=options.fine,
        minutes=options.minutes,
    )
    options.output.mkdir(parents=True, exist_ok=True)
    word = (options.word, options.like) if options.word else None
    if options.prompt:
        # The model does not know the new word yet, so the known one stands for it.
        before = options.prompt.replace(*word) if word else options.prompt
        draw(pipeline, before, options.output / "before.png")
    train(pipeline, options.pictures, options.output, settings, options.mixed_precision, word)
    if options.prompt:
        draw(pipeline, options.prompt, options.output / "after.png")
    logger.info("saved in %s", options.output)


def draw(pipeline: InfinityPipeline, prompt: str, file: Path) -> None:
    """A row of four pictures."""
    pictures = pipeline(prompt, seed=0, num_images_per_prompt=4).images
    width, height = pictures[0].size
    row = Image.new("RGB", (4 * width, height))
    for place, picture in enumerate(pictures):
        row.paste(picture, (place * width, 0))
    row.save(file)


if __name__ == "__main__":
    main()
