"""Prompts to context tokens, as the official scripts encode them."""

from __future__ import annotations

import hashlib

import pytest
import torch
from transformers import Qwen2VLConfig, Qwen2VLModel, T5Config, T5EncoderModel

from stepvar.checkpoints.errors import CheckpointError
from stepvar.models.hart.text import (
    SYSTEM_PROMPT,
    ContextFeatures,
    encode_prompts,
    load_text_encoder,
    load_text_tokenizer,
    token_ids,
)
from tiny_hart import make_language_model, make_tokenizer, randomise

SYSTEM = "draw : a big"
PROMPTS = ["a red ring", "two blue star on sand", "green"]
LENGTH = 9


@pytest.fixture(scope="module")
def model():
    return make_language_model()


def test_the_system_prompt_is_the_official_one():
    digest = hashlib.sha256(SYSTEM_PROMPT.encode()).hexdigest()
    assert digest == "424f7aa7b1119f8ed1e329140e5941dfe308183bea0af59041dad5527a9b8f20"


@pytest.mark.parametrize("side", ["right", "left"])
def test_features_are_those_of_the_official_call(model, side):
    tokenizer = make_tokenizer(side)
    context = encode_prompts(tokenizer, model, PROMPTS, LENGTH, system_prompt=SYSTEM)
    batch = tokenizer(PROMPTS, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
    system = tokenizer(SYSTEM, return_tensors="pt").input_ids.repeat(3, 1)
    mask = batch.input_ids != tokenizer.pad_token_id
    with torch.no_grad():
        states = model(
            torch.cat([system, batch.input_ids], 1),
            attention_mask=torch.cat([torch.ones_like(system), mask.long()], 1),
            output_hidden_states=True,
        ).hidden_states[-1]
    torch.testing.assert_close(context.features, states[:, system.shape[1] :], rtol=0, atol=1e-5)
    assert torch.equal(context.mask, mask)
    assert torch.equal(context.positions, mask.long().cumsum(1) - 1)
    ends = (context.positions[:, 0], context.positions[:, -1])
    assert torch.equal(ends[1], mask.sum(1) - 1)
    assert (ends[0] == (0 if side == "right" else -1)).all()


def test_prompts_do_not_disturb_each_other(model):
    tokenizer = make_tokenizer()
    together = encode_prompts(tokenizer, model, [*PROMPTS, PROMPTS[0]], LENGTH, system_prompt=SYSTEM)
    assert torch.equal(together.features[0], together.features[3])
    for index, prompt in enumerate(PROMPTS):
        alone = encode_prompts(tokenizer, model, [prompt], LENGTH, system_prompt=SYSTEM)
        torch.testing.assert_close(alone.features[0], together.features[index], rtol=0, atol=1e-5)


def test_the_system_prompt_changes_the_features_and_may_be_left_out(model):
    tokenizer = make_tokenizer()
    plain = encode_prompts(tokenizer, model, PROMPTS[:1], LENGTH, system_prompt="")
    assert plain.features.shape == (1, LENGTH, 24)
    told = encode_prompts(tokenizer, model, PROMPTS[:1], LENGTH, system_prompt=SYSTEM)
    assert not torch.allclose(plain.features, told.features, atol=1e-2)


def test_a_long_prompt_is_cut_with_a_warning_that_shows_what_is_lost(caplog):
    assert len(token_ids(make_tokenizer(), "two blue star on sand", 3)) == 3
    assert "has 5 tokens, but the model reads 3; ignored is 'on sand'" in caplog.text


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt_is_an_error(prompt):
    with pytest.raises(ValueError, match="is empty"):
        token_ids(make_tokenizer(), prompt)


def test_a_tokenizer_that_cannot_pad_is_an_error(model):
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="no padding token"):
        encode_prompts(tokenizer, model, ["a ring"], LENGTH)


def test_no_prompt_at_all_is_zeros_with_one_token_counted():
    blank = ContextFeatures.empty(2, 5, 3, torch.device("cpu"))
    assert not blank.features.any()
    assert not blank.positions.any()
    assert blank.mask.tolist() == [[True] + [False] * 4] * 2


def test_a_language_model_comes_back_from_its_folder(model, tmp_path):
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    loaded, tokenizer = load_text_encoder(tmp_path), load_text_tokenizer(tmp_path)
    first = encode_prompts(tokenizer, loaded, PROMPTS, LENGTH)
    second = encode_prompts(make_tokenizer(), model, PROMPTS, LENGTH)
    torch.testing.assert_close(first.features, second.features, rtol=0, atol=1e-6)
    assert load_text_encoder(tmp_path, torch.bfloat16).dtype == torch.bfloat16


def test_the_language_half_of_a_seeing_model_gives_the_same_features(model, tmp_path):
    """Qwen2-VL counts text along all three of its axes alike, which is what the plain model does."""
    text = model.config.to_dict() | {"model_type": "qwen2_vl_text"}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 1]}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 24, "num_heads": 2}
    seeing = randomise(Qwen2VLModel(Qwen2VLConfig(text_config=text, vision_config=vision)), 5)
    seeing.language_model.load_state_dict(model.state_dict())
    seeing.save_pretrained(tmp_path)
    load_text_encoder(tmp_path).save_pretrained(tmp_path / "half")
    loaded = load_text_encoder(tmp_path / "half")
    first = encode_prompts(make_tokenizer(), loaded, PROMPTS, LENGTH, system_prompt=SYSTEM)
    second = encode_prompts(make_tokenizer(), model, PROMPTS, LENGTH, system_prompt=SYSTEM)
    torch.testing.assert_close(first.features, second.features, rtol=0, atol=1e-5)


def test_folders_that_cannot_be_used_are_refused(model, tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_text_encoder(tmp_path)
    sizes = {"vocab_size": 5, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    T5EncoderModel(T5Config(**sizes)).save_pretrained(tmp_path / "t5")
    with pytest.raises(CheckpointError, match="type 't5', not Qwen2"):
        load_text_encoder(tmp_path / "t5")
    state = model.state_dict()
    del state["norm.weight"]
    model.save_pretrained(tmp_path / "cut", state_dict=state)
    with pytest.raises(CheckpointError, match=r"lacks 1 weights, e\.g\. norm\.weight"):
        load_text_encoder(tmp_path / "cut")
