"""Encoders of object proposals and of prompts into one space, in which a cosine measures the match."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepvar.scenes.network.image_backbone import ObjectProposals
from stepvar.scenes.text_encoder import TEXT_LENGTH

_LEAST_OBJECTNESS = 1e-4
_WORDS_AT_ONCE = 5
_EXPANSION = 2


class Block(nn.Module):
    """A pre-norm transformer layer without dropout.

    Args:
        width: Channels.
        heads: Of the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, _EXPANSION * width),
            nn.GELU(),
            nn.Linear(_EXPANSION * width, width),
        )

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """[B, L, width] -> the same.

        Args:
            bias: [B, L] added to the attention towards each token.
        """
        batch, length, width = x.shape
        parts = self.query_key_value(self.attention_norm(x)).view(batch, length, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, bias[:, None, None])
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.feed_forward(x)


class PictureEncoder(nn.Module):
    """Object proposals -> unit vectors.

    A proposal is weighted by its objectness, so the vector is continuous in it.

    Args:
        channels: Of the backbone's features.
        width, heads, depth: Of the transformer.
        features: Of the vectors.
    """

    def __init__(self, channels: int, width: int, heads: int, depth: int, features: int) -> None:
        super().__init__()
        self.objects = nn.Linear(channels, width)
        self.positions = nn.Sequential(nn.Linear(3, width), nn.GELU(), nn.Linear(width, width))
        self.context = nn.Linear(channels, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(2 * width, features)

    def forward(self, features: Tensor, objectness: Tensor, positions: Tensor, context: Tensor) -> Tensor:
        """[B, F]; arguments as the fields of `ObjectProposals`."""
        tokens = self.objects(features) + self.positions(positions)
        tokens = torch.cat((self.context(context)[:, None], tokens), dim=1)
        bias = F.pad(objectness.clamp(min=_LEAST_OBJECTNESS).log(), (1, 0))
        for block in self.blocks:
            tokens = block(tokens, bias)
        whole, objects = self.norm(tokens).split((1, tokens.shape[1] - 1), dim=1)
        # A sum rather than a mean distinguishes three objects from two.
        total = torch.einsum("bk,bkc->bc", objectness, objects)
        return F.normalize(self.out(torch.cat((whole.squeeze(1), total), dim=-1)), dim=-1)

    def encode(self, proposals: ObjectProposals) -> Tensor:
        """[B, F] of the backbone's proposals."""
        return self(proposals.features, proposals.objectness, proposals.positions, proposals.context)


class WordEncoder(nn.Module):
    """Words -> unit vectors.

    A convolution binds adjectives to their nouns at once, which attention alone takes long to learn.

    Args:
        vocabulary: Number of words.
        width, heads, depth: Of the transformer.
        features: Of the vectors.
    """

    def __init__(self, vocabulary: int, width: int, heads: int, depth: int, features: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.words.weight, std=0.1)
        self.positions = nn.Parameter(0.1 * torch.randn(TEXT_LENGTH, width))
        self.phrase_norm = nn.LayerNorm(width)
        self.phrases = nn.Conv1d(width, width, _WORDS_AT_ONCE, padding=_WORDS_AT_ONCE // 2)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(2 * width, features)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """[B, F].

        Args:
            ids: [B, L] of words, the closing token last; what follows a prompt's length is ignored.
            lengths: [B] words of each prompt, the closing token included.
        """
        is_word = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        x = self.words(ids) + self.positions[: ids.shape[1]]
        phrases = self.phrase_norm(x) * is_word[..., None]
        x = x + F.gelu(self.phrases(phrases.transpose(1, 2)).transpose(1, 2))
        bias = torch.zeros_like(is_word, dtype=x.dtype).masked_fill(~is_word, -1e4)
        for block in self.blocks:
            x = block(x, bias)
        x = self.norm(x)
        end = x[torch.arange(len(x), device=x.device), lengths - 1]
        mean = torch.einsum("bl,blc->bc", is_word.to(x.dtype), x) / lengths[:, None]
        return F.normalize(self.out(torch.cat((end, mean), dim=-1)), dim=-1)
