"""Edits of scenes: what they ask for is drawn in their box, and the checker tells before from after."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stepvar.scenes import HELD_OUT, parse, render
from stepvar.scenes.edits import KINDS, check_edit, sample_edits
from stepvar.scenes.spec import Scene, SceneObject

SIDE = 256
EDITS = sample_edits(20, 3, SIDE)


def inside(edit, item: SceneObject) -> bool:
    left, top, width, height = edit.box
    return left <= item.x < left + width and top <= item.y < top + height


def after(edit) -> Scene:
    """The scene that an edit asks for."""
    others = tuple(item for item in edit.source.objects if not inside(edit, item))
    if edit.wanted is None:
        return replace(edit.source, objects=others)
    left, top, width, height = edit.box
    place = {"x": left + width / 2, "y": top + height / 2, "radius": 0.15 * SIDE, "size": "medium"}
    look = {name: getattr(edit.wanted, name) for name in ("shape", "colour", "texture")}
    return replace(edit.source, objects=(*others, SceneObject(**look, **place)))


def test_the_same_seed_gives_the_same_edits_of_all_kinds():
    assert EDITS == sample_edits(20, 3, SIDE) != sample_edits(20, 4, SIDE)
    assert [edit.kind for edit in EDITS[:5]] == list(KINDS)


@pytest.mark.parametrize("edit", EDITS[:10], ids=lambda edit: f"{edit.kind}: {edit.text}")
def test_a_verdict_tells_before_from_after(edit):
    assert not check_edit(render(edit.source, SIDE, 0), edit).passed
    assert check_edit(render(after(edit), SIDE, 0), edit).passed


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.kind)
def test_a_box_holds_the_edited_object_and_leaves_the_other_alone(edit):
    left, top, width, height = edit.box
    assert left >= 0 and left + width <= SIDE and top >= 0 and top + height <= SIDE
    assert abs(width * height / SIDE**2 - 0.25) < 0.02
    outside = [item for item in edit.source.objects if not inside(edit, item)]
    assert len(outside) == 1 and len(edit.source.objects) == (1 if edit.kind == "add" else 2)
    [other] = outside
    across = min(left + width, other.x + other.radius) - max(left, other.x - other.radius)
    down = min(top + height, other.y + other.radius) - max(top, other.y - other.radius)
    assert min(across, down) < 8


def test_prompts_describe_what_stays_and_what_is_wanted():
    for edit in EDITS:
        groups = parse(edit.text).groups
        [other] = [item for item in edit.source.objects if not inside(edit, item)]
        expected = {other.combination} | ({edit.wanted.combination} if edit.wanted else set())
        assert {group.combination for group in groups} == expected and not expected & HELD_OUT


def test_an_empty_box_is_judged_apart_from_the_rest():
    edit = next(edit for edit in EDITS if edit.kind == "add")
    verdict = check_edit(np.asarray(render(edit.source, SIDE, 0)), edit)
    assert (verdict.count, verdict.shape) == (False, False)
