"""The LoRA example trains on a folder of pictures, and what it saves is loaded again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from tiny_pipeline import PIXELS, make_pipeline

for package in ("peft", "datasets"):
    pytest.importorskip(package)
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))


@pytest.fixture
def pictures(tmp_path):
    """A folder of three pictures with captions."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    lines = []
    for number, colour in enumerate(("red", "blue", "green")):
        Image.new("RGB", (PIXELS + number, PIXELS), colour).save(folder / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": f"a {colour} square on sand"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_the_adapter_learns_and_is_loaded_again(pictures, tmp_path):
    from finetune_lora import Settings, train

    pipeline = make_pipeline()
    before = pipeline("a red square on sand", seed=1, output_type="latent").images
    losses = train(pipeline, pictures, tmp_path / "lora", Settings(steps=30, batch=3, rate=1e-2, rank=4))
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])
    trained = pipeline("a red square on sand", seed=1, output_type="latent").images
    assert not torch.equal(trained, before)
    other = make_pipeline()
    other.load_lora_weights(tmp_path / "lora")
    assert torch.equal(other("a red square on sand", seed=1, output_type="latent").images, trained)


def test_a_folder_without_captions_is_refused(tmp_path):
    from finetune_lora import read_pictures

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="no captions"):
        read_pictures(tmp_path, 8, 8)
