"""Class to image with VAR."""

# No postponed annotations here: diffusers reads the component types off the constructor.

import re
from collections.abc import Sequence
from typing import Any

import torch

from stepvar.generation.guidance import Guidance
from stepvar.generation.plan import GenerationPlan
from stepvar.generation.progress import Observer
from stepvar.generation.report import ScaleCost
from stepvar.generation.sampling import CodebookSettings
from stepvar.models.arguments import with_arguments_of
from stepvar.models.codebook_pipeline import CodebookPipeline, CodebookRequest, even_progress
from stepvar.models.common.vq_vae_checkpoints import check_pair
from stepvar.models.output import CALLBACK_TENSORS, CallOptions, ImageOutput, StageTimer, StepCallback
from stepvar.models.request import Inputs, PerScale, check_filters
from stepvar.models.var import SPEC
from stepvar.models.var.costs import scale_costs
from stepvar.models.var.presets import PRESETS
from stepvar.models.var.session import VARSession
from stepvar.models.var.transformer import VARTransformer
from stepvar.models.var.vae import VARVAE
from stepvar.pruning.presets import Pruning

ClassLabel = int | str

UNCONDITIONAL = -1
"""The label of a picture of no class in particular."""

PUBLISHED = {"labels": None, "guidance_scale": 5.0, "top_k": 900, "top_p": 0.95, "smooth": False}
"""Defaults of a call; FoundationVision/VAR, demo_sample.ipynb, where guidance is counted from 0.

Its numbers for measuring FID are guidance_scale 2.5 (1.5 there), top_k 900 and top_p 0.96.
"""


