"""`from_official`: objects with the official parameter names become pipelines that share their weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import stepvar
import tiny_hart
import tiny_models
import tiny_star
import tiny_switti
import tiny_var
from stepvar.checkpoints.errors import CheckpointError
from stepvar.models.common.vq_vae_checkpoints import vae_to_official


class StandIn(nn.Module):
    """An object of the official code: its parameter names, and attributes that weights do not tell."""

    def __init__(self, state: dict[str, torch.Tensor], **attributes: object) -> None:
        super().__init__()
        for name, tensor in state.items():
            *path, leaf = name.split(".")
            place: nn.Module = self
            for part in path:
                if part not in dict(place.named_children()):
                    place.add_module(part, nn.Module())
                place = place.get_submodule(part)
            if tensor.is_floating_point():
                place.register_parameter(leaf, nn.Parameter(tensor.clone()))
            else:
                place.register_buffer(leaf, tensor.clone())
        for name, value in attributes.items():
            setattr(self, name, value)


class Configuration(dict):
    """A configuration of transformers."""

    def to_dict(self) -> dict[str, object]:
        return dict(self)


def pixels(pipeline, prompt: object = None, **options: object) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(prompt, seed=3, output_type="pt", **options).images


def storages(module: nn.Module) -> set[int]:
    return {value.untyped_storage().data_ptr() for value in module.state_dict().values()}


def make_var() -> tuple:
    from stepvar.models.var.official import to_official

    pipeline = tiny_var.make_var_pipeline()
    config = pipeline.transformer.config
    model = StandIn(to_official(pipeline.transformer.state_dict(), config), num_heads=config.heads)
    return model, StandIn(vae_to_official(pipeline.vae.state_dict(), pipeline.vae.config)), pipeline, 2


def make_switti() -> tuple:
    from stepvar.models.switti.official import to_official

    pipeline = tiny_switti.make_switti_pipeline()
    config = pipeline.transformer.config
    attributes = {
        "use_ar": config.causal,
        "rope_theta": config.rotary_theta,
        "rope_size": config.rotary_extent,
        "num_heads": config.heads,
    }
    model = StandIn(to_official(pipeline.transformer.state_dict(), config), **attributes)
    vae = StandIn(vae_to_official(pipeline.vae.state_dict(), pipeline.vae.config))
    return model, vae, pipeline, "a red ring"


def make_hart() -> tuple:
    from stepvar.models.hart.official import to_official

    pipeline = tiny_hart.make_pipeline()
    config = pipeline.transformer.config
    told = Configuration(
        num_heads=config.heads,
        context_token=config.context_tokens,
        patch_nums=list(config.sides),
        norm_eps=config.eps,
        num_sampling_steps=config.diffusion_steps,
        sep_aln_pooling_mode={"mean": "avg"}.get(config.pooling, config.pooling),
    )
    model = StandIn(to_official(pipeline.transformer.state_dict(), config), config=told)
    vae = vae_to_official(pipeline.vae.state_dict(), pipeline.vae.config)
    return model, StandIn({f"vae.{key}": value for key, value in vae.items()}), pipeline, "a red ring"


MAKERS = {"var": make_var, "switti": make_switti, "hart": make_hart}


def texts(pipeline) -> dict[str, object]:
    """The text parts of a pipeline as `from_official` takes them."""
    found = {}
    for name in ("text_encoder", "tokenizer"):
        parts = [getattr(pipeline, name + suffix, None) for suffix in ("", "_2")]
        parts = [part for part in parts if part is not None]
        if parts:
            found[name] = parts if len(parts) > 1 else parts[0]
    return found


@pytest.mark.parametrize("key", MAKERS)
def test_a_pipeline_on_official_objects_draws_what_ours_does(key):
    model, vae, pipeline, prompt = MAKERS[key]()
    settings = {
        name: pipeline.config[name] for name in ("top_k", "top_p", "smooth") if name in pipeline.config
    }
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = stepvar.from_official(model, vae, **texts(pipeline), **settings)
    assert torch.equal(pixels(made, prompt), pixels(pipeline, prompt))
    # Nothing was copied, and the official objects are as they were.
    assert storages(made.transformer) <= storages(model)
    assert storages(made.vae) <= storages(vae)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("layout", ["published", "without zeros", "trained"])
def test_infinity_in_every_layout(chunks, layout):
    from stepvar.models.infinity.official import to_official
    from stepvar.models.infinity.vae import InfinityVAE

    visual = InfinityVAE(
        codebook_dim=16, base_channels=24, encoder_multipliers=(1, 1, 2), decoder_multipliers=(1, 1, 2)
    )
    sizes = {"bits": 16, "pixels_per_token": visual.token_stride, "grids": [[1, 1], [2, 2], [4, 4]]}
    transformer = tiny_models.make_transformer(block_chunks=chunks, **sizes)
    state = to_official(transformer.state_dict(), transformer.config)
    if layout == "without zeros":
        state = {key: value for key, value in state.items() if "zero_k_bias" not in key}
    if layout == "trained":
        # The authors' own attention kernel stores the scales of heads in another shape.
        state = {
            key: value.transpose(1, 2) if key.endswith("scale_mul_1H11") else value
            for key, value in state.items()
        }
    model, vae = StandIn(state), StandIn(visual.state_dict())
    made = stepvar.from_official(model, vae, grids=sizes["grids"])
    assert storages(made.transformer) <= storages(model)
    for name, value in transformer.state_dict().items():
        assert torch.equal(made.transformer.state_dict()[name], value)
    text = torch.randn(5, transformer.config.text_channels, generator=torch.Generator().manual_seed(0))
    ours = stepvar.InfinityPipeline(transformer, visual.eval())
    call = {"prompt": None, "prompt_embeds": [text], "guidance_scale": 1}
    assert torch.equal(pixels(made, **call), pixels(ours, **call))


def test_what_training_changes_is_what_is_drawn_with():
    model, vae, _pipeline, prompt = make_var()
    made = stepvar.from_official(model, vae)
    before = pixels(made, prompt)
    with torch.no_grad():
        model.head.weight.mul_(-3.0)
    assert not torch.equal(pixels(made, prompt), before)


def test_infinitystar_takes_the_resolution_as_an_option():
    from stepvar.models.infinitystar.official import to_official, vae_to_official

    pipeline = tiny_star.make_star_pipeline()
    state = to_official(pipeline.transformer.state_dict(), pipeline.transformer.config)
    model, vae = StandIn(state), StandIn(vae_to_official(pipeline.vae.state_dict()))
    with pytest.raises(ValueError, match="Unknown resolution"):
        stepvar.from_official(model, vae, resolution="4k")
    made = stepvar.from_official(model, vae, resolution="720p")
    assert made.transformer.config.resolution == "720p"
    assert storages(made.transformer) <= storages(model)


def test_varedit_is_asked_for_and_its_object_tells_its_size():
    weights = Path(__file__).parents[1] / "golden" / "varedit" / "tiny_d16"
    state = load_file(weights / "transformer.safetensors")
    model, vae = StandIn(state, pn="0.06M"), StandIn(load_file(weights / "vae.safetensors"))
    assert type(stepvar.from_official(model, vae)) is stepvar.InfinityPipeline
    made = stepvar.from_official(model, vae, kind="varedit")
    assert type(made) is stepvar.VAREditPipeline
    assert made.transformer.config.budgets == ["0.06M"]
    assert storages(made.transformer) <= storages(model)
    with pytest.raises(CheckpointError, match="may have been trained for 512 or for 1024 pixels"):
        stepvar.from_official(StandIn(state), vae, kind="varedit")
    told = stepvar.from_official(StandIn(state), vae, kind="varedit", resolution="512")
    assert told.transformer.config.budgets == ["0.25M"]
    own = stepvar.from_official(StandIn(state), vae, kind="varedit", grids=[[1, 1], [2, 2], [4, 4]])
    assert own.summary().prefix.tokens == 16
    with pytest.raises(ValueError, match="an Infinity transformer, not HART's"):
        stepvar.from_official(model, vae, kind="hart")


@pytest.mark.parametrize("wrapper", ["ddp", "compile", "fsdp"])
def test_wrapped_objects(wrapper):
    model, vae, pipeline, prompt = make_var()
    if wrapper == "compile":
        wrapped = torch.compile(model, backend="eager")
    else:
        name = {"ddp": "module", "fsdp": "_fsdp_wrapped_module"}[wrapper]
        wrapped = nn.Module()
        wrapped.add_module(name, model)
    settings = {name: pipeline.config[name] for name in ("top_k", "top_p", "smooth")}
    made = stepvar.from_official(wrapped, vae, **settings)
    assert torch.equal(pixels(made, prompt), pixels(pipeline, prompt))


def test_objects_that_are_none():
    model, vae, _pipeline, _prompt = make_var()
    with pytest.raises(CheckpointError, match="a transformer is needed"):
        stepvar.from_official(vae, model)
    with pytest.raises(CheckpointError, match="pass an object of the official code"):
        stepvar.from_official("var_d16.pth", vae)
    with pytest.raises(ValueError, match="VAR has no text_encoder"):
        stepvar.from_official(model, vae, text_encoder=nn.Linear(1, 1))
    with pytest.raises(CheckpointError, match="meta device"):
        stepvar.from_official(model.to("meta"), vae)
