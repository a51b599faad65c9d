"""Published checkpoints: keys and shapes of every size, all file forms, wrong files, wrong pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stepvar.checkpoints.errors import CheckpointError
from stepvar.checkpoints.layouts import mapped_weights
from stepvar.models.infinity.checkpoints import (
    check_pair,
    from_official,
    load_official,
    load_transformer,
    load_vae,
    transformer_from_state,
)
from stepvar.models.infinity.official import infer_config, infer_vae_config, to_official
from stepvar.models.infinity.published import PUBLISHED_SIZES, published_config, published_name
from stepvar.models.infinity.transformer import InfinityTransformer
from stepvar.models.infinity.vae import InfinityVAE, convert_official_state

GOLDEN = Path(__file__).parents[2] / "golden" / "infinity"
TINY = GOLDEN / "tiny_d16"
PUBLISHED = ["125M", "1B", "2B", "8B", "20B"]
KEPT_IN_FLOAT32 = set(InfinityTransformer._keep_in_fp32_modules)


def layout(name: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """What a layout file says about a checkpoint, and its state dict on the meta device."""
    content = json.loads((GOLDEN / f"layout_{name}.json").read_text())
    state = content["state_dict"].items()
    return content["_meta"], {key: torch.empty(shape, device="meta") for key, (shape, _) in state}


def small_transformer(**changes) -> InfinityTransformer:
    """A tiny transformer with random weights everywhere."""
    sizes = {"depth": 4, "width": 64, "heads": 2, "bits": 16, "text_channels": 24, "text_length": 5}
    model = InfinityTransformer(**{**sizes, "pool_heads": 4, "levels": 6, "block_chunks": 2, **changes})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model.eval()


def small_tokenizer(**changes) -> InfinityVAE:
    sizes = {"codebook_dim": 16, "base_channels": 24, "encoder_multipliers": [1, 1, 1, 1, 2]}
    return InfinityVAE(**{**sizes, "decoder_multipliers": [1, 1, 1, 2, 1], "encoder_blocks": 1, **changes})


def official(model: InfinityTransformer) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in to_official(model.state_dict(), model.config).items()}


def assert_same_weights(first: torch.nn.Module, second: torch.nn.Module) -> None:
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert value.dtype == theirs[key].dtype
        assert torch.equal(value, theirs[key]), key


def write_shards(state: dict[str, torch.Tensor], folder: Path, suffix: str) -> Path:
    """A Hugging Face folder of three shards and their index."""
    folder.mkdir()
    base = "model" if suffix == "safetensors" else "pytorch_model"
    places = {}
    for number in range(3):
        name = f"{base}-{number + 1:05}-of-00003.{suffix}"
        shard = dict(list(state.items())[number::3])
        places |= dict.fromkeys(shard, name)
        (save_file if suffix == "safetensors" else torch.save)(shard, folder / name)
    (folder / f"{base}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def write(model: InfinityTransformer, form: str, folder: Path) -> Path:
    """Writes a transformer in one of the forms in which checkpoints are published or saved."""
    state, file = official(model), folder / "model.pth"
    if form == "safetensors":
        file = file.with_suffix(".safetensors")
        save_file(state, file)
    elif form == "training checkpoint":
        trainer = {"config": {"lr": 1.0}, "gpt_fsdp": state, "gpt_fsdp_opt": {"state": {}}}
        torch.save({"args": {"pn": "1M"}, "epoch": 3, "trainer": trainer}, file)
    elif form == "our own folder":
        model.save_pretrained(folder / "own")
        return folder / "own"
    elif form.startswith("shards"):
        return write_shards(state, folder / "shards", form.split(".")[1])
    else:
        torch.save(state, file, _use_new_zipfile_serialization=form == "flat")
    return file


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_layouts_map_both_ways(name):
    facts, state = layout(name)
    config = infer_config(state)
    assert config == published_config(name) == published_config(facts["model_type"].split()[0])
    ours = from_official(state)
    with torch.device("meta"):
        model = InfinityTransformer.published(name)
    expected = model.state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: v.shape for key, v in expected.items()}
    assert sum(parameter.numel() for parameter in model.parameters()) == facts["parameter_count"]
    back = to_official(ours, config)
    assert {key: value.shape for key, value in back.items()} == {key: v.shape for key, v in state.items()}


def test_another_feed_forward_is_read_off_the_weights():
    model = small_transformer(hidden_width=96)
    again = transformer_from_state(to_official(model.state_dict(), model.config))
    assert again.config.hidden_width == 96
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


@pytest.mark.parametrize("name", PUBLISHED_SIZES)
def test_every_registered_size_can_be_built(name):
    with torch.device("meta"):
        model = InfinityTransformer.published(name)
    assert published_name(model.config) == name
    assert infer_config(to_official(model.state_dict(), model.config)) == published_config(name)


def test_unknown_size():
    with pytest.raises(ValueError, match=r"Unknown size '3B'; known are 125M, .*2B"):
        published_config("3B")


@pytest.mark.parametrize("bits", [14, 16, 24, 32, 64])
def test_published_tokenizer_layouts(bits):
    name = "vae_d14_f8" if bits == 14 else f"vae_d{bits}"
    _, state = layout(name)
    with torch.device("meta"):
        model = InfinityVAE(**infer_vae_config(convert_official_state(state)[0]))
        published = InfinityVAE.published(bits)
    assert (model.bits_per_token, model.token_stride) == (56 if bits == 14 else bits, 16)
    assert model.config.patchify == published.config.patchify
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        key: value.shape for key, value in published.state_dict().items()
    }


def test_golden_weights_load():
    model = load_transformer(TINY / "transformer.safetensors")
    config = model.config
    assert (config.depth, config.width, config.heads, config.block_chunks) == (6, 64, 4, 3)
    assert (config.text_channels, config.text_length, config.bits, config.pool_heads) == (256, 16, 16, 2)
    assert (config.tokenizer_type, config.budgets) == ("16", None)
    assert not model.training
    stored = load_file(TINY / "transformer.safetensors")
    back = to_official(model.state_dict(), config)
    assert back.keys() == stored.keys()
    assert all(torch.equal(back[key].float(), value.float()) for key, value in stored.items())
    for key, value in model.state_dict().items():
        kept = not KEPT_IN_FLOAT32.isdisjoint(key.split("."))
        assert value.dtype == (torch.float32 if kept else torch.bfloat16)
    check_pair(model, load_vae(TINY / "vae.safetensors"))


FORMS = ["flat", "legacy", "safetensors", "training checkpoint", "shards.safetensors", "shards.bin"]


@pytest.mark.parametrize("chunks", [1, 2])
@pytest.mark.parametrize("form", [*FORMS, "our own folder"])
def test_every_file_form_gives_identical_tensors(tmp_path, form, chunks):
    model = small_transformer(block_chunks=chunks)
    loaded = load_transformer(write(model, form, tmp_path))
    assert_same_weights(model, loaded)
    assert loaded.config.block_chunks == chunks
    # Weights stay usable for training: mapped, but parameters of their own.
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_our_own_folder_keeps_what_weights_cannot_tell(tmp_path):
    model = small_transformer(grids=[[1, 1], [2, 3]], pixels_per_token=8, tokenizer_type="x")
    loaded = load_transformer(write(model, "our own folder", tmp_path))
    assert loaded.config.grids == [[1, 1], [2, 3]]
    assert (loaded.config.pixels_per_token, loaded.config.tokenizer_type) == (8, "x")


@pytest.mark.parametrize("form", ["flat", "shards.safetensors", "our own folder"])
def test_number_format(tmp_path, form):
    model = small_transformer()
    loaded = load_transformer(write(model, form, tmp_path), dtype=torch.bfloat16)
    for key, value in loaded.state_dict().items():
        kept = not KEPT_IN_FLOAT32.isdisjoint(key.split("."))
        expected = model.state_dict()[key] if kept else model.state_dict()[key].bfloat16()
        assert value.dtype == expected.dtype
        assert torch.equal(value, expected)


def test_budgets_come_from_the_argument_the_name_or_the_size(tmp_path):
    plain, named = tmp_path / "model.pth", tmp_path / "tiny_512x512_weights.pth"
    for file in (plain, named):
        torch.save(official(small_transformer()), file)
    assert load_transformer(plain).config.budgets is None
    assert load_transformer(named).config.budgets == ["0.25M"]
    assert load_transformer(named, budgets=["1M"]).config.budgets == ["1M"]


def test_derived_buffers_and_constant_zeros_may_be_there_or_not():
    model = small_transformer()
    state = official(model)
    state |= {"lvl_1L": torch.zeros(1, 9, dtype=torch.long), "attn_bias_for_masking": torch.zeros(1, 1, 9, 9)}
    bare = {key: value for key, value in official(model).items() if "zero_k_bias" not in key}
    # The authors' own attention kernel stores the scale of the heads along another axis.
    turned = {key: v.transpose(1, 2) if "scale_mul" in key else v for key, v in official(model).items()}
    for variant in (state, bare, turned):
        ours = from_official(variant)
        assert ours.keys() == model.state_dict().keys()
        assert all(torch.equal(ours[key], value) for key, value in model.state_dict().items())
    state["block_chunks.1.module.0.sa.zero_k_bias"][3] = 1.0
    with pytest.raises(CheckpointError, match=r"block_chunks\.1\.module\.0\.sa\.zero_k_bias is not zero"):
        from_official(state)


def test_wrong_keys_and_shapes_are_named_together(tmp_path):
    state = official(small_transformer())
    for key in ("head.bias", "head.weight", "pos_start", "word_embed.bias", "text_norm.weight"):
        del state[key]
    state["surplus"] = torch.zeros(1)
    state["lvl_embed.weight"] = torch.zeros(6, 63)
    state["text_proj_for_ca.0.bias"] = torch.zeros(64, dtype=torch.int8)
    torch.save(state, tmp_path / "broken.pth")
    with pytest.raises(CheckpointError) as caught:
        load_transformer(tmp_path / "broken.pth")
    message = str(caught.value)
    assert "broken.pth' does not fit the model" in message
    assert "5 missing (pos_start, text_norm.weight, word_embed.bias and 2 more)" in message
    assert "1 unexpected (surplus)" in message
    assert "1 of another shape (lvl_embed.weight is [6, 63] instead of [6, 64])" in message
    assert "text_proj_for_ca.0.bias is torch.int8" in message


@pytest.mark.parametrize(
    "key", ["cfg_uncond", "lvl_embed.weight", "block_chunks.0.module.0.sa.scale_mul_1H11"]
)
def test_keys_that_the_size_is_read_from(key):
    state = official(small_transformer())
    del state[key]
    with pytest.raises(CheckpointError, match=f"{key} is missing"):
        infer_config(state)
    with pytest.raises(CheckpointError, match=rf"{key} is \[3\]"):
        infer_config({**state, key: torch.zeros(3)})


def test_a_lost_block_is_noticed():
    state = {key: value for key, value in official(small_transformer()).items() if ".1.module.1." not in key}
    with pytest.raises(CheckpointError, match="3 blocks in 2 chunks"):
        infer_config(state)


@pytest.mark.parametrize("length", [3, 5, 9])
def test_unconditional_text_of_another_length(length):
    state, model = official(small_transformer(text_length=length)), small_transformer()
    own = model.unconditional_text.detach().clone()
    load_official(model, state)
    shared = min(length, 5)
    assert torch.equal(model.unconditional_text[:shared], state["cfg_uncond"][:shared])
    assert torch.equal(model.unconditional_text[shared:], own[shared:])
    assert torch.equal(model.head.weight, state["head.weight"])


def test_load_official_refuses_another_size():
    with pytest.raises(CheckpointError, match="of another shape"):
        load_official(small_transformer(), official(small_transformer(width=128)))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (("word_embed.weight", "class_emb.weight"), "holds a VAR transformer, not an Infinity transformer"),
        (("word_embed.weight", "context_embed.weight"), "a HART transformer"),
        (("word_embed.weight", "text_pooler.weight"), "a Switti transformer"),
        (("cfg_uncond", "sos_token", "text_proj.weight"), "an InfinityStar transformer"),
        (("shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"), "a T5 text encoder"),
        (("what.ever",), r"nothing that stepvar knows \(its first keys are what.ever\)"),
    ],
)
def test_other_architectures_are_named(tmp_path, keys, words):
    torch.save({key: torch.zeros(1) for key in keys}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=words):
        load_transformer(tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="not a visual tokenizer"):
        load_vae(tmp_path / "other.pth")


def test_transformer_and_tokenizer_mixed_up(tmp_path):
    model, tokenizer = small_transformer(), small_tokenizer()
    flat, training, vae = (tmp_path / name for name in ("flat.pth", "training.pth", "vae.pth"))
    torch.save(official(model), flat)
    torch.save({"trainer": {"gpt_fsdp": official(model)}}, training)
    torch.save({"vae": tokenizer.state_dict()}, vae)
    with pytest.raises(CheckpointError, match=r"holds a visual tokenizer .*load it with load_vae"):
        load_transformer(vae)
    for file in (flat, training):
        with pytest.raises(
            CheckpointError, match=r"holds an Infinity transformer.*load it with load_transformer"
        ):
            load_vae(file)
    model.save_pretrained(tmp_path / "own")
    with pytest.raises(CheckpointError, match=r"the folder with its config\.json"):
        load_transformer(tmp_path / "own" / "diffusion_pytorch_model.safetensors")


def plain_spelling(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Keys without the wrappers around convolutions and norms: the other spelling of published files."""
    inner = {
        ".conv.weight": ".weight",
        ".conv.bias": ".bias",
        ".norm.weight": ".weight",
        ".norm.bias": ".bias",
    }

    def plain(key: str) -> str:
        ending = next((ending for ending in inner if key.endswith(ending)), None)
        return key if ending is None else key.removesuffix(ending) + inner[ending]

    return {plain(key): value for key, value in state.items()}


