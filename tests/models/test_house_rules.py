"""What a user of diffusers types, on every pipeline: it works, or is refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from stepvar.checkpoints import publishing
from stepvar.checkpoints.errors import CheckpointError
from tiny_pipelines import MAKERS, needed

NAMES = [name for name in MAKERS if name != "causal switti"]
TEXT_MODELS = [name for name in NAMES if name != "var"]
each_model = pytest.mark.parametrize("name", NAMES)


def fresh(name: str) -> Any:
    pipeline = MAKERS[name][0]()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: Any, name: str, subject: Any = None, **options: Any) -> Any:
    """The output of one picture, or of a video of one frame."""
    subject = MAKERS[name][1][0] if subject is None else subject
    return pipeline(subject, **{"seed": 3, **needed(pipeline), **options})


def latent_of(pipeline: Any, name: str, **options: Any) -> Tensor:
    output = draw(pipeline, name, output_type="latent", **options)
    return output.frames if pipeline.draws_videos else output.images


@each_model
@torch.no_grad()
def test_a_vae_decodes_as_in_diffusers(name):
    pipeline = fresh(name)
    vae, latent = pipeline.vae, latent_of(pipeline, name)
    pixels = vae.decode(latent).sample
    assert torch.equal(vae.decode(latent, return_dict=False)[0], pixels)
    assert torch.equal(vae.decode_pixels(latent), pixels)
    with pytest.raises(TypeError, match="is not called as a whole"):
        vae(pixels)


@each_model
@torch.no_grad()
def test_a_vae_is_tiled_and_sliced_by_itself_or_by_its_pipeline(name, monkeypatch):
    pipeline, parts = fresh(name), []
    vae, latent = pipeline.vae, latent_of(pipeline, name).repeat_interleave(2, dim=0)
    expected, decode = vae.decode(latent).sample, vae.decode_pixels

    def recorded(part: Tensor, **options: Any) -> Tensor:
        parts.append((len(part), options.get("in_strips", False)))
        return decode(part, **options)

    monkeypatch.setattr(vae, "decode_pixels", recorded)
    for part, seen in (("slicing", [(1, False)] * 2), ("tiling", [(1, True)] * 2)):
        for owner, ending in ((vae, part), (pipeline, f"vae_{part}")):
            getattr(owner, f"enable_{ending}")()
            assert (vae.decode(latent).sample - expected).abs().max() <= 2 / 255
            getattr(owner, f"disable_{ending}")()
            assert parts == seen, ending
            parts.clear()
    assert torch.equal(vae.decode(latent).sample, expected)


@each_model
@pytest.mark.parametrize(
    ("returned", "words"),
    [(5, "returned a int"), ({"latents": torch.zeros(1)}, r"latents of \[1\]"), ({"latents": 1}, "of int")],
)
def test_what_a_callback_returns_is_checked(name, returned, words):
    with pytest.raises(ValueError, match=words):
        draw(fresh(name), name, callback_on_step_end=lambda *_: returned)


@each_model
def test_arguments_of_another_kind_are_refused(name):
    pipeline = fresh(name)
    with pytest.raises(ValueError, match=r"generator takes a torch\.Generator"):
        draw(pipeline, name, seed=None, generator=3)
    with pytest.raises(ValueError, match=r"was given|is empty"):
        pipeline(None)
    with pytest.raises(ValueError, match="There is no adapter 'x'; loaded are none"):
        pipeline.transformer.set_adapters("x")
    with pytest.raises(ValueError, match="xFormers is not used"):
        pipeline.transformer.enable_xformers_memory_efficient_attention()
    with pytest.raises(ValueError, match=r"stepvar\.load\(file\) opens"):
        type(pipeline).from_single_file("model.safetensors")
    with pytest.raises(TypeError, match="is not called as a whole"):
        pipeline.transformer(torch.zeros(1, 2))


@each_model
def test_a_callback_of_diffusers_sees_what_a_call_does(name):
    pipeline, seen = fresh(name), []

    def look(pipe: Any, step: int, timestep: int, tensors: dict) -> dict:
        seen.append((pipe.num_timesteps, pipe.do_classifier_free_guidance))
        return tensors

    report = draw(pipeline, name, guidance_scale=1, callback_on_step_end=look).report
    assert set(seen) == {(len(report.scales), False)}
    draw(pipeline, name, guidance_scale=2)
    assert pipeline.do_classifier_free_guidance


@each_model
def test_a_backend_that_diffusers_uses_for_a_while_acts_and_is_named(name):
    pipeline = fresh(name)
    expected = latent_of(pipeline, name)
    context = getattr(diffusers, "attention_backend", None) or diffusers.models.attention_backend
    with context("_native_math"):
        assert "_native_math" in pipeline.summary().backend
        assert torch.allclose(latent_of(pipeline, name), expected, atol=1e-3)
    assert "scaled_dot_product" in pipeline.summary().backend
    assert torch.equal(latent_of(pipeline, name), expected)


@each_model
def test_float8_storage_may_compute_in_another_format_than_the_model_had(name):
    pipeline = fresh(name)
    pipeline.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)
    assert pipeline.transformer.compute_dtype == torch.bfloat16
    assert torch.isfinite(latent_of(pipeline, name)).all()


@each_model
def test_options_of_saving_reach_every_part(name, tmp_path):
    pipeline = fresh(name)
    pipeline.save_pretrained(tmp_path, variant="fp16", max_shard_size="30KB")
    for part in ("transformer", "vae"):
        files = [file.name for file in (tmp_path / part).glob("*.safetensors")]
        assert len(files) > 1 and all(".fp16-" in file for file in files)
    again = type(pipeline).from_pretrained(tmp_path, variant="fp16")
    assert torch.equal(latent_of(again, name), latent_of(pipeline, name))


@each_model
def test_a_device_map_places_parts_or_is_refused_without_blaming_the_folder(name, tmp_path):
    pipeline = fresh(name)
    pipeline.save_pretrained(tmp_path)
    placed = type(pipeline).from_pretrained(tmp_path, device_map="cpu")
    placed.set_progress_bar_config(disable=True)
    assert torch.equal(latent_of(placed, name), latent_of(pipeline, name))
    assert placed.hf_device_map == "cpu"
    for place, words in (
        ("nowhere", "device_map is 'nowhere'; this machine knows"),
        ({"transformer": "cpu"}, "this machine knows"),
        ("balanced", "shares the parts among GPUs"),
    ):
        if place == "balanced" and torch.cuda.is_available():
            continue
        with pytest.raises(ValueError, match=words) as caught:
            type(pipeline).from_pretrained(tmp_path, device_map=place)
        assert not isinstance(caught.value, CheckpointError)


@each_model
def test_loading_refuses_what_would_do_nothing_and_blames_the_argument(name, tmp_path):
    pipeline = fresh(name)
    pipeline.save_pretrained(tmp_path)
    for words, options in (
        ("dtype names 'unet'; known are", {"torch_dtype": {"unet": torch.bfloat16}}),
        ("pass a torch.dtype", {"dtype": {"transformer": "auto"}}),
        ("max_memory says how device_map", {"max_memory": {0: "1GB"}}),
        ("cannot be without its vae", {"vae": None}),
        ("cannot be without its transformer", {"transformer": None}),
        ("has no argument scheduler", {"scheduler": None}),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            type(pipeline).from_pretrained(tmp_path, **options)
        assert not isinstance(caught.value, CheckpointError)
    mixed = {"transformer": torch.bfloat16, "default": torch.float32}
    again = type(pipeline).from_pretrained(tmp_path, torch_dtype=mixed)
    assert (again.transformer.dtype, again.vae.dtype) == (torch.bfloat16, torch.float32)
    assert torch.isfinite(latent_of(again, name)).all()


@each_model
def test_a_dry_run_shows_what_a_push_would_send(name, monkeypatch):
    monkeypatch.setattr(publishing, "create_repo", lambda *_, **__: pytest.fail("the hub was asked"))
    preview = fresh(name).push_to_hub("you/model", dry_run=True)
    assert {"README.md", "model_index.json", "pipeline.py"} <= preview.files.keys()
    assert all(size > 0 for size in preview.files.values())
    assert "library_name: stepvar" in preview.card
    assert "you/model" in str(preview) and "base_model" in str(preview)
    with pytest.raises(ValueError, match="'a/b/c' cannot be the name of a repository"):
        fresh(name).push_to_hub("a/b/c", dry_run=True)


@pytest.fixture
def hub(monkeypatch):
    """Collects what is sent; "you/carded" has a card already."""
    sent: dict[str, dict[str, str]] = {}

    class Created:
        def __init__(self, repo_id: str, **_: Any) -> None:
            self.repo_id = repo_id

    def upload_folder(repo_id: str, folder_path: Path, **_: Any) -> str:
        texts = ("README.md", "model_index.json", "pipeline.py")
        sent[repo_id] = {name: (Path(folder_path) / name).read_text("utf-8") for name in texts}
        return f"https://hub/{repo_id}"

    def card(repository: str, token: str | None = None) -> Any:
        if repository != "you/carded":
            raise publishing.EntryNotFoundError("no card")
        return diffusers.utils.hub_utils.ModelCard("---\nlicense: mit\n---\nmine")

    monkeypatch.setattr(publishing, "create_repo", Created)
    monkeypatch.setattr(publishing, "upload_folder", upload_folder)
    monkeypatch.setattr(publishing.ModelCard, "load", card)
    return sent


@pytest.mark.parametrize("name", ["infinity", "var"])
def test_a_push_sends_the_finished_folder(name, hub, tmp_path):
    pipeline = fresh(name)
    assert pipeline.push_to_hub("you/new").endswith("you/new")
    pipeline.push_to_hub("you/carded")
    pipeline.save_pretrained(tmp_path / "mine", push_to_hub=True, repo_id="you/saved")
    assert hub.keys() == {"you/new", "you/carded", "you/saved"}
    for repository, files in hub.items():
        assert json.loads(files["model_index.json"])["transformer"][0] == "stepvar"
        assert type(pipeline).__name__ in files["pipeline.py"]
        assert ("mine" if repository == "you/carded" else "library_name: stepvar") in files["README.md"]
    with pytest.raises(ValueError, match="cannot be the name"):
        pipeline.save_pretrained(tmp_path / "other", push_to_hub=True, repo_id="a b")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_a_new_word_is_read_and_saved(name, tmp_path):
    pipeline = fresh(name)
    plain = latent_of(pipeline, name)
    sizes = {}
    for ending in ("", "_2") if name == "switti" else ("",):
        parts = {part: getattr(pipeline, f"{part}{ending}") for part in ("tokenizer", "text_encoder")}
        width = parts["text_encoder"].get_input_embeddings().weight.shape[1]
        sizes[ending] = width
        pipeline.load_textual_inversion({"heart": torch.ones(width)}, **parts)
    assert torch.equal(latent_of(pipeline, name), plain)
    drawn = draw(pipeline, name, "a red heart", output_type="latent")
    pipeline.save_pretrained(tmp_path)
    again = type(pipeline).from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    found = draw(again, name, "a red heart", output_type="latent")
    field = "frames" if pipeline.draws_videos else "images"
    assert torch.equal(getattr(found, field), getattr(drawn, field))
    with pytest.raises(ValueError, match="already in tokenizer vocabulary"):
        pipeline.load_textual_inversion({"heart": torch.ones(sizes[""])})


def test_a_pipeline_of_classes_takes_no_words():
    with pytest.raises(ValueError, match="has no text encoder"):
        fresh("var").load_textual_inversion({"heart": torch.ones(4)})
