"""HART as the official code computes it, written out plainly: what our own dense run is measured against.

The arithmetic of mit-han-lab/hart, hart/modules/models/transformer and hart/modules/networks, on the weights
of a `HARTTransformer` (the published kind, without modulation), with its costs:

- tables of positions computed anew by every attention layer, at every scale;
- positions applied to queries and keys one after the other, each with a negated, concatenated half;
- keys and values appended by concatenation, in every block;
- the head's modulation and the pooled context computed at every scale;
- the diffusion head's state kept for both copies of guidance, its condition embedded at every step.

Two things are as fast as they can be said to be: norms are one fused call, as the official kernel is, and the
residual stream is in the number format of the weights, as under the official autocast.

Shapes: R rows (B conditional, then B unconditional), N tokens, C width, H heads, c = C / H.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as functional
from torch import Tensor

from plain_infinity import BlockCache, PlainResult
from stepvar.generation.guidance import Guidance
from stepvar.generation.loop import Sampler
from stepvar.generation.schedule import Scale, ScaleSchedule
from stepvar.models.common.layers import RMSNorm
from stepvar.models.common.vector_quantizer import VectorQuantizer, map_tokens
from stepvar.models.hart.session import ResidualDraw
from stepvar.models.hart.text import ContextFeatures
from stepvar.models.hart.transformer import HARTBlock, HARTTransformer, SelfAttention


class PlainHART:
    """Generates with the weights of a transformer, as the official code does.

    Args:
        transformer: Its weights are used where they are; nothing is copied.
        quantizer: Of the visual tokenizer.
    """

    def __init__(self, transformer: HARTTransformer, quantizer: VectorQuantizer) -> None:
        if transformer.config.modulation != "none" or transformer.config.cosine_attention:
            raise ValueError("The plain implementation knows the published kind of block only.")
        self.transformer, self.quantizer = transformer, quantizer
        self.dtype = transformer.compute_dtype

    @torch.no_grad()
    def generate(
        self,
        condition: ContextFeatures,
        images: int,
        schedule: ScaleSchedule,
        guidance: Guidance,
        sampler: Sampler,
        residual: ResidualDraw,
        observer: Callable[[str, Scale], None] = lambda name, scale: None,
        keep_logits: bool = False,
    ) -> PlainResult:
        """Generates one batch; arguments as for our own loop and session, the last map at once.

        Args:
            observer: Hears of the loop's landmarks when they are reached: "input", "layer 0", ..., "latent".
        """
        model = self.transformer
        context = model.embed_context(condition.features).to(self.dtype)
        caches = [BlockCache() for _ in model.blocks]
        grid = (schedule.final.height, schedule.final.width)
        latent = torch.zeros(images, model.config.latent_channels, *grid, device=model.device)
        result = PlainResult(latent)
        for scale in schedule:
            hidden = self._embed(scale, context, result.latent, len(condition) // images)
            observer("input", scale)
            for layer, (block, cache) in enumerate(zip(model.blocks, caches, strict=True)):
                hidden = self._block(block, hidden, scale, schedule, condition, cache)
                observer(f"layer {layer}", scale)
            hidden = hidden[:, -scale.tokens :]
            logits = self._guided(guidance, scale, self._head(hidden, context))
            if keep_logits:
                result.logits.append(logits)
            choice = sampler.sample(logits, scale)
            if scale.index + 1 < len(schedule):
                sides = (scale.height, scale.width)
                added = self.quantizer.enlarge(choice.codes, sides, grid, scale.index, len(schedule))
            else:
                values = choice.codes + self._residual(hidden, choice.index, residual)
                added = values.transpose(1, 2).unflatten(2, grid)
            result.latent = result.latent + added
            observer("latent", scale)
        return result

    def _embed(self, scale: Scale, context: Tensor, latent: Tensor, copies: int) -> Tensor:
        model = self.transformer
        level = model.level_embedding(scale.index)
        if scale.index == 0:
            return (context + level).to(self.dtype)
        codes = map_tokens(latent, (scale.height, scale.width))
        return (model.embed_codes(codes) + level).to(self.dtype).repeat(copies, 1, 1)

    def _block(
        self,
        block: HARTBlock,
        hidden: Tensor,
        scale: Scale,
        schedule: ScaleSchedule,
        condition: ContextFeatures,
        cache: BlockCache,
    ) -> Tensor:
        if scale.index == 0:
            table = self.transformer.context_positions(condition.positions)
        else:
            offsets = condition.positions[:, -1]
            table = self.transformer.map_positions(scale, schedule.position_grid, offsets)
        hidden = hidden + _attend(block.attention, _norm(block.norm, hidden), table, cache)
        feed, normed = block.feed_forward, _norm(block.norm, hidden)
        return hidden + feed.down(functional.silu(feed.gate(normed)) * feed.up(normed))

    def _head(self, hidden: Tensor, context: Tensor) -> Tensor:
        """Logits of all rows, [R, N, V] in float32."""
        model = self.transformer
        pooled = context.float().amax(dim=1)
        return model.logits(hidden.float(), model.head_modulations(pooled))

    def _guided(self, guidance: Guidance, scale: Scale, logits: Tensor) -> Tensor:
        return guidance.mix(scale.index, logits) if guidance.active else logits

    def _residual(self, hidden: Tensor, index: Tensor, draw: ResidualDraw) -> Tensor:
        """Residuals of the last map, [B, N, D], with the state of both copies."""
        model, head = self.transformer, self.transformer.residual_head
        copies = len(hidden) // len(index)
        codes = self.quantizer.lookup(index).repeat(copies, 1, 1)
        condition = model.residual_condition(hidden, codes).flatten(0, 1)
        state, count = draw.noise.initial.flatten(0, 1).repeat(copies, 1), index.numel()
        weights = head.condition_embedding.weight
        for order, step in enumerate(reversed(range(len(head.schedule)))):
            told = head.condition_embedding(condition.to(weights.dtype))
            timestep = torch.full((len(state),), float(head.schedule.timesteps[step]), device=state.device)
            output = head(state[:count].repeat(copies, 1), head.embed_time(timestep), told)
            if copies == 2:
                noise, variance = output.split(head.channels, dim=1)
                guided = (1.0 + draw.guidance) * noise[:count] - draw.guidance * noise[count:]
                output = torch.cat((guided.repeat(2, 1), variance), dim=1)
            drawn = draw.noise.steps[order].flatten(0, 1).repeat(copies, 1)
            state = head.schedule.previous(step, state, output, drawn)
        return (0.6 * state[:count]).view(*index.shape, -1)


def _norm(norm: RMSNorm, hidden: Tensor) -> Tensor:
    return functional.rms_norm(hidden, norm.weight.shape, norm.weight.to(hidden.dtype), norm.eps)


def _attend(layer: SelfAttention, hidden: Tensor, table: Tensor, cache: BlockCache) -> Tensor:
    rows, count, width = hidden.shape
    bias = torch.cat((layer.query_bias, torch.zeros_like(layer.query_bias), layer.value_bias))
    qkv = functional.linear(hidden, layer.qkv.weight, bias)
    query, key, value = qkv.view(rows, count, 3, layer.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    # Our table has the sign of a half in its sines; the official one negates the half instead.
    cosines, signed = (part.unsqueeze(1) for part in table.unbind(2))
    half = signed.shape[-1] // 2
    sines = torch.cat((-signed[..., :half], signed[..., half:]), dim=-1)
    query, key = (_turn(part, cosines.to(value.dtype), sines.to(value.dtype)) for part in (query, key))
    key, value = cache.append(key, value)
    attended = functional.scaled_dot_product_attention(query, key, value, scale=layer.softmax_scale)
    return layer.output(attended.transpose(1, 2).reshape(rows, count, width))


def _turn(inputs: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    first, second = inputs.chunk(2, dim=-1)
    return inputs * cosines + torch.cat((-second, first), dim=-1) * sines
