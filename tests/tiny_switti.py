"""A tiny real Switti with random weights: 32 x 32 pixels in six scales, two CLIP encoders of a few words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

from stepvar.generation.guidance import Guidance
from stepvar.generation.loop import generate
from stepvar.generation.pruner import PruningMethod
from stepvar.generation.sampling import CodebookSampler, CodebookSettings
from stepvar.generation.schedule import Scale
from stepvar.models.switti.pipeline import SwittiPipeline
from stepvar.models.switti.session import SwittiSession, TextFeatures
from stepvar.models.switti.transformer import SwittiTransformer
from stepvar.models.switti.vae import SwittiVAE
from tiny_models import Drawing
from tiny_var import CHANNELS, CODES, SIDES, make_vq_vae, randomise

WORDS = ["<pad>", "<s>", "a", "red", "blue", "ring", "star", "on", "sand", "two", "big", "</s>"]
WIDTHS = (16, 24)


def make_switti(seed: int = 0, **config) -> SwittiTransformer:
    """A tiny transformer."""
    sizes = {"depth": 3, "width": 48, "heads": 2, "sides": SIDES, "pixels_per_token": 4}
    sizes |= {"codes": CODES, "channels": CHANNELS, "text_length": 12}
    sizes |= {"text_channels": sum(WIDTHS), "pooled_channels": WIDTHS[1], **config}
    model = SwittiTransformer(**sizes).eval()
    randomise(model, seed)
    return model.requires_grad_(False)


def make_features(*lengths: int, seed: int = 0) -> TextFeatures:
    """Text features of prompts with these lengths."""
    generator = torch.Generator().manual_seed(100 + seed)
    tokens = tuple(torch.randn(length, sum(WIDTHS), generator=generator) for length in lengths)
    return TextFeatures(tokens, torch.randn(len(lengths), WIDTHS[1], generator=generator))


def make_words():
    """A tokenizer of whole words that marks both ends, as CLIP's does."""
    from transformers import PreTrainedTokenizerFast

    table = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [("<s>", table["<s>"]), ("</s>", table["</s>"])]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def make_encoders() -> list:
    """Two tiny CLIP text encoders."""
    from transformers import CLIPTextConfig, CLIPTextModel

    encoders = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for width in WIDTHS:
            config = CLIPTextConfig(
                vocab_size=len(WORDS),
                hidden_size=width,
                intermediate_size=2 * width,
                num_hidden_layers=2,
                num_attention_heads=2,
                eos_token_id=len(WORDS) - 1,
                bos_token_id=1,
                pad_token_id=0,
            )
            encoders.append(CLIPTextModel(config).eval())
    return encoders


def make_switti_pipeline(**config) -> SwittiPipeline:
    """A tiny pipeline."""
    first, second = make_encoders()
    pipeline = SwittiPipeline(
        make_switti(**config),
        make_vq_vae(kind=SwittiVAE),
        first,
        make_words(),
        second,
        make_words(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class WatchedSwittiSession(SwittiSession):
    """A session that remembers the cache it allocated."""

    def allocate_cache(self, plan):
        self.cache = super().allocate_cache(plan)
        return self.cache


@torch.no_grad()
def draw_switti(
    transformer: SwittiTransformer,
    lengths: Sequence[int] = (5,),
    seeds: Sequence[int] = (0,),
    weights: Sequence[float] = (1.0, 2.0, 3.0, 3.0, 3.0, 3.0),
    pruning: PruningMethod | None = None,
    positive: TextFeatures | None = None,
    remembers: bool | None = None,
) -> Drawing:
    """Generates with the real loop."""
    quantizer, scales = make_vq_vae().quantizer, len(transformer.schedule)
    positive = make_features(*lengths) if positive is None else positive
    guidance = Guidance(
        tuple(weights), remembers=transformer.config.causal if remembers is None else remembers
    )
    empty = make_features(2, seed=9)
    negative = TextFeatures(empty.tokens * len(seeds), empty.pooled.repeat(len(seeds), 1))
    session = WatchedSwittiSession(transformer, quantizer, positive, negative if guidance.active else None)
    settings = CodebookSettings((1.0,) * scales, (0,) * scales, 0.0, (None,) * scales, False)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    sampler = CodebookSampler(
        settings, session.schedule, quantizer.codebook.weight, generators, session.device
    )
    tensors: dict[tuple[str, int], Tensor] = {}

    def probe(name: str, scale: Scale, value: Tensor) -> None:
        tensors[name, scale.index] = value

    result = generate(session, guidance=guidance, sampler=sampler, pruning=pruning, probe=probe)
    return Drawing(session, result, tensors)
