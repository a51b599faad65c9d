"""Visual tokenizer of VAR."""

# diffusers looks up the base class of a saved component on the module that the component is from.
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401

from stepvar.models.common.vq_vae import VectorQuantizedVAE


class VARVAE(VectorQuantizedVAE):
    """Pictures to codes per scale and back, as VAR was trained with: 4096 codes of 32 channels, stride 16."""
