"""HART's checkpoints: published layouts both ways, what is inferred, contradictions, files, conversion."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stepvar.checkpoints.errors import CheckpointError
from stepvar.loading.conversion import convert, model_of
from stepvar.models.common.vq_vae_checkpoints import (
    infer_vae_config,
    vae_from_official,
    vae_to_official,
)
from stepvar.models.hart.checkpoints import (
    check_pair,
    load_transformer,
    load_vae,
    official_format,
)
from stepvar.models.hart.official import TRAINING_MASK, infer_config, to_official
from stepvar.models.hart.pipeline import HARTPipeline
from stepvar.models.hart.transformer import HARTTransformer
from stepvar.models.hart.vae import HARTVAE
from tiny_hart import make_hart, make_language_model, make_tokenizer, make_vae, write_published

GOLDEN = Path(__file__).parents[2] / "golden" / "hart"
CASES = ("t2i_argmax", "t2i_smooth_maskgit", "t2i_adaln_full", "t2i_adaln_shared", "fastvar")


def layout(name: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """What a layout file says, and its state dict on the meta device."""
    content = json.loads((GOLDEN / f"layout_{name}.json").read_text())
    formats = {"float32": torch.float32, "int64": torch.int64}
    state = {
        key: torch.empty(shape, dtype=formats[kind], device="meta")
        for key, (shape, kind) in content["state_dict"].items()
    }
    return content, state


def case_config(name: str) -> dict:
    return json.loads((GOLDEN / name / "case.json").read_text())["transformer_config"]


def shapes(state) -> dict[str, tuple]:
    return {key: (tuple(value.shape), value.dtype) for key, value in state.items()}


@pytest.mark.parametrize("told", [True, False])
def test_the_published_layout_maps_both_ways(told):
    content, state = layout("1024px")
    config = infer_config(state, content["config"] if told else None)
    with torch.device("meta"):
        model = HARTTransformer(**config)
        published = HARTTransformer.published()
    assert shapes(published.state_dict()) == shapes(model.state_dict())
    assert {key: published.config[key] for key in config if key not in ("sides", "hidden_width")} == {
        key: value for key, value in config.items() if key not in ("sides", "hidden_width")
    }
    assert sum(parameter.numel() for parameter in model.parameters()) == content["parameters"]
    head = sum(parameter.numel() for parameter in model.residual_head.parameters())
    assert head == content["diffusion_head_parameters"]
    ours = official_format(content["config"]).from_state(state).state_dict()
    assert shapes(ours) == shapes(model.state_dict())
    assert shapes(to_official(ours, config, training_mask=True)) == shapes(state)


def test_the_published_tokenizer_layout_maps_both_ways():
    content, state = layout("tokenizer")
    state = {key.removeprefix("vae."): value for key, value in state.items() if key.startswith("vae.")}
    used = {key: value for key, value in state.items() if "ema_vocab_hit" not in key}
    config = infer_vae_config(state, "the layout")
    with torch.device("meta"):
        model, default = HARTVAE(**config), HARTVAE()
    assert shapes(model.state_dict()) == shapes(default.state_dict())
    assert sum(parameter.numel() for parameter in model.parameters()) == content["vae_parameters"]
    ours = vae_from_official(state, config)
    assert shapes(ours) == shapes(model.state_dict())
    assert shapes(vae_to_official(ours, config)) == shapes(used)


@pytest.mark.parametrize("name", CASES)
def test_sizes_are_read_off_the_weights(name):
    told = case_config(name)
    state = load_file(GOLDEN / name / "weights_transformer.safetensors")
    alone = infer_config(state)
    assert (alone["depth"], alone["width"]) == (told["depth"], told["embed_dim"])
    assert (alone["context_tokens"], alone["sides"]) == (told["context_token"], told["patch_nums"])
    assert alone["modulation"] == (
        "table" if told["shared_aln"] else "none" if told["disable_aln"] else "block"
    )
    config = infer_config(state, told)
    assert (config["heads"], config["diffusion_steps"]) == (told["num_heads"], told["num_sampling_steps"])
    assert {key for key in config if config[key] != alone[key]} <= {"heads", "pooling", "diffusion_steps"}


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("depth", 4, "depth is 4 there, but the weights have 3"),
        ("embed_dim", 64, "embed_dim is 64"),
        ("mlp_ratio", 9.0, "mlp_ratio is 9"),
        ("use_context_norm", False, "use_context_norm is False there, but the weights have True"),
        ("disable_aln", False, "disable_aln is False"),
        ("attn_l2_norm", True, "attn_l2_norm is True"),
        ("use_timestep_embed", False, "use_timestep_embed is False"),
        ("patch_nums", [1, 2, 4], "make 30 positions, but the weights have 294"),
        ("context_token", 11, "make 295 positions"),
        ("num_heads", 5, "does not divide into 5 heads"),
        ("num_heads", "4", "no positive numbers"),
        ("use_cross_attn", True, "cross attention"),
        ("attn_type", "gpt2", "attn_type 'gpt2'"),
        ("num_sampling_steps", "8,x", "diffusion steps"),
    ],
)
def test_a_configuration_that_contradicts_the_weights_is_refused(field, value, words):
    told = {**case_config("t2i_argmax"), field: value}
    file = GOLDEN / "t2i_argmax" / "weights_transformer.safetensors"
    with pytest.raises(CheckpointError, match=words):
        load_transformer(file, official=told)


def test_other_files_are_called_by_their_names(tmp_path):
    save_file(
        {"word_embed.weight": torch.zeros(2, 2), "class_emb.weight": torch.zeros(2, 2)},
        tmp_path / "v.safetensors",
    )
    with pytest.raises(CheckpointError, match="holds a VAR transformer, not a HART transformer"):
        load_transformer(tmp_path / "v.safetensors")
    with pytest.raises(CheckpointError, match="a HART transformer"):
        load_vae(GOLDEN / "t2i_argmax" / "weights_transformer.safetensors")
    state = load_file(GOLDEN / "t2i_argmax" / "weights_transformer.safetensors")
    state["blocks.0.attn.zero_k_bias"] += 1.0
    save_file(state, tmp_path / "bias.safetensors")
    with pytest.raises(CheckpointError, match="has a key bias"):
        load_transformer(tmp_path / "bias.safetensors", official=case_config("t2i_argmax"))
    del state["head.bias"]
    save_file(state, tmp_path / "short.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing \(head.bias\)"):
        load_transformer(tmp_path / "short.safetensors", official=case_config("t2i_argmax"))


def equal(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(left == right and torch.equal(a, b) for (left, a), (right, b) in pairs)


def test_a_published_folder_loads_with_its_averaged_weights(tmp_path):
    plain, averaged, vae = write_published(tmp_path)
    assert equal(load_transformer(tmp_path / "llm"), averaged)
    assert model_of(tmp_path / "llm").key == "hart"
    assert equal(load_transformer(tmp_path / "llm", averaged=False), plain)
    assert equal(load_transformer(tmp_path / "llm" / "model.safetensors"), plain)
    assert load_transformer(tmp_path / "llm").config.heads == 2
    assert equal(load_vae(tmp_path / "tokenizer"), vae)
    half = load_transformer(tmp_path / "llm", torch.bfloat16)
    assert half.head.weight.dtype == half.compute_dtype == torch.bfloat16
    assert half.text_norm.weight.dtype == half.level_embedding.first.weight.dtype == torch.float32


@pytest.mark.parametrize(("field", "value"), [("quant_resi", 0.3), ("ch", 64), ("quantizer_type", "var")])
def test_a_tokenizer_that_contradicts_its_configuration_is_refused(tmp_path, field, value):
    write_published(tmp_path)
    (tmp_path / "tokenizer" / "config.json").write_text(json.dumps({field: value}))
    with pytest.raises(CheckpointError, match=f"{field} is {value!r} in its configuration"):
        load_vae(tmp_path / "tokenizer")


def test_a_converted_folder_draws_what_the_parts_draw(tmp_path):
    _, averaged, vae = write_published(tmp_path)
    text = tmp_path / "qwen"
    make_language_model().save_pretrained(text)
    make_tokenizer().save_pretrained(text)
    folder = convert(tmp_path / "llm", tmp_path / "tokenizer", text, tmp_path / "out")
    index = json.loads((folder / "model_index.json").read_text())
    assert index["text_encoder"] == ["transformers", "Qwen2Model"]
    assert index["transformer"] == ["stepvar", "HARTTransformer"]
    loaded = HARTPipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    assert equal(loaded.transformer, averaged)
    assert equal(loaded.vae, vae)
    whole = HARTPipeline(averaged, vae, make_language_model(), make_tokenizer())
    ours, theirs = (pipe("a red ring", seed=3, output_type="latent").images for pipe in (loaded, whole))
    # Weights that are mapped from a file lie elsewhere in memory, which changes the rounding.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-2)


def test_parts_that_do_not_belong_together_are_refused(tmp_path):
    write_published(tmp_path)
    narrow = tmp_path / "narrow"
    make_language_model(channels=16).save_pretrained(narrow)
    make_tokenizer().save_pretrained(narrow)
    with pytest.raises(CheckpointError, match="gives 16 channels, but the transformer reads 24"):
        convert(tmp_path / "llm", tmp_path / "tokenizer", narrow, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(CheckpointError, match="draws 40 codes of 4 channels for 4 x 4 pixels"):
        check_pair(make_hart(), make_vae(multipliers=[1, 1]))
    with pytest.raises(CheckpointError, match="refinements for 2 scales"):
        check_pair(make_hart(), make_vae(refinements=2, refine_by_scale=True))


def test_the_training_mask_is_block_causal():
    model = make_hart()
    mask = to_official(model.state_dict(), model.config, training_mask=True)[TRAINING_MASK][0, 0]
    assert mask.shape == (136, 136)
    assert torch.equal(mask[:7].isfinite().sum(1), torch.full((7,), 7))
    assert mask[-1].isfinite().all()
    assert int(mask[7].isfinite().sum()) == 11
