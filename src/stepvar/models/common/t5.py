"""Text features of prompts from T5, and loaders of its folders.

Source of the steps: FoundationVision/Infinity, tools/run_infinity.py (`load_vae`, `encode_prompt`).
Letters: T_i tokens of prompt i, E channels of the features.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import islice
from typing import TYPE_CHECKING

import torch
from tokenizers.models import WordLevel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from stepvar.checkpoints import transformers_models
from stepvar.checkpoints.transformers_models import GENERIC_TOKENIZERS, load_text_model, transformers_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


_SHOWN_CHARACTERS = 200
_SHOWN_WORDS, _SHOWN_LETTERS = 8, 40


class UnknownWordError(ValueError):
    """A prompt has words that a tokenizer of whole words does not know.

    Attributes:
        suggestions: Unknown word -> the closest known words, closest first; may be empty.
    """

    def __init__(self, words: Iterable[str], known: Iterable[str]) -> None:
        known = list(known)
        self.suggestions = {word: closest_words(word, known) for word in words}
        described = [
            f"{_shortened(word)} (close: {', '.join(close)})"
            if close
            else f"{_shortened(word)} (nothing close is known)"
            for word, close in islice(self.suggestions.items(), _SHOWN_WORDS)
        ]
        if more := len(self.suggestions) - len(described):
            described.append(f"and {more} more words")
        super().__init__(f"The text encoder does not know {', '.join(described)}.")


def _shortened(word: str) -> str:
    """A word as a message quotes it: a prompt may hold one of any length."""
    return repr(word if len(word) <= _SHOWN_LETTERS else f"{word[:_SHOWN_LETTERS]}...")


def closest_words(word: str, known: Iterable[str], count: int = 3) -> tuple[str, ...]:
    """The known words most like `word`, at most `count`, closest first."""
    return tuple(get_close_matches(word.lower(), list(known), n=count, cutoff=0.5))


@torch.no_grad()
def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    text_encoder: PreTrainedModel,
    prompts: str | Sequence[str],
    max_length: int = 512,
    device: torch.device | str | None = None,
) -> list[Tensor]:
    """Text features of prompts, without padding.

    The official code pads every prompt to 512 tokens; the mask hides padding, so leaving it out gives the
    same features. Several prompts are padded to the longest of them and cut again.

    Args:
        tokenizer: The text encoder's tokenizer.
        text_encoder: A transformers encoder such as `T5EncoderModel`.
        prompts: The prompts.
        max_length: Most tokens of a prompt, the closing one included; a longer prompt is cut with a warning.
        device: Where the encoder runs; None is where its weights are.

    Returns:
        One float32 [T_i, E] per prompt, on that device; the closing token counts.

    Raises:
        ValueError: When a prompt is empty.
        UnknownWordError: When the tokenizer knows whole words only, and not one of the prompt's.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    device = torch.device(device) if device is not None else text_encoder.device
    # A prompt that occurs several times is encoded once.
    ids = {
        prompt: torch.tensor(token_ids(tokenizer, prompt, max_length), dtype=torch.int64)
        for prompt in prompts
    }
    if not ids:
        return []
    lengths = [len(row) for row in ids.values()]
    padded = pad_sequence(list(ids.values()), batch_first=True, padding_value=tokenizer.pad_token_id or 0)
    mask = torch.arange(padded.shape[1]) < torch.tensor(lengths)[:, None]
    encoded = text_encoder(input_ids=padded.to(device), attention_mask=mask.long().to(device))
    features = encoded.last_hidden_state.float()
    rows = {prompt: row[:length] for prompt, row, length in zip(ids, features, lengths, strict=True)}
    return [rows[prompt] for prompt in prompts]


def token_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, max_length: int = 512) -> list[int]:
    """Token ids of one prompt, the closing token included; warns with what a cut loses.

    Raises:
        ValueError: When the prompt is empty.
        UnknownWordError: As for `encode_prompts`.
    """
    encoded = tokenizer(prompt, return_special_tokens_mask=True, verbose=False)
    ids: list[int] = encoded.input_ids
    words = [place for place, special in enumerate(encoded.special_tokens_mask) if not special]
    refuse_no_words(prompt, encoded.special_tokens_mask)
    refuse_unknown_words(tokenizer, prompt, ids)
    excess = len(ids) - max_length
    if excess <= 0:
        return ids
    lost = tokenizer.decode([ids[place] for place in words[-excess:]])
    shown = lost if len(lost) <= _SHOWN_CHARACTERS else f"{lost[:_SHOWN_CHARACTERS]}..."
    warnings.warn(
        f"The prompt has {len(ids)} tokens, but the model reads {max_length}; ignored is {shown!r}.",
        stacklevel=2,
    )
    # Cut here rather than by the tokenizer, whose truncation is a setting that threads would share.
    cut = set(words[-excess:])
    return [token for place, token in enumerate(ids) if place not in cut]


def refuse_no_words(prompt: str, special: Sequence[int]) -> None:
    """Raises ValueError when a prompt has only special tokens: some characters are nothing to a tokenizer."""
    if all(special):
        raise ValueError(f"The prompt {prompt!r} is empty; write what the picture should show.")


def refuse_unknown_words(tokenizer: PreTrainedTokenizerBase, prompt: str, ids: Sequence[int]) -> None:
    """Raises `UnknownWordError` when the ids of a prompt are those of a tokenizer that lacks a word of it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    unknown = tokenizer.unk_token_id
    if unknown not in ids or not isinstance(getattr(backend, "model", None), WordLevel):
        return
    spans = tokenizer(prompt, return_offsets_mapping=True, verbose=False).offset_mapping
    words = dict.fromkeys(
        prompt[slice(*span)] for span, token in zip(spans, ids, strict=True) if token == unknown
    )
    special = set(tokenizer.all_special_tokens)
    raise UnknownWordError(words, [word for word in tokenizer.get_vocab() if word not in special])


def load_text_encoder(
    path: str | os.PathLike[str],
    dtype: torch.dtype = torch.float16,
    device: torch.device | str | None = None,
) -> PreTrainedModel:
    """Loads the encoder half of a T5 folder such as flan-t5-xl.

    Args:
        path: A local transformers folder.
        dtype: Number format; transformers keeps the feed-forward's output matrix `wo` in float32 beside
            float16, as the official code has it.
        device: Where the weights go; None is the CPU.

    Returns:
        A `T5EncoderModel` in evaluation mode.

    Raises:
        CheckpointError: When the folder holds no T5 that can be read.
    """
    return load_text_model(path, {"t5": "T5EncoderModel"}, "flan-t5-xl", dtype, device)


def load_text_tokenizer(path: str | os.PathLike[str], max_length: int = 512) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a T5 folder such as flan-t5-xl, with the official settings.

    Args:
        path: A local transformers folder.
        max_length: Tokens of the longest prompt.

    Raises:
        CheckpointError: When the folder holds no tokenizer that can be read.
    """
    folder = transformers_folder(path, "flan-t5-xl")
    classes = (*GENERIC_TOKENIZERS, "T5Tokenizer", "T5TokenizerFast")
    tokenizer = transformers_models.load_text_tokenizer(folder, classes, "flan-t5-xl", legacy=True)
    tokenizer.model_max_length = max_length
    return tokenizer
