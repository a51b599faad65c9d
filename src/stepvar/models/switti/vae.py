"""Visual tokenizer of Switti."""

# diffusers looks up the base class of a saved component on the module that the component is from.
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401

from stepvar.models.common.vq_vae import VectorQuantizedVAE


class SwittiVAE(VectorQuantizedVAE):
    """Pictures to codes per scale and back: VAR's tokenizer, tuned further for Switti."""
