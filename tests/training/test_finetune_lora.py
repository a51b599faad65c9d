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


def test_a_new_word_is_learned_on_the_first_scales_and_loaded_again(pictures, tmp_path):
    from finetune_lora import Settings, train

    with (pictures / "metadata.jsonl").open("a") as lines:
        Image.new("RGB", (PIXELS, PIXELS), "white").save(pictures / "new.png")
        lines.write(json.dumps({"file_name": "new.png", "text": "a white heart on sand"}) + "\n")
    pipeline = make_pipeline()
    embeddings = pipeline.text_encoder.get_input_embeddings().weight.detach().clone()
    settings = Settings(steps=30, batch=4, rate=1e-2, rank=4, scales=4, fine=0.2)
    losses = train(pipeline, pictures, tmp_path / "lora", settings, word=("heart", "star"))
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])
    after = pipeline.text_encoder.get_input_embeddings().weight
    assert torch.equal(after[: len(embeddings)], embeddings), "other words are as they were"
    other = make_pipeline()
    other.load_textual_inversion(tmp_path / "lora")
    other.load_lora_weights(tmp_path / "lora")
    drawn = [one("a white heart on sand", seed=1, output_type="latent").images for one in (pipeline, other)]
    assert torch.equal(*drawn)


def test_steps_have_the_new_word_and_others_and_slow_down():
    from finetune_lora import Example, Settings, batches, rate_at

    examples = [Example(torch.zeros(1), text) for text in ("a heart", "a star", "a ring")]
    settings = Settings(batch=4, word_share=0.75)
    turns = batches(examples, "heart", settings)
    for _ in range(3):
        assert [example.caption for example in next(turns)].count("a heart") == 3
    assert {example.caption for example in next(batches(examples, None, settings))} <= {
        "a heart",
        "a star",
        "a ring",
    }
    assert [example.caption for example in next(batches(examples[:1], "heart", settings))] == ["a heart"] * 4
    with pytest.raises(ValueError, match="No caption has the word 'cube'"):
        next(batches(examples, "cube", settings))
    assert rate_at(0.0, 0) < rate_at(0.1, 10) and rate_at(1.0, 100) == pytest.approx(0.1)


def test_a_folder_without_captions_is_refused(tmp_path):
    from finetune_lora import read_pictures

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="no captions"):
        read_pictures(tmp_path, 8, 8)
