"""Golden cases of HART's parts: the diffusion head, and the visual tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stepvar.conformance.case import Comparison
from stepvar.models.hart.checkpoints import load_tokenizer
from stepvar.models.hart.diffusion import OUTPUT_SCALE, DiffusionHead, DiffusionNoise
from stepvar.models.hart.official import diffusion_keys
from stepvar.models.hart.tokenizer import HARTTokenizer
from stepvar.models.loading import read_tensors
from stepvar.models.resizing import Grid, resize_area
from stepvar.models.vector_quantizer import VectorQuantizer, map_tokens, official_quantizer_keys
from stepvar.models.vector_tokenizer import Decoder

_TABLES = (
    "betas",
    "alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "posterior_log_variance_clipped",
    "posterior_variance",
)


def watch(module: nn.Module, use: Callable[[Tensor], None]) -> Any:
    """Hands every output of a module on."""
    return module.register_forward_hook(lambda _module, _inputs, output: use(output))


def build_quantizer(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> VectorQuantizer:
    """The quantiser that a case's tokenizer_config describes."""
    shared = config["share_quant_resi"]
    quantizer = VectorQuantizer(
        config["vocab_size"],
        config["z_channels"],
        shared or len(config["v_patch_nums"]),
        refine_by_scale=shared == 0,
        refinement_share=abs(config["quant_resi"]),
    )
    names = official_quantizer_keys(len(quantizer.refinements), quantizer.refine_by_scale)
    quantizer.load_state_dict({ours.partition(".")[2]: state[theirs] for ours, theirs in names.items()})
    return quantizer


