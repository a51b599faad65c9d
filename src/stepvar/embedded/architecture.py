"""Sizes of the embedded model: a small Infinity with its own small text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepvar.embedded.scenes.vocabulary import VOCABULARY

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, T5EncoderModel

    from stepvar.models.infinity.transformer import InfinityTransformer

PIXELS_PER_TOKEN = 8
"""Side in pixels of what a token of the last scale stands for."""

BITS = 16
TEXT_CHANNELS = 128
TEXT_LENGTH = 32


@dataclass(frozen=True)
class EmbeddedSize:
    """How large the pictures and the transformer are.

    Attributes:
        canvas: Side of the pictures in pixels.
        sides: Sides of the token maps, coarse to fine.
        depth, width, heads: Of the transformer.
    """

    canvas: int
    sides: tuple[int, ...]
    depth: int
    width: int
    heads: int

    @property
    def grids(self) -> list[tuple[int, int]]:
        """The scale schedule as (rows, columns)."""
        return [(side, side) for side in self.sides]

    def crop_grids(self, side: int) -> list[tuple[int, int]]:
        """The schedule scaled down to a crop of `side` pixels; all scales are kept."""
        shrunk = (max(1, round(scale * side / self.canvas)) for scale in self.sides)
        return [(scale, scale) for scale in shrunk]


SIZES: dict[str, EmbeddedSize] = {
    "192": EmbeddedSize(192, (1, 2, 3, 4, 6, 9, 13, 18, 24), depth=8, width=192, heads=3),
    "256": EmbeddedSize(256, (1, 2, 3, 4, 6, 9, 13, 18, 24, 32), depth=8, width=192, heads=3),
}
"""By name: 1,216 tokens a picture and 2,240. The larger one has the scales of the smaller one and another, so
that its training may start from the smaller one's weights."""


def build_word_tokenizer(vocabulary: Sequence[str] = VOCABULARY) -> PreTrainedTokenizerFast:
    """A word-level tokenizer over a vocabulary, by default the scenes'; punctuation and case are dropped."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "</s>", "<unk>"]
    words = {word: index for index, word in enumerate([*special, *vocabulary])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(r"[^\w\s]"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", words["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TEXT_LENGTH,
    )


def build_text_encoder(vocabulary: int) -> T5EncoderModel:
    """A two-layer T5 encoder with fresh weights."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=vocabulary,
        d_model=TEXT_CHANNELS,
        d_kv=32,
        d_ff=512,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
        is_encoder_decoder=False,
        use_cache=False,
    )
    return T5EncoderModel(config)


def build_transformer(size: EmbeddedSize) -> InfinityTransformer:
    """The small Infinity with fresh weights."""
    from stepvar.models.infinity.transformer import InfinityTransformer

    return InfinityTransformer(
        depth=size.depth,
        width=size.width,
        heads=size.heads,
        bits=BITS,
        text_channels=TEXT_CHANNELS,
        text_length=TEXT_LENGTH,
        pool_heads=4,
        levels=len(size.sides),
        tokenizer_type="scenes",
        grids=size.grids,
        pixels_per_token=PIXELS_PER_TOKEN,
    )
