"""Adapters, number formats, offloading and hooks act on every linear layer of every model."""

from __future__ import annotations

import re
from functools import cache

import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor, nn

from tiny_hart import make_pipeline as make_hart_pipeline
from tiny_pipeline import make_pipeline as make_infinity_pipeline
from tiny_pipelines import needed
from tiny_star import make_star_pipeline
from tiny_switti import make_switti_pipeline
from tiny_var import make_var_pipeline
from tiny_varedit import make_varedit_pipeline

CPU = torch.device("cpu")
MAKERS = {
    "infinity": (make_infinity_pipeline, "a red star"),
    "var": (make_var_pipeline, 1),
    "hart": (make_hart_pipeline, "a red star"),
    "switti": (make_switti_pipeline, "a red star"),
    "infinitystar": (make_star_pipeline, "a red star on sand"),
    "varedit": (make_varedit_pipeline, "a red star"),
}
each_model = pytest.mark.parametrize("name", MAKERS)


def draw(pipeline, name: str) -> Tensor:
    """Latent of one picture or video of a fixed seed."""
    own = needed(pipeline, still=False)
    output = pipeline(MAKERS[name][1], seed=3, output_type="latent", **own)
    return output.frames if pipeline.draws_videos else output.images


@cache
def plain(name: str) -> Tensor:
    """What the untouched model draws."""
    return draw(MAKERS[name][0](), name)


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}


@each_model
def test_a_run_calls_every_linear_layer(name):
    pipeline, called = MAKERS[name][0](), set()
    layers = linear_layers(pipeline.transformer)
    for layer, module in layers.items():
        module.register_forward_hook(lambda *_, layer=layer: called.add(layer))
    draw(pipeline, name)
    assert called == layers.keys()


@each_model
def test_lora_on_every_kind_of_linear_layer_acts_and_leaves_without_a_trace(name):
    peft = pytest.importorskip("peft")
    pipeline = MAKERS[name][0]()
    model = pipeline.transformer
    kinds = [layer for layer in linear_layers(model) if not re.search(r"blocks\.[1-9]", layer)]
    torch.manual_seed(0)
    for layer in kinds:
        # A regular expression: an exact name, not an ending that several layers share.
        pattern = layer.replace(".", r"\.")
        model.add_adapter(peft.LoraConfig(r=2, target_modules=pattern, init_lora_weights=False))
        assert not torch.equal(draw(pipeline, name), plain(name)), f"LoRA on {layer} does nothing"
        model.delete_adapters("default")
    assert torch.equal(draw(pipeline, name), plain(name))


@each_model
def test_a_saved_lora_is_loaded_weighed_fused_and_unloaded(name, tmp_path):
    peft = pytest.importorskip("peft")
    trained = MAKERS[name][0]()
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["up", "output"], init_lora_weights=False)
    trained.transformer.add_adapter(config)
    expected = draw(trained, name)
    trained.save_lora_weights(
        tmp_path,
        peft.get_peft_model_state_dict(trained.transformer),
        transformer_lora_adapter_metadata=config.to_dict(),
    )
    pipeline = MAKERS[name][0]()
    pipeline.load_lora_weights(tmp_path, adapter_name="style")
    assert torch.equal(draw(pipeline, name), expected)
    pipeline.set_adapters("style", 0.0)
    assert torch.equal(draw(pipeline, name), plain(name))
    pipeline.set_adapters("style", 1.0)
    pipeline.fuse_lora()
    assert pipeline.num_fused_loras == 1
    pipeline.unfuse_lora()
    pipeline.unload_lora_weights()
    assert (
        not linear_layers(pipeline.transformer).keys() ^ linear_layers(MAKERS[name][0]().transformer).keys()
    )


def test_a_model_with_an_adapter_is_not_saved_as_a_folder_that_would_load_random_weights(tmp_path):
    from peft import LoraConfig

    pipeline = make_infinity_pipeline()
    before = pipeline("a red circle on grass", seed=1, output_type="pt").images
    pipeline.transformer.add_adapter(LoraConfig(r=2, target_modules=["qkv"], init_lora_weights=False))
    with pytest.raises(ValueError, match="save_lora_weights"):
        pipeline.save_pretrained(tmp_path / "adapted")
    pipeline.unload_lora_weights()
    pipeline.save_pretrained(tmp_path / "plain")
    again = type(pipeline).from_pretrained(tmp_path / "plain")
    assert torch.equal(again("a red circle on grass", seed=1, output_type="pt").images, before)


def test_missing_weights_are_an_error_for_diffusers_own_loading_too(tmp_path):
    from diffusers import DiffusionPipeline
    from safetensors.torch import load_file, save_file

    make_infinity_pipeline().save_pretrained(tmp_path)
    for part in ("transformer", "vae"):
        (file,) = (tmp_path / part).glob("*.safetensors")
        whole = load_file(file)
        save_file(dict(list(whole.items())[1:]), file, {"format": "pt"})
        with pytest.raises(ValueError, match="missing"):
            DiffusionPipeline.from_pretrained(tmp_path)
        save_file(whole, file, {"format": "pt"})


