"""Class to image with VAR."""

# No postponed annotations here: diffusers reads the component types off the constructor.

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from stepvar.generation.guidance import Guidance
from stepvar.generation.progress import Observer
from stepvar.generation.pruner import PruningMethod
from stepvar.generation.report import Summary
from stepvar.generation.sampling import CodebookSettings
from stepvar.models.common.codebook_pipeline import CodebookPipeline, even_progress
from stepvar.models.common.vq_vae_checkpoints import check_pair
from stepvar.models.pipeline import ImageOutput
from stepvar.models.request import Inputs, PerScale, Request, check_filters
from stepvar.models.var.costs import scale_costs
from stepvar.models.var.presets import PRESETS
from stepvar.models.var.session import VARSession
from stepvar.models.var.transformer import VARTransformer
from stepvar.models.var.vae import VARVAE

ClassLabel = int | str

UNCONDITIONAL = -1
"""The label of a picture of no class in particular."""


class VARPipeline(CodebookPipeline):
    """Draws pictures of classes.

    Args:
        transformer: Predicts codes.
        vae: The visual tokenizer the transformer was trained with.
        labels: Name of every class by number, so that classes can be asked for by name; None when unknown. A
            name may list synonyms, separated by commas.
        guidance_scale, top_k, top_p, smooth: Defaults of `__call__`.

    Raises:
        ValueError: When transformer and tokenizer do not belong together, or names are missing.

    Source of the defaults: FoundationVision/VAR, demo_sample.ipynb. Its numbers for measuring FID are
    guidance_scale 1.5, top_k 900 and top_p 0.96.
    """

    presets = PRESETS
    model_cpu_offload_seq = "transformer->vae"
    example_prompt = "0"
    reads_text = False

    def __init__(
        self,
        transformer: VARTransformer,
        vae: VARVAE,
        labels: dict[str, str] | list[str] | None = None,
        guidance_scale: float = 4.0,
        top_k: int = 900,
        top_p: float = 0.95,
        smooth: bool = False,
    ) -> None:
        super().__init__()
        check_pair(transformer, vae)
        classes = transformer.config.classes
        if labels is not None:
            # By number, as diffusers stores them: it takes lists for components.
            named = labels if isinstance(labels, dict) else dict(enumerate(labels))
            labels = {str(number): name for number, name in named.items()}
            if labels.keys() != {str(number) for number in range(classes)}:
                raise ValueError(f"{len(labels)} labels were given for {classes} classes: name every class.")
        self.register_modules(transformer=transformer, vae=vae)
        self.register_to_config(
            labels=labels, guidance_scale=guidance_scale, top_k=top_k, top_p=top_p, smooth=smooth
        )

    @torch.no_grad()
    def __call__(
        self,
        class_labels: ClassLabel | Sequence[ClassLabel],
        *,
        height: int | None = None,
        width: int | None = None,
        guidance_scale: PerScale | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        smooth: bool | None = None,
        num_images_per_label: int = 1,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        pruning: PruningMethod | str | None = None,
        output_type: str = "pil",
        observer: Observer | None = None,
    ) -> ImageOutput:
        """Draws pictures.

        Args:
            class_labels: One class or several, by number, or by name where the pipeline knows names; -1 draws
                without a class.
            height, width: Pixels; every model draws one size.
            guidance_scale: Classifier-free guidance t, with logits (1 + t) conditional - t unconditional. One
                number is reached at the last scale and grows to it evenly from 0 at the first, as published;
                a list has the t of every scale. 0 is off.
            top_k: Draws from the k likeliest codes; 1 takes the likeliest, 0 is off.
            top_p: Drops the rarest codes that have 1 - top_p together; 0 is off.
            smooth: Mix codes by a Gumbel softmax that sharpens from scale to scale, instead of picking one:
                smoother pictures, of less variety.
            num_images_per_label: Pictures of each class.
            seed: One an image, or one number s for s, s + 1, ...
            generator: One an image, instead of seeds.
            pruning: `StepVAR(...)` or another method, a preset's name, or None for a dense run.
            output_type: "pil", "np", "pt", or "latent" for the accumulated codes.
            observer: Hears of every scale.

        Returns:
            The pictures, and a report of what ran.

        Raises:
            ValueError: When an input is wrong; nothing has been computed then.
        """
        classes, counted = self.classes(class_labels), "num_images_per_label"
        inputs = Inputs.of(classes, seed, generator, num_images_per_label, counted=counted)
        schedule, guidance = self.schedule(height, width), self._guidance(guidance_scale)
        sampling = self._sampling(top_k, top_p, smooth)
        method = self.plan_method(pruning, schedule, guidance)
        return self.draw(Request(inputs, schedule, guidance, sampling, method), output_type, observer)

    def summary(
        self,
        pruning: PruningMethod | str | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        guidance_scale: PerScale | None = None,
        images: int = 1,
    ) -> Summary:
        """What a call with these arguments will run: tokens kept, skips, FLOPs and KV bytes a scale.

        Args:
            images: Pictures in the batch.

        Raises:
            ValueError: As `__call__` would.
        """
        schedule, guidance = self.schedule(height, width), self._guidance(guidance_scale)
        method = self.plan_method(pruning, schedule, guidance)
        costs = partial(scale_costs, self.transformer)
        return self.summarise(method, schedule, guidance, images, costs)

    def classes(self, labels: ClassLabel | Sequence[ClassLabel]) -> list[int]:
        """Numbers of classes that are given by number or by name.

        Raises:
            ValueError: When there is none, or one is out of range, unknown or ambiguous.
        """
        given = [labels] if isinstance(labels, (int, str)) else list(labels)
        if not given:
            raise ValueError("No class was given.")
        return [self._class(label) for label in given]

    def _class(self, label: ClassLabel) -> int:
        count = self.transformer.config.classes
        if isinstance(label, str) and not re.fullmatch(r"\s*[+-]?\d{1,9}\s*", label):
            return self._named_class(label)
        if isinstance(label, bool) or not isinstance(label, (int, str)):
            raise ValueError(f"The class {label!r} is a {type(label).__name__}: give its number or its name.")
        number = int(label)
        if number == UNCONDITIONAL:
            return self.transformer.unconditional_class
        if not 0 <= number < count:
            raise ValueError(
                f"The class {number} is out of range: this model draws classes 0 to {count - 1}, "
                f"or {UNCONDITIONAL} for none in particular."
            )
        return number

    def _named_class(self, name: str) -> int:
        count = self.transformer.config.classes
        if self.config.labels is None:
            raise ValueError(
                f"The class {name!r} is no number, and this model knows no names: give 0 to {count - 1}."
            )
        names = [self.config.labels[str(number)] for number in range(count)]
        wanted = name.strip().lower()
        exact = [number for number, entry in enumerate(names) if entry.strip().lower() == wanted]
        found = exact or [
            number
            for number, entry in enumerate(names)
            if wanted in (part.strip().lower() for part in entry.split(","))
        ]
        if len(found) == 1:
            return found[0]
        if found:
            numbers = " or ".join(map(str, found))
            raise ValueError(f"{len(found)} classes are called {name!r}: give the number, {numbers}.")
        similar = [entry for entry in names if wanted and wanted in entry.lower()][:3]
        hint = f"similar are {', '.join(map(repr, similar))}" if similar else f"or give 0 to {count - 1}"
        raise ValueError(f"No class is called {name!r}; {hint}.")

    def check_prompts(self, prompts: Sequence[str]) -> None:
        self.classes(prompts)

    def _guidance(self, scale: PerScale | None) -> Guidance:
        return Guidance(tuple(1.0 + strength for strength in self.growing_strengths(scale)))

    def _sampling(self, top_k: int | None, top_p: float | None, smooth: bool | None) -> CodebookSettings:
        config, scales = self.config, len(self.transformer.schedule)
        top_k = config.top_k if top_k is None else top_k
        top_p = config.top_p if top_p is None else top_p
        check_filters(top_k, top_p)
        smooth = config.smooth if smooth is None else smooth
        smoothing = tuple(even_progress(scales)) if smooth else (None,) * scales
        return CodebookSettings((1.0,) * scales, (top_k,) * scales, top_p, smoothing)

    def start(self, request: Request, device: torch.device) -> VARSession:
        inputs = request.inputs
        classes = [number for number in inputs.prompts for _ in range(inputs.repeats)]
        self.load_to_device(self.transformer)
        guided = request.guidance.active
        return VARSession(self.transformer, self.quantizer(device), torch.tensor(classes), guided)

    def own_settings(self, request: Request) -> dict[str, Any]:
        inputs, sampling = request.inputs, request.sampling
        null, names = self.transformer.unconditional_class, self.config.labels or {}
        numbers = [UNCONDITIONAL if number == null else number for number in inputs.prompts]
        labels = [number for number in numbers for _ in range(inputs.repeats)]
        return {
            **super().own_settings(request),
            "prompts": [names.get(str(number), str(number)) for number in labels],
            "class_labels": labels,
            "top_k": sampling.top_k[0],
            "smooth": sampling.smoothing[0] is not None,
        }
