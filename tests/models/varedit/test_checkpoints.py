"""VAREdit's files: Infinity's names and shapes, and the kind and resolution that they do not tell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import stepvar
from stepvar.checkpoints.errors import CheckpointError
from stepvar.loading.conversion import model_of
from stepvar.models.infinity.checkpoints import from_official
from stepvar.models.infinity.official import infer_config, to_official
from stepvar.models.infinity.published import published_config, published_name
from stepvar.models.infinity.quantizer import tokens_from_latent_bits
from stepvar.models.infinity.transformer import InfinityTransformer
from stepvar.models.varedit.checkpoints import load_transformer
from stepvar.models.varedit.published import PUBLISHED_WEIGHTS, find_resolution
from tiny_models import make_transformer
from tiny_varedit import make_source

GOLDEN = Path(__file__).parents[2] / "golden" / "varedit"
TINY = GOLDEN / "tiny_d16"
TRANSFORMER, VAE = TINY / "transformer.safetensors", TINY / "vae.safetensors"


@pytest.mark.golden
@pytest.mark.parametrize("name", PUBLISHED_WEIGHTS)
def test_published_layouts_map_both_ways(name):
    content = json.loads((GOLDEN / f"layout_{name.replace('-', '_')}.json").read_text())
    official = {key: torch.empty(shape, device="meta") for key, (shape, _) in content["state_dict"].items()}
    published = PUBLISHED_WEIGHTS[name]
    config = infer_config(official)
    assert published_name(config) == published.size
    assert find_resolution(f"{name}.pth", published.size) == published.resolution
    assert config["tokenizer_type"] == published.vae_type
    ours = from_official(official)
    with torch.device("meta"):
        expected = InfinityTransformer(**published_config(published.size)).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: v.shape for key, v in expected.items()}
    back = to_official(ours, config)
    assert {key: value.shape for key, value in back.items()} == {
        key: value.shape for key, value in official.items()
    }


@pytest.mark.parametrize(
    ("name", "size", "found"),
    [
        ("8B-1024.pth", "8B", "1024"),
        ("8B-512.pth", "8B", "512"),
        ("mine.pth", "2B", "512"),
        ("mine.pth", "8B", None),
        ("mine-15120.pth", None, None),
        ("512-to-1024.pth", "8B", None),
    ],
)
def test_the_resolution_is_in_the_name_or_in_the_size(name, size, found):
    assert find_resolution(name, size) == found


def test_a_resolution_that_nothing_tells_is_asked_for(tmp_path):
    model = make_transformer()
    official = {key: value.clone() for key, value in to_official(model.state_dict(), model.config).items()}
    for name in ("mine", "mine-512"):
        save_file(official, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=r"for 512 or for 1024 pixels.*--resolution"):
        load_transformer(tmp_path / "mine.safetensors")
    assert load_transformer(tmp_path / "mine-512.safetensors").config.budgets == ["0.25M"]
    told = load_transformer(tmp_path / "mine.safetensors", resolution="1024")
    assert told.config.budgets == ["1M"]
    with pytest.raises(ValueError, match="Unknown resolution '720p'; known are 256, 512, 1024"):
        load_transformer(tmp_path / "mine.safetensors", resolution="720p")
    told.save_pretrained(tmp_path / "saved")
    assert load_transformer(tmp_path / "saved").config.budgets == ["1M"]
    with pytest.raises(CheckpointError, match="for 1024 pixels, not 512"):
        load_transformer(tmp_path / "saved", resolution="512")


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The official weights of the golden cases as a folder."""
    folder = tmp_path_factory.mktemp("converted") / "out"
    return stepvar.convert(TRANSFORMER, VAE, None, folder, kind="varedit", resolution="256")


@pytest.mark.golden
def test_a_converted_folder_draws_what_the_official_code_drew(converted):
    """Everything a user does: convert, load, call; every bit is compared, and the picture."""
    from PIL import Image

    case = GOLDEN / "edit_006M_1x1"
    stored = load_file(case / "tensors.safetensors")
    call = json.loads((case / "case.json").read_text())["call"]
    pipeline = stepvar.load(converted)
    assert type(pipeline) is stepvar.VAREditPipeline
    pipeline.set_progress_bar_config(disable=True)
    output = pipeline(
        prompt_embeds=stored["input.kv_compact"][None],
        image=Image.fromarray(stored["input.source_uint8"].numpy()),
        guidance_scale=call["cfg_list"],
        temperature=call["tau_list"],
        top_k=1,
        seed=0,
        output_type="latent",
    )
    for scale, bits in output.report.choices.items():
        expected = tokens_from_latent_bits(stored[f"s{scale:02}.bits"].squeeze(1).bool(), patchify=False)
        assert torch.equal(bits, expected.flatten(1, 2)), scale
    torch.testing.assert_close(output.images, stored["final.summed_codes"], rtol=0, atol=1e-4)


