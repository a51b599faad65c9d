"""Procedural scenes of the embedded models: prompts, rendering and a checker of pixels."""

from stepvar.scenes.checker import CheckResult, DetectedObject, check, detect, judge
from stepvar.scenes.grammar import (
    CATEGORIES,
    VOCABULARY,
    Prompt,
    evaluation_prompts,
    sample,
    sample_prompt,
    scene_for,
    split_words,
    write_prompt,
)
from stepvar.scenes.layout import LayoutError
from stepvar.scenes.parsing import PromptError, UnknownWordError, WordOrderError, parse
from stepvar.scenes.render import render
from stepvar.scenes.sampling import sample_scene
from stepvar.scenes.spec import (
    BACKGROUNDS,
    CANVAS,
    COLOURS,
    HELD_OUT,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Group,
    Scene,
    SceneObject,
    SceneSpec,
    is_held_out,
)

__all__ = [
    "BACKGROUNDS",
    "CANVAS",
    "CATEGORIES",
    "COLOURS",
    "HELD_OUT",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "TEXTURES",
    "VOCABULARY",
    "CheckResult",
    "DetectedObject",
    "Group",
    "LayoutError",
    "Prompt",
    "PromptError",
    "Scene",
    "SceneObject",
    "SceneSpec",
    "UnknownWordError",
    "WordOrderError",
    "check",
    "detect",
    "evaluation_prompts",
    "is_held_out",
    "judge",
    "parse",
    "render",
    "sample",
    "sample_prompt",
    "sample_scene",
    "scene_for",
    "split_words",
    "write_prompt",
]