def test_a_lora_of_something_else_is_refused():
    pytest.importorskip("peft")
    with pytest.raises(ValueError, match="no LoRA of the transformer"):
        make_infinity_pipeline().load_lora_weights({"unet.up.lora_A.weight": torch.zeros(2, 2)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_and_not_loaded(value, tmp_path):
    peft = pytest.importorskip("peft")
    from safetensors.torch import load_file, save_file

    trained, pipeline = make_infinity_pipeline(), make_infinity_pipeline()
    before = pipeline("a red circle on grass", seed=1, output_type="pt").images
    trained.transformer.add_adapter(peft.LoraConfig(r=2, target_modules=["output"]))
    trained.save_lora_weights(tmp_path, peft.get_peft_model_state_dict(trained.transformer))
    (file,) = tmp_path.glob("*.safetensors")
    weights = load_file(file)
    next(iter(weights.values()))[0, 0] = value
    save_file(weights, file)
    for source in (tmp_path, weights):
        with pytest.raises(ValueError, match=r"LoRA in .* is not finite at .*lora_"):
            pipeline.load_lora_weights(source)
    word = {"zork": torch.full((pipeline.text_encoder.config.d_model,), value)}
    with pytest.raises(ValueError, match="embedding of 'zork' is not finite"):
        pipeline.load_textual_inversion(word)
    assert torch.equal(pipeline("a red circle on grass", seed=1, output_type="pt").images, before)
    assert "zork" not in pipeline.tokenizer.get_vocab() and not getattr(
        pipeline.transformer, "peft_config", {}
    )
    trained.transformer.delete_adapters("default")
    trained.transformer.add_adapter(peft.LoraConfig(r=2, target_modules=["output"]), adapter_name="good")
    with pytest.raises(ValueError, match="give finite numbers"):
        trained.set_adapters("good", value)


def test_damaged_loras_are_one_sentence(tmp_path):
    pytest.importorskip("peft")
    from safetensors.torch import save_file

    pipeline = make_infinity_pipeline()
    (tmp_path / "text.safetensors").write_text("no weights")
    layer = "transformer.blocks.0.self_attention.output"
    save_file({f"{layer}.lora_A.weight": torch.zeros(7, 7)}, tmp_path / "half.safetensors")
    shapes = {f"{layer}.lora_{side}.weight": torch.zeros(7, 7) for side in "AB"}
    save_file(shapes, tmp_path / "shapes.safetensors")
    for name in ("text", "half", "shapes"):
        with pytest.raises(ValueError, match="holds no LoRA that fits this transformer") as caught:
            pipeline.load_lora_weights(tmp_path / f"{name}.safetensors")
        assert "\n" not in str(caught.value)
    assert not getattr(pipeline.transformer, "peft_config", {})


@each_model
def test_an_attention_backend_acts_and_is_named(name, monkeypatch):
    pipeline, calls = MAKERS[name][0](), []
    sdpa = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        nn.functional,
        "scaled_dot_product_attention",
        lambda *args, **kwargs: calls.append(math_only()) or sdpa(*args, **kwargs),
    )
    pipeline.transformer.set_attention_backend("_native_math")
    assert torch.allclose(draw(pipeline, name), plain(name), atol=1e-3)
    assert any(calls)
    assert "_native_math" in pipeline.summary().backend
    pipeline.transformer.reset_attention_backend()
    assert torch.equal(draw(pipeline, name), plain(name))


def math_only() -> bool:
    """Whether torch may compute attention by the plain products alone."""
    cuda = torch.backends.cuda
    return cuda.math_sdp_enabled() and not cuda.flash_sdp_enabled()


@pytest.mark.parametrize(("backend", "words"), [("fastest", "known are"), ("flash", "cannot be used here")])
def test_an_attention_backend_that_cannot_be_used_is_refused(backend, words):
    with pytest.raises(ValueError, match=words):
        make_infinity_pipeline().transformer.set_attention_backend(backend)


@each_model
def test_every_block_of_every_model_is_compiled(name, monkeypatch):
    pipeline, ran = MAKERS[name][0](), set()

    def stand_in(method, **options):
        def compiled(block, *args, **kwargs):
            ran.add((id(block), options["mode"]))
            return method(block, *args, **kwargs)

        return compiled

    monkeypatch.setattr(torch, "compile", stand_in)
    pipeline.compile(mode="reduce-overhead")
    assert torch.equal(draw(pipeline, name), plain(name))
    assert ran == {(id(block), "reduce-overhead") for block in pipeline.transformer.blocks}


@pytest.mark.parametrize("name", ["infinity", "var", "hart"])
def test_compilation_takes_in_the_blocks_that_run(name):
    pipeline, compiled = MAKERS[name][0](), set()

    def backend(graph, inputs):
        compiled.add(len(graph.graph.nodes))
        return graph.forward

    pipeline.transformer.compile_repeated_blocks(backend=backend)
    assert torch.allclose(draw(pipeline, name), plain(name), atol=1e-3)
    assert compiled, "nothing was compiled"
    with pytest.raises(ValueError, match="torch's own attention"):
        pipeline.transformer.set_attention_backend("_native_math")


@each_model
def test_what_would_replace_a_forward_that_the_loop_never_calls_is_refused(name):
    pipeline = MAKERS[name][0]()
    model = pipeline.transformer
    pipeline.transformer = torch.compile(model)
    with pytest.raises(ValueError, match="compile_repeated_blocks"):
        draw(pipeline, name)
    pipeline.transformer = model
    model.forward = lambda *_, **__: None
    with pytest.raises(ValueError, match="forward has been replaced"):
        draw(pipeline, name)
    del model.forward
    assert torch.equal(draw(pipeline, name), plain(name))


@each_model
def test_offloading_module_by_module_changes_nothing(name):
    pipeline = MAKERS[name][0]()
    cpu_offload(pipeline.transformer, CPU)
    assert all(parameter.is_meta for parameter in pipeline.transformer.parameters())
    assert torch.equal(draw(pipeline, name), plain(name))


@each_model
def test_group_offloading_changes_nothing(name):
    pipeline = MAKERS[name][0]()
    pipeline.transformer.enable_group_offload(CPU, CPU, offload_type="block_level", num_blocks_per_group=1)
    assert torch.equal(draw(pipeline, name), plain(name))


@each_model
def test_layers_stored_in_eight_bits_compute_in_the_format_of_the_call(name):
    pipeline = MAKERS[name][0]()
    model = pipeline.transformer
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert model.compute_dtype == torch.float32
    assert any(layer.weight.dtype == torch.float8_e4m3fn for layer in linear_layers(model).values())
    drawn = draw(pipeline, name)
    assert torch.isfinite(drawn).all() and not torch.equal(drawn, plain(name))


class ByteLinear(nn.Module):
    """Stands in for quantised layers of other libraries: weights in eight bits, one format of inputs."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.scale = layer.weight.abs().amax() / 127.0
        self.weight = nn.Parameter((layer.weight / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias, self.format = layer.bias, layer.weight.dtype

    def forward(self, inputs: Tensor) -> Tensor:
        assert inputs.dtype == self.format, f"{inputs.dtype} given to a layer of {self.format}"
        return nn.functional.linear(inputs, self.weight.to(self.format) * self.scale, self.bias)


@each_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_that_quantisation_puts_in_their_place_get_the_format_of_the_model(name, dtype):
    pipeline = MAKERS[name][0]()
    model = pipeline.transformer
    kept = set(model._keep_in_fp32_modules or ())
    for parameter_name, parameter in model.named_parameters():
        if kept.isdisjoint(parameter_name.split(".")):
            parameter.data = parameter.data.to(dtype)
    for layer, module in linear_layers(model).items():
        owner, _, attribute = layer.rpartition(".")
        setattr(model.get_submodule(owner), attribute, ByteLinear(module))
    assert torch.isfinite(draw(pipeline, name)).all()


@each_model
def test_torchao_int8(name):
    quantization = pytest.importorskip("torchao.quantization")
    pipeline = MAKERS[name][0]()
    quantization.quantize_(pipeline.transformer, quantization.Int8WeightOnlyConfig())
    assert torch.isfinite(draw(pipeline, name)).all()


@each_model
def test_quanto_int8(name):
    quanto = pytest.importorskip("optimum.quanto")
    pipeline = MAKERS[name][0]()
    quanto.quantize(pipeline.transformer, weights=quanto.qint8)
    quanto.freeze(pipeline.transformer)
    assert torch.isfinite(draw(pipeline, name)).all()


@each_model
def test_weights_are_quantised_while_they_are_loaded(name, tmp_path):
    quantization = pytest.importorskip("torchao.quantization")
    from diffusers import PipelineQuantizationConfig, TorchAoConfig

    pipeline = MAKERS[name][0]()
    pipeline.save_pretrained(tmp_path)
    config = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    mapping = PipelineQuantizationConfig(quant_mapping={"transformer": config})
    loaded = type(pipeline).from_pretrained(tmp_path, quantization_config=mapping)
    loaded.set_progress_bar_config(disable=True)
    assert any(type(layer.weight.data) is not Tensor for layer in linear_layers(loaded.transformer).values())
    assert torch.isfinite(draw(loaded, name)).all()
