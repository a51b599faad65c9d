"""HTML of the page's results; everything that is text is escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from stepvar.evaluation.comparison import Comparison, Generated
from stepvar.evaluation.figure import format_seconds, stage_colours
from stepvar.serving.ui.files import PageFile


@dataclass(frozen=True)
class Shown:
    """A finished picture in the gallery: its file, and two lines about it."""

    file: PageFile
    title: str
    note: str


def header(name: str) -> str:
    """The page's head, with the name of the model."""
    return f'<header class="sv-head"><b>stepvar</b><span>{escape(name)}</span></header>'


def label(text: str) -> str:
    """A line above some fields."""
    return f'<p class="sv-label">{escape(text)}</p>'


def note(text: str, strong: bool = False) -> str:
    """A line below a field."""
    return f'<p class="sv-note{" sv-sum" if strong else ""}">{escape(text)}</p>'


def status(text: str = "", error: bool = False) -> str:
    """The line that says what happens, or what is wrong."""
    role = 'role="alert" class="sv-status sv-error"' if error else 'role="status" class="sv-status"'
    return f"<p {role}>{escape(text)}</p>"


def empty_card(title: str, hint: str) -> str:
    """A card before anything is drawn."""
    return _card(title, "", hint, '<div class="sv-picture sv-empty"></div>')


def growing_card(title: str, place: str | None, scale: int, scales: int, grid: str) -> str:
    """A card whose picture is being drawn.

    Args:
        place: Of the preview; None where there is none.
        scale, scales: Scales that have run, of how many.
        grid: Of the last one that ran.
    """
    note = f"scale {scale} of {scales}, {grid}" if scale else "waiting"
    image = f'<img src="{place}" alt="preview after scale {scale}">' if place else ""
    share = 100 * scale / max(scales, 1)
    bar = f'<div class="sv-progress" style="width:{share:.0f}%"></div>'
    empty = "" if place else " sv-empty"
    return _card(title, "", note, f'<div class="sv-picture sv-growing{empty}">{image}{bar}</div>')


def finished_card(title: str, seconds: float, note: str, file: PageFile, alt: str) -> str:
    """A card with a finished picture and its link."""
    picture = f'<div class="sv-picture">{_media(file, alt)}</div>'
    return _card(title, format_seconds(seconds), note, picture + _download(file, "Save"))


def kept_card(overlays: Sequence[tuple[str, str, str]], group: str) -> str:
    """The overlays of kept tokens, one shown at a time; which one is chosen without the server.

    Args:
        overlays: Address of the picture, name of the scale, and how much of it ran.
        group: A name that only this card has.
    """
    title = "Kept tokens"
    if not overlays:
        return empty_card(title, "this plan leaves none out")
    inputs, panes, labels = [], [], []
    for index, (place, scale, note) in enumerate(overlays):
        name = f"{group}-{index}"
        checked = " checked" if index == len(overlays) - 1 else ""
        inputs.append(f'<input type="radio" name="{group}" id="{name}"{checked}>')
        labels.append(f'<label for="{name}">{escape(scale)}</label>')
        panes.append(
            f'<figure><p class="sv-note">{escape(note)}</p><div class="sv-picture">'
            f'<img src="{place}" alt="kept tokens of scale {escape(scale)}: {escape(note)}"></div></figure>'
        )
    chips = f'<div class="sv-chips"><span>scale</span>{"".join(labels)}</div>'
    return (
        f'<section class="sv-card sv-kept"><h3>{title}</h3>{"".join(inputs)}'
        f'<div class="sv-panes">{"".join(panes)}</div>{chips}</section>'
    )


def times_card(
    runs: Sequence[tuple[str, Generated]], headline: str, note: str, file: PageFile | None = None
) -> str:
    """Where the time goes: a bar for each run, on one axis.

    Args:
        runs: Title and run.
        headline, note: Lines above and below.
        file: The comparison as one picture.
    """
    longest = max(generated.seconds for _, generated in runs)
    colours = stage_colours([name for name, _ in runs[0][1].stages])
    bars = "".join(_bar(title, generated, colours, longest) for title, generated in runs)
    link = _download(file, "Save the comparison") if file else ""
    return (
        f'<section class="sv-card sv-times"><h3>{escape(headline)}</h3>{bars}{_legend(colours)}'
        f'<p class="sv-note">{escape(note)} {link}</p></section>'
    )


def comparison_line(comparison: Comparison) -> str:
    """How much faster, or slower, and how near."""
    close = "identical" if comparison.psnr is None else f"PSNR {comparison.psnr:.1f} dB"
    ratio = comparison.speedup
    speed = f"{ratio:.2f} x faster" if ratio >= 1.0 else f"{1.0 / ratio:.2f} x slower"
    return f"{speed}, {close}, SSIM {comparison.ssim:.3f}"


def gallery(shown: Sequence[Shown]) -> str:
    """All pictures of a visit, the last one first."""
    if not shown:
        return ""
    entries = "".join(
        f'<figure class="sv-entry"><a href="{entry.file.place}" target="_blank">'
        f'{_media(entry.file, entry.title)}</a><figcaption><b title="{escape(entry.title)}">'
        f"{escape(entry.title)}</b><span>{escape(entry.note)}</span>{_download(entry.file, 'Save')}"
        "</figcaption></figure>"
        for entry in shown
    )
    return f'<section class="sv-gallery"><h2>Gallery</h2><div class="sv-entries">{entries}</div></section>'


def _card(title: str, time: str, note: str, body: str) -> str:
    return (
        f'<section class="sv-card"><h3>{escape(title)}<b>{escape(time)}</b></h3>'
        f'<p class="sv-note">{escape(note)}</p>{body}</section>'
    )


def _media(file: PageFile, alt: str) -> str:
    if file.kind == "mp4":
        return (
            f'<video src="{file.place}" autoplay loop muted playsinline aria-label="{escape(alt)}"></video>'
        )
    return f'<img src="{file.place}" alt="{escape(alt)}" loading="lazy">'


def _download(file: PageFile, words: str) -> str:
    return f'<a class="sv-save" href="{file.place}" download="{escape(file.name)}">{escape(words)}</a>'


def _bar(title: str, generated: Generated, colours: dict[str, tuple[int, int, int]], longest: float) -> str:
    parts = []
    for name, spent in generated.stages:
        red, green, blue = colours[name]
        ink = "#fff" if red + green + blue < 420 else "#1c1e24"
        parts.append(
            f'<i style="width:{100 * spent / longest:.2f}%;background:rgb({red},{green},{blue});color:{ink}"'
            f' title="{escape(name)}: {format_seconds(spent)}"><span>{escape(name)}</span></i>'
        )
    return (
        f'<div class="sv-run"><span>{escape(title)}</span><div class="sv-bar">{"".join(parts)}</div>'
        f"<b>{format_seconds(generated.seconds)}</b></div>"
    )


def _legend(colours: dict[str, tuple[int, int, int]]) -> str:
    scales = [name for name in colours if name not in ("text", "decode")]
    names = [("text", "text encoder"), (scales[0], "early scales"), (scales[-1], "late scales")]
    entries = "".join(
        f'<span><i style="background:rgb{colours[name]}"></i>{words}</span>'
        for name, words in [*names, ("decode", "decoder")]
    )
    return f'<p class="sv-legend">{entries}</p>'
