"""Figure of a comparison: dense, pruned, their difference, kept tokens, and the time of every stage.

Of a video some frames are shown side by side, as one wide picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from stepvar.evaluation.comparison import Comparison, Generated, kept_mask
from stepvar.generation.progress import ScaleReport
from stepvar.metrics.fidelity import amplified_difference

Colour = tuple[int, int, int]

PAPER: Colour = (255, 255, 255)
INK: Colour = (28, 30, 36)
FAINT: Colour = (112, 116, 126)
ACCENT: Colour = (0, 122, 108)
TEXT_STAGE: Colour = (168, 172, 182)
DECODE_STAGE: Colour = (232, 163, 61)
FIRST_SCALE: Colour = (178, 216, 224)
LAST_SCALE: Colour = (22, 92, 125)

MARGIN = 36
GAP = 24
TITLE, CAPTION, SMALL = 30, 22, 17
SMALLEST_PANEL, LARGEST_PANEL = 360, 768
BAR = 46

_FRAMES_SHOWN = 5
_LARGEST_GAIN = 8.0
_DIMMED = 0.3
"""Brightness left of a token that did not run."""


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def draw_comparison(comparison: Comparison) -> Image.Image:
    """Draws the whole figure."""
    pictures = _pictures(comparison)
    columns = 1 if comparison.is_video else len(pictures)
    rows = len(pictures) // columns + -(-len(comparison.changed_scales) // 4)
    canvas = _Canvas(pictures[0].pixels, rows, columns)
    canvas.text(comparison.prompt, TITLE, INK)
    canvas.text(_subtitle(comparison), SMALL, FAINT, 4)
    canvas.skip(GAP)
    for start in range(0, len(pictures), columns):
        canvas.row(pictures[start : start + columns], columns)
        canvas.skip(GAP if columns == 1 else 0)
    masks = [_mask_panel(comparison, report) for report in comparison.changed_scales]
    if masks:
        canvas.skip(GAP)
        canvas.text("Which tokens ran, in colour; the grey ones were left out", CAPTION, INK)
    for start in range(0, len(masks), 4):
        canvas.skip(GAP // 3)
        canvas.row(masks[start : start + 4], 4)
    canvas.skip(GAP)
    _draw_times(canvas, comparison)
    canvas.skip(MARGIN - 10)
    return canvas.finish()


@dataclass(frozen=True)
class _Panel:
    """One picture of the figure with two lines above it."""

    title: str
    note: str
    pixels: NDArray[np.uint8]
    tint: Colour = INK
    kept: NDArray[np.bool_] | None = None
    """Tokens [rows, columns] to leave as they are; the others are dimmed and grey."""

    def render(self, size: tuple[int, int]) -> Image.Image:
        """The picture at a size."""
        image = _resized(self.pixels, size)
        if self.kept is None:
            return image
        return _with_left_out_dimmed(image, self.kept)


def _with_left_out_dimmed(image: Image.Image, kept: NDArray[np.bool_]) -> Image.Image:
    """A picture with the tokens [rows, columns] that did not run dimmed and grey."""
    grey = image.convert("L").point(lambda value: value * _DIMMED).convert("RGB")
    # Resized last, so that the edges of tokens stay sharp.
    mask = Image.fromarray((kept * 255).astype(np.uint8)).resize(image.size, Image.Resampling.NEAREST)
    return Image.composite(image, grey, mask)


def draw_kept(pixels: NDArray[np.uint8], report: ScaleReport, frames: Sequence[int]) -> Image.Image:
    """The overlay of one scale alone: what did not run is dimmed and grey.

    Args:
        pixels: Of the picture, or of the frames of a video.
        report: How the scale ran.
        frames: The frames of a video that its maps stand for; they are shown side by side.
    """
    return _with_left_out_dimmed(Image.fromarray(_map_pixels(pixels, frames)), kept_mask(report))


def _map_pixels(pixels: NDArray[np.uint8], frames: Sequence[int]) -> NDArray[np.uint8]:
    """What the maps of a scale lie on: a picture, or frames of a video side by side."""
    return pixels if pixels.ndim == 3 else np.concatenate(pixels[list(frames)], axis=1)


class _Canvas:
    """A picture that grows downwards while rows are added.

    Args:
        pixels: A picture to be shown, for its size.
        rows: Rows of pictures to make room for.
        columns: Pictures in a row.
    """

    def __init__(self, pixels: NDArray[np.uint8], rows: int, columns: int) -> None:
        self.panel = _fitted(pixels.shape[1], pixels.shape[0], columns)
        self.width = columns * self.panel[0] + (columns - 1) * GAP + 2 * MARGIN
        self.image = Image.new("RGB", (self.width, rows * (self.panel[1] + 100) + 600), PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.y = MARGIN

    @property
    def inner(self) -> int:
        """Width between the margins."""
        return self.width - 2 * MARGIN

    def skip(self, height: int) -> None:
        self.y += height

    def text(self, text: str, size: int, colour: Colour, above: int = 0) -> None:
        """Writes a paragraph, wrapped at the margins."""
        self.y += above
        for line in _wrapped(text, size, self.inner, lines=3):
            self.draw.text((MARGIN, self.y), line, font=_font(size), fill=colour)
            self.y += round(size * 1.3)

    def row(self, panels: Sequence[_Panel], columns: int) -> None:
        """Places panels side by side, captions above, in columns of equal width."""
        side = (self.inner - (columns - 1) * GAP) // columns
        size = CAPTION if columns <= 3 else SMALL + 2
        captions = round(1.35 * size) + round(1.6 * SMALL)
        sides = [(panel.pixels.shape[1], panel.pixels.shape[0]) for panel in panels]
        widest = max(width / height for width, height in sides)
        below = 0
        for column, (panel, (width, height)) in enumerate(zip(panels, sides, strict=True)):
            # All of a row are equally high.
            shown = (round(side * width / height / widest), round(side / widest))
            below = max(below, shown[1])
            x = MARGIN + column * (side + GAP)
            self._line(x, self.y, panel.title, size, panel.tint, side)
            self._line(x, self.y + round(1.35 * size), panel.note, SMALL, FAINT, side)
            self.image.paste(panel.render(shown), (x, self.y + captions))
        self.y += captions + below

    def _line(self, x: int, y: int, text: str, size: int, colour: Colour, width: int) -> None:
        line = _wrapped(text, size, width, lines=1)[0]
        self.draw.text((x, y), line, font=_font(size), fill=colour)

    def finish(self) -> Image.Image:
        return self.image.crop((0, 0, self.width, self.y))


def _fitted(width: int, height: int, columns: int) -> tuple[int, int]:
    """Size of a large panel: small pictures are enlarged by a whole number, huge ones shrunk."""
    longest = max(width, height)
    smallest, largest = (round(3 * side / columns) for side in (SMALLEST_PANEL, LARGEST_PANEL))
    if longest > largest:
        return round(width * largest / longest), round(height * largest / longest)
    factor = max(-(-smallest // longest), 1)
    return width * factor, height * factor


def _resized(pixels: NDArray[np.uint8], size: tuple[int, int]) -> Image.Image:
    image = Image.fromarray(pixels)
    # Enlarged by a whole number without smoothing, so that every pixel of the model is seen as it is.
    whole = size[0] % image.width == 0 and size[1] % image.height == 0
    return image.resize(size, Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS)


def _wrapped(text: str, size: int, width: int, lines: int) -> list[str]:
    """Breaks a text into at most so many lines that fit a width; what is left is cut with an ellipsis."""
    font = _font(size)
    found = [""]
    for word in text.split():
        candidate = f"{found[-1]} {word}".strip()
        if font.getlength(candidate) <= width or not found[-1]:
            found[-1] = candidate
        else:
            found.append(word)
    kept = found[:lines]
    cut = len(found) > lines
    while font.getlength(kept[-1] + ("..." if cut else "")) > width and len(kept[-1]) > 1:
        kept[-1], cut = kept[-1][:-1], True
    return [*kept[:-1], kept[-1] + ("..." if cut else "")]


def _subtitle(comparison: Comparison) -> str:
    settings, machine = comparison.pruned.report.settings, comparison.machine
    runs = len(comparison.dense.speed.samples.seconds)
    return (
        f"{settings['width']} x {settings['height']} pixels, seed {comparison.seed}, {settings['dtype']}; "
        f"{machine['device_name']}, {machine['threads']} thread{'s'[: machine['threads'] != 1]}"
        f"{f', median of {runs} runs' if runs > 1 else ''}"
    )


def _pictures(comparison: Comparison) -> list[_Panel]:
    dense, pruned = comparison.dense, comparison.pruned
    faster = f"{comparison.speedup:.2f} x faster"
    gain = _gain(dense.pixels, pruned.pixels)
    decibels = comparison.psnr
    close = "identical" if decibels is None else f"PSNR {decibels:.1f} dB"
    before, after = (_flat(generated.pixels) for generated in (dense, pruned))
    return [
        _Panel(f"Dense, {format_seconds(dense.seconds)}", _tokens(dense), before),
        _Panel(f"Pruned, {format_seconds(pruned.seconds)}, {faster}", _tokens(pruned), after, ACCENT),
        _Panel(
            f"Difference, x {gain:g}",
            f"{close}, SSIM {comparison.ssim:.3f}",
            amplified_difference(before, after, gain),
        ),
    ]


def _flat(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture as it is; some frames of a video side by side, the first and the last among them."""
    if pixels.ndim == 3:
        return pixels
    places = np.unique(np.linspace(0, len(pixels) - 1, _FRAMES_SHOWN).round().astype(int))
    return np.concatenate(pixels[places], axis=1)


