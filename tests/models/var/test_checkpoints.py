"""VAR's checkpoints: every published layout, all file forms, wrong files, and conversion."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stepvar import VARPipeline, convert
from stepvar.checkpoints.errors import CheckpointError
from stepvar.models.common.vq_vae_checkpoints import vae_to_official
from stepvar.models.var.checkpoints import FORMAT, load_transformer, read_labels
from stepvar.models.var.official import DERIVED, infer_config, published_config, rename, to_official
from stepvar.models.var.transformer import VARTransformer
from tiny_var import CLASSES, make_var, make_vq_vae

GOLDEN = Path(__file__).parents[2] / "golden" / "var"
NAMES = [f"class {number}" for number in range(CLASSES)]


def official(model: VARTransformer) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in to_official(model.state_dict(), model.config).items()}


def assert_same_weights(first: torch.nn.Module, second: torch.nn.Module) -> None:
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert torch.equal(value, theirs[key]), key


@pytest.mark.parametrize("name", ["d16", "d20", "d24", "d30", "d36"])
def test_published_layouts_map_both_ways(name):
    layout = json.loads((GOLDEN / f"layout_{name}.json").read_text())
    state = {key: torch.empty(shape, device="meta") for key, (shape, _) in layout["state_dict"].items()}
    config = infer_config(state)
    published = published_config(name)
    assert config["sides"] == list(published.pop("sides"))
    assert all(config[key] == value for key, value in published.items())
    with torch.device("meta"):
        model = VARTransformer.published(name)
    own = model.state_dict()
    ours = rename(state, config, "the layout")
    assert {key: value.shape for key, value in ours.items()} == {key: v.shape for key, v in own.items()}
    assert sum(parameter.numel() for parameter in model.parameters()) == layout["parameters"]
    back = to_official(ours, model.config)
    kept = {key: value.shape for key, value in state.items() if key != "attn_bias_for_masking"}
    assert {key: value.shape for key, value in back.items()} == kept


@pytest.mark.parametrize("form", ["safetensors", "pth", "training checkpoint", "our own folder"])
@pytest.mark.parametrize("shares_modulation", [True, False])
def test_every_file_form_loads(tmp_path, form, shares_modulation):
    model = make_var(shares_modulation=shares_modulation)
    state, path = official(model), tmp_path / "var.pth"
    state["attn_bias_for_masking"] = torch.zeros(1, 1, 2, 2)
    if form == "safetensors":
        path = path.with_suffix(".safetensors")
        save_file(state, path)
    elif form == "training checkpoint":
        torch.save({"epoch": 1, "trainer": {"var_wo_ddp": state, "vae_local": {}}}, path)
    elif form == "our own folder":
        path = tmp_path / "own"
        model.save_pretrained(path)
    else:
        torch.save(state, path)
    loaded = load_transformer(path)
    assert list(loaded.config.sides) == list(model.config.sides)
    assert_same_weights(loaded, model)


def test_number_formats(tmp_path):
    save_file(official(make_var()), tmp_path / "var.safetensors")
    loaded = load_transformer(tmp_path / "var.safetensors", torch.bfloat16)
    assert loaded.compute_dtype == torch.bfloat16
    kept = set(VARTransformer._keep_in_fp32_modules)
    for name, value in loaded.named_parameters():
        assert value.dtype == (torch.float32 if kept & set(name.split(".")) else torch.bfloat16)


def test_zeros_that_were_not_stored_make_no_difference():
    state = {key: value for key, value in official(make_var()).items() if "zero_k_bias" not in key}
    assert_same_weights(FORMAT.from_state(state), make_var())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("blocks.1.attn.q_bias"), r"1 missing \(blocks.1.attn.q_bias\)"),
        (lambda state: state.update(extra=torch.zeros(1)), r"1 unexpected \(extra\)"),
        (lambda state: state.update({"head.bias": torch.zeros(3)}), r"head.bias is \[3\] instead of \[40\]"),
        (lambda state: state["blocks.0.attn.zero_k_bias"].add_(1), r"has a key bias .*VAR has not"),
        (lambda state: state["lvl_1L"].fill_(10**12), r"lvl_1L names no schedule"),
        (lambda state: state.pop("lvl_1L"), r"does not say its schedule: 6 scales with 139 tokens"),
        (lambda state: state.pop("word_embed.weight"), r"holds nothing that stepvar knows"),
        (lambda state: state.pop("pos_1LC"), r"pos_1LC is missing"),
    ],
)
def test_a_damaged_state_dict_is_refused_in_words(change, words):
    state = official(make_var())
    change(state)
    with pytest.raises(CheckpointError, match=words):
        FORMAT.from_state(state)


def test_another_architecture_is_named():
    state = {"word_embed.weight": torch.zeros(2, 2), "text_pooler.weight": torch.zeros(2, 2)}
    with pytest.raises(CheckpointError, match="holds a Switti transformer, not a VAR transformer"):
        FORMAT.from_state(state)


@pytest.fixture
def files(tmp_path):
    """Official files of a tiny transformer and its tokenizer."""
    tokenizer = make_vq_vae()
    transformer = make_var(pixels_per_token=16)
    torch.save(official(transformer), tmp_path / "var.pth")
    tokenizer = make_vq_vae(multipliers=(1, 1, 1, 1, 1))
    state = vae_to_official(tokenizer.state_dict(), tokenizer.config)
    state["quantize.ema_vocab_hit_SV"] = torch.zeros(6, 40)
    torch.save(state, tmp_path / "vae.pth")
    return tmp_path / "var.pth", tmp_path / "vae.pth"


def test_conversion_tells_the_model_from_the_weights(files, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    folder = convert(*files, None, tmp_path / "out", labels=tmp_path / "names.txt")
    pipeline = VARPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.classes("class 4") == [4]
    assert_same_weights(pipeline.transformer, make_var(pixels_per_token=16))
    by_name = pipeline("class 4", seed=1, output_type="np").images
    assert by_name.shape == (1, 128, 128, 3)
    assert (by_name == pipeline(4, seed=1, output_type="np").images).all()


def test_conversion_changes_the_number_format(files, tmp_path):
    folder = convert(*files, None, tmp_path / "out", torch.bfloat16)
    stored = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    assert stored["head.weight"].dtype == torch.bfloat16
    assert stored["position_embedding"].dtype == torch.float32


def test_a_converted_folder_converts_again(files, tmp_path):
    first = convert(*files, None, tmp_path / "first")
    second = convert(first / "transformer", first / "vae", None, tmp_path / "second")
    assert_same_weights(load_transformer(second / "transformer"), load_transformer(first / "transformer"))


def test_a_wrong_conversion_leaves_nothing_behind(files, tmp_path):
    save_file(
        vae_to_official(make_vq_vae().state_dict(), make_vq_vae().config),
        tmp_path / "other.safetensors",
    )
    (tmp_path / "two.txt").write_text("cat\ndog\n")
    with pytest.raises(CheckpointError, match=r"draws 40 codes of 8 channels for 16 x 16 pixels, but the"):
        convert(files[0], tmp_path / "other.safetensors", None, tmp_path / "out")
    with pytest.raises(CheckpointError, match="VAR reads no text: leave the text encoder out"):
        convert(*files, tmp_path, tmp_path / "out")
    with pytest.raises(CheckpointError, match="does not name the 6 classes"):
        convert(*files, None, tmp_path / "out", labels=tmp_path / "two.txt")
    with pytest.raises(CheckpointError, match="tokenizer of the VAR family; a transformer is needed"):
        convert(files[1], files[0], None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content",
    ["\n".join(NAMES), json.dumps(NAMES), json.dumps({str(i): name for i, name in enumerate(NAMES)})],
)
def test_label_files(tmp_path, content):
    (tmp_path / "labels").write_text(content)
    assert read_labels(tmp_path / "labels", CLASSES) == NAMES


@pytest.mark.parametrize("content", ["", "[]", "{}", "[1, 2, 3, 4, 5, 6]", '{"7": "x"}', "7"])
def test_label_files_that_name_something_else_are_refused(tmp_path, content):
    (tmp_path / "labels").write_text(content)
    with pytest.raises(CheckpointError, match="does not name the 6 classes"):
        read_labels(tmp_path / "labels", CLASSES)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_labels(tmp_path / "missing", CLASSES)


def test_buffers_that_follow_from_the_schedule_are_not_kept():
    assert not DERIVED & make_var().state_dict().keys()
