"""The visual tokenizer of VAR."""

from stepvar.models.vector_tokenizer import VectorTokenizer


class VARTokenizer(VectorTokenizer):
    """Pictures to codes per scale and back, as VAR was trained with: 4096 codes of 32 channels, stride 16."""
