"""Bit-equality of pictures between two versions of the code.

Draws fixed prompts with every model and every preset, and hashes what was drawn: bits or codes, and pixels.

    python benchmarks/same_pictures.py record before.json      # on the old code
    python benchmarks/same_pictures.py check before.json       # on the new code, on the same machine

Hashes are comparable on one machine only: another CPU may round a matrix product differently.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

PROMPTS = ["two yellow stars above a striped blue ring on sand", "a red circle on grass"]
MOVING = ["a red star moves to the left on grass"]


def _pipelines() -> Iterator[tuple[str, Any, list[Any]]]:
    """Name, pipeline and what to draw, of every model."""
    import stepvar
    import tiny_hart
    import tiny_pipeline
    import tiny_star
    import tiny_switti
    import tiny_var
    import tiny_varedit

    yield "embedded", stepvar.load_embedded(), PROMPTS
    yield "embedded-video", stepvar.load_embedded("video"), MOVING
    yield "infinity", tiny_pipeline.make_pipeline(), PROMPTS
    yield "var", tiny_var.make_var_pipeline(), [1, 4]
    yield "switti", tiny_switti.make_switti_pipeline(), ["a red ring on sand", "two big star"]
    yield "hart", tiny_hart.make_pipeline(), ["a red ring on sand", "two big star"]
    yield "varedit", tiny_varedit.make_varedit_pipeline(), PROMPTS
    yield "infinitystar", tiny_star.make_star_pipeline(), PROMPTS[1:]


def _hash(output: Any, pixels: torch.Tensor) -> str:
    digest = hashlib.sha256()
    choices = output.report.choices
    for index in sorted(choices):
        digest.update(choices[index].cpu().contiguous().numpy().tobytes())
    digest.update(pixels.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


@torch.no_grad()
def draw_hashes(show: Callable[[str], None]) -> dict[str, str]:
    """A hash for every model, plan and batch; a refusal counts by its sentence."""

    from tiny_varedit import SOURCE

    torch.set_num_threads(1)
    hashes: dict[str, str] = {}
    for name, pipeline, prompts in _pipelines():
        pipeline.set_progress_bar_config(disable=True)
        own = {"image": SOURCE} if pipeline.needs_picture else {}
        for plan in ("none", *pipeline.presets):
            key = f"{name} {plan}"
            try:
                output = pipeline(
                    prompts, seed=list(range(len(prompts))), pruning=plan, output_type="pt", **own
                )
                drawn = output.frames if hasattr(output, "frames") else output.images
                hashes[key] = _hash(output, drawn)
            except ValueError as error:
                hashes[key] = f"refused: {error}"
            show(f"{key}: {hashes[key]}")
    return hashes


def main() -> None:
    """Records hashes, or compares with recorded ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("action", choices=("record", "check"))
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
    hashes = draw_hashes(print)
    if arguments.action == "record":
        arguments.file.write_text(json.dumps(hashes, indent=1) + "\n", "utf-8")
        return
    recorded = json.loads(arguments.file.read_text("utf-8"))
    different = [key for key in recorded if hashes.get(key) != recorded[key]]
    for key in different:
        print(f"DIFFERENT: {key}: {recorded[key]} was recorded, {hashes.get(key)} was drawn")
    print(f"{len(recorded) - len(different)} of {len(recorded)} are equal")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