def _gain(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """A power of two that makes all but the largest differences visible without clipping them."""
    typical = float(np.percentile(np.abs(first.astype(int) - second.astype(int)), 98))
    gain = 1.0
    while gain < _LARGEST_GAIN and 2 * gain * typical <= 255:
        gain *= 2
    return gain


def _tokens(generated: Generated) -> str:
    report = generated.report
    if report.kept_tokens == report.total_tokens:
        return f"all {report.total_tokens:,} tokens"
    return f"{report.kept_tokens:,} of {report.total_tokens:,} tokens"


def _mask_panel(comparison: Comparison, report: ScaleReport) -> _Panel:
    """The picture with the tokens that did not run dimmed and grey."""
    scale = report.plan.scale
    pixels = _map_pixels(comparison.pruned.pixels, comparison.frames[scale.index])
    note = "skipped" if report.plan.skipped else f"{report.plan.kept:,} of {scale.tokens:,} tokens kept"
    title = str(scale) if comparison.is_video else f"{scale.height} x {scale.width}"
    return _Panel(f"Scale {title}", note, pixels, kept=kept_mask(report))


def _draw_times(canvas: _Canvas, comparison: Comparison) -> None:
    """Two bars on one time axis: text, every scale, decoder."""
    longest = max(comparison.dense.seconds, comparison.pruned.seconds)
    label, total = 90, 110
    room = canvas.inner - label - total
    colours = stage_colours([name for name, _ in comparison.dense.stages])
    canvas.text("Where the time goes", CAPTION, INK)
    canvas.skip(8)
    for name, generated, tint in (("Dense", comparison.dense, INK), ("Pruned", comparison.pruned, ACCENT)):
        x, middle = MARGIN + label, canvas.y + BAR // 2
        canvas.draw.text((MARGIN, middle), name, font=_font(CAPTION), fill=tint, anchor="lm")
        end = _draw_bar(canvas, x, generated, colours, lambda spent: room * spent / longest)
        canvas.draw.text(
            (end + 12, middle), format_seconds(generated.seconds), font=_font(CAPTION), fill=tint, anchor="lm"
        )
        canvas.skip(BAR + 10)


def _draw_bar(
    canvas: _Canvas,
    left: int,
    generated: Generated,
    colours: dict[str, Colour],
    width_of: Callable[[float], float],
) -> float:
    """Draws one bar, and names the parts that are wide enough; returns where it ends."""
    edges = [float(left)]
    for _, spent in generated.stages:
        edges.append(edges[-1] + width_of(spent))
    for (name, _), (start, stop) in zip(generated.stages, pairwise(edges), strict=True):
        # A short stage still has an edge: a pixel's width is left out between stages.
        canvas.draw.rectangle((start, canvas.y, max(start, stop - 1), canvas.y + BAR), fill=colours[name])
        if _font(SMALL).getlength(name) + 10 <= stop - start:
            dark = sum(colours[name]) < 420
            canvas.draw.text(
                ((start + stop) / 2, canvas.y + BAR // 2),
                name,
                font=_font(SMALL),
                fill=PAPER if dark else INK,
                anchor="mm",
            )
    return edges[-1]


def stage_colours(names: Sequence[str]) -> dict[str, Colour]:
    """Grey for the text, light to dark for the scales, amber for the decoder."""
    scales = [name for name in names if name not in ("text", "decode")]
    colours = {"text": TEXT_STAGE, "decode": DECODE_STAGE}
    for index, name in enumerate(scales):
        share = index / max(len(scales) - 1, 1)
        mixed = [round(a + share * (b - a)) for a, b in zip(FIRST_SCALE, LAST_SCALE, strict=True)]
        colours[name] = (mixed[0], mixed[1], mixed[2])
    return colours


def format_seconds(value: float) -> str:
    """A time as the figure writes it."""
    return f"{value:.2f} s" if value >= 0.1 else f"{1000 * value:.0f} ms"
