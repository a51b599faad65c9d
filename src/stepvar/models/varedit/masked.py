"""`edit` of VAREdit: all is drawn anew as an instruction says; a mask chooses what of it is taken over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from PIL import Image

from stepvar.editing.pictures import Canvas, Window, composite
from stepvar.models.edit_request import EditSettings, open_canvases, require_one_size, with_subject
from stepvar.models.editing import EditOutput, as_kind, edit_output
from stepvar.models.output import ImageOutput
from stepvar.models.varedit.pictures import placed_size

if TYPE_CHECKING:
    from stepvar.models.varedit.pipeline import EditRequest, VAREditPipeline

_OF_OTHER_MODELS = ("outpaint", "strength", "margin", "late_scales")
"""Arguments of other models' `edit`, which draw a part of a picture."""

_OF_PASTING = ("mask", "box", "feather", "composited")
"""Arguments of `edit` that a call has not; what is drawn does not depend on them."""


@dataclass
class InstructionEdit:
    """A checked edit; nothing is encoded yet.

    Attributes:
        settings: As they were given.
        request: The call.
        canvases: One a picture.
        windows: The part of each that the model sees and returns.
    """

    settings: EditSettings
    request: EditRequest
    canvases: list[Canvas]
    windows: list[Window]

    @property
    def pastes(self) -> bool:
        """Whether anything is put back outside of a mask."""
        masked = any(canvas.mask is not None for canvas in self.canvases)
        return masked and self.settings.composited and self.request.options.output_type != "latent"


def call_arguments(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call, of those of an edit.

    Args:
        name: Of the pipeline's class, for the message.

    Raises:
        ValueError: When one is nothing to a model that draws whole pictures.
    """
    for argument in _OF_OTHER_MODELS:
        if given.get(argument) is not None:
            raise ValueError(
                f"{argument} means nothing to {name}, which draws the whole picture anew as an instruction "
                "says: leave it out, or use Infinity, VAR, HART or Switti."
            )
    own = (*_OF_OTHER_MODELS, *_OF_PASTING)
    return {argument: value for argument, value in given.items() if argument not in own}


def check_instruction(
    pipeline: VAREditPipeline, subject: Sequence[Any], settings: EditSettings, call: dict[str, Any]
) -> InstructionEdit:
    """Checks an edit; reads pictures and masks, and runs no model.

    Args:
        subject: The instruction, unless it is among the others.
        settings: Pictures' masks, and how they are put back; `image` is in the call.
        call: All other arguments.

    Raises:
        ValueError: When an argument is wrong, or nothing to this model.
    """
    settings.require_valid()
    call = with_subject(pipeline, subject, call_arguments(type(pipeline).__name__, call))
    canvases = open_canvases(call.pop("image", None), settings)
    prompts = call.get("prompt")
    if isinstance(prompts, str):
        call["prompt"] = prompts = [prompts] * len(canvases)
    pictures = [canvas.picture for canvas in canvases]
    request = pipeline.check(image=pictures, fit=settings.fit, pruning=settings.pruning, **call)
    inputs = request.inputs
    canvases = canvases * len(inputs.prompts) if len(canvases) == 1 else canvases
    canvases = [canvas for canvas in canvases for _ in range(inputs.repeats)]
    if any(canvas.mask is not None for canvas in canvases):
        require_one_size(canvases, settings, request.options.output_type)
    height, width = pipeline.pixels(request.schedule)
    windows = [_window(canvas, (width, height), settings.fit) for canvas in canvases]
    return InstructionEdit(settings, request, canvases, windows)


def _window(canvas: Canvas, size: tuple[int, int], fit: str) -> Window:
    """The part of a canvas that comes back: all of it, or the middle that was cut out.

    Raises:
        ValueError: When a mask lies outside of it.
    """
    if fit == "pad":
        return Window(0, 0, *canvas.size)
    width, height = placed_size(canvas.size, size, fit)
    left, top = (canvas.size[0] - width) // 2, (canvas.size[1] - height) // 2
    if canvas.mask is not None and not canvas.mask[top : top + height, left : left + width].any():
        raise ValueError(
            "The mask lies outside of what the model sees of the picture: give fit='pad', or another mask."
        )
    return Window(left, top, left + width, top + height)


def run_instruction(pipeline: VAREditPipeline, edit: InstructionEdit) -> EditOutput:
    """Draws a checked edit."""
    options = edit.request.options
    drawn_as = replace(options, output_type="pil") if edit.pastes else options
    request = replace(edit.request, options=replace(drawn_as, return_dict=True))
    drawn: ImageOutput = pipeline.draw(request)
    images: Any = drawn.images
    if edit.pastes:
        images = as_kind(_pasted(edit, images), options.output_type)
    settings = drawn.report.settings
    if any(canvas.mask is not None for canvas in edit.canvases):
        settings["edit"] = {"feather": edit.settings.feather, "composited": edit.settings.composited}
    output = edit_output(images, drawn.report, edit.canvases)
    return options.packed(output)


def _pasted(edit: InstructionEdit, drawn: Sequence[Image.Image]) -> list[Image.Image]:
    """What was drawn, inside of each mask; a picture without a mask is what was drawn."""
    return [
        picture if canvas.mask is None else composite(canvas, window, picture, edit.settings.feather)
        for canvas, window, picture in zip(edit.canvases, edit.windows, drawn, strict=True)
    ]
