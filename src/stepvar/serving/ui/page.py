"""The page itself: its parts, and which function answers which of them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

# Read by gradio when it is imported: nothing is reported to anybody.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr

from stepvar.serving.server import Server
from stepvar.serving.ui import fragments
from stepvar.serving.ui.flow import Flow, View, Visit
from stepvar.serving.ui.plans import SLIDERS_ONLY, LatePlans

STYLE = Path(__file__).with_name("style.css")

_PICTURE_EXAMPLES = [
    "two yellow stars above a striped blue ring on sand",
    "a checked red cross on grass",
    "three dotted pink rings on water",
    "a large green triangle left of a small white circle on snow",
]
_EXAMPLES = {
    "embedded": _PICTURE_EXAMPLES,
    "embedded-384": _PICTURE_EXAMPLES,
    "embedded-video": [
        "a red star moves to the left on grass",
        "a blue circle moves to the right on sand",
    ],
}
_SYSTEM_FONTS = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
_PARTS = ("status", "dense", "pruned", "kept", "times", "gallery", "visit")


def theme() -> gr.themes.Base:
    """Colours of the library's figures, and the fonts of the visitor's own system."""
    base = gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.zinc,
        radius_size=gr.themes.sizes.radius_md,
        font=_SYSTEM_FONTS,
        font_mono=("ui-monospace", "monospace"),
    )
    return base.set(
        body_background_fill="*neutral_50",
        body_text_color_subdued="*neutral_500",
        block_background_fill="white",
        block_label_text_color="*neutral_700",
        block_title_text_weight="500",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_secondary_background_fill="white",
        button_secondary_background_fill_hover="*neutral_100",
        button_secondary_border_color="*neutral_300",
        input_background_fill="white",
        input_border_width="1px",
        slider_color="*primary_700",
    )


class Page:
    """Builds the page of one server.

    Args:
        server: Model and queue.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.plans = LatePlans.of(server.drawer.pipeline)
        self.flow = Flow(server, self.plans)
        self.fields: dict[str, Any] = {}
        self.sliders: list[gr.Slider] = []
        self.parts: dict[str, Any] = {}

    def build(self) -> gr.Blocks:
        """The page, with everything connected."""
        with gr.Blocks(title=f"stepvar: {self.server.name}", analytics_enabled=False) as blocks:
            gr.HTML(fragments.header(self.server.name), padding=False)
            with gr.Column(elem_id="sv-page"):
                with gr.Column(elem_id="sv-ask"):
                    self._add_prompt()
                with gr.Column(elem_id="sv-result"):
                    self._add_results()
                with gr.Column(elem_id="sv-plan"):
                    self._add_plan()
                    self._add_settings()
                self.parts["gallery"] = gr.HTML("", padding=False, elem_id="sv-gallery")
            self.parts["visit"] = gr.State(Visit(), time_to_live=24 * 3600)
            self._connect()
        return blocks

    def _add_prompt(self) -> None:
        pipeline = self.server.drawer.pipeline
        reads_text = pipeline.reads_text
        self.fields["prompt"] = gr.Textbox(
            value=pipeline.example_prompt,
            label="Prompt" if reads_text else "Class, by number or name",
            lines=2 if reads_text else 1,
            max_lines=6,
            max_length=self.server.settings.max_prompt,
            elem_id="sv-prompt",
        )
        with gr.Row(elem_id="sv-buttons"):
            self.draw_button = gr.Button("Draw", variant="primary", elem_id="sv-draw", min_width=80, scale=3)
            self.stop_button = gr.Button("Stop", elem_id="sv-stop", min_width=60, scale=1)
        self.parts["status"] = gr.HTML(fragments.status(), padding=False, elem_id="sv-status")
        examples = _EXAMPLES.get(self.server.name)
        if examples:
            with gr.Row(elem_id="sv-examples"):
                self.examples = [gr.Button(text, size="sm", min_width=0) for text in examples]
        else:
            self.examples = []

    def _add_results(self) -> None:
        with gr.Row(elem_id="sv-cards"):
            for part, title, hint in (
                ("dense", "Dense", "every token of every scale"),
                ("pruned", "Accelerated", "the same seed, by the plan"),
                ("kept", "Kept tokens", "what ran in the late scales"),
            ):
                self.parts[part] = gr.HTML(
                    fragments.empty_card(title, hint), padding=False, elem_id=f"sv-{part}", min_height=0
                )
        self.parts["times"] = gr.HTML("", padding=False, elem_id="sv-times")

    def _add_plan(self) -> None:
        usual = self.plans.usual
        choices = [(name, name) for name in self.plans.presets] + [("sliders only", SLIDERS_ONLY)]
        self.fields["plan"] = gr.Dropdown(
            choices, value=usual, label="Plan", filterable=False, elem_id="sv-preset"
        )
        self.about_plan = gr.HTML(self._about(usual), padding=False, elem_id="sv-about")
        shares = self.plans.shares(usual) or [0.0] * len(self.plans.names)
        gr.HTML(
            '<p class="sv-label">Left out of each late scale, in percent; 100 skips it</p>', padding=False
        )
        for name, share in zip(self.plans.names, shares, strict=True):
            self.sliders.append(
                gr.Slider(
                    0,
                    100,
                    value=round(100 * share),
                    step=5,
                    label=self.plans.label(name),
                    elem_id=f"sv-share{name}",
                    buttons=[],
                )
            )
        self.summary = gr.HTML(
            self._summary(usual, [100 * share for share in shares]), padding=False, elem_id="sv-summary"
        )

    def _add_settings(self) -> None:
        pipeline = self.server.drawer.pipeline
        with gr.Accordion("More settings", open=False, elem_id="sv-settings"):
            with gr.Row():
                self._add_number("seed", "Seed", "a fresh one")
                self.fields["size"] = gr.Dropdown(
                    ["auto", *self._sizes()],
                    value="auto",
                    label="Size",
                    allow_custom_value=True,
                    elem_id="sv-size",
                    min_width=100,
                )
            if pipeline.draws_videos:
                self._add_number("seconds", "Length in seconds", "the model's own; 0 is a picture")
            if pipeline.reads_text:
                self.fields["negative"] = gr.Textbox("", label="Steer away from", elem_id="sv-negative")
            with gr.Row():
                self._add_number("guidance", "Guidance", "the model's own")
                self._add_number("rounds", "Timing rounds", "1")
            self.fields["dense"] = gr.Checkbox(True, label="Draw the dense picture too", elem_id="sv-both")

    def _add_number(self, name: str, label: str, placeholder: str) -> None:
        # A text field: gradio's fields of numbers turn an empty one into 0.
        self.fields[name] = gr.Textbox(
            "", label=label, placeholder=placeholder, max_lines=1, elem_id=f"sv-{name}", min_width=100
        )

    def _sizes(self) -> list[str]:
        """Sizes that the model was made for, where it has a table of them."""
        transformer = self.server.drawer.pipeline.transformer
        table = getattr(transformer, "size_table", None)
        if table is None:
            return []
        trained = transformer.config.get("budgets")
        sizes = table.all_pixels(trained) if trained else table.all_pixels()
        return [f"{width}x{height}" for height, width in sorted(sizes)]

    def _about(self, name: str) -> str:
        preset = self.plans.presets.get(name)
        text = "StepVAR with the shares below." if preset is None else f"{preset.description}."
        return fragments.note(text[0].upper() + text[1:])

    def _summary(self, name: str, shares: list[float]) -> str:
        return fragments.note(self.flow.describe_plan(name, shares), strong=True)

    def _connect(self) -> None:
        parts = list(self.parts.values())
        visit, plan = self.parts["visit"], self.fields["plan"]
        hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        drawing: dict[str, Any] = {**hidden, "outputs": parts, "concurrency_limit": None}
        asked = [*self.fields.values(), *self.sliders, visit]
        redraws = [
            slider.release(self._redraw, [plan, *self.sliders, visit], trigger_mode="always_last", **drawing)
            for slider in self.sliders
        ]
        draws = [
            event(self._draw, asked, trigger_mode="once", cancels=redraws, **drawing)
            for event in (self.draw_button.click, self.fields["prompt"].submit)
        ]
        self.stop_button.click(
            lambda: fragments.status("Stopped."),
            None,
            self.parts["status"],
            cancels=[*draws, *redraws],
            **hidden,
        )
        plan.input(self._take_preset, plan, [*self.sliders, self.about_plan, self.summary], **hidden)
        for slider in self.sliders:
            slider.input(self._summarise, [plan, *self.sliders], self.summary, **hidden)
        for button in self.examples:
            button.click(None, None, self.fields["prompt"], js=_put(button.value), **hidden)

    async def _draw(self, *given: Any) -> AsyncIterator[dict[Any, Any]]:
        *form, visit = given
        values = dict(zip(self.fields, form[: len(self.fields)], strict=True))
        missing = {"seconds": None, "negative": None}
        async for view in self.flow.draw({**missing, **values}, form[len(self.fields) :], visit):
            yield self._shown(view)

    async def _redraw(self, *given: Any) -> AsyncIterator[dict[Any, Any]]:
        plan, *shares, visit = given
        async for view in self.flow.redraw(plan, shares, visit):
            yield self._shown(view)

    def _shown(self, view: View) -> dict[Any, Any]:
        return {self.parts[name]: value for name, value in view.items()}

    def _take_preset(self, name: str) -> list[Any]:
        """Sliders as the preset has them; still ones where it is no plan of shares."""
        shares = self.plans.shares(name)
        shown = shares or [0.0] * len(self.sliders)
        moved = [gr.update(value=round(100 * share), interactive=shares is not None) for share in shown]
        return [*moved, self._about(name), self._summary(name, [100 * share for share in shown])]

    def _summarise(self, name: str, *shares: float) -> str:
        return self._summary(name, list(shares))


def _put(text: str) -> str:
    """A function of the browser that gives a text."""
    return f"() => {text!r}"
