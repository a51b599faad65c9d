"""Training, packaging and loading of the embedded model, on budgets of seconds."""

import json

import numpy as np
import pytest
import torch

from stepvar.models.infinity.pipeline import InfinityPipeline
from stepvar.scenes import VOCABULARY, parse, sample
from stepvar.training.common.accelerator import build_accelerator, launch
from stepvar.training.common.crops import PIXELS_PER_TOKEN
from stepvar.training.common.curriculum import BatchSpec, Phase
from stepvar.training.common.features import SHARD, object_tokens
from stepvar.training.common.muon import Muon, orthogonalise
from stepvar.training.common.packaging import load_average, package
from stepvar.training.common.prompted_model import draw_tokens
from stepvar.training.common.transformer_trainer import TransformerTrainer, TransformerTraining
from stepvar.training.pictures.features import PictureFeatures, encode_pictures
from stepvar.training.pictures.model import PictureModel
from stepvar.training.pictures.sizes import SIZES
from stepvar.training.pictures.train import FROM_SCRATCH, assemble, bound_memory
from stepvar.training.pictures.vae import PictureVAETrainer, PictureVAETraining, build_vae

SIZE = SIZES["192"]
CURRICULUM = (Phase(0.5, (BatchSpec(3, 4),)), Phase(0.5, (BatchSpec(8, 2, share=0.2), BatchSpec(5, 2))))
SETTINGS = TransformerTraining(CURRICULUM, minutes=0.06, checkpoint_minutes=1.0)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One shard of scenes, encoded by an untrained tokenizer."""
    folder = tmp_path_factory.mktemp("features")
    torch.manual_seed(0)
    assert list(encode_pictures(build_vae().eval(), folder, shards=1, canvas=64, batch=32)) == [1]
    loaded = PictureFeatures.load(folder)
    # Scenes encoded on a small canvas are quick; the schedule wants the full grid.
    loaded.features = torch.nn.functional.interpolate(loaded.features.float(), size=(24, 24)).half()
    loaded.objects = torch.nn.functional.interpolate(loaded.objects[:, None].float(), size=(24, 24))[:, 0] > 0
    return loaded


def make_trainer(store, folder, settings, start=None, accelerator=None):
    torch.manual_seed(settings.seed)
    model = PictureModel(SIZE)
    if start is not None:
        model.load_packaged(start)
    return TransformerTrainer(model, store, folder, settings, accelerator)


def package_run(run, folder):
    model = PictureModel(SIZE)
    load_average(model, run.checkpoint)
    return package(assemble(build_vae(), model), folder)


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("transformer")
    trainer = make_trainer(store, folder, SETTINGS)
    list(trainer.run())
    return trainer


def test_every_scene_keeps_what_it_shows(store):
    assert len(store) == SHARD == len(store.features)
    assert all(spec.groups for spec in store.specs)


def test_encoded_scenes_are_not_encoded_twice(store, tmp_path):
    with pytest.raises(FileNotFoundError, match="no encoded scenes"):
        PictureFeatures.load(tmp_path)


def test_the_vae_trains_and_resumes(tmp_path):
    settings = PictureVAETraining(
        output=tmp_path, minutes=0.02, threads=1, workers=0, batch=4, crop=32, log_every=1, full_share=0
    )
    trainer = PictureVAETrainer(settings)
    folder = trainer.run()
    assert trainer.step >= 1
    assert (folder / "config.json").exists() and list(tmp_path.glob("sheet_*.png"))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[0]["step"] == 1 and lines[0]["loss"] > 0
    assert len(lines[-1]["evaluation_entropy"]) == len(SIZE.sides)
    again = PictureVAETrainer(settings)
    assert again.step == trainer.step and again.progress == 1.0


def test_a_decoder_trained_alone_leaves_the_codes(tmp_path):
    settings = PictureVAETraining(
        output=tmp_path, minutes=0.02, threads=1, workers=0, batch=4, crop=32, full_share=0,
        truncated_share=0.5, truncated_pixels=0, truncations=2, decoder_only=True,
    )  # fmt: skip
    trainer = PictureVAETrainer(settings)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.run()
    changed = {
        name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed and all(name.startswith("decoder.") for name in changed)


def test_training_follows_its_budget_and_resumes(run, store):
    assert run.progress >= 1.0
    assert run.step > 1
    again = make_trainer(store, run.folder, SETTINGS)
    assert again.step == run.step
    assert list(again.run()) == []
    for name, value in again.average.state_dict().items():
        assert torch.equal(value, run.average.state_dict()[name]), name


def test_losses_fall_when_the_same_pictures_come_again(store):
    torch.manual_seed(0)
    model = PictureModel(SIZE)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    prompts = ["a red star on sand", "two blue rings"]
    features, weights = store.features[:2], store.objects[:2].float() + 1.0
    losses = []
    for _ in range(12):
        loss = model(features, weights, prompts, [False, True], 4, torch.zeros(2)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_tokens_are_drawn_by_their_weight():
    torch.manual_seed(0)
    weights = torch.ones(200, 400)
    weights[:, :100] = 4.0
    drawn = draw_tokens(weights, 0.25)
    assert drawn.shape == (200, 100)
    assert (drawn.diff(dim=1) > 0).all(), "ascending, hence each once"
    heavy = (drawn < 100).float().mean().item()
    assert 0.45 < heavy < 0.6, "a quarter of the tokens holds four sevenths of the weight"
    assert draw_tokens(weights, 1.0) is None
    assert draw_tokens(weights[:, :100], 0.25) is None, "coarse scales run whole"


def test_flipped_bits_change_inputs_and_targets(store):
    from stepvar.models.infinity.quantizer import quantize_multiscale

    torch.manual_seed(0)
    features = store.features[:1].float()
    clean = quantize_multiscale(features, SIZE.grids)
    flipped = quantize_multiscale(features, SIZE.grids, torch.tensor([0.25]))
    assert torch.equal(clean.bits[0], flipped.bits[0])
    assert not torch.equal(clean.teacher_inputs[0], flipped.teacher_inputs[0])
    assert any(not torch.equal(a, b) for a, b in zip(clean.bits[1:], flipped.bits[1:], strict=True))


def test_the_package_is_small_and_loads_by_itself(run, tmp_path):
    size = package_run(run, tmp_path / "weights")
    assert size <= 24e6
    assert json.loads((tmp_path / "weights" / "model_index.json").read_text())["_class_name"] == (
        "InfinityPipeline"
    )
    pipeline = InfinityPipeline.from_pretrained(tmp_path / "weights", torch_dtype=torch.float32)
    picture = pipeline("a red star", seed=0, pruning="paper").images[0]
    assert picture.size == (192, 192)
    assert np.asarray(picture).std() > 0


def test_training_goes_on_from_a_packaged_model(run, store, tmp_path):
    package_run(run, tmp_path / "weights")
    trainer = make_trainer(store, tmp_path / "more", SETTINGS, start=tmp_path / "weights")
    for name, value in run.average.state_dict().items():
        assert torch.allclose(trainer.average.state_dict()[name], value, atol=1e-2, rtol=1e-2), name


def test_a_larger_model_starts_from_a_smaller_one(run, tmp_path):
    package_run(run, tmp_path / "weights")
    larger = PictureModel(SIZES["256"])
    larger.load_packaged(tmp_path / "weights")
    before = run.average.transformer.level_embedding.weight
    after = larger.transformer.level_embedding.weight
    assert torch.allclose(after[: len(before)], before, atol=1e-2)
    assert torch.equal(after[len(before) - 1], after[-1])


def test_the_word_tokenizer_knows_the_whole_grammar():
    words = PictureModel(SIZE).words
    ids = words("Two YELLOW stars, above a striped blue ring on sand.").input_ids
    assert words.unk_token_id not in ids
    assert ids[-1] == words.eos_token_id
    assert set(VOCABULARY) <= set(words.get_vocab())
    assert parse("two yellow stars above a striped blue ring on sand").relation == "above"


def test_object_tokens_cover_every_object_and_not_everything():
    random = np.random.default_rng(3)
    for _ in range(20):
        scene = sample(random, "single object", canvas=192)[1]
        covered = object_tokens(scene)
        assert covered.shape == (24, 24)
        item = scene.objects[0]
        assert covered[int(item.y) // PIXELS_PER_TOKEN, int(item.x) // PIXELS_PER_TOKEN]
        side = 2 * item.radius / PIXELS_PER_TOKEN
        assert side**2 <= covered.sum() <= (side + 2) ** 2


@pytest.mark.parametrize("shape", [(3, 8, 20), (2, 20, 8), (1, 5, 5)])
def test_orthogonalised_matrices_have_singular_values_about_one(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
    assert (values > 0.5).all()
    assert (values < 1.4).all()


def test_muon_finds_a_matrix():
    torch.manual_seed(0)
    target, found = torch.randn(6, 9), torch.nn.Parameter(torch.zeros(6, 9))
    optimiser = Muon([found], lr=0.1)
    for step in range(200):
        optimiser.param_groups[0]["lr"] = 0.1 * (1 - step / 200)
        optimiser.zero_grad()
        (found - target).square().mean().backward()
        optimiser.step()
    assert (found - target).abs().max() < 0.1


def _one_step_in_a_group(folder, store):
    accelerator = build_accelerator("cpu", folder / "run")
    settings = TransformerTraining((Phase(1.0, (BatchSpec(2, 2),)),), minutes=1e-4, checkpoint_minutes=1.0)
    trainer = make_trainer(store, folder / "run", settings, accelerator=accelerator)
    rank = accelerator.process_index
    assert accelerator.num_processes == 2
    list(trainer.run())
    torch.save(trainer.model.state_dict(), folder / f"weights-{rank}.pt")


def test_processes_of_a_group_end_with_the_same_weights(store, tmp_path):
    few = PictureFeatures(store.features[:8].clone(), store.objects[:8].clone(), store.specs[:8])
    launch(_one_step_in_a_group, (tmp_path, few), 2)
    first, second = (torch.load(tmp_path / f"weights-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (tmp_path / "run" / "checkpoint").is_dir()


def test_passes_add_up_to_one_batch(store, tmp_path):
    weights = []
    for passes in (1, 2):
        spec = BatchSpec(3, 4, passes=passes)
        settings = TransformerTraining((Phase(1.0, (spec,)),), flip=0.0, drop_text=0.0)
        trainer = make_trainer(store, tmp_path / str(passes), settings)
        torch.manual_seed(0)
        trainer.random = np.random.default_rng(0)
        trainer._train_step(spec, 4)
        weights.append(trainer.model.state_dict())
    names = [name for name in weights[0] if "blocks.0" in name]
    assert names
    for name in names:
        torch.testing.assert_close(weights[0][name], weights[1][name], atol=3e-3, rtol=0.0)


def test_large_batches_run_in_passes():
    for name, most in (("192", 1), ("256", 1), ("384", 3)):
        bounded = bound_memory(FROM_SCRATCH, SIZES[name])
        assert max(batch.passes for phase in bounded for batch in phase.batches) == most
        assert [phase.share for phase in bounded] == [phase.share for phase in FROM_SCRATCH]


def test_a_run_killed_between_two_renames_resumes(run, store):
    run.checkpoint.rename(run.checkpoint.with_suffix(".former"))
    assert make_trainer(store, run.folder, SETTINGS).step == run.step
    run.checkpoint.with_suffix(".former").rename(run.checkpoint)


@pytest.mark.parametrize(
    ("device", "tracker", "message"),
    [
        ("tpu", "", "no device 'tpu'; use auto, cpu or cuda"),
        ("cpu", "paper", "no tracker 'paper'; use one of"),
    ],
)
def test_unknown_devices_and_trackers_are_refused(tmp_path, device, tracker, message):
    with pytest.raises(ValueError, match=message):
        build_accelerator(device, tmp_path, tracker)


def test_a_missing_tracker_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("stepvar.training.common.accelerator.get_available_trackers", list)
    with pytest.raises(ValueError, match="pip install trackio"):
        build_accelerator("cpu", tmp_path, "trackio")


def test_trackers_get_the_numbers_of_the_log(store, tmp_path):
    pytest.importorskip("tensorboard")
    accelerator = build_accelerator("cpu", tmp_path, "tensorboard")
    settings = TransformerTraining((Phase(1.0, (BatchSpec(2, 2),)),), minutes=1e-4)
    trainer = make_trainer(store, tmp_path, settings, accelerator=accelerator)
    trainer.append({"loss_per_scale": [0.5, 0.25], "name": "none"})
    list(trainer.run())
    assert list(tmp_path.rglob("events.out.tfevents*"))
