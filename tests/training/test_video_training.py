"""Training, packaging and loading of the embedded video model, on budgets of seconds."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from stepvar.models.infinitystar.pipeline import InfinityStarPipeline
from stepvar.models.infinitystar.quantizer import quantize
from stepvar.scenes.moving.grammar import VOCABULARY, sample
from stepvar.training.common.crops import stream
from stepvar.training.common.curriculum import BatchSpec, Phase
from stepvar.training.common.packaging import load_average, package
from stepvar.training.common.transformer_trainer import TransformerTrainer, TransformerTraining
from stepvar.training.video.crops import VideoCrops, fixed_videos
from stepvar.training.video.features import VideoFeatures, moving_tokens, render_shard
from stepvar.training.video.model import VideoModel
from stepvar.training.video.sizes import SIZE
from stepvar.training.video.train import assemble
from stepvar.training.video.vae import (
    VideoVAETrainer,
    VideoVAETraining,
    build_vae,
    motion_loss,
    straight_through,
)

CURRICULUM = (
    Phase(0.5, (BatchSpec(2, 2),)),
    Phase(0.5, (BatchSpec(6, 1, share=0.3), BatchSpec(6, 2, latent_frames=1))),
)
SETTINGS = TransformerTraining(CURRICULUM, minutes=0.02, checkpoint_minutes=1.0)


@pytest.fixture(scope="module")
def store():
    """A few videos, encoded by an untrained tokenizer."""
    torch.manual_seed(0)
    scenes = render_shard(0, count=4)
    pixels = torch.from_numpy(scenes.pixels).movedim(-1, 1).float() / 127.5 - 1.0
    with torch.no_grad():
        features = build_vae().eval().encode(pixels)
    return VideoFeatures(features.half(), scenes.objects, scenes.specs)


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    torch.manual_seed(0)
    trainer = TransformerTrainer(VideoModel(), store, tmp_path_factory.mktemp("run"), SETTINGS)
    list(trainer.run())
    return trainer


def test_the_vae_trains_and_resumes(tmp_path):
    settings = VideoVAETraining(
        output=tmp_path, minutes=0.03, threads=1, workers=0, batch=2, crop=32, log_every=1, full_share=0
    )
    trainer = VideoVAETrainer(settings)
    folder = trainer.run()
    assert trainer.step >= 1
    assert (folder / "config.json").exists() and list(tmp_path.glob("sheet_*.png"))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[0]["step"] == 1 and lines[0]["loss"] > 0
    assert "evaluation_psnr" in lines[-1]
    again = VideoVAETrainer(settings)
    assert again.step == trainer.step and again.progress == 1.0


def test_single_frames_come_first_and_videos_after(tmp_path):
    settings = VideoVAETraining(
        output=tmp_path,
        minutes=1.0,
        threads=1,
        workers=0,
        batch=1,
        pictures=2,
        crop=32,
        picture_share=0.5,
    )
    trainer = VideoVAETrainer(settings)
    for spent, phase in ((0.0, (32, 1)), (31.0, (32, 9)), (59.0, (112, 9))):
        trainer.spent = spent
        assert trainer.phase() == phase
    trainer.spent = 0.0
    frames = next(trainer.crops(1, 32, 0))
    assert frames.shape == (2, 3, 1, 32, 32)
    result = trainer.reconstruct(frames.float() / 127.5 - 1.0)
    assert result.pictures.shape == (2, 3, 32, 32) and len(result.bits) == 8
    losses = trainer.losses(result)
    assert losses["motion"] == 0.0 and torch.isfinite(losses["loss"])


def test_what_moves_counts_whatever_its_share_of_the_pixels():
    still = torch.zeros(1, 3, 5, 16, 16)
    moving = still.clone()
    for frame in range(5):
        moving[..., frame, 4:8, frame : frame + 4] = 1.0
    wide = torch.nn.functional.pad(moving, (0, 48))
    assert motion_loss(moving, moving) == 0.0
    assert motion_loss(still + 0.3, still) == 0.0, "nothing moves"
    torch.testing.assert_close(
        motion_loss(still, moving), motion_loss(torch.nn.functional.pad(still, (0, 48)), wide)
    )
    shaded = moving.clone()
    shaded[:, :, :, 8:] += 0.3
    assert motion_loss(shaded, moving) == 0.0, "the background is for the other losses"
    assert motion_loss(0.5 * moving, moving) < motion_loss(still, moving)


def test_crops_are_crops_of_videos():
    for frames in (SIZE.frames, 1):
        batch = next(stream(VideoCrops(3, 24, 0, frames), workers=0))
        assert batch.shape == (3, 3, frames, 24, 24) and batch.dtype == torch.uint8
    whole = fixed_videos(2, seed=1)
    assert whole.shape == (2, 3, SIZE.frames, SIZE.canvas, SIZE.canvas)
    assert torch.equal(whole, fixed_videos(2, seed=1))


def test_codes_have_the_gradient_of_the_features(store):
    features = store.features[:1].float().requires_grad_(True)
    steps = list(quantize(features, SIZE.schedule()))
    latent = straight_through(steps, features)
    codes = torch.cat([step.after for step in steps if step.scale.ends_clip], dim=2)
    torch.testing.assert_close(latent, codes, atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(latent)
    (latent * weights).sum().backward()
    torch.testing.assert_close(features.grad, weights)


def test_moving_tokens_cover_the_way_of_every_object():
    random = np.random.default_rng(0)
    for _ in range(10):
        scene = sample(random, "direction")[1]
        covered = moving_tokens(scene)
        assert covered.shape == (SIZE.latent_frames, SIZE.sides[-1], SIZE.sides[-1])
        for time, latent in ((0.0, 0), (0.25, 1), (0.5, 1), (0.75, 2), (1.0, 2)):
            item = scene.at(time).objects[0]
            assert covered[latent, int(item.y) // 8, int(item.x) // 8]
        assert covered.any(dim=0).sum() > covered[0].sum()
        assert not covered.all()


def test_training_follows_its_budget_and_resumes(run, store):
    assert run.progress == 1.0 and run.step >= 1
    again = TransformerTrainer(VideoModel(), store, run.folder, SETTINGS)
    assert again.step == run.step and list(again.run()) == []
    for name, value in again.average.state_dict().items():
        assert torch.equal(value, run.average.state_dict()[name]), name


def test_losses_are_one_a_step_and_fall(store):
    torch.manual_seed(0)
    model = VideoModel()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    weights = store.objects[:2].float() + 1.0
    prompts = ["a red star moves left", "a ring grows on sand"]
    losses = []
    for _ in range(10):
        each = model(store.features[:2], weights, prompts, [False, True], 3, torch.zeros(2))
        assert each.shape == (2 * 5,)
        each.mean().backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(each.mean().item())
    assert losses[-1] < 0.85 * losses[0]


def test_some_tokens_of_the_finest_step_stand_for_all(store):
    torch.manual_seed(0)
    model = VideoModel().eval()
    weights = torch.ones(1, *store.objects.shape[1:])
    arguments = (store.features[:1], weights, ["a red star moves left"], [False], 6, torch.zeros(1))
    with torch.no_grad():
        whole, some = model(*arguments), model(*arguments, share=0.5)
    assert torch.allclose(whole[:-1], some[:-1], atol=1e-5)
    assert not torch.equal(whole[-1], some[-1])
    assert whole[-1] == pytest.approx(some[-1].item(), abs=0.1)


def test_the_first_frame_alone_learns_as_in_its_video(store):
    torch.manual_seed(0)
    model = VideoModel().eval()
    weights = torch.ones(1, *store.objects.shape[1:])
    rest = (["a red star moves left"], [False], 6, torch.zeros(1))
    with torch.no_grad():
        whole = model(store.features[:1], weights, *rest)
        still = model(store.features[:1, :, :1], weights[:, :1], *rest)
    assert len(still) == 8 and len(whole) == 16
    assert torch.allclose(whole[:8], still, atol=1e-5)


def test_the_package_is_small_and_draws(run, tmp_path):
    model = VideoModel()
    load_average(model, run.checkpoint)
    size = package(assemble(build_vae(), model), tmp_path / "weights")
    assert size <= 24e6
    pipeline = InfinityStarPipeline.from_pretrained(tmp_path / "weights", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    result = pipeline("a red star moves left", seed=0, pruning="paper")
    assert len(result.frames[0]) == SIZE.frames and result.frames_per_second == 8
    assert result.frames[0][0].size == (SIZE.canvas, SIZE.canvas)
    assert result.report.kept_tokens < result.report.total_tokens == 1113
    with pytest.raises(ValueError, match="whole seconds from 1 to 1"):
        pipeline("a red star moves left", seconds=2)


def test_the_words_are_those_of_the_grammar():
    words = VideoModel().words
    ids = words("A RED star moves to the left, on sand.").input_ids
    assert words.unk_token_id not in ids and ids[-1] == words.eos_token_id
    assert set(VOCABULARY) <= set(words.get_vocab())
    assert words.unk_token_id in words("a red dog").input_ids
