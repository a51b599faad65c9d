"""Procedural scenes of the embedded model: rendering, prompts and a checker that looks at pixels only."""

from stepvar.embedded.scenes.render import render
from stepvar.embedded.scenes.sampling import sample_scene
from stepvar.embedded.scenes.spec import (
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
    "COLOURS",
    "HELD_OUT",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "TEXTURES",
    "Group",
    "Scene",
    "SceneObject",
    "SceneSpec",
    "is_held_out",
    "render",
    "sample_scene",
]