def decode(config: Mapping[str, Any], state: Mapping[str, Tensor], latent: Tensor) -> Tensor:
    """Pixels of a latent, not clamped, by a case's decoder: it stores no encoder."""
    channels, kernel = config["z_channels"], config["quant_conv_ks"]
    decoder = nn.ModuleDict(
        {
            "post_quant_conv": nn.Conv2d(channels, channels, kernel, padding=kernel // 2),
            "decoder": Decoder(channels, config["ch"], config["ch_mult"], blocks=3),
        }
    )
    decoder.load_state_dict(
        {key: value for key, value in state.items() if key.startswith(("decoder.", "post_quant_conv."))}
    )
    return decoder["decoder"](decoder["post_quant_conv"](latent))


def run_diffusion_head(comparison: Comparison) -> None:
    """The network alone, its schedule, and every step of sampling at each guidance."""
    case = comparison.case
    sizes = case.info["constructor"]
    head = DiffusionHead(
        sizes["target_channels"],
        sizes["z_channels"],
        sizes["width"],
        sizes["depth"],
        sizes["num_sampling_steps"],
    )
    state = read_tensors(case.folder / "weights_diffloss.safetensors")
    names = diffusion_keys(sizes["depth"], "net.")
    head.load_state_dict({ours: state[theirs].float() for ours, theirs in names.items()})
    for table in _TABLES:
        comparison.check(f"schedule.{table}", torch.from_numpy(getattr(head.schedule, table)))
    comparison.check("schedule.timestep_map", torch.tensor(head.schedule.timesteps))
    condition = comparison.take("z").float()
    time = head.embed_time(comparison.take("net_t"))
    comparison.check("net.time_embed", time)
    output = head(comparison.take("net_x").float(), time, head.condition_embedding(condition))
    comparison.check("net.out", output)
    for number, guidance in enumerate(case.info["cfg_values"]):
        _sample(comparison, head, condition, f"cfg{number}", guidance)


def _sample(
    comparison: Comparison, head: DiffusionHead, condition: Tensor, name: str, guidance: float
) -> None:
    """One sampling, twice: by our own loop, which keeps the conditional tokens only, and by its steps on all
    tokens, as the official code keeps them."""
    initial = comparison.take(f"{name}.noise_init").float()
    schedule, count = head.schedule, len(initial)
    steps = [comparison.take(f"{name}.noise_step{order}").float() for order in range(len(schedule))]
    noise = DiffusionNoise(initial, torch.stack(steps)[:, :count])
    ours = head.sample(condition, noise, guidance)
    state = initial.repeat(len(condition) // count, 1)
    told = head.condition_embedding(condition)
    for order, step in enumerate(reversed(range(len(schedule)))):
        comparison.check(f"{name}.t_index{order}", torch.tensor([step]))
        comparison.check(f"{name}.x{order}", state)
        output = _output_of_all(head, state[:count], step, told, guidance)
        comparison.check(f"{name}.model_out{order}", output)
        comparison.check(f"{name}.pred_xstart{order}", schedule.estimate(step, state, output))
        state = schedule.previous(step, state, output, steps[order])
        comparison.check(f"{name}.sample{order}", state)
    comparison.check(f"{name}.out", torch.cat([ours, OUTPUT_SCALE * state[count:]]))


def _output_of_all(head: DiffusionHead, state: Tensor, step: int, told: Tensor, guidance: float) -> Tensor:
    """The guided output for conditional and unconditional tokens: they share the noise, not the variance."""
    guided = head.predict(state, step, told, guidance)
    if len(told) == len(state):
        return guided
    alone = head.predict(state, step, told[len(state) :], guidance)
    shared = torch.cat([guided[:, : head.channels], alone[:, head.channels :]], dim=1)
    return torch.cat([guided, shared])


def run_tokenizer(comparison: Comparison) -> None:
    """Encoding both ways, what generation makes of it, and decoding."""
    case = comparison.case
    tokenizer = load_tokenizer(case.folder / "weights_tokenizer.safetensors", torch.float32)
    grids = [(side, side) for side in case.info["tokenizer_config"]["v_patch_nums"]]
    image = comparison.take("image").float()
    handle = watch(tokenizer.encoder, lambda output: comparison.check("enc.z", output))
    features = tokenizer.encode_features(image)
    handle.remove()
    comparison.check("enc.f", features)
    _hybrid(comparison, tokenizer, features, grids)
    _plain(comparison, tokenizer, features, grids)


def _hybrid(
    comparison: Comparison, tokenizer: HARTTokenizer, features: Tensor, grids: Sequence[Grid]
) -> None:
    check = comparison.check
    code = tokenizer.quantize_hybrid(features, grids)
    for scale, index in enumerate(code.index):
        check(f"hybrid.idx{scale}", index)
    check("hybrid.last_scale_continuous_target", code.target)
    for scale, latent in enumerate(code.partial_latents):
        check(f"gen.f_hat{scale}", latent)
        check(f"gen.next_map{scale}", resize_area(latent, grids[scale + 1]))
    check("gen.f_hat_discrete_last", code.discrete_latent)
    check("gen.f_hat_continuous_last", code.latent)
    check("dec.image_from_discrete", tokenizer.decode(code.discrete_latent))
    handle = watch(tokenizer.decoder, lambda output: check("dec.preclamp_from_continuous", output))
    check("dec.image_from_continuous", tokenizer.decode(code.latent))
    handle.remove()
    check("dec.image_direct_from_f", tokenizer.decode(features))


def _plain(comparison: Comparison, tokenizer: HARTTokenizer, features: Tensor, grids: Sequence[Grid]) -> None:
    """The path of the plain codebook tokenizer, whose last scale is refined too."""
    check, quantizer = comparison.check, tokenizer.quantizer
    code = quantizer.quantize(features, grids)
    for scale, (index, latent) in enumerate(zip(code.index, code.partial_latents, strict=True)):
        check(f"var.idx{scale}", index)
        check(f"var.fhat{scale}", latent)
    check("var.image_last", tokenizer.decode(code.latent))
    inputs = [
        map_tokens(latent, grid) for latent, grid in zip(code.partial_latents[:-1], grids[1:], strict=True)
    ]
    check("var.teacher_forcing_input", torch.cat(inputs, dim=1))
    check("var.embed_to_fhat_allmax", quantizer.partial_latents(code.index, grids)[-1])
    # In training nothing is clamped, and the continuous path gives the decoder the features themselves.
    decoder, convolution = tokenizer.decoder, tokenizer.post_quant_conv
    check("train_forward.out_with_continuous", decoder(convolution(features)))
    check("train_forward.out_discrete_only", decoder(convolution(code.latent)))
