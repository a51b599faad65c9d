"""Text conditioning of Switti: token features of two CLIP encoders, and one pooled vector.

Source of the steps: yandex-research/switti, models/clip.py and `encode_prompt` of models/pipeline.py.
Letters: T_i tokens of prompt i, E channels of both encoders together, P channels of the second.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from stepvar.checkpoints import transformers_models
from stepvar.checkpoints.transformers_models import GENERIC_TOKENIZERS, load_text_model
from stepvar.models.switti.session import TextFeatures

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SHOWN_CHARACTERS = 200


@torch.no_grad()
def encode_prompts(
    tokenizers: Sequence[PreTrainedTokenizerBase],
    encoders: Sequence[PreTrainedModel],
    prompts: Sequence[str],
    max_length: int = 77,
    device: torch.device | str | None = None,
) -> TextFeatures:
    """Features of prompts, without padding.

    The official code pads every prompt to 77 tokens; the mask hides padding from every attention, so leaving
    it out gives the same features.

    Args:
        tokenizers, encoders: Of CLIP ViT-L and of CLIP bigG, in this order.
        prompts: The prompts; an empty one is allowed.
        max_length: Most tokens of a prompt, the first and the last one included; a longer prompt is cut with
            a warning.
        device: Where the encoders run; None is where their weights are.

    Raises:
        ValueError: When the two tokenizers cut a prompt into different numbers of tokens.
    """
    # A prompt that occurs several times is encoded once.
    different = list(dict.fromkeys(prompts))
    ids = [[token_ids(tokenizer, prompt, max_length) for prompt in different] for tokenizer in tokenizers]
    for prompt, *rows in zip(different, *ids, strict=True):
        if len({len(row) for row in rows}) != 1:
            raise ValueError(f"The two tokenizers do not agree on {prompt!r}: give the two of one model.")
    lengths = [len(row) for row in ids[0]]
    place = torch.device(device) if device is not None else encoders[0].device
    mask = torch.arange(max(lengths), device=place) < torch.tensor(lengths, device=place)[:, None]
    padded = [
        pad_sequence([torch.tensor(row, dtype=torch.int64) for row in rows], batch_first=True).to(place)
        for rows in ids
    ]
    features, pooled = encode_ids(encoders, padded, [mask.long()] * len(padded))
    tokens = {prompt: row[:length] for prompt, row, length in zip(different, features, lengths, strict=True)}
    order = torch.tensor([different.index(prompt) for prompt in prompts], dtype=torch.int64, device=place)
    return TextFeatures(tuple(tokens[prompt] for prompt in prompts), pooled[order])


def encode_ids(
    encoders: Sequence[PreTrainedModel], ids: Sequence[Tensor], masks: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Runs the encoders on padded token ids.

    Args:
        encoders: Of CLIP ViT-L and of CLIP bigG.
        ids, masks: One [prompts, T] an encoder; 1 in a mask is a token, 0 padding.

    Returns:
        Features after the last norm, side by side, [prompts, T, E], and the second encoder's state at the
        closing token, without CLIP's projection, [prompts, P]; both float32.
    """
    outputs = [
        encoder(input_ids=tokens, attention_mask=mask)
        for encoder, tokens, mask in zip(encoders, ids, masks, strict=True)
    ]
    features = torch.cat([output.last_hidden_state.float() for output in outputs], dim=-1)
    return features, outputs[-1].pooler_output.float()


def token_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, max_length: int) -> list[int]:
    """Token ids of one prompt, first and closing token included; warns with what a cut loses."""
    encoded = tokenizer(prompt, return_special_tokens_mask=True, verbose=False)
    ids: list[int] = encoded.input_ids
    excess = len(ids) - max_length
    if excess <= 0:
        return ids
    words = [place for place, special in enumerate(encoded.special_tokens_mask) if not special]
    lost = tokenizer.decode([ids[place] for place in words[-excess:]])
    shown = lost if len(lost) <= _SHOWN_CHARACTERS else f"{lost[:_SHOWN_CHARACTERS]}..."
    warnings.warn(
        f"The prompt has {len(ids)} tokens, but the model reads {max_length}; ignored is {shown!r}.",
        stacklevel=2,
    )
    cut = set(words[-excess:])
    return [token for place, token in enumerate(ids) if place not in cut]


def load_text_encoder(
    path: str | os.PathLike[str], dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> PreTrainedModel:
    """Loads the text half of a CLIP folder.

    Args:
        path: A local transformers folder, of openai/clip-vit-large-patch14 for example.
        dtype: Number format; None keeps the file's.
        device: Where the weights go; None is the CPU.

    Raises:
        CheckpointError: When the folder holds no CLIP that can be read.
    """
    kinds = {"clip": "CLIPTextModel", "clip_text_model": "CLIPTextModel"}
    return load_text_model(path, kinds, "clip-vit-large-patch14", dtype, device)


def load_text_tokenizer(path: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a CLIP folder.

    Raises:
        CheckpointError: When the folder holds no tokenizer that can be read.
    """
    classes = (*GENERIC_TOKENIZERS, "CLIPTokenizer", "CLIPTokenizerFast")
    return transformers_models.load_text_tokenizer(path, classes, "clip-vit-large-patch14")
