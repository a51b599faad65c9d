"""Figures and tables of the paper, with their place in a report, or the reason why they are missing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One table of the paper.

    Attributes:
        table: What the paper calls it.
        here: What stands for it.
        anchor: Where on the page; empty where it cannot be measured with these models.
    """

    table: str
    here: str
    anchor: str = ""


COVERAGE: tuple[Entry, ...] = (
    Entry(
        "figure 1a: time by scale", "time and FLOPs by scale; published models by their sizes", "figure-1a"
    ),
    Entry("figure 1b: noise at one scale", "the same, PSNR and SSIM", "figure-1b"),
    Entry("figure 1c: what the last scales add", "its spectrum; pictures of it below", "figure-1c"),
    Entry(
        "figure 3: residual energy and first component", "correlation by layer and scale, maps", "figure-3"
    ),
    Entry("figures 4 and 5: pictures side by side", "pictures of all methods and recoveries", "pictures"),
    Entry("figure 6: masks at several ratios", "masks, and how much of them lies on objects", "figure-6"),
    Entry("figure 7: pairs of scales", "all pairs, speed and likeness", "figure-7"),
    Entry("GenEval, speed-up and latency", "scene score in GenEval's six categories, times here", "methods"),
    Entry("MJHQ-30K: FID", "Fréchet distance to renders of the same prompts", "methods"),
    Entry("MJHQ-30K: CLIP score", "text fit, by the scene network", "methods"),
    Entry("ablation of selection", "six scores at equal ratios", "selection"),
    Entry("ablation of recovery", "cache, anchor, nearest and others", "recovery"),
    Entry("ablation of ratios", "0 to 0.9 of the last two scales", "ratio"),
    Entry(
        "DPG-Bench",
        "not measured: its prompts are beyond a model of scenes, and its scorer is a large model of its own "
        "(stepvar evaluate dpg, with published weights)",
    ),
    Entry("VBench", "not measured: needs InfinityStar's weights (stepvar evaluate vbench)"),
    Entry(
        "Infinity-2B and HART at 1024 x 1024, times on an RTX 3090",
        "not measured: needs their weights and such a card (stepvar bench, stepvar evaluate geneval); their "
        "FLOPs by scale are computed",
        "figure-1a",
    ),
    Entry("FasterVAR", "its authors' plan for Infinity, with controls; beyond the paper", "methods"),
    Entry("SparseVAR", "its code was never published: a stand-in, which is no reproduction", "methods"),
)