@pytest.mark.parametrize("form", ["vae", "vae plain", "flat", "flat plain", "training", "own"])
def test_tokenizer_file_forms(tmp_path, form):
    tokenizer, file = small_tokenizer(), tmp_path / "vae.pth"
    state = {**tokenizer.state_dict(), "quantizer.lfq.mask": torch.arange(16)}
    state = plain_spelling(state) if "plain" in form else state
    if form == "own":
        tokenizer.save_pretrained(tmp_path / "own")
        file = tmp_path / "own"
    elif form == "training":
        torch.save({"trainer": {"vae_local": state, "gpt_fsdp": {}}}, file)
    else:
        torch.save({"vae": state, "ema": {}} if "vae" in form else state, file)
    loaded = load_vae(file, vae_type=16)
    assert_same_weights(tokenizer, loaded)
    assert (loaded.stride, loaded.config.decoder_multipliers) == (16, [1, 1, 1, 2, 1])
    assert (loaded.config.encoder_blocks, loaded.config.decoder_blocks) == (1, 3)
    with pytest.raises(CheckpointError, match="16 bits per latent position, but vae_type 32"):
        load_vae(file, vae_type=32)


def test_damaged_tokenizer(tmp_path):
    for key, words in {
        "encoder.conv_in.conv.bias": "1 missing",
        "encoder.down.1.block.0.conv1.conv.weight": "is missing",
        "decoder.up.0.upsample.conv.conv.weight": "1 unexpected",
        "encoder.down.99999999999999.block.7.conv1.conv.weight": "is missing",
    }.items():
        state = small_tokenizer().state_dict()
        if state.pop(key, None) is None:
            state[key] = torch.zeros(1)
        torch.save({"vae": state}, tmp_path / "vae.pth")
        with pytest.raises(CheckpointError, match=words):
            load_vae(tmp_path / "vae.pth")