class VARPipeline(CodebookPipeline[CodebookRequest]):
    """Draws pictures of classes.

    Args:
        transformer: Predicts codes.
        vae: The visual tokenizer the transformer was trained with.
        labels: Name of every class by number, so that classes can be asked for by name; None when unknown. A
            name may list synonyms, separated by commas.
        guidance_scale, top_k, top_p, smooth: Defaults of `__call__`; None is what the transformer was first
            used with, or the published value.

    Raises:
        ValueError: When transformer and tokenizer do not belong together, or names are missing.
    """

    spec = SPEC
    presets = PRESETS
    reads_text = False
    example_prompt = "0"
    _subject = "class_labels"

    transformer: VARTransformer
    vae: VARVAE

    def __init__(
        self,
        transformer: VARTransformer,
        vae: VARVAE,
        labels: dict[str, str] | list[str] | None = None,
        guidance_scale: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        smooth: bool | None = None,
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
        given = {"guidance_scale": guidance_scale, "top_k": top_k, "top_p": top_p, "smooth": smooth}
        self.register_defaults(PUBLISHED, {"labels": labels, **given})

    def check(
        self,
        class_labels: ClassLabel | Sequence[ClassLabel] | None = None,
        height: int | None = None,
        width: int | None = None,
        *,
        guidance_scale: PerScale | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        smooth: bool | None = None,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        pruning: Pruning = None,
        output_type: str = "pil",
        return_dict: bool = True,
        batch_invariant: bool = False,
        observer: Observer | None = None,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = CALLBACK_TENSORS,
    ) -> CodebookRequest:
        """Checks the arguments of a call, and computes nothing yet.

        Args:
            class_labels: One class or several, by number, or by name where the pipeline knows names; -1 draws
                without a class.
            height, width: Pixels; every model draws one size.
            guidance_scale: Classifier-free guidance, 1 is off; the official t plus 1. One number is reached
                at the last scale and grows to it evenly from 1 at the first, as published; a list has one
                entry a scale.
            top_k: Draws from the k likeliest codes; 1 takes the likeliest, 0 is off.
            top_p: Drops the rarest codes that have 1 - top_p together; 0 is off.
            smooth: Mix codes by a Gumbel softmax that sharpens from scale to scale, instead of picking one:
                smoother pictures, of less variety.
            num_images_per_prompt: Pictures of each class.
            seed: One an image, or one number s for s, s + 1, ...
            generator: Instead of seeds, one an image; a single one serves all images in turn.
            pruning: `StepVAR(...)` or another method, a preset's name, or None for a dense run.
            output_type: "pil", "np", "pt", or "latent" for the accumulated codes.
            return_dict: False returns the fields of the output as a tuple.
            batch_invariant: Computes every picture by itself, so that none of its bits depends on the others
                of the call, in any number format; takes longer, see docs/determinism.md.
            observer: Called after every scale with its report.
            callback_on_step_end: Called as callback(pipeline, step, timestep, tensors) after every scale that
                ran; may return other latents, or set `pipeline._interrupt` to leave out the other scales.
            callback_on_step_end_tensor_inputs: What it is given: "latents", the accumulated codes.

        Returns:
            The pictures, and a report of what ran.

        Raises:
            ValueError: When an input is wrong; nothing has been computed then.
        """
        if class_labels is None:
            raise ValueError("No class was given: pass class_labels, numbers of classes or their names.")
        inputs = Inputs.of(self.classes(class_labels), seed, generator, num_images_per_prompt)
        schedule = self.schedule(height, width)
        guidance = Guidance(self.growing_weights(guidance_scale))
        return CodebookRequest(
            inputs=inputs,
            schedule=schedule,
            guidance=guidance,
            sampling=self._sampling(top_k, top_p, smooth),
            method=self.check_pruning(pruning, schedule, guidance),
            options=CallOptions(
                output_type,
                observer,
                return_dict,
                callback_on_step_end,
                callback_on_step_end_tensor_inputs,
                batch_invariant,
            ),
            timer=StageTimer(self._execution_device),
        )

    @with_arguments_of(check)
    def __call__(self, *args: Any, **kwargs: Any) -> ImageOutput:
        """Draws pictures."""
        return self.draw(self.check(*args, **kwargs))

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
        if self.config["labels"] is None:
            raise ValueError(
                f"The class {name!r} is no number, and this model knows no names: give 0 to {count - 1}."
            )
        names = [self.config["labels"][str(number)] for number in range(count)]
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

    def check_prompts(
        self, prompts: Sequence[str], negatives: Sequence[str] = (), seconds: float | None = None
    ) -> None:
        self.classes(prompts)

    def _sampling(self, top_k: int | None, top_p: float | None, smooth: bool | None) -> CodebookSettings:
        config, scales = self.config, len(self.transformer.schedule)
        top_k = config["top_k"] if top_k is None else top_k
        top_p = config["top_p"] if top_p is None else top_p
        check_filters(top_k, top_p)
        smooth = config["smooth"] if smooth is None else smooth
        smoothing = tuple(even_progress(scales)) if smooth else (None,) * scales
        return CodebookSettings((1.0,) * scales, (top_k,) * scales, top_p, smoothing)

    def prefill(self, request: CodebookRequest) -> VARSession:
        inputs = request.inputs
        with request.timer.stage("text"):
            classes = [number for number in inputs.prompts for _ in range(inputs.repeats)]
            self.load_to_device(self.transformer)
            quantizer, guided = self.quantizer(self._execution_device), request.guidance.active
            return VARSession(
                self.transformer,
                quantizer,
                torch.tensor(classes, dtype=torch.int64),
                guided,
                self._execution_device,
            )

    def scale_costs(
        self,
        request: CodebookRequest,
        plan: GenerationPlan,
        rows: Sequence[int],
        images: int,
        text_tokens: int,
    ) -> tuple[ScaleCost, ...]:
        return scale_costs(self.transformer, plan, rows)

    def own_settings(self, request: CodebookRequest) -> dict[str, Any]:
        inputs, sampling = request.inputs, request.sampling
        null, names = self.transformer.unconditional_class, self.config["labels"] or {}
        numbers = [UNCONDITIONAL if number == null else number for number in inputs.prompts]
        labels = [number for number in numbers for _ in range(inputs.repeats)]
        return {
            **super().own_settings(request),
            "prompts": [names.get(str(number), str(number)) for number in labels],
            "class_labels": labels,
            "top_k": sampling.top_k[0],
            "smooth": sampling.smoothing[0] is not None,
        }
