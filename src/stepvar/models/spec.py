"""Model specs: what the package knows of a model without importing it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stepvar.checkpoints.components import ComponentSpec, Reference, load_reference

if TYPE_CHECKING:
    from stepvar.models.pipeline import NextScalePipeline
    from stepvar.pruning.presets import Preset

_GENERIC_TOKENIZERS = ("transformers:PreTrainedTokenizerFast", "transformers:TokenizersBackend")
"""The class of a plain tokenizer.json: the second is what transformers 5 calls the first."""


@dataclass(frozen=True)
class ModelSpec:
    """One model.

    Attributes:
        key: Short name: of its folder in `stepvar.models`, and on the command line.
        name: Its name as its authors write it.
        repository: The official code, owner/name on GitHub: whose golden cases it runs.
        signatures: Keys of a transformer's state dict that only this model has together: in the official
            names, then in ours where they differ.
        pipeline: Its pipeline class.
        plans: Its presets, by name.
        components: What the pipeline consists of, by name.
        convert: Its `Conversion`: loads official checkpoints, and writes folders.
        objects: Its `OfficialObjects`: builds on the weights of objects of the official code.
        conformance: Function that runs its golden cases.
        license: Of the published weights, as the Hugging Face hub names it; None where their card says none.
        task: What the pipeline does, as the hub names it.
        routes: Keys to the transformer's state dict inside its training checkpoints.
        same_weights_as: Key of the model whose transformer it is, with other weights: nothing in a file tells
            the two apart, so it must be asked for by its key.
    """

    key: str
    name: str
    repository: str
    signatures: tuple[frozenset[str], ...]
    pipeline: Reference
    plans: Reference
    components: Mapping[str, ComponentSpec]
    convert: Reference
    objects: Reference
    conformance: Reference
    license: str | None = "mit"
    task: str = "text-to-image"
    routes: tuple[tuple[str, ...], ...] = field(default=())
    same_weights_as: str | None = None

    @property
    def transformer_title(self) -> str:
        """Its transformer with an article, for messages: "an Infinity transformer"."""
        article = "an" if self.name[0] in "AEIO" else "a"
        return f"{article} {self.name} transformer"

    @property
    def pipeline_name(self) -> str:
        """Name of the pipeline class, as a saved folder's index has it."""
        return self.pipeline.partition(":")[2]

    @property
    def public_classes(self) -> dict[str, Reference]:
        """Its classes that the package exports, by name: the pipeline, and its components of ours."""
        ours = [entry for part in self.components.values() for entry in part.classes]
        named = [self.pipeline, *(entry for entry in ours if entry.startswith("stepvar."))]
        return {entry.partition(":")[2]: entry for entry in named}

    @property
    def pipeline_class(self) -> type[NextScalePipeline]:
        """The pipeline class; imports torch."""
        found: type[NextScalePipeline] = load_reference(self.pipeline)
        return found

    @property
    def presets(self) -> Mapping[str, Preset]:
        """Pruning plans for this model, by name; imports torch."""
        found: Mapping[str, Preset] = load_reference(self.plans)
        return found

    def matches(self, keys: Iterable[str]) -> bool:
        """Whether a state dict with these keys is this model's transformer."""
        present = set(keys)
        return any(signature <= present for signature in self.signatures)


def our_component(module: str, name: str, former_name: str | None = None) -> ComponentSpec:
    """A component of a class of ours."""
    return ComponentSpec((f"{module}:{name}",), former_names=(former_name,) if former_name else ())


def text_encoder(classes: tuple[str, ...], module: str, published: str) -> ComponentSpec:
    """A text encoder of transformers, loaded strictly by a module's `load_text_encoder`."""
    return ComponentSpec(
        tuple(f"transformers:{name}" for name in classes),
        loader=f"{module}:load_text_encoder",
        optional=True,
        published=published,
    )


def text_tokenizer(*classes: str) -> ComponentSpec:
    """A tokenizer of transformers: of a class that several versions name differently, or a plain one."""
    named = tuple(f"transformers:{name}" for name in classes)
    return ComponentSpec((*_GENERIC_TOKENIZERS, *named), optional=True)
