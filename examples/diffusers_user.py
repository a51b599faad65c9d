"""The interface of diffusers on the embedded model: callback, LoRA, int8, save, push, reload, compile.

    python examples/diffusers_user.py                     # everything; compiling takes minutes on a CPU
    python examples/diffusers_user.py --backend aot_eager # compiles without generating code, for a quick look

Needs `pip install peft torchao` beside stepvar. With another model, change `load_embedded()` to
`stepvar.load("infinity-2b", dtype=torch.bfloat16).to("cuda")`: the rest stays.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

import stepvar

PROMPT = "two yellow stars above a striped blue ring on sand"
SEED = 7
logger = logging.getLogger("diffusers_user")


def draw(pipe: Any, **options: Any) -> Tensor:
    """Pixels [1, 3, H, W] in 0..1 of one prompt and seed."""
    return pipe(PROMPT, seed=SEED, output_type="pt", **options).images


def psnr(one: Tensor, other: Tensor) -> float:
    """Likeness of two pictures, in dB."""
    return float(-10.0 * torch.log10(((one - other) ** 2).mean().clamp_min(1e-12)))


def text_to_image(pipe: Any) -> Tensor:
    """A generator of torch works as a seed does, and `guidance_scale` means what it means elsewhere."""
    generator = torch.Generator().manual_seed(SEED)
    picture = pipe(PROMPT, generator=generator, guidance_scale=1.5, output_type="pt").images
    logger.info("text to image: %s", tuple(picture.shape))
    return picture


def watch_and_stop(pipe: Any, last: int) -> list[int]:
    """A callback gets the latent after every scale; setting `_interrupt` leaves the other scales out."""
    seen: list[int] = []

    def after_scale(pipeline: Any, index: int, _time: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(index)
        pipeline._interrupt = index == last
        return tensors

    draw(pipe, callback_on_step_end=after_scale)
    logger.info("callback: called after scales %s", seen)
    return seen


def use_lora(pipe: Any, folder: Path) -> tuple[Tensor, Tensor]:
    """Saves an adapter of peft, loads it into a pipeline, scales it and takes it off again.

    Its weights are random here, so that it does something; `examples/finetune_lora.py` trains one.

    Returns:
        Pictures with the adapter, and without it again.
    """
    from peft import LoraConfig, get_peft_model_state_dict

    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["qkv", "output"], init_lora_weights=False)
    pipe.transformer.add_adapter(config, adapter_name="made")
    layers = get_peft_model_state_dict(pipe.transformer, adapter_name="made")
    type(pipe).save_lora_weights(folder, transformer_lora_layers=layers)
    pipe.delete_adapters("made")

    pipe.load_lora_weights(folder, adapter_name="mine")
    pipe.set_adapters("mine", 0.5)
    adapted = draw(pipe)
    pipe.unload_lora_weights()
    plain = draw(pipe)
    logger.info("LoRA: %.1f dB to the picture without", psnr(adapted, plain))
    return adapted, plain


def to_int8(pipe: Any) -> Tensor:
    """Weights of the transformer's linear layers in int8, by torchao."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    dense = draw(pipe)
    quantize_(pipe.transformer, Int8WeightOnlyConfig())
    picture = draw(pipe)
    logger.info("int8: %.1f dB to float32", psnr(picture, dense))
    return picture


def save_and_reload(pipe: Any, folder: Path) -> Tensor:
    """A saved folder is opened by diffusers' own class, also where stepvar was not imported before."""
    pipe.save_pretrained(folder)
    loaded = DiffusionPipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    logger.info("reloaded as %s", type(loaded).__name__)
    return draw(loaded)


def preview_push(pipe: Any) -> Any:
    """What `pipe.push_to_hub("you/model")` would send: files with their sizes, and the model card."""
    preview = pipe.push_to_hub("you/model", dry_run=True)
    logger.info("%s", preview)
    return preview


def compile_blocks(pipe: Any, backend: str) -> Tensor:
    """Compiles the blocks that the loop runs: one graph for the shapes of each scale."""
    pipe.transformer.compile_repeated_blocks(backend=backend)
    picture = draw(pipe)
    logger.info("compiled with %s", backend)
    return picture


def main() -> None:
    """Runs every step, each on a fresh pipeline where it changes one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    pipe = stepvar.load_embedded()
    text_to_image(pipe)
    watch_and_stop(pipe, 3)
    with tempfile.TemporaryDirectory() as folder:
        save_and_reload(pipe, Path(folder) / "model")
        preview_push(pipe)
        use_lora(pipe, Path(folder) / "lora")
    to_int8(stepvar.load_embedded())
    compile_blocks(pipe, options.backend)


if __name__ == "__main__":
    main()
