"""Moving scenes: what is drawn, how prompts are read, and whether the checker sees it."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from stepvar.scenes.moving.checker import check
from stepvar.scenes.moving.grammar import (
    CATEGORIES,
    VOCABULARY,
    evaluation_prompts,
    parse,
    sample,
    sample_prompt,
    write_prompt,
)
from stepvar.scenes.moving.scenes import CANVAS, FRAMES, render_video, scene_for
from stepvar.scenes.moving.spec import MOTIONS, MovingObject, VideoSpec
from stepvar.scenes.parsing import UnknownWordError, WordOrderError
from stepvar.scenes.spec import BACKGROUNDS, COLOURS, SHAPES, Group


def spec_of(*motions, background="sand"):
    looks = (Group(1, "star", "red", "plain"), Group(1, "ring", "blue", "striped"))
    objects = tuple(MovingObject(look, motion) for look, motion in zip(looks, motions, strict=False))
    return VideoSpec(objects, background)


def video_of(spec, seed=0):
    return render_video(scene_for(np.random.default_rng(seed), spec, split="any"), seed=seed)


def other(values, old, random):
    return random.choice([value for value in values if value != old])


def changed(spec, aspect, random):
    """The spec with one attribute of its first object changed; None where it does not name it."""
    mover = spec.objects[0]
    if aspect == "motion":
        new = replace(mover, motion=other(MOTIONS, mover.motion, random))
    else:
        old = getattr(mover.group, aspect)
        if old is None:
            return None
        values = {"colour": COLOURS, "shape": SHAPES}[aspect]
        new = replace(mover, group=replace(mover.group, **{aspect: other(values, old, random)}))
    return replace(spec, objects=(new, *spec.objects[1:]))


def test_a_video_is_a_function_of_its_seeds():
    spec = spec_of("left", "grow")
    video = video_of(spec, seed=3)
    assert video.shape == (FRAMES, CANVAS, CANVAS, 3) and video.dtype == np.uint8
    assert np.array_equal(video, video_of(spec, seed=3))
    assert not np.array_equal(video, video_of(spec, seed=4))


@pytest.mark.parametrize("motion", MOTIONS)
def test_every_motion_is_seen_and_no_other(motion):
    spec = spec_of(motion)
    verdict = check(video_of(spec), spec)
    assert verdict.passed and verdict.motions == (motion,)
    for wrong in MOTIONS:
        assert check(video_of(spec), spec_of(wrong)).motion == (wrong == motion)


def test_any_two_motions_fit_and_objects_stay_apart():
    random = np.random.default_rng(0)
    for motions in product(MOTIONS, repeat=2):
        scene = scene_for(random, spec_of(*motions))
        for time in np.linspace(0.0, 1.0, FRAMES):
            first, second = scene.at(time).objects
            apart = max(abs(first.x - second.x), abs(first.y - second.y))
            assert apart > first.radius + second.radius + 5
            for item in (first, second):
                place = np.array([item.x, item.y])
                assert (place >= item.radius).all() and (place <= CANVAS - item.radius).all()


def test_the_checker_passes_true_videos_and_fails_changed_prompts():
    random = np.random.default_rng(2)
    wrong = 0
    prompts = evaluation_prompts(24, seed=4)
    passed = 0
    for index, prompt in enumerate(prompts):
        video = render_video(scene_for(random, prompt.spec, split="any"), seed=index)
        passed += check(video, prompt.spec).passed
        for aspect in ("colour", "shape", "motion"):
            spec = changed(prompt.spec, aspect, random)
            wrong += spec is not None and check(video, spec).passed
    assert passed == len(prompts) and wrong == 0


def test_swapped_motions_are_told_apart():
    spec = spec_of("left", "right")
    verdict = check(video_of(spec), spec_of("right", "left"))
    assert not verdict.motion and verdict.shapes and verdict.colours and verdict.count


def test_an_object_too_many_and_a_still_video_fail():
    two = video_of(spec_of("up", "still"))
    verdict = check(two, spec_of("up"))
    assert not verdict.count and not verdict.passed
    frozen = np.repeat(two[:1], FRAMES, axis=0)
    assert check(frozen, spec_of("up", "still")).motion is False
    with pytest.raises(ValueError, match="two frames or more"):
        check(two[:1], spec_of("up"))


def test_prompts_say_what_they_ask_for():
    random = np.random.default_rng(5)
    words = set()
    for _ in range(400):
        prompt = sample_prompt(random, split="any")
        assert parse(prompt.text) == prompt.spec
        words |= set(prompt.text.split())
    assert words <= set(VOCABULARY)
    assert len(words) > 0.9 * len(VOCABULARY)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", WordOrderError, "empty"),
        ("a red star", WordOrderError, "a motion such as"),
        ("a red star moves", WordOrderError, "a motion such as"),
        ("a red star grows on", WordOrderError, "a background"),
        ("a red star grows and", WordOrderError, "an object"),
        ("a red star grows on sand and a ring shrinks", WordOrderError, "or the end"),
        ("a red dog grows", UnknownWordError, "'dog' is not known"),
    ],
)
def test_what_is_no_prompt_is_refused_in_words(text, error, message):
    with pytest.raises(error, match=message):
        parse(text)


def test_case_and_punctuation_do_not_matter():
    assert parse("A RED star moves to the LEFT, on the sand.") == VideoSpec(
        (MovingObject(Group(1, "star", "red"), "left"),), "sand"
    )


def test_evaluation_prompts_are_balanced_fixed_and_partly_held_out():
    prompts = evaluation_prompts(40, seed=1)
    assert prompts == evaluation_prompts(40, seed=1) != evaluation_prompts(40, seed=2)
    assert [prompt.category for prompt in prompts[:4]] == list(CATEGORIES)
    assert sum(prompt.held_out for prompt in prompts) == 10
    assert len({prompt.text for prompt in prompts}) == 40


def test_training_never_shows_a_held_out_combination():
    from stepvar.scenes.spec import HELD_OUT

    random = np.random.default_rng(6)
    for _ in range(200):
        prompt, scene = sample(random)
        assert not prompt.held_out
        assert all(item.combination not in HELD_OUT for item in scene.first.objects)


def test_what_a_video_cannot_show_is_refused():
    star = Group(1, "star")
    with pytest.raises(ValueError, match="no motion 'fly'"):
        MovingObject(star, "fly")
    with pytest.raises(ValueError, match="must be single"):
        MovingObject(Group(2, "star"), "left")
    with pytest.raises(ValueError, match="1 to 2 objects"):
        VideoSpec((MovingObject(star, "left"),) * 3)
    with pytest.raises(ValueError, match="no background 'moon'"):
        VideoSpec((MovingObject(star, "left"),), "moon")
    assert write_prompt(np.random.default_rng(0), VideoSpec((MovingObject(star, "left"),), BACKGROUNDS[0]))
