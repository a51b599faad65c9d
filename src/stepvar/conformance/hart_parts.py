"""Golden cases of HART's parts: the diffusion head, and the visual tokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stepvar.conformance.case import Comparison, watch
from stepvar.models.common.resizing import Grid, resize_area
from stepvar.models.common.vector_quantizer import VectorQuantizer, map_tokens, official_quantizer_keys
from stepvar.models.common.vq_vae import Decoder
from stepvar.models.common.vq_vae_checkpoints import vae_from_state
from stepvar.models.hart.diffusion import OUTPUT_SCALE, DiffusionHead, DiffusionNoise
from stepvar.models.hart.official import diffusion_keys
from stepvar.models.hart.vae import HARTVAE

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


def build_quantizer(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> VectorQuantizer:
    """The quantiser that a case's tokenizer_config and weights describe."""
    by_scale = config.get("share_quant_resi", 4) == 0
    convolutions = [key for key in state if re.fullmatch(r"quantize\.quant_resi\..*weight", key)]
    quantizer = VectorQuantizer(
        config["vocab_size"],
        config["z_channels"],
        len(convolutions),
        refine_by_scale=by_scale,
        refinement_share=abs(config.get("quant_resi", 0.5)),
    )
    names = official_quantizer_keys(len(convolutions), by_scale)
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
        str(sizes["num_sampling_steps"]),
    )
    state = case.state("diffloss", "weights_diffloss.safetensors")
    names = diffusion_keys(sizes["depth"], "net.")
    head.load_state_dict({ours: state[theirs] for ours, theirs in names.items()})
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
    tokens, as the official code keeps them. A step goes on with what is stored, so that it does not enlarge
    the rounding of those before."""
    initial = comparison.take(f"{name}.noise_init").float()
    schedule, count = head.schedule, len(initial)
    # The official temperature scales what every step adds.
    temperature = float(comparison.case.info.get("temperature", 1.0))
    steps = [
        temperature * comparison.take(f"{name}.noise_step{order}").float() for order in range(len(schedule))
    ]
    noise = DiffusionNoise(initial, torch.stack(steps)[:, :count])
    ours = head.sample(condition, noise, guidance)
    state = initial.repeat(len(condition) // count, 1)
    embedded = head.condition_embedding(condition)
    for order, step in enumerate(reversed(range(len(schedule)))):
        comparison.check(f"{name}.t_index{order}", torch.tensor([step]))
        comparison.check(f"{name}.x{order}", state)
        state = comparison.replayed(f"{name}.x{order}", state)
        output = _output_of_all(head, state[:count], step, embedded, guidance)
        comparison.check(f"{name}.model_out{order}", output)
        output = comparison.replayed(f"{name}.model_out{order}", output)
        comparison.check(f"{name}.pred_xstart{order}", schedule.estimate(step, state, output))
        state = schedule.previous(step, state, output, steps[order])
        comparison.check(f"{name}.sample{order}", state)
    comparison.check(f"{name}.out", torch.cat([ours, OUTPUT_SCALE * state[count:]]))


def _output_of_all(
    head: DiffusionHead, state: Tensor, step: int, embedded: Tensor, guidance: float
) -> Tensor:
    """The guided output for conditional and unconditional tokens: they share the noise, not the variance."""
    guided = head.predict(state, step, embedded, guidance)
    if len(embedded) == len(state):
        return guided
    alone = head.predict(state, step, embedded[len(state) :], guidance)
    shared = torch.cat([guided[:, : head.channels], alone[:, head.channels :]], dim=1)
    return torch.cat([guided, shared])


def run_tokenizer(comparison: Comparison) -> None:
    """Encoding both ways, what generation makes of it, and decoding."""
    case, config = comparison.case, comparison.case.info["tokenizer_config"]
    state = case.state("tokenizer", "weights_tokenizer.safetensors")
    share = abs(config.get("quant_resi", 0.5))
    tokenizer = vae_from_state(HARTVAE, state, refinement_share=share)
    grids = [(side, side) if isinstance(side, int) else (side[0], side[1]) for side in config["v_patch_nums"]]
    image = comparison.take("image").float()
    handle = watch(tokenizer.encoder, lambda output: comparison.check("enc.z", output))
    features = tokenizer.encode_features(image)
    handle.remove()
    comparison.check("enc.f", features)
    _hybrid(comparison, tokenizer, features, grids)
    _plain(comparison, tokenizer, features, grids)


def _hybrid(comparison: Comparison, tokenizer: HARTVAE, features: Tensor, grids: Sequence[Grid]) -> None:
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
    for name, latent in (("discrete", code.discrete_latent), ("continuous", code.latent)):
        pixels = tokenizer.decoder(tokenizer.post_quant_conv(latent))
        check(f"dec.preclamp_from_{name}", pixels)
        check(f"dec.image_from_{name}", pixels.clamp(-1.0, 1.0))
    check("dec.image_direct_from_f", tokenizer.decode_pixels(features))


def _plain(comparison: Comparison, tokenizer: HARTVAE, features: Tensor, grids: Sequence[Grid]) -> None:
    """The path of the plain codebook tokenizer, whose last scale is refined too."""
    check, quantizer = comparison.check, tokenizer.quantizer
    cosine = bool(comparison.case.info["tokenizer_config"].get("using_znorm", False))
    code = quantizer.quantize(features, grids, cosine)
    for scale, (index, latent) in enumerate(zip(code.index, code.partial_latents, strict=True)):
        check(f"var.idx{scale}", index)
        check(f"var.fhat{scale}", latent)
    check("var.image_last", tokenizer.decode_pixels(code.latent))
    inputs = [
        map_tokens(latent, grid) for latent, grid in zip(code.partial_latents[:-1], grids[1:], strict=True)
    ]
    check("var.teacher_forcing_input", torch.cat(inputs, dim=1))
    check("var.embed_to_fhat_allmax", quantizer.partial_latents(code.index, grids)[-1])
    # In training nothing is clamped, and the continuous path gives the decoder the features themselves.
    decoder, convolution = tokenizer.decoder, tokenizer.post_quant_conv
    check("train_forward.out_with_continuous", decoder(convolution(features)))
    check("train_forward.out_discrete_only", decoder(convolution(code.latent)))
