"""Official checkpoints: both ways by name and shape, one shard at a time, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stepvar.checkpoints.errors import CheckpointError
from stepvar.models.infinitystar import checkpoints
from stepvar.models.infinitystar.checkpoints import (
    from_official,
    load_official,
    load_transformer,
    load_vae,
)
from stepvar.models.infinitystar.official import (
    infer_config,
    infer_vae_config,
    published_config,
    to_official,
    vae_part,
    vae_to_official,
)
from stepvar.models.infinitystar.transformer import InfinityStarTransformer
from stepvar.models.infinitystar.vae import InfinityStarVAE
from tiny_star import make_star_pipeline, make_star_transformer, make_star_vae

GOLDEN = Path(__file__).parents[2] / "golden" / "infinitystar"


def published_layout(name: str) -> dict[str, torch.Tensor]:
    """A published state dict on the meta device."""
    stored = json.loads((GOLDEN / f"layout_{name}.json").read_text())["state_dict"]
    return {
        key: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        for key, (shape, dtype) in stored.items()
    }


def layout(state) -> dict:
    return {key: (tuple(value.shape), value.dtype) for key, value in state.items()}


def test_the_published_transformer_maps_both_ways():
    official = published_layout("transformer_8b")
    config = infer_config(official)
    with torch.device("meta"):
        model = InfinityStarTransformer(**config)
    expected = published_config()
    assert {key: config[key] for key in expected if key != "resolution"} == {
        key: value for key, value in expected.items() if key != "resolution"
    }
    assert layout(from_official(official)) == layout(model.state_dict())
    assert layout(to_official(model.state_dict(), config)) == layout(official)


def test_the_published_tokenizer_maps_both_ways():
    official = published_layout("videovae")
    config = infer_vae_config(official)
    with torch.device("meta"):
        model = InfinityStarVAE(**config)
        assert layout(model.state_dict()) == layout(InfinityStarVAE().state_dict())
    assert layout(vae_part(official)) == layout(model.state_dict())
    assert layout(vae_to_official(model.state_dict())) == layout(official)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A tiny official transformer in three shards with an index, in a folder named as published."""
    folder = tmp_path_factory.mktemp("official") / "infinitystar_8b_720p_weights"
    folder.mkdir()
    model = make_star_transformer(block_chunks=3)
    state = {key: value.contiguous() for key, value in to_official(model.state_dict(), model.config).items()}
    keys = sorted(state)
    names = {key: f"model-{place % 3}.safetensors" for place, key in enumerate(keys)}
    for name in set(names.values()):
        save_file({key: state[key] for key in keys if names[key] == name}, folder / name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    return folder


def test_a_sharded_folder_loads_in_bfloat16_with_what_must_stay_exact(shards):
    model = load_transformer(shards, dtype=torch.bfloat16)
    original = make_star_transformer()
    assert model.config.resolution == "720p"
    assert model.blocks[2].feed_forward.up.weight.dtype == torch.bfloat16
    for name in ("detail_head", "semantic_head", "token_embedding", "text_projection", "output_norm"):
        assert getattr(model, name).weight.dtype == torch.float32
        assert torch.equal(getattr(model, name).weight, getattr(original, name).weight)
    block = original.blocks[1].attention.key.weight
    assert torch.equal(model.blocks[1].attention.key.weight, block.to(torch.bfloat16))


def test_weights_are_read_one_shard_after_the_other(shards, monkeypatch):
    from stepvar.checkpoints import weights as loading

    alive: list[int] = []
    read = loading.read_tensors

    def watched(file, routes=()):
        alive.append(file)
        return read(file, routes)

    monkeypatch.setattr(loading, "read_tensors", watched)
    load_transformer(shards, dtype=torch.bfloat16)
    # Once for names and shapes, once for the weights, file after file.
    assert [file.name for file in alive] == [f"model-{place}.safetensors" for place in (0, 1, 2)] * 2


def test_an_unconditional_text_of_another_length_is_cut_or_completed():
    model = make_star_transformer(block_chunks=1)
    official = to_official(model.state_dict(), model.config)
    shorter = make_star_transformer(seed=1, text_length=8)
    load_official(shorter, official)
    assert torch.equal(shorter.unconditional_text.weight, model.unconditional_text.weight[:8])
    longer = make_star_transformer(seed=1, text_length=40)
    own = longer.unconditional_text.weight[32:].clone()
    load_official(longer, official)
    assert torch.equal(longer.unconditional_text.weight[:32], model.unconditional_text.weight)
    assert torch.equal(longer.unconditional_text.weight[32:], own)


def test_missing_and_misshapen_weights_are_named(tmp_path):
    model = make_star_transformer(block_chunks=3)
    state = {key: value.contiguous() for key, value in to_official(model.state_dict(), model.config).items()}
    gone = state.pop("block_chunks.1.module.0.mlp.down_proj.weight")
    state["head.bias"] = gone[0]
    save_file(state, tmp_path / "broken.safetensors")
    with pytest.raises(
        CheckpointError, match=r"1 missing \(block_chunks.1.module.0.mlp.down_proj.weight\)"
    ) as error:
        load_transformer(tmp_path / "broken.safetensors")
    assert "head.bias is [96] instead of [128]" in str(error.value)


def test_tokenizer_and_transformer_are_told_apart(tmp_path):
    tokenizer = vae_to_official(make_star_vae().state_dict())
    torch.save({"vae": tokenizer}, tmp_path / "infinitystar_videovae.pth")
    loaded = load_vae(tmp_path / "infinitystar_videovae.pth")
    for key, value in make_star_vae().state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    save_file({key: value.contiguous() for key, value in tokenizer.items()}, tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError, match="a video tokenizer of InfinityStar, not an"):
        load_transformer(tmp_path / "vae.safetensors")


def test_unknown_resolutions_are_refused(shards):
    with pytest.raises(ValueError, match="Unknown resolution '1080p'; known are 480p, 720p, interact"):
        load_transformer(shards, resolution="1080p")


@pytest.mark.parametrize(
    ("folder", "resolution"),
    [
        ("infinitystar_720p/infinitystar_480p", "480p"),
        ("480p/weights_720P.safetensors", "720p"),
        ("infinitystar_interact_480p/weights", "interact"),
        ("models_720p/weights", "720p"),
    ],
)
def test_the_own_name_says_the_resolution_before_the_folder_around_it(folder, resolution, caplog):
    assert checkpoints._named_resolution(Path(folder)) == resolution
    assert not caplog.records


def test_a_guessed_resolution_is_told(caplog):
    assert checkpoints._named_resolution(Path("models/weights")) == "480p"
    assert "'models/weights'" in caplog.text and "--resolution" in caplog.text


def test_a_conversion_can_name_the_resolution(shards, tmp_path):
    torch.save({"vae": vae_to_official(make_star_vae().state_dict())}, tmp_path / "vae.pth")
    parts = (shards, tmp_path / "vae.pth", None)
    folder = checkpoints.convert(*parts, tmp_path / "out", resolution="interact")
    assert load_transformer(folder / "transformer").config.resolution == "interact"
    again = (folder / "transformer", *parts[1:])
    folder = checkpoints.convert(*again, tmp_path / "again", torch.bfloat16, resolution="480p")
    assert load_transformer(folder / "transformer").config.resolution == "480p"
    make_star_transformer().save_pretrained(tmp_path / "small")
    with pytest.raises(ValueError, match="draws grids of its own, not those of 720p"):
        load_transformer(tmp_path / "small", resolution="720p")


def test_conversion_writes_a_folder_that_loads(shards, tmp_path):
    official = vae_to_official(make_star_vae().state_dict())
    torch.save({"vae": official}, tmp_path / "vae.pth")
    pipeline = make_star_pipeline()
    text = tmp_path / "t5"
    pipeline.text_encoder.save_pretrained(text)
    pipeline.tokenizer.save_pretrained(text)
    folder = checkpoints.convert(shards, tmp_path / "vae.pth", text, tmp_path / "out", torch.bfloat16)
    from stepvar import InfinityStarPipeline

    loaded = InfinityStarPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)
    assert loaded.transformer.config.resolution == "720p"
    assert loaded.transformer.blocks[0].attention.query.weight.dtype == torch.bfloat16
    assert loaded.transformer.detail_head.weight.dtype == torch.float32
    assert next(loaded.vae.encoder.parameters()).dtype == torch.float32
    assert loaded.defaults.guidance_scale == 34.0
    with pytest.raises(CheckpointError, match="exists already"):
        checkpoints.convert(shards, tmp_path / "vae.pth", text, tmp_path / "out")
