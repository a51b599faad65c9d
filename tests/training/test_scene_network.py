"""The feature network of scenes: targets, prompts, network and training, on budgets of seconds."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from stepvar.scenes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    SceneObject,
    parse,
    render,
    sample,
    sample_scene,
    write_prompt,
)
from stepvar.scenes.network import load_scene_network
from stepvar.scenes.network.image_backbone import STRIDE, ObjectMaps, find_objects
from stepvar.scenes.network.network import SceneNetwork
from stepvar.training.common.crops import stream
from stepvar.training.common.muon import Muon
from stepvar.training.scene_network.batches import (
    MapBatches,
    PromptBatches,
    RenderedScenes,
    augment,
)
from stepvar.training.scene_network.losses import alignment_losses, map_losses
from stepvar.training.scene_network.measure import measure
from stepvar.training.scene_network.prompts import (
    SWAPS,
    AnnotatedScene,
    describe,
    hard_negative,
    shape_counts,
    truth_table,
)
from stepvar.training.scene_network.targets import (
    IGNORED,
    SPEC_TARGETS,
    full_spec,
    map_targets,
    spec_targets,
)
from stepvar.training.scene_network.train import SceneNetworkTrainer, SceneNetworkTraining

SETTINGS = SceneNetworkTraining(
    minutes=0.04,
    workers=0,
    backbone_batch=4,
    prompt_batch=4,
    least_encoded=8,
    calibration_steps=2,
    backbone_share=0.4,
    log_every=1,
)


def drawn(count, category=None, canvas=192, seed=0):
    random = np.random.default_rng(seed)
    return [sample(random, category, split="any", canvas=canvas) for _ in range(count)]


def known(count, category=None, seed=0):
    return [
        AnnotatedScene.from_scene(scene, prompt.spec) for prompt, scene in drawn(count, category, seed=seed)
    ]


def renders(count, canvas=192):
    random = np.random.default_rng(1)
    return np.stack([render(sample_scene(random, canvas=canvas), canvas, seed) for seed in range(count)])


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return SceneNetwork().eval()


# Targets


@pytest.mark.parametrize("canvas", [192, 256])
def test_every_object_has_its_attributes_on_the_cell_of_its_centre(canvas):
    for _, scene in drawn(20, canvas=canvas):
        targets = map_targets(scene)
        assert targets.centre.shape == (canvas // STRIDE, canvas // STRIDE)
        assert targets.background == BACKGROUNDS.index(scene.background)
        for item in scene.objects:
            cell = int(item.y) // STRIDE, int(item.x) // STRIDE
            assert targets.present[cell] == 1
            assert targets.centre[cell] > 0.6
            expected = [SHAPES.index(item.shape), COLOURS.index(item.colour)]
            expected += [TEXTURES.index(item.texture), SIZES.index(item.size)]
            assert targets.attributes[cell].tolist() == expected


def test_cells_far_from_objects_have_none():
    scene = Scene("sand", (SceneObject("star", "red", "plain", "small", 40.0, 40.0, 20.0),), 192)
    targets = map_targets(scene)
    assert targets.present[8:, 8:].max() == 0
    assert (targets.attributes[8:, 8:] == IGNORED).all()
    assert targets.centre[8:, 8:].max() < 0.01
    assert IGNORED in targets.present


def test_perfect_maps_give_back_the_scene():
    """Peaks of the targets themselves are the objects: nothing is lost between map and objects."""
    for _, scene in drawn(40, canvas=256):
        targets = map_targets(scene)
        one_hot = {
            name: 20.0
            * torch.nn.functional.one_hot(torch.tensor(targets.attributes[None, ..., i]).clamp(0), n)
            for i, (name, n) in enumerate((("shape", 6), ("colour", 8), ("texture", 4), ("size", 3)))
        }
        maps = ObjectMaps(
            torch.zeros(1, 16, 16, 5),
            torch.tensor(targets.centre)[None],
            20.0 * torch.tensor(targets.present).float()[None].clamp(min=0) - 10.0,
            one_hot,
            torch.zeros(1, 4),
        )
        seen = find_objects(maps)
        there = seen.objectness[0] > 0.5
        assert there.sum() == len(scene.objects)
        found = sorted(
            tuple(seen.attributes[name][0, k].argmax().item() for name in one_hot)
            for k in range(len(there))
            if there[k]
        )
        lists = (SHAPES, COLOURS, TEXTURES, SIZES)
        assert found == sorted(
            tuple(v.index(a) for v, a in zip(lists, (*item.combination, item.size), strict=True))
            for item in scene.objects
        )


def test_a_spec_decides_what_it_names_and_no_more():
    values, decided = spec_targets(parse("a red star and a blue striped ring"))
    assert values.shape == decided.shape == (SPEC_TARGETS,)
    shapes, colours, textures = (slice(0, 6), slice(6, 14), slice(14, 18))
    assert [SHAPES[i] for i in np.flatnonzero(values[shapes])] == ["star", "ring"]
    assert decided[shapes].all() and decided[colours].all()
    assert [TEXTURES[i] for i in np.flatnonzero(values[textures])] == ["striped"]
    # The star may have any texture, so that none but the ring's is certain.
    assert [TEXTURES[i] for i in np.flatnonzero(decided[textures])] == ["striped"]
    pairs = values[18 : 18 + 48].reshape(6, 8)
    assert pairs.sum() == 2 and pairs[SHAPES.index("star"), COLOURS.index("red")] == 1
    assert pairs[SHAPES.index("star"), COLOURS.index("blue")] == 0
    assert not decided[-4:].any()


def test_a_full_spec_decides_everything():
    for prompt, scene in drawn(50):
        full = full_spec(scene, prompt.spec)
        assert spec_targets(full)[1].all()
        values, decided = spec_targets(prompt.spec)
        assert (values[decided] == spec_targets(full)[0][decided]).all()


# Prompts


def test_descriptions_are_true_and_swaps_are_false():
    random = np.random.default_rng(0)
    kinds = set()
    for scene in known(150):
        spec = describe(random, scene)
        assert scene.satisfies(spec)
        assert parse(write_prompt(random, spec)) == spec
        found = hard_negative(random, spec, scene)
        assert found is not None
        swapped, kind = found
        kinds.add(kind)
        assert not scene.satisfies(swapped)
        assert parse(write_prompt(random, swapped)) == swapped
    assert kinds == set(SWAPS)


def test_the_prompt_a_scene_was_drawn_for_is_true_of_it():
    for prompt, scene in drawn(60):
        assert AnnotatedScene.from_scene(scene, prompt.spec).satisfies(prompt.spec)


def test_an_exchange_keeps_the_words_and_changes_who_has_what():
    random = np.random.default_rng(0)
    scene = known(1, "colour attribution", seed=2)[0]
    spec = replace(scene.spec, relation=None)
    swapped, _ = hard_negative(random, spec, scene, "exchange")
    assert shape_counts(swapped).sum() == shape_counts(spec).sum()
    for name in ("colour", "texture"):
        assert sorted(getattr(group, name) for group in swapped.groups) == sorted(
            getattr(group, name) for group in spec.groups
        )


def test_a_swap_that_cannot_be_is_none():
    random = np.random.default_rng(0)
    scene = known(1, "single object")[0]
    assert hard_negative(random, scene.spec, scene, "exchange") is None
    assert hard_negative(random, scene.spec, scene, "relation") is None


def test_the_truth_table_agrees_with_one_by_one():
    random = np.random.default_rng(0)
    scenes = known(25)
    specs = [describe(random, scene) for scene in scenes] + [parse("a star"), parse("two rings on sand")]
    table = truth_table(scenes, specs)
    assert table.tolist() == [[scene.satisfies(spec) for spec in specs] for scene in scenes]
    assert table[np.arange(25), np.arange(25)].all()


# Batches and losses


def test_batches_of_the_backbone_have_both_sizes():
    batches = stream(MapBatches(4, seed=0), workers=0)
    sides = set()
    for _ in range(6):
        batch = next(batches)
        sides.add(batch.pictures.shape[1])
        assert batch.pictures.dtype == torch.uint8
        assert batch.centre.shape == batch.present.shape == batch.attributes.shape[:3]
    assert sides == {192, 256}


def test_words_of_prompt_batches_are_those_of_the_tokenizer(network):
    scenes = known(6)
    words = network.words
    batch = next(
        stream(PromptBatches(scenes, words.get_vocab(), words.eos_token_id, 3, 2, seed=0), workers=0)
    )
    assert batch.truth.shape == (3, 9)
    assert batch.truth[torch.arange(3), 3 * torch.arange(3)].all()
    texts = [words.decode(row[: n - 1]) for row, n in zip(batch.ids, batch.lengths, strict=True)]
    ids, lengths = network.tokenize(texts)
    assert torch.equal(ids, batch.ids) and torch.equal(lengths, batch.lengths)


def test_prompts_true_by_chance_are_no_negatives(network):
    batch = next(stream(PromptBatches(known(6), network.words.get_vocab(), 1, 3, 1, seed=0), workers=0))
    pictures = torch.nn.functional.normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)))
    prompts = pictures.repeat_interleave(2, dim=0)
    prompts[1::2] *= -1
    own = torch.zeros(3, 6, dtype=torch.bool)
    own[torch.arange(3), 2 * torch.arange(3)] = True
    prompts[2] = prompts[0]
    wrong = alignment_losses(pictures, prompts, torch.tensor(20.0), replace(batch, truth=own))
    also = own.clone()
    also[0, 2] = True
    right = alignment_losses(pictures, prompts, torch.tensor(20.0), replace(batch, truth=also))
    assert right["pictures"] < wrong["pictures"]
    assert right["swaps_right"] >= 2 / 3


def test_the_backbone_learns_from_few_pictures():
    torch.manual_seed(0)
    backbone = SceneNetwork().backbone.train()
    batch = next(stream(MapBatches(4, seed=0, canvases=(192,)), workers=0))
    filters = [parameter for parameter in backbone.parameters() if parameter.dim() == 4]
    rest = [parameter for parameter in backbone.parameters() if parameter.dim() != 4]
    optimisers = [Muon(filters, lr=3e-3), torch.optim.AdamW(rest, lr=3e-3)]
    losses = []
    for _ in range(8):
        loss = map_losses(backbone(batch.pictures.float() / 127.5 - 1.0), batch)["loss"]
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_augmented_pictures_keep_their_shape_and_stay_close():
    pictures = torch.from_numpy(renders(2)).float() / 127.5 - 1.0
    random = np.random.default_rng(0)
    changed = 0
    for _ in range(30):
        augmented = augment(pictures, random)
        assert augmented.shape == pictures.shape and augmented.dtype == pictures.dtype
        assert (augmented - pictures).abs().mean() < 0.15
        changed += not torch.equal(augmented, pictures)
    assert 5 < changed < 25


# The network


@pytest.mark.parametrize("canvas", [192, 256])
def test_features_are_unit_vectors_whatever_the_batch(network, canvas):
    pictures = renders(3, canvas)
    together = network(pictures)
    apart = np.concatenate([network.picture_features(picture[None]) for picture in pictures])
    assert together.shape == (3, network.size.features) and together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(together, apart, atol=1e-4)


def test_a_prompt_means_the_same_beside_a_longer_one(network):
    short, long = (
        "a red star",
        "a picture of two small striped blue rings to the left of the white cross on stone",
    )
    together = network.texts([short, long])
    np.testing.assert_allclose(together[:1], network.text_features([short]), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)
    assert not np.allclose(together[0], together[1], atol=1e-2)


def test_word_order_matters(network):
    first, second = network.texts(["a red star and a blue ring", "a blue star and a red ring"])
    assert not np.allclose(first, second, atol=1e-3)


def test_attributes_are_probabilities(network):
    found = network.attributes(renders(2))
    np.testing.assert_allclose(found.background.sum(axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(found.count.sum(axis=1), 1.0, atol=1e-5)
    assert found.presence["shape colour"].shape == (2, 6, 8)
    for values in found.presence.values():
        assert (values >= 0).all() and (values <= 1).all()


def test_scores_are_cosines(network):
    pictures, prompts = renders(2), ["a red star", "two blue rings on sand"]
    scores = network.scores(pictures, prompts)
    expected = (network(pictures) * network.texts(prompts)).sum(axis=1)
    np.testing.assert_allclose(scores, expected)
    with pytest.raises(ValueError, match="Each picture needs one prompt; got 2 and 1"):
        network.scores(pictures, prompts[:1])


def test_an_absent_object_changes_nothing():
    """The embedding follows the gates: a peak of gate zero is as good as none."""
    torch.manual_seed(0)
    encoder = SceneNetwork().picture_encoder
    features, places, ground = torch.rand(1, 3, 112), torch.rand(1, 3, 3), torch.rand(1, 112)
    gates = torch.tensor([[1.0, 1.0, 0.0]])
    with_absent = encoder(features, gates, places, ground)
    without = encoder(features[:, :2], gates[:, :2], places[:, :2], ground)
    torch.testing.assert_close(with_absent, without, atol=1e-3, rtol=0.0)


@pytest.mark.parametrize(
    ("pictures", "words"),
    [
        (np.zeros((1, 192, 192, 3), dtype=np.float32), "must be uint8"),
        (np.zeros((1, 3, 192, 192), dtype=np.uint8), "must be uint8"),
        (np.zeros((1, 100, 192, 3), dtype=np.uint8), "multiples of 16 pixels.*192 x 100"),
        (np.zeros((0, 192, 192, 3), dtype=np.uint8), "no picture"),
    ],
)
def test_what_is_no_picture_is_refused(network, pictures, words):
    with pytest.raises(ValueError, match=words):
        network(pictures)


def test_what_is_no_prompt_is_refused(network):
    with pytest.raises(ValueError, match=r"'yelow'.*yellow"):
        network.texts(["a yelow star"])
    with pytest.raises(ValueError, match="empty"):
        network.texts([" "])
    with pytest.raises(ValueError, match="no prompt"):
        network.texts([])


def test_a_saved_network_is_small_and_the_same(network, tmp_path):
    size = network.save(tmp_path)
    assert size <= 3e6
    loaded = load_scene_network(tmp_path)
    pictures = renders(2)
    np.testing.assert_allclose(loaded(pictures), network(pictures), atol=2e-2)
    assert loaded.words.get_vocab() == network.words.get_vocab()


def test_a_folder_without_a_network_is_refused(network, tmp_path):
    with pytest.raises(ValueError, match="no scene network"):
        load_scene_network(tmp_path)
    network.save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="no scene network"):
        load_scene_network(tmp_path)


# Training and measuring


def test_training_follows_its_budget_and_resumes(tmp_path):
    settings = replace(SETTINGS, output=tmp_path)
    trainer = SceneNetworkTrainer(settings)
    folder = trainer.run()
    assert trainer.progress >= 1.0
    stages = {json.loads(line).get("stage") for line in (tmp_path / "log.jsonl").read_text().splitlines()}
    assert {"backbone", "encoders"} <= stages
    again = SceneNetworkTrainer(settings)
    assert again.step == trainer.step
    before = load_scene_network(folder).state_dict()
    after = load_scene_network(again.run()).state_dict()
    assert again.step == trainer.step
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_training_goes_on_with_the_scenes_it_encoded(tmp_path):
    trainer = SceneNetworkTrainer(replace(SETTINGS, output=tmp_path))
    trainer.run()
    more = SceneNetworkTrainer(
        replace(SETTINGS, output=tmp_path, minutes=1.2 * trainer.spent / 60, backbone_share=0.1)
    )
    frozen = {name: value.clone() for name, value in more.network.backbone.state_dict().items()}
    encoded = more._encoded(0.0)
    assert len(encoded) >= SETTINGS.least_encoded and encoded.at(torch.tensor([0, 1]))[0].shape[0] == 2
    more.run()
    assert more.step > trainer.step
    assert all(torch.equal(value, frozen[name]) for name, value in more.network.backbone.state_dict().items())


def test_the_frozen_backbone_sees_scenes_as_the_network_does(network):
    from stepvar.training.scene_network.dataset import ProposalDataset

    pictures, scenes = next(stream(RenderedScenes(3, seed=0), workers=0))
    encoded = ProposalDataset.empty()
    encoded.add(network, pictures, scenes)
    encoded = encoded.concatenated(torch.device("cpu"))
    with torch.no_grad():
        features = network.picture_encoder(*encoded.at(torch.tensor([2, 0])))
    np.testing.assert_allclose(features, network(pictures.numpy())[[2, 0]], atol=1e-4)


def test_an_untrained_network_measures_badly(network):
    figures = measure(network, pictures=12, canvas=192)
    assert figures["exact"]["all"] < 0.5
    assert 0.2 < figures["matching"]["average"] < 0.8
    assert set(figures["matching"]["swaps"]) <= set(SWAPS)
    assert figures["accuracy"]["shape colour"] < 1.0
    json.dumps(figures)
