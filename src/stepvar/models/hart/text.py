"""Context tokens of prompts from a language model, and loaders of its folders.

Source of the steps: mit-han-lab/hart, hart/utils (`encode_prompts`, `llm_system_prompt`) and sample.py. The
language model only encodes; it never writes. Letters: T context tokens, E channels of the features.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stepvar.checkpoints import transformers_models
from stepvar.checkpoints.transformers_models import GENERIC_TOKENIZERS, load_text_model, transformers_folder
from stepvar.models.common.prompt_embeds import full_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

SYSTEM_PROMPT = (
    'Given a user prompt, generate an "Enhanced prompt" that provides detailed visual descriptions suitable '
    "for image generation.\n\nExamples:\n"
    "- User Prompt: A cat sleeping -> A small, fluffy white cat curled up in a round shape, sleeping "
    "peacefully on a warm sunny windowsill, surrounded by pots of blooming red flowers.\n"
    "- User Prompt: A busy city street -> A bustling city street scene at dusk, featuring glowing street "
    "lamps, a diverse crowd of people in colorful clothing, and a double-decker bus passing by towering "
    "glass skyscrapers.\n\n"
    "Please generate only the enhanced description for the prompt below and DO NOT include any additional "
    'sentences. Start your response with "Enhanced Prompt:".\n\nUser Prompt:\n'
)
"""What stands before every prompt, word for word as in training (hart/utils/constants.py, MIT, (c) 2024 MIT
HAN Lab)."""

_SHOWN_CHARACTERS = 200
_MODELS = {"qwen2": "Qwen2Model", "qwen2_vl": "Qwen2VLTextModel", "qwen2_vl_text": "Qwen2VLTextModel"}
"""Types of language models -> their class, without the head that writes and the half that sees."""


@dataclass(frozen=True)
class ContextFeatures:
    """Encoded prompts, padded to one length; what lies in the padding counts too.

    Attributes:
        features: [B, T, E] float32.
        mask: [B, T] bool, True where the prompt has a token.
        positions: [B, T] numbers of the prompt's tokens; the padding after it repeats the last one, padding
            before it is -1.
    """

    features: Tensor
    mask: Tensor
    positions: Tensor

    def __len__(self) -> int:
        return len(self.features)

    @classmethod
    def from_mask(cls, features: Tensor, mask: Tensor) -> ContextFeatures:
        """With the positions that follow from the mask."""
        return cls(features, mask.bool(), mask.long().cumsum(dim=1) - 1)

    @classmethod
    def empty(cls, images: int, tokens: int, channels: int, device: torch.device) -> ContextFeatures:
        """What stands for no prompt at all: zeros, every token numbered 0, the first one counted."""
        mask = torch.zeros(images, tokens, dtype=torch.bool, device=device)
        mask[:, 0] = True
        features = torch.zeros(images, tokens, channels, dtype=torch.float32, device=device)
        return cls(features, mask, torch.zeros(images, tokens, dtype=torch.long, device=device))

    def __getitem__(self, prompts: slice) -> ContextFeatures:
        return ContextFeatures(self.features[prompts], self.mask[prompts], self.positions[prompts])

    def repeat(self, times: int) -> ContextFeatures:
        """Every prompt so many times in a row."""
        parts = (self.features, self.mask, self.positions)
        return ContextFeatures(*(part.repeat_interleave(times, dim=0) for part in parts))

    def joined(self, other: ContextFeatures) -> ContextFeatures:
        """These prompts, then the others."""
        return ContextFeatures(
            torch.cat([self.features, other.features.to(self.features)]),
            torch.cat([self.mask, other.mask.to(self.mask.device)]),
            torch.cat([self.positions, other.positions.to(self.positions.device)]),
        )

    def to(self, device: torch.device) -> ContextFeatures:
        return ContextFeatures(*(part.to(device) for part in (self.features, self.mask, self.positions)))


@torch.no_grad()
def as_context(
    embeds: ContextFeatures | Tensor | None, mask: Tensor | None, name: str = "prompt_embeds"
) -> ContextFeatures | None:
    """Encoded prompts as a caller gives them: what `encode_prompts` returns, or [B, T, E] with a mask [B, T].

    Raises:
        ValueError: When they are something else, or the mask does not fit.
    """
    mask_name = f"{name.removesuffix('_embeds')}_attention_mask"
    if isinstance(embeds, Tensor) and embeds.dim() == 3 and embeds.is_floating_point():
        return ContextFeatures.from_mask(embeds.float(), full_mask(embeds, mask, mask_name))
    if embeds is not None and not isinstance(embeds, ContextFeatures):
        shape = list(embeds.shape) if isinstance(embeds, Tensor) else type(embeds).__name__
        raise ValueError(f"{name} is {shape}; give one tensor [B, T, E], or what `encode_prompts` returns.")
    if mask is not None:
        raise ValueError(f"{mask_name} needs {name} as one tensor [B, T, E]: leave it out.")
    return embeds


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    text_encoder: PreTrainedModel,
    prompts: Sequence[str],
    max_length: int = 300,
    device: torch.device | str | None = None,
    system_prompt: str = SYSTEM_PROMPT,
) -> ContextFeatures:
    """Context features of prompts.

    Every prompt is padded to the longest that the model reads, on the tokenizer's own side, and stands after
    the system prompt, whose own features are left out. Features of the padding are part of the result: the
    transformer attends to them.

    Args:
        tokenizer: The language model's tokenizer.
        text_encoder: The language model.
        prompts: The prompts.
        max_length: T; a longer prompt is cut with a warning that shows what is lost.
        device: Where the language model runs; None is where its weights are.
        system_prompt: What stands before every prompt; "" for nothing.

    Raises:
        ValueError: When a prompt is empty, or the tokenizer cannot pad.
    """
    device = torch.device(device) if device is not None else text_encoder.device
    if tokenizer.pad_token_id is None:
        raise ValueError("The tokenizer has no padding token; give the one that the model was trained with.")
    # A prompt that occurs several times is encoded once.
    unique = list(dict.fromkeys(prompts))
    rows = torch.stack([_padded_ids(tokenizer, prompt, max_length) for prompt in unique]).to(device)
    # As in the official code, the mask asks for the padding's number and not for its place.
    mask = rows != tokenizer.pad_token_id
    lead = tokenizer(system_prompt, verbose=False).input_ids[:max_length] if system_prompt else []
    before = torch.tensor(lead, dtype=torch.long, device=device).expand(len(rows), -1)
    encoded = text_encoder(
        input_ids=torch.cat([before, rows], dim=1),
        attention_mask=torch.cat([torch.ones_like(before), mask.long()], dim=1),
        use_cache=False,
    )
    features = encoded.last_hidden_state[:, len(lead) :].float()
    places = torch.tensor([unique.index(prompt) for prompt in prompts], dtype=torch.int64, device=device)
    return ContextFeatures.from_mask(features[places], mask[places])


def _padded_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, max_length: int) -> Tensor:
    """[T] token ids of one prompt, padded on the tokenizer's side."""
    ids = token_ids(tokenizer, prompt, max_length)
    padding = [tokenizer.pad_token_id] * (max_length - len(ids))
    padded = padding + ids if tokenizer.padding_side == "left" else ids + padding
    return torch.tensor(padded, dtype=torch.int64)


