"""What the text encoder is taught before it sees pictures."""

import torch

from stepvar.embedded.architecture import build_text_encoder, build_word_tokenizer
from stepvar.embedded.scenes import VOCABULARY, parse
from stepvar.embedded.text_pretraining import (
    IGNORED,
    QUESTIONS,
    TextPretraining,
    answers,
    pretrain_text_encoder,
)


def about(prompt):
    """Answers of every word, by question."""
    rows = answers(prompt, parse(prompt))
    return [dict(zip(QUESTIONS, row, strict=True)) for row in rows]


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
    assert first["texture"] == QUESTIONS["texture"] - 1, "open"


def test_a_word_after_the_only_group_has_nothing_to_answer():
    words = about("a picture of a large white cross on the water")
    assert [word["index"] for word in words] == [0] * 7 + [IGNORED] * 3


def test_pretraining_raises_the_share_of_right_answers():
    words = build_word_tokenizer(VOCABULARY)
    torch.manual_seed(0)
    encoder = build_text_encoder(len(words))
    before = encoder.shared.weight.detach().clone()
    shares = pretrain_text_encoder(encoder, words, TextPretraining(steps=40, prompts=24))
    assert shares.keys() == QUESTIONS.keys()
    assert shares["shape"] > 1.5 / QUESTIONS["shape"], "well above chance"
    assert not torch.equal(before, encoder.shared.weight)


def test_an_encoder_that_shall_stay_moves_less():
    words = build_word_tokenizer(VOCABULARY)
    batch = words(["a red star above a blue ring"], return_tensors="pt")
    moved = []
    for stay in (0.0, 100.0):
        torch.manual_seed(0)
        encoder = build_text_encoder(len(words))
        known = encoder(**batch).last_hidden_state.detach()
        pretrain_text_encoder(encoder, words, TextPretraining(steps=10, prompts=12, stay=stay))
        moved.append((encoder(**batch).last_hidden_state - known).square().mean().item())
    assert moved[1] < 0.5 * moved[0]
