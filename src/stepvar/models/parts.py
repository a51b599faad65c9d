"""Parts of a pipeline: what every model's transformer, visual tokenizer and text side must have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from typing import Any, Protocol

import torch
from diffusers.loaders.textual_inversion import TextualInversionLoaderMixin
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stepvar.checkpoints.hub import refuse_missing_path
from stepvar.generation.attention import Kernel
from stepvar.models.common.t5 import refuse_no_words, refuse_unknown_words
from stepvar.models.placement import PlacedPipeline


class Transformer(Protocol):
    """What every pipeline needs of its transformer."""

    @property
    def config(self) -> Mapping[str, Any]:
        """Arguments of its constructor."""
        ...

    def register_to_config(self, **kwargs: Any) -> None:
        """Adds to the configuration."""
        ...

    @property
    def blocks(self) -> Sized:
        """The layers."""
        ...

    @property
    def compute_dtype(self) -> torch.dtype:
        """Number format of the matrix products and of the KV cache."""
        ...

    def attention_in_force(self) -> tuple[str, Kernel | None]:
        """Name of what computes attention, and its kernel; None is torch's own choice."""
        ...

    def compile_repeated_blocks(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the layers."""
        ...


class VisualDecoder(Protocol):
    """What every pipeline needs of its visual tokenizer."""

    @property
    def stride(self) -> int:
        """Pixels per latent position in each direction."""
        ...

    use_tiling: bool
    use_slicing: bool

    def decode(self, z: Tensor, return_dict: bool = ...) -> Any:
        """Accumulated codes [B, d, (t,) h, w] -> pixels [B, 3, (F,) H, W] in -1..1, in a tuple or output."""
        ...


class TextPipeline(PlacedPipeline, TextualInversionLoaderMixin):
    """A pipeline that may have text encoders, each with its tokenizer."""

    text_encoder: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase | None

    @property
    def text_length(self) -> int:
        """Most tokens of a prompt that the model reads, closing ones included."""
        raise NotImplementedError

    def check_prompts(
        self, prompts: Sequence[str], negatives: Sequence[str] = (), seconds: float | None = None
    ) -> None:
        """Refuses what this pipeline cannot draw, or would cut, before anything is computed.

        Args:
            prompts: Prompts of a call.
            negatives: Its negative prompts.
            seconds: Of a video, for models that say it in the prompt.

        Raises:
            ValueError: Saying what is wrong with it.
        """
        tokenizer, _ = self.text_parts()
        # All at once, which tokenizers do several times faster than one by one.
        texts = [*prompts, *negatives]
        if not texts:
            return
        encoded = tokenizer(texts, return_special_tokens_mask=True, verbose=False)
        rows = zip(texts, encoded.input_ids, encoded.special_tokens_mask, strict=True)
        for prompt, ids, special in rows:
            length = len(ids)
            if prompt:
                refuse_no_words(prompt, special)
            refuse_unknown_words(tokenizer, prompt, ids)
            if length > self.text_length:
                raise ValueError(
                    f"The prompt has {length} tokens, but the model reads at most {self.text_length}: "
                    f"shorten it by {length - self.text_length} ({prompt[:60]!r}...)."
                )

    def load_textual_inversion(self, *args: Any, **kwargs: Any) -> None:
        """Adds words to a tokenizer and their embeddings to its text encoder, as in diffusers.

        Args:
            args, kwargs: A folder, a hub id, a safetensors file or a dictionary {word: [E]}; `tokenizer` and
                `text_encoder` where a pipeline has several.

        Raises:
            ValueError: When there is no text encoder, the word is known already, or its embedding is not
                finite; then nothing is added.
        """
        if "tokenizer" not in kwargs:
            self.text_parts()
        tokenizer = kwargs.get("tokenizer") or getattr(self, "tokenizer", None)
        known = set(tokenizer.get_vocab()) if tokenizer is not None else set()
        for source in args[:1]:
            refuse_missing_path(source)
        # Nothing but safetensors: other files could run code.
        super().load_textual_inversion(*args, **{"use_safetensors": True, **kwargs})
        encoder = kwargs.get("text_encoder") or getattr(self, "text_encoder", None)
        if encoder is None or tokenizer is None:
            return
        added = tokenizer.get_vocab().keys() - known
        table = encoder.get_input_embeddings().weight
        for word in sorted(added):
            if not bool(torch.isfinite(table[tokenizer.get_vocab()[word]]).all()):
                self.unload_textual_inversion(sorted(added), tokenizer, encoder)
                raise ValueError(f"The embedding of {word!r} is not finite; fetch it again.")

    def unload_textual_inversion(self, *args: Any, **kwargs: Any) -> None:
        """Removes words that `load_textual_inversion` added, as in diffusers.

        Raises:
            ValueError: When there is no text encoder.
        """
        if kwargs.get("tokenizer") is None:
            self.text_parts()
        super().unload_textual_inversion(*args, **kwargs)

    def text_parts(self, suffix: str = "") -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
        """Tokenizer and text encoder; a suffix names the second ones of a model that has two.

        Raises:
            ValueError: When there is nothing that could encode a text.
        """
        tokenizer = getattr(self, f"tokenizer{suffix}", None)
        text_encoder = getattr(self, f"text_encoder{suffix}", None)
        if tokenizer is None or text_encoder is None:
            raise ValueError(
                "This pipeline has no text encoder: pass encoded prompts, or convert the model with "
                "'stepvar convert --text-encoder DIR'."
            )
        return tokenizer, text_encoder