def token_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, max_length: int = 300) -> list[int]:
    """Token ids of one prompt, without padding; warns with what a cut loses.

    Raises:
        ValueError: When the prompt is empty.
    """
    if not prompt.strip():
        raise ValueError(f"The prompt {prompt!r} is empty; write what the picture should show.")
    ids: list[int] = tokenizer(prompt, verbose=False).input_ids
    if len(ids) > max_length:
        lost = tokenizer.decode(ids[max_length:])
        shown = lost if len(lost) <= _SHOWN_CHARACTERS else f"{lost[:_SHOWN_CHARACTERS]}..."
        logger.warning(
            "The prompt has %d tokens, but the model reads %d; ignored is %r.", len(ids), max_length, shown
        )
    return ids[:max_length]


def load_text_encoder(
    path: str | os.PathLike[str],
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> PreTrainedModel:
    """Loads the language model of a Qwen2 folder such as Qwen2-VL-1.5B-Instruct.

    Of a model that also sees (type "qwen2_vl") the language half is taken: for text alone, all three of its
    position axes count the tokens, which is what the plain model does.

    Args:
        path: A local transformers folder.
        dtype: Number format; None keeps the file's.
        device: Where the weights go; None is the CPU.

    Raises:
        CheckpointError: When the folder holds no such model that can be read.
    """
    return load_text_model(path, _MODELS, "Qwen2-VL-1.5B-Instruct", dtype, device)


def load_text_tokenizer(path: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a Qwen2 folder.

    Raises:
        CheckpointError: When the folder holds no tokenizer that can be read.
    """
    folder = transformers_folder(path, "Qwen2-VL-1.5B-Instruct")
    classes = (*GENERIC_TOKENIZERS, "Qwen2Tokenizer", "Qwen2TokenizerFast")
    return transformers_models.load_text_tokenizer(folder, classes, "Qwen2-VL-1.5B-Instruct")
