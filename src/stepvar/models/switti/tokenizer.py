"""The visual tokenizer of Switti."""

from stepvar.models.vector_tokenizer import VectorTokenizer


class SwittiTokenizer(VectorTokenizer):
    """Pictures to codes per scale and back: VAR's tokenizer, tuned further for Switti."""
