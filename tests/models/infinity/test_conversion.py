"""Converting checkpoints into a pipeline folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from stepvar.checkpoints.errors import CheckpointError
from stepvar.models.infinity.checkpoints import convert, load_transformer, load_vae
from stepvar.models.infinity.transformer import InfinityTransformer
from stepvar.models.infinity.vae import InfinityVAE

TINY = Path(__file__).parents[2] / "golden" / "infinity" / "tiny_d16"
TRANSFORMER, TOKENIZER = TINY / "transformer.safetensors", TINY / "vae.safetensors"


def save_text_encoder(folder: Path, channels: int = 256) -> Path:
    """A tiny T5 and a tokenizer of two words in one folder, as flan-t5-xl lies in one."""
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "cat": 4}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>").save_pretrained(folder)
    sizes = {"vocab_size": 5, "d_model": channels, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    T5EncoderModel(T5Config(**sizes)).save_pretrained(folder)
    return folder


def assert_same_weights(first: torch.nn.Module, second: torch.nn.Module) -> None:
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value.float(), theirs[key].float()) for key, value in ours.items())


def test_a_whole_pipeline_folder(tmp_path):
    text = save_text_encoder(tmp_path / "text")
    folder = convert(TRANSFORMER, TOKENIZER, text, tmp_path / "out")
    index = json.loads((folder / "model_index.json").read_text())
    assert index.pop("_diffusers_version")
    assert index == {
        "_class_name": "InfinityPipeline",
        "transformer": ["stepvar", "InfinityTransformer"],
        "vae": ["stepvar", "InfinityVAE"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    }
    assert_same_weights(
        load_transformer(TRANSFORMER), InfinityTransformer.from_pretrained(folder / "transformer")
    )
    assert_same_weights(load_vae(TOKENIZER), InfinityVAE.from_pretrained(folder / "vae"))
    encoder = T5EncoderModel.from_pretrained(folder / "text_encoder")
    assert encoder.config.d_model == 256
    assert encoder.encoder.block[0].layer[0].SelfAttention.q.weight.dtype == torch.float16
    assert encoder.encoder.block[0].layer[1].DenseReluDense.wo.weight.dtype == torch.float32
    assert PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer").model_max_length == 512
    assert sorted(child.name for child in tmp_path.iterdir()) == ["out", "text"]
    assert len({file.stat().st_mode for file in folder.rglob("*") if file.is_file()}) == 1


def test_without_text_encoder_in_another_number_format(tmp_path):
    folder = convert(TRANSFORMER, TOKENIZER, None, tmp_path / "deep" / "out", dtype=torch.float16)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["text_encoder"] == index["tokenizer"] == [None, None]
    stored = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    assert stored["blocks.0.modulation"].dtype == torch.float16
    assert stored["head.weight"].dtype == torch.float32


def test_a_converted_folder_converts_again(tmp_path):
    first = convert(TRANSFORMER, TOKENIZER, None, tmp_path / "first")
    second = convert(first / "transformer", first / "vae", None, tmp_path / "second")
    assert_same_weights(load_transformer(first / "transformer"), load_transformer(second / "transformer"))
    assert load_transformer(second / "transformer").config.block_chunks == 3


def test_nothing_is_left_behind_after_a_refusal(tmp_path):
    state = load_file(TRANSFORMER)
    state |= {"word_embed.weight": torch.zeros(64, 32), "head.weight": torch.zeros(64, 64)}
    save_file({**state, "head.bias": torch.zeros(64)}, tmp_path / "wrong.safetensors")
    narrow = save_text_encoder(tmp_path / "narrow", channels=16)
    for arguments, words in (
        ((tmp_path / "wrong.safetensors", TOKENIZER, None), "32 bits per token"),
        ((TOKENIZER, TOKENIZER, None), "not an Infinity transformer"),
        ((TRANSFORMER, TOKENIZER, tmp_path / "none"), r"no config\.json"),
        ((TRANSFORMER, TOKENIZER, narrow), "gives 16 channels, but the transformer reads 256"),
    ):
        with pytest.raises(CheckpointError, match=words):
            convert(*arguments, tmp_path / "out")
    assert sorted(child.name for child in tmp_path.iterdir()) == ["narrow", "wrong.safetensors"]


def test_an_existing_folder_is_never_overwritten(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(CheckpointError, match="exists already"):
        convert(TRANSFORMER, TOKENIZER, None, tmp_path)
    assert (tmp_path / "file").read_text() == "precious"
    shutil.rmtree(tmp_path)
    assert convert(TRANSFORMER, TOKENIZER, None, tmp_path) == tmp_path