@pytest.mark.golden
@pytest.mark.slow
def test_a_wide_picture_at_one_megapixel_is_what_the_official_code_drew():
    """Patchify, a negative prompt, positions of the largest budget; the official run stops after 7 scales."""
    from PIL import Image

    from stepvar import StepVAR

    case, weights = GOLDEN / "edit_1M_3x4_patchify", GOLDEN / "tiny_d14_patchify"
    stored = load_file(case / "tensors.safetensors")
    info = json.loads((case / "case.json").read_text())
    call, repeat = info["call"], info["source"]["repeat"]
    pipeline = stepvar.load(
        weights / "transformer.safetensors",
        vae=weights / "vae.safetensors",
        kind="varedit",
        resolution="1024",
    )
    pipeline.set_progress_bar_config(disable=True)
    pixels = stored[info["source"]["tensor"]].numpy().repeat(repeat, axis=0).repeat(repeat, axis=1)
    output = pipeline(
        prompt_embeds=stored["input.kv_compact"][None],
        negative_prompt_embeds=stored["input.neg_kv_compact"][None],
        image=Image.fromarray(pixels),
        aspect_ratio=4 / 3,
        guidance_scale=call["cfg_list"],
        temperature=call["tau_list"],
        top_k=1,
        seed=0,
        pruning=StepVAR(skip=tuple(range(call["trunk_scale"] - len(call["scale_schedule"]), 0))),
        output_type="latent",
    )
    assert sorted(output.report.choices) == list(range(call["trunk_scale"]))
    for scale, bits in output.report.choices.items():
        expected = tokens_from_latent_bits(stored[f"s{scale:02}.bits"].squeeze(1).bool(), patchify=True)
        assert torch.equal(bits, expected.flatten(1, 2)), scale


def test_a_canvas_of_another_shape(converted, caplog):
    """The weights know one budget; a wide canvas takes the positions of its own template."""
    pipeline = stepvar.load(converted)
    pipeline.set_progress_bar_config(disable=True)
    text = load_file(GOLDEN / "edit_006M_1x1" / "tensors.safetensors")["input.kv_compact"][None]
    wide = make_source(90, 37)
    output = pipeline(prompt_embeds=text, image=wide, aspect_ratio=2.0, seed=3)
    assert output.images[0].size == wide.size
    assert output.report.settings["width"] == 2 * output.report.settings["height"]
    assert "saw square pictures only" in caplog.text
    told = pipeline.summary(aspect_ratio=2.0)
    assert told.prefix.tokens == told.plan[-1].scale.tokens != pipeline.summary().prefix.tokens
    with pytest.raises(ValueError, match="These weights edit 256x256 pixels, and at 1024x1024"):
        pipeline(prompt_embeds=text, image=wide, pixel_budget="1M")


def test_the_kind_is_asked_for_and_must_fit(converted, tmp_path):
    assert model_of(TRANSFORMER).key == "infinity"
    assert model_of(TRANSFORMER, "varedit").key == "varedit"
    as_infinity = stepvar.load(TRANSFORMER, vae=VAE)
    assert type(as_infinity) is stepvar.InfinityPipeline
    opened = stepvar.load(TRANSFORMER, vae=VAE, kind="varedit", resolution="256")
    assert type(opened) is stepvar.VAREditPipeline
    assert opened.config["temperature"] == 0.1
    with pytest.raises(ValueError, match=r"an Infinity transformer, not VAR's: leave the kind out"):
        stepvar.load(TRANSFORMER, vae=VAE, kind="var")
    with pytest.raises(ValueError, match=r"Unknown kind of model 'vared'; known are infinity, .*varedit"):
        stepvar.convert(TRANSFORMER, VAE, None, tmp_path / "new", kind="vared")
    with pytest.raises(ValueError, match="is a whole pipeline"):
        stepvar.load(converted, kind="varedit")
    with pytest.raises(ValueError, match="which has no resolution: leave it out"):
        stepvar.load(TRANSFORMER, vae=VAE, resolution="256")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_one_is_no_folder_of_the_other(converted):
    with pytest.raises(CheckpointError, match="holds a 'VAREditPipeline', not InfinityPipeline"):
        stepvar.InfinityPipeline.from_pretrained(converted)
