"""Training, packaging and loading of the embedded model, on budgets of seconds."""

import json

import numpy as np
import pytest
import torch

from stepvar.embedded.features import SHARD, FeatureStore, encode_scenes
from stepvar.embedded.package import assemble, package
from stepvar.embedded.scenes import VOCABULARY, parse
from stepvar.embedded.train_tokenizer import build_tokenizer
from stepvar.embedded.train_transformer import EmbeddedModel, TransformerTrainer, TransformerTraining
from stepvar.models.infinity.pipeline import InfinityPipeline

SETTINGS = TransformerTraining(minutes=0.03, curriculum=((0.5, 3, 4), (0.5, 5, 2)), checkpoint_minutes=1.0)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One shard of scenes, encoded by an untrained tokenizer."""
    folder = tmp_path_factory.mktemp("features")
    torch.manual_seed(0)
    assert list(encode_scenes(build_tokenizer().eval(), folder, shards=1, batch=32, canvas=64)) == [1]
    loaded = FeatureStore.load(folder)
    # Scenes encoded on a small canvas are quick; the schedule wants the full grid.
    loaded.features = torch.nn.functional.interpolate(loaded.features.float(), size=(24, 24)).half()
    return loaded


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("transformer")
    trainer = TransformerTrainer(store, folder, SETTINGS, torch.device("cpu"))
    list(trainer.run())
    return trainer


def test_every_scene_keeps_what_it_shows(store):
    assert len(store) == SHARD == len(store.features)
    assert all(spec.groups for spec in store.specs)


def test_encoded_scenes_are_not_encoded_twice(store, tmp_path):
    with pytest.raises(FileNotFoundError, match="no encoded scenes"):
        FeatureStore.load(tmp_path)


def test_training_follows_its_budget_and_resumes(run, store):
    assert run.progress >= 1.0
    assert run.step > 1
    again = TransformerTrainer(store, run.folder, SETTINGS, torch.device("cpu"))
    assert again.step == run.step
    assert list(again.run()) == []
    for name, value in again.average.state_dict().items():
        assert torch.equal(value, run.average.state_dict()[name]), name


def test_losses_fall_when_the_same_pictures_come_again(store):
    torch.manual_seed(0)
    model = EmbeddedModel()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    prompts = ["a red star on sand", "two blue rings"]
    losses = []
    for _ in range(12):
        loss = model.losses(store.features[:2], prompts, [False, True], 4, torch.zeros(2)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_flipped_bits_change_inputs_and_targets(store):
    from stepvar.embedded.architecture import GRIDS
    from stepvar.models.infinity.quantizer import quantize_multiscale

    torch.manual_seed(0)
    features = store.features[:1].float()
    clean = quantize_multiscale(features, GRIDS)
    flipped = quantize_multiscale(features, GRIDS, torch.tensor([0.25]))
    assert torch.equal(clean.bits[0], flipped.bits[0])
    assert not torch.equal(clean.teacher_inputs[0], flipped.teacher_inputs[0])
    assert any(not torch.equal(a, b) for a, b in zip(clean.bits[1:], flipped.bits[1:], strict=True))


def test_the_package_is_small_and_loads_by_itself(run, tmp_path):
    build_tokenizer().save_pretrained(tmp_path / "tokenizer")
    size = package(assemble(tmp_path / "tokenizer", run.checkpoint), tmp_path / "weights")
    assert size <= 24e6
    assert json.loads((tmp_path / "weights" / "model_index.json").read_text())["_class_name"] == (
        "InfinityPipeline"
    )
    pipeline = InfinityPipeline.from_pretrained(tmp_path / "weights", torch_dtype=torch.float32)
    picture = pipeline("a red star", seed=0, pruning="paper").images[0]
    assert picture.size == (192, 192)
    assert np.asarray(picture).std() > 0


def test_training_goes_on_from_a_packaged_model(run, store, tmp_path):
    build_tokenizer().save_pretrained(tmp_path / "tokenizer")
    package(assemble(tmp_path / "tokenizer", run.checkpoint), tmp_path / "weights")
    trainer = TransformerTrainer(
        store, tmp_path / "more", SETTINGS, torch.device("cpu"), start=tmp_path / "weights"
    )
    for name, value in run.average.state_dict().items():
        assert torch.allclose(trainer.average.state_dict()[name], value, atol=1e-2, rtol=1e-2), name


def test_the_word_tokenizer_knows_the_whole_grammar():
    words = EmbeddedModel().words
    ids = words("Two YELLOW stars, above a striped blue ring on sand.").input_ids
    assert words.unk_token_id not in ids
    assert ids[-1] == words.eos_token_id
    assert set(VOCABULARY) <= set(words.get_vocab())
    assert parse("two yellow stars above a striped blue ring on sand").relation == "above"
