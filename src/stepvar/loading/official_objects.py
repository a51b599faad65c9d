"""Objects of the official repositories as pipelines: the weights are shared, the objects stay as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from stepvar.checkpoints.components import load_reference
from stepvar.checkpoints.errors import CheckpointError
from stepvar.checkpoints.lock import LOADING
from stepvar.checkpoints.official import OfficialObjects
from stepvar.checkpoints.wrappers import strip_wrappers
from stepvar.models import MODELS, find_spec
from stepvar.models.common.architectures import name_architecture

if TYPE_CHECKING:
    from stepvar.models.pipeline import NextScalePipeline


def from_official(
    model: nn.Module | Mapping[str, Tensor],
    vae: nn.Module | Mapping[str, Tensor],
    *,
    text_encoder: Any = None,
    tokenizer: Any = None,
    kind: str | None = None,
    **options: Any,
) -> NextScalePipeline:
    """A pipeline on the weights of objects of the official code, in memory.

    For `Infinity`, `VAR`, `HARTForT2I`, `Switti` and InfinityStar's `Infinity`, and for fine-tuned forks
    that keep the names of their parameters; wrapped by DDP, FSDP or `torch.compile` or not. Weights are
    shared: what training changes in the official object is what the pipeline draws with. Nothing is copied or
    patched.

    Args:
        model: The official transformer, or its state dict.
        vae: The visual tokenizer it was trained with, or its state dict.
        text_encoder: Its text encoder, of transformers; two of them for Switti; None where prompts come
            encoded.
        tokenizer: The text encoder's tokenizer, likewise.
        kind: Which model it is, where weights do not tell: "varedit" for VAREdit's `Infinity`.
        options: What an object does not tell: `resolution` for InfinityStar and VAREdit, `budgets` for
            Infinity, and `grids` for sizes of one's own; and arguments of the pipeline's constructor, such as
            VAR's `labels`.

    Returns:
        The pipeline, with the weights where they are.

    Raises:
        CheckpointError: When the object is of another architecture, or something is missing, unexpected or of
            another shape.
    """
    state = _state_of(model, "model")
    spec = find_spec(state, kind)
    if spec is None:
        found = name_architecture(state) or f"nothing that stepvar knows (first {', '.join(list(state)[:3])})"
        known = ", ".join(entry.transformer_title for entry in MODELS)
        raise CheckpointError(f"The model is {found}; a transformer is needed: {known}.")
    objects: OfficialObjects = load_reference(spec.objects)
    own = {name: options.pop(name) for name in objects.options if name in options}
    texts = {**_numbered("text_encoder", text_encoder), **_numbered("tokenizer", tokenizer)}
    for name in texts.keys() - spec.components.keys():
        raise ValueError(f"{spec.name} has no {name}: leave it out.")
    with LOADING:
        visual = objects.vae(_state_of(vae, "vae"), vae)
        transformer = objects.transformer(state, _unwrapped(model), visual, **own)
        # Every model's own constructor takes these; the base class has none.
        parts: dict[str, Any] = {"transformer": transformer, "vae": visual, **texts, **options}
        pipeline = spec.pipeline_class(**parts)
    pipeline.register_to_config(_name_or_path=f"an official {spec.name}")
    return pipeline


def _state_of(source: nn.Module | Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Official names -> tensors that share the object's memory."""
    state = source.state_dict() if isinstance(source, nn.Module) else source
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(
            f"{name} is a {type(source).__name__}; pass an object of the official code, or its state dict."
        )
    if any(value.is_meta for value in state.values()):
        raise CheckpointError(f"{name} has weights on the meta device: load them before.")
    names, _prefixes = strip_wrappers(list(state))
    return {names[key]: value.detach() for key, value in state.items()}


def _unwrapped(model: Any) -> Any:
    """The official object itself, whose attributes tell what weights do not."""
    for attribute in ("_orig_mod", "_fsdp_wrapped_module", "module") * 3:
        inner = getattr(model, attribute, None)
        model = inner if isinstance(inner, nn.Module) else model
    return model


def _numbered(name: str, parts: Any) -> dict[str, Any]:
    """One object, or several in their order, under the names that a pipeline has for them."""
    several: Sequence[Any] = parts if isinstance(parts, (list, tuple)) else [parts]
    return {
        f"{name}_{place}" if place > 1 else name: part
        for place, part in enumerate(several, 1)
        if part is not None
    }
