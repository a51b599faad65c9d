"""Switti's checkpoints: every published layout, file forms, contradictions, and conversion."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stepvar import SwittiPipeline, convert
from stepvar.checkpoints.errors import CheckpointError
from stepvar.models.common.vq_vae_checkpoints import STATISTICS, infer_vae_config, vae_to_official
from stepvar.models.switti.checkpoints import FORMAT, load_transformer
from stepvar.models.switti.official import infer_config, published_config, rename, to_official
from stepvar.models.switti.transformer import SwittiTransformer
from stepvar.models.switti.vae import SwittiVAE
from tiny_switti import WIDTHS, make_encoders, make_switti, make_words
from tiny_var import make_vq_vae

GOLDEN = Path(__file__).parents[2] / "golden" / "switti"


def layout(name: str) -> tuple[dict, dict[str, torch.Tensor]]:
    content = json.loads((GOLDEN / f"layout_{name}.json").read_text())
    state = content["state_dict"].items()
    return content, {key: torch.empty(shape, device="meta") for key, (shape, _) in state}


def official(model: SwittiTransformer) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in to_official(model.state_dict(), model.config).items()}


def assert_same_weights(first: torch.nn.Module, second: torch.nn.Module) -> None:
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert torch.equal(value, theirs[key]), key


@pytest.mark.parametrize("name", ["512", "1024"])
def test_published_layouts_map_both_ways(name):
    facts, state = layout(f"d30_{name}")
    config = infer_config(state)
    published = published_config(name)
    assert config["sides"] == list(published.pop("sides"))
    assert all(config[key] == value for key, value in published.items())
    with torch.device("meta"):
        model = SwittiTransformer.published(name)
    own, ours = model.state_dict(), rename(state, config, "the layout")
    assert {key: value.shape for key, value in ours.items()} == {key: v.shape for key, v in own.items()}
    assert sum(parameter.numel() for parameter in model.parameters()) == facts["parameters"]
    kept = {key: value.shape for key, value in state.items() if key != "attn_bias_for_masking"}
    assert {key: value.shape for key, value in to_official(ours, model.config).items()} == kept


def test_the_layout_of_the_tokenizer_maps_both_ways():
    facts, state = layout("vqvae_1024")
    config = infer_vae_config(state, "the layout")
    with torch.device("meta"):
        model = SwittiVAE(**config)
    assert sum(parameter.numel() for parameter in model.parameters()) == facts["parameters"]
    back = vae_to_official(model.state_dict(), config)
    kept = {key: value.shape for key, value in state.items() if key != STATISTICS}
    assert {key: value.shape for key, value in back.items()} == kept


@pytest.mark.parametrize(
    "config",
    [{}, {"rotary": False}, {"gated_feed_forward": False}, {"crop_condition": False}],
    ids=["published", "learned places", "plain feed-forward", "no crop"],
)
def test_every_variant_is_told_by_its_weights(config, tmp_path):
    model = make_switti(width=64, heads=1, **config)
    save_file(official(model), tmp_path / "model.safetensors")
    assert_same_weights(load_transformer(tmp_path / "model.safetensors"), model)


def test_a_causal_model_is_told_by_the_mask_or_the_configuration(tmp_path):
    state = official(make_switti(width=64, heads=1))
    tokens = state["lvl_1L"].shape[1]
    for causal in (True, False):
        mask = torch.full((1, 1, tokens, tokens), 0.0 if causal else -torch.inf)
        assert FORMAT.from_state({**state, "attn_bias_for_masking": mask}).config.causal == causal
    save_file(state, tmp_path / "model.safetensors")
    assert not load_transformer(tmp_path).config.causal
    (tmp_path / "config.json").write_text(json.dumps({"depth": 3, "use_ar": True, "rope_size": 64}))
    loaded = load_transformer(tmp_path)
    assert (loaded.config.causal, loaded.config.rotary_extent) == (True, 64)


@pytest.mark.parametrize("wrong", [{"depth": 30}, {"rope": False}, {"use_swiglu_ffn": False}])
def test_a_configuration_that_contradicts_the_weights_is_refused(tmp_path, wrong):
    save_file(official(make_switti(width=64, heads=1)), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(wrong))
    with pytest.raises(
        CheckpointError, match=f"contradicts itself: its config.json says {next(iter(wrong))}"
    ):
        load_transformer(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("crop_proj.bias"), r"1 missing \(crop_proj.bias\)"),
        (lambda state: state.update(extra=torch.zeros(1)), r"1 unexpected \(extra\)"),
        (lambda state: state.pop("lvl_1L"), r"lvl_1L is missing"),
        (lambda state: state.pop("text_pooler.weight"), r"holds nothing that stepvar knows"),
    ],
)
def test_a_damaged_state_dict_is_refused_in_words(change, words):
    state = official(make_switti())
    change(state)
    with pytest.raises(CheckpointError, match=words):
        FORMAT.from_state(state)


@pytest.fixture
def files(tmp_path):
    """Official files of a tiny model, and folders of its text encoders."""
    model = make_switti(width=64, heads=1, pixels_per_token=16, text_length=77)
    tokenizer = make_vq_vae(kind=SwittiVAE, multipliers=(1,) * 5)
    save_file(official(model), tmp_path / "switti.safetensors")
    save_file(vae_to_official(tokenizer.state_dict(), tokenizer.config), tmp_path / "vae.safetensors")
    for number, encoder in enumerate(make_encoders()):
        encoder.save_pretrained(tmp_path / f"clip{number}")
        make_words().save_pretrained(tmp_path / f"clip{number}")
    return tmp_path / "switti.safetensors", tmp_path / "vae.safetensors"


def test_a_converted_folder_draws(files, tmp_path):
    folder = convert(*files, [tmp_path / "clip0", tmp_path / "clip1"], tmp_path / "out", torch.bfloat16)
    pipeline = SwittiPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    stored = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    assert stored["head.weight"].dtype == torch.bfloat16
    assert stored["level_embedding.weight"].dtype == torch.float32
    assert pipeline("a red ring", seed=1).images[0].size == (128, 128)


def test_wrong_text_encoders_are_refused(files, tmp_path):
    one, two = tmp_path / "clip0", tmp_path / "clip1"
    with pytest.raises(
        CheckpointError,
        match="reads 2 text encoders, but 1 was given: give clip-vit-large-patch14, then CLIP",
    ):
        convert(*files, one, tmp_path / "out")
    with pytest.raises(
        CheckpointError, match=f"clip1' gives {WIDTHS[1]} channels, but the transformer reads {WIDTHS[0]}"
    ):
        convert(*files, [two, one], tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        convert(*files, [one, tmp_path], tmp_path / "out")
    with pytest.raises(ValueError, match="is a Switti transformer, which has no labels"):
        convert(*files, None, tmp_path / "out", labels=tmp_path / "x")
    assert not (tmp_path / "out").exists()