def test_wrong_pairs_are_refused_in_words():
    check_pair(small_transformer(), small_tokenizer())
    with pytest.raises(
        CheckpointError, match=r"draws 32 bits per token of 16 x 16 pixels.*has 16.*vae_type 32"
    ):
        check_pair(small_transformer(bits=32, tokenizer_type="32"), small_tokenizer())
    with pytest.raises(CheckpointError, match=r"8 x 8 pixels, but the tokenizer has 16 bits .* 16 x 16"):
        check_pair(small_transformer(pixels_per_token=8), small_tokenizer())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_official_files_that_are_not_finite_are_named(tmp_path, value, suffix):
    """Copied, converted to another number format, and left mapped as a conversion leaves them."""
    states = {"transformer": official(small_transformer()), "vae": dict(small_tokenizer().state_dict())}
    for part, load in (("transformer", load_transformer), ("vae", load_vae)):
        name = next(key for key, weight in states[part].items() if weight.numel() > 100)
        states[part][name].view(-1)[-1] = value
        file = tmp_path / f"{part}{suffix}"
        (torch.save if suffix == ".pth" else save_file)(states[part], file)
        for dtype in (None, torch.bfloat16):
            with pytest.raises(CheckpointError, match=r"The weight .* is (NaN|infinite) in places"):
                load(file, dtype=dtype)
            with (
                pytest.raises(CheckpointError, match=r"The weight .* is (NaN|infinite) in places"),
                mapped_weights(),
            ):
                load(file, dtype=dtype)
