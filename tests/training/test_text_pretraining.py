"""Pretraining of the text encoder by word labels."""

from functools import partial

import torch

from stepvar.scenes import VOCABULARY, parse
from stepvar.scenes.moving import grammar as video_grammar
from stepvar.scenes.moving.spec import MOTIONS
from stepvar.scenes.text_encoder import build_text_encoder, build_word_tokenizer
from stepvar.training.common import text_pretraining
from stepvar.training.common.text_pretraining import (
    IGNORED,
    TextPretraining,
    pretrain_text_encoder,
    pretrained_text_encoder,
)
from stepvar.training.pictures.labels import CLASSES, PICTURE_PROMPTS, label_words
from stepvar.training.video import labels as video_labels
from stepvar.training.video.model import VideoModel


def about(prompt):
    """Labels of every word, by name."""
    rows = label_words(prompt, parse(prompt))
    return [dict(zip(CLASSES, row, strict=True)) for row in rows]


def test_words_know_their_own_group_and_where_it_stands():
    prompt = "two red stars left of a striped ring on sand"
    words = about(prompt)
    assert [word["index"] for word in words] == [0] * 3 + [1] * 5 + [IGNORED] * 2
    first, second = words[0], words[5]
    assert (first["count"], first["others"]) == (1, 1), "counts start at one"
    assert (second["count"], second["others"]) == (0, 2)
    assert first["shape"] != second["shape"]
    assert first["colour"] == about("a red ring")[0]["colour"]
    assert first["place"] == about("a ring left of a star")[0]["place"]
    assert second["place"] == about("a ring right of a star")[0]["place"]
    assert first["texture"] == CLASSES["texture"] - 1, "open"


def test_a_word_after_the_only_group_has_nothing_to_answer():
    words = about("a picture of a large white cross on the water")
    assert [word["index"] for word in words] == [0] * 7 + [IGNORED] * 3


def test_pretraining_raises_the_share_of_right_answers():
    words = build_word_tokenizer(VOCABULARY)
    torch.manual_seed(0)
    encoder = build_text_encoder(len(words))
    before = encoder.shared.weight.detach().clone()
    shares = pretrain_text_encoder(encoder, words, PICTURE_PROMPTS, TextPretraining(steps=40, prompts=24))
    assert shares.keys() == CLASSES.keys()
    assert shares["shape"] > 1.5 / CLASSES["shape"], "well above chance"
    assert not torch.equal(before, encoder.shared.weight)


def test_an_encoder_that_shall_stay_moves_less():
    words = build_word_tokenizer(VOCABULARY)
    batch = words(["a red star above a blue ring"], return_tensors="pt")
    moved = []
    for weight in (0.0, 100.0):
        torch.manual_seed(0)
        encoder = build_text_encoder(len(words))
        known = encoder(**batch).last_hidden_state.detach()
        pretrain_text_encoder(
            encoder, words, PICTURE_PROMPTS, TextPretraining(steps=10, prompts=12, distillation_weight=weight)
        )
        moved.append((encoder(**batch).last_hidden_state - known).square().mean().item())
    assert moved[1] < 0.5 * moved[0]


def test_words_of_videos_know_their_own_object_and_what_the_other_does():
    prompt = "a clip of a red star moves left and the ring stands still on the sand"
    rows = video_labels.label_words(prompt, video_grammar.parse(prompt))
    words = [dict(zip(video_labels.CLASSES, row, strict=True)) for row in rows]
    assert [word["index"] for word in words] == [0] * 8 + [1] * 5 + [IGNORED] * 3
    first, second = words[0], words[-4]
    assert (first["motion"], first["other motion"]) == (MOTIONS.index("left"), MOTIONS.index("still"))
    assert (second["motion"], second["other motion"]) == (MOTIONS.index("still"), MOTIONS.index("left"))
    assert first["shape"] != second["shape"] and first["background"] == second["background"]
    assert second["colour"] == video_labels.CLASSES["colour"] - 1, "open"


def test_the_encoder_of_the_video_model_is_taught_once(tmp_path, monkeypatch):
    monkeypatch.setattr(text_pretraining, "TextPretraining", partial(TextPretraining, steps=2, prompts=4))
    folder = tmp_path / "text"
    for _ in range(2):
        assert pretrained_text_encoder(folder, video_grammar.VOCABULARY, video_labels.VIDEO_PROMPTS) == folder
        monkeypatch.setattr(text_pretraining, "pretrain_text_encoder", None)
    model = VideoModel()
    before = model.text_encoder.shared.weight.clone()
    model.load_text_encoder(folder)
    assert not torch.equal(before, model.text_encoder.shared.weight)
