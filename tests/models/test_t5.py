"""Prompts to text features: padding, cutting, unknown words, loading."""

from __future__ import annotations

import warnings

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from stepvar.checkpoints.errors import CheckpointError
from stepvar.models.common.t5 import (
    UnknownWordError,
    closest_words,
    encode_prompts,
    load_text_encoder,
    load_text_tokenizer,
    token_ids,
)

WORDS = ["<pad>", "</s>", "<unk>", "a", "photo", "of", "two", "red", "purple", "cats", "dogs", "on", "the"]
WORDS += ["sand", "under", "stars"]
PROMPTS = ["a photo", "a photo of two red cats on the sand", "red dogs under purple stars"]


def word_tokenizer(side: str = "right", closing: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, closing each prompt with </s> as T5 does."""
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if closing:
        backend.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>", eos_token="</s>", padding_side=side
    )


@pytest.fixture(scope="module")
def encoder() -> T5EncoderModel:
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    model = T5EncoderModel(T5Config(vocab_size=len(WORDS), **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.mark.parametrize("side", ["right", "left"])
def test_features_do_not_depend_on_padding(encoder, side):
    tokenizer = word_tokenizer(side)
    together = encode_prompts(tokenizer, encoder, PROMPTS)
    official = word_tokenizer()(PROMPTS, max_length=64, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        padded = encoder(official.input_ids, official.attention_mask).last_hidden_state
    for index, prompt in enumerate(PROMPTS):
        (alone,) = encode_prompts(tokenizer, encoder, [prompt])
        count = len(prompt.split()) + 1
        assert together[index].shape == alone.shape == (count, 32)
        torch.testing.assert_close(together[index], alone, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together[index], padded[index, :count], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together[0][:2], together[1][:2], atol=1e-2)


def test_results_are_float32_without_gradients(encoder):
    features = encode_prompts(word_tokenizer(), encoder.to(torch.bfloat16), "a photo", device="cpu")
    encoder.to(torch.float32)
    assert len(features) == 1
    assert features[0].dtype == torch.float32
    assert not features[0].requires_grad


def test_order_and_repetition_of_prompts(encoder):
    first, second, third = encode_prompts(word_tokenizer(), encoder, ["a photo", "red cats", "a photo"])
    assert torch.equal(first, third)
    assert not torch.equal(first, second)
    assert encode_prompts(word_tokenizer(), encoder, []) == []


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt_is_an_error(encoder, prompt):
    with pytest.raises(ValueError, match="is empty; write what the picture should show"):
        encode_prompts(word_tokenizer(), encoder, ["a photo", prompt])


@pytest.mark.parametrize("closing", [True, False])
def test_a_long_prompt_is_cut_with_a_warning(encoder, closing):
    tokenizer = word_tokenizer(closing=closing)
    kept = 5 - closing
    with pytest.warns(UserWarning, match=r"the model reads 5; ignored is '.*the sand'"):
        ids = token_ids(tokenizer, PROMPTS[1], max_length=5)
    assert len(ids) == 5
    assert ids[:kept] == tokenizer(PROMPTS[1]).input_ids[:kept]
    assert (ids[-1] == tokenizer.eos_token_id) == closing
    # The same ids as the official code, which cuts silently.
    assert ids == tokenizer(PROMPTS[1], truncation=True, max_length=5).input_ids
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(token_ids(tokenizer, "a photo of two", max_length=4 + closing)) == 4 + closing


def test_a_very_long_loss_is_shown_in_part():
    with pytest.warns(UserWarning, match=r"\.\.\.'") as caught:
        token_ids(word_tokenizer(), "stars " * 300, max_length=8)
    assert len(str(caught[0].message)) < 400


def test_unknown_words_are_named_with_the_closest_known():
    with pytest.raises(UnknownWordError, match=r"'purpel' \(close: purple\)") as caught:
        token_ids(word_tokenizer(), "a purpel photo of Catz and purpel Xyzzy")
    assert list(caught.value.suggestions) == ["purpel", "Catz", "and", "Xyzzy"]
    assert caught.value.suggestions["Catz"][0] == "cats"
    assert caught.value.suggestions["Xyzzy"] == ()
    assert "'Xyzzy' (nothing close is known)" in str(caught.value)


def test_tokenizers_of_word_parts_may_have_unknown_tokens():
    backend = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -1.0)], unk_id=0))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert 0 in token_ids(tokenizer, "ab?")


def test_closest_words():
    assert closest_words("REDD", ["red", "read", "blue"])[0] == "red"
    assert closest_words("zzz", ["red", "blue"]) == ()
    assert len(closest_words("aaaa", ["aaab", "aaac", "aaad", "aaae"], count=2)) == 2


def test_loading_a_text_encoder(tmp_path, encoder):
    encoder.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    loaded, tokenizer = load_text_encoder(tmp_path), load_text_tokenizer(tmp_path)
    formats = {name.split(".")[-2]: value.dtype for name, value in loaded.named_parameters()}
    assert formats["wo"] == torch.float32
    assert formats["q"] == torch.float16
    assert not loaded.training
    assert tokenizer.model_max_length == 512
    again = encode_prompts(tokenizer, load_text_encoder(tmp_path, torch.float32), PROMPTS)
    for ours, theirs in zip(encode_prompts(word_tokenizer(), encoder, PROMPTS), again, strict=True):
        assert torch.equal(ours, theirs)


def test_a_text_encoder_with_lost_weights(tmp_path, encoder):
    state = {key: value for key, value in encoder.state_dict().items() if "block.1" not in key}
    encoder.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(CheckpointError, match=r"lacks \d+ weights, e\.g\. encoder\.block\.1\."):
        load_text_encoder(tmp_path)


def test_folders_without_a_text_encoder(tmp_path):
    for load in (load_text_encoder, load_text_tokenizer):
        with pytest.raises(CheckpointError, match=r"has no config\.json"):
            load(tmp_path / "none")
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="a model of type 'bert', not T5"):
        load_text_encoder(tmp_path)
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"The text encoder in .* cannot be loaded") as caught:
        load_text_encoder(tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text("{")
    for load in (load_text_encoder, load_text_tokenizer):
        with pytest.raises(CheckpointError, match="cannot be loaded"):
            load(tmp_path)
