"""Accuracy of the scene network on renders that training never saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepvar.scenes import (
    BACKGROUNDS,
    Prompt,
    Scene,
    evaluation_prompts,
    is_held_out,
    render,
    scene_for,
    write_prompt,
)
from stepvar.scenes.network.image_backbone import OBJECT_ATTRIBUTES
from stepvar.scenes.network.network import SceneAttributes, SceneNetwork
from stepvar.training.scene_network.prompts import SWAPS, AnnotatedScene, hard_negative

SEED = 1_000_003
"""Far from the seeds of training, so that these renders were never seen."""

Booleans = NDArray[np.bool_]


def measure(network: SceneNetwork, pictures: int, canvas: int, seed: int = SEED) -> dict[str, Any]:
    """Accuracy on renders of evaluation prompts.

    Returns:
        "accuracy" by attribute: of background and number of objects, and of the presence of each shape,
        colour, texture, size and pair; their mean is "average". "exact": share of the pictures on which all
        presences of a kind are right, "all" at once. "matching": how often a picture fits its prompt better
        than the same prompt with one attribute swapped, by kind of swap, over all of them ("average"), and
        better than all its swapped prompts together ("first"). "unseen": "average" and "all" of the scenes
        that show a combination kept from the embedded model.
    """
    random = np.random.default_rng([seed, canvas])
    prompts = evaluation_prompts(pictures, seed)
    scenes = [scene_for(random, prompt.spec, split="any", canvas=canvas) for prompt in prompts]
    renders = np.stack([render(scene, canvas, seed + index) for index, scene in enumerate(scenes)])
    right = _right(network.attributes(renders), scenes)
    rare = np.array([is_held_out(scene) for scene in scenes])
    return {
        "pictures": pictures,
        "canvas": canvas,
        **_accuracy(right),
        "unseen": {"pictures": int(rare.sum()), **_accuracy({name: r[rare] for name, r in right.items()})},
        "matching": _matching(network, renders, prompts, scenes, random),
    }


def _accuracy(right: dict[str, Booleans]) -> dict[str, Any]:
    accuracy = {name: float(values.mean()) for name, values in right.items()}
    exact = {name: values.all(axis=1) for name, values in right.items()}
    together = np.logical_and.reduce(list(exact.values()))
    return {
        "average": float(np.mean(list(accuracy.values()))),
        "accuracy": accuracy,
        "exact": {name: float(values.mean()) for name, values in exact.items()}
        | {"all": float(together.mean())},
    }


def _right(found: SceneAttributes, scenes: Sequence[Scene]) -> dict[str, Booleans]:
    """Which statements about each scene are right, name -> [N, statements]."""
    background = np.array([BACKGROUNDS.index(scene.background) for scene in scenes])
    count = np.array([len(scene.objects) for scene in scenes])
    right = {
        "background": (found.background.argmax(axis=1) == background)[:, None],
        "count": (found.count.argmax(axis=1) == count)[:, None],
    }
    for key, probabilities in found.presence.items():
        shown = np.zeros(probabilities.shape, dtype=bool)
        for index, scene in enumerate(scenes):
            for item in scene.objects:
                place = tuple(OBJECT_ATTRIBUTES[name].index(getattr(item, name)) for name in key.split())
                shown[index][place] = True
        right[key] = ((probabilities > 0.5) == shown).reshape(len(scenes), -1)
    return right


def _matching(
    network: SceneNetwork,
    renders: NDArray[np.uint8],
    prompts: Sequence[Prompt],
    scenes: Sequence[Scene],
    random: np.random.Generator,
) -> dict[str, Any]:
    owners, kinds, texts = [], [], []
    for index, (prompt, scene) in enumerate(zip(prompts, scenes, strict=True)):
        known = AnnotatedScene.from_scene(scene, prompt.spec)
        for kind in SWAPS:
            found = hard_negative(random, prompt.spec, known, kind)
            if found is not None:
                owners.append(index)
                kinds.append(kind)
                texts.append(write_prompt(random, found[0]))
    features = network.picture_features(renders)
    own = (features * network.text_features([prompt.text for prompt in prompts])).sum(axis=1)
    swapped = (features[owners] * network.text_features(texts)).sum(axis=1)
    wins = own[owners] > swapped
    first = np.ones(len(scenes), dtype=bool)
    np.logical_and.at(first, owners, wins)
    chosen = np.array(kinds)
    return {
        "average": float(wins.mean()),
        "first": float(first.mean()),
        "swaps": {kind: float(wins[chosen == kind].mean()) for kind in SWAPS if (chosen == kind).any()},
        "cosine": {"own": float(own.mean()), "swapped": float(swapped.mean())},
    }
