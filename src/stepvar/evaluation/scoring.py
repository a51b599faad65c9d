"""Scores of runs on disk: fidelity of two runs, FID, CLIP, and official scorers in their own environments."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepvar.evaluation.manifest import MANIFEST, MANIFESTS, read_manifest
from stepvar.evaluation.pairs import Pixels, load_picture, measure_pairs
from stepvar.evaluation.run_folder import IMAGES
from stepvar.files import write_atomically
from stepvar.metrics.features import ClipFeatures, Extractor, alignment
from stepvar.metrics.frechet import frechet_distance, frechet_interval, require_enough
from stepvar.metrics.perceptual import PerceptualDistance
from stepvar.metrics.statistics import mean_interval

Advance = Callable[[float], None]
"""Called now and again with the part of the whole that was just done."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_BATCH = 16


def compare_runs(
    folder: Path,
    dense: Path,
    extractor: Extractor | None = None,
    perceptual: PerceptualDistance | None = None,
    advance: Advance | None = None,
    processes: int = 1,
) -> dict[str, Any]:
    """Fidelity of a run to another of the same prompts and seeds, picture by picture.

    Args:
        folder, dense: Two folders of `stepvar evaluate`; the second is the reference.
        extractor: For a Fréchet distance; without one it is left out.
        perceptual: LPIPS; without it it is left out.
        advance: Called for every pair.
        processes: For what needs no network; see `stepvar.evaluation.pairs.measure_pairs`.

    Raises:
        ValueError: When the two runs do not draw the same pictures, or are too few for the extractor.
    """
    ours, theirs = read_manifest(folder), {entry["file"]: entry for entry in read_manifest(dense)}
    for entry in ours:
        other = theirs.get(entry["file"])
        if other is None or any(entry[key] != other[key] for key in ("prompt", "seed", "width", "height")):
            raise ValueError(
                f"'{folder}' and '{dense}' do not draw the same pictures ({entry['file']} differs): likeness "
                "needs equal prompts, seeds and sizes."
            )
    values: dict[str, list[float]] = {}
    features: list[list[NDArray[np.float32]]] = [[], []]
    pairs = [(folder / entry["file"], dense / entry["file"]) for entry in ours]
    for paths, measured in zip(pairs, measure_pairs(pairs, processes), strict=True):
        for name, value in measured.items():
            values.setdefault(name, []).append(value)
        # Networks stay in this process, on its device.
        if perceptual is not None or extractor is not None:
            pair = [load_picture(path)[None] for path in paths]
            if perceptual is not None:
                values.setdefault("lpips", []).append(float(perceptual(*pair)[0]))
            if extractor is not None:
                for side, picture in zip(features, pair, strict=True):
                    side.append(extractor(picture)[0])
        if advance is not None:
            advance(1 / len(ours))
    document: dict[str, Any] = {name: mean_interval(found).as_json() for name, found in values.items()}
    if extractor is not None:
        own, reference = (np.stack(side) for side in features)
        require_enough(len(own), own.shape[1], f"'{folder}'")
        document["frechet"] = frechet_interval(reference, own).as_json()
    return {"n": len(ours), **document}


def frechet_of_folders(
    folder: Path, reference: Path, extractor: Extractor, advance: Advance | None = None
) -> dict[str, Any]:
    """Fréchet distance of a run's pictures to a folder of real ones; FID with Inception's features.

    Args:
        folder: A run, or any folder of pictures.
        reference: Any folder of pictures, of any sizes.
        advance: Called for every batch.

    Raises:
        ValueError: When one holds fewer pictures than the extractor has features, or is a run that is not
            complete.
    """
    found = []
    for place in (folder, reference):
        if is_run := any(place.glob(MANIFESTS)):
            read_manifest(place)
        pictures = list_pictures(place / IMAGES if is_run else place)
        width = extractor(load_picture(pictures[0])[None]).shape[1]
        require_enough(len(pictures), width, f"'{place}'")
        found.append(pictures)
    total = sum(map(len, found))
    sides = [_features(pictures, extractor, total, advance) for pictures in found]
    return {
        "frechet": frechet_distance(*sides),
        "pictures": len(sides[0]),
        "reference_pictures": len(sides[1]),
        "features": sides[0].shape[1],
    }


def clip_score(folder: Path, clip: ClipFeatures, advance: Advance | None = None) -> dict[str, Any]:
    """Mean cosine of pictures with their prompts, overall and by the benchmark's groups.

    Args:
        folder: A run of `stepvar evaluate`.
        advance: Called for every batch.

    Raises:
        ValueError: When the run is not complete.
    """
    entries = read_manifest(folder)
    scores: list[float] = []
    for start in range(0, len(entries), _BATCH):
        part = entries[start : start + _BATCH]
        # The pictures of one run have one size.
        seen = clip(np.stack([load_picture(folder / entry["file"]) for entry in part]))
        scores += alignment(seen, clip.texts([entry["prompt"] for entry in part])).tolist()
        if advance is not None:
            advance(len(part) / len(entries))
    groups: dict[str, list[float]] = {}
    for entry, score in zip(entries, scores, strict=True):
        groups.setdefault(entry["group"] or "all", []).append(score)
    return {
        "clip": mean_interval(scores).as_json(),
        "groups": {name: mean_interval(found).as_json() for name, found in sorted(groups.items())},
        "n": len(scores),
    }


def official_score(folder: Path, command: str) -> Any:
    """Runs a scorer of another environment as `COMMAND IMAGES MANIFEST`, and keeps the JSON that it prints.

    The result is written to `scores.json` in the run's folder, with the command.

    Raises:
        ValueError: When the run is not complete, or the scorer fails or prints no JSON.
    """
    read_manifest(folder)
    words = shlex.split(command)
    if not words:
        raise ValueError("The scorer's command is empty: give what runs it.")
    folder = folder.resolve()
    try:
        # No shell: what is run is exactly what was given.
        done = subprocess.run(
            [*words, str(folder / IMAGES), str(folder / MANIFEST)],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    except OSError as error:
        raise ValueError(f"The scorer {words[0]!r} cannot be run ({error.strerror}).") from error
    if done.returncode != 0:
        raise ValueError(
            f"The scorer {words[0]!r} failed with exit code {done.returncode}; see its messages."
        )
    try:
        scores = json.loads(done.stdout, parse_constant=_refuse_constant)
    except ValueError as error:
        raise ValueError(
            f"The scorer {words[0]!r} printed no JSON document on its standard output."
        ) from error
    document = {"command": command, "scores": scores}
    write_atomically(folder / "scores.json", json.dumps(document, indent=1).encode())
    return scores


def _refuse_constant(name: str) -> None:
    """Python reads NaN and Infinity, which are no JSON, and come of a mean over nothing."""
    raise ValueError(f"{name} is no JSON")


def list_pictures(folder: Path) -> list[Path]:
    """All pictures below a folder, in order.

    Raises:
        ValueError: When there are none.
    """
    if not folder.is_dir():
        raise ValueError(f"There is no folder '{folder}' with pictures.")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise ValueError(f"'{folder}' holds no pictures ({', '.join(SUFFIXES)}).")
    return found


def _features(
    pictures: Sequence[Path], extractor: Extractor, total: int, advance: Advance | None
) -> NDArray[np.float32]:
    """Features [N, F] of some of `total` pictures; pictures of one size go through together."""
    parts: list[NDArray[np.float32]] = []
    for group in _of_one_size(load_picture(path) for path in pictures):
        parts.append(extractor(np.stack(group)))
        if advance is not None:
            advance(len(group) / total)
    return np.concatenate(parts)


def _of_one_size(pictures: Iterable[Pixels]) -> Iterable[list[Pixels]]:
    group: list[Pixels] = []
    for picture in pictures:
        if group and (picture.shape != group[0].shape or len(group) == _BATCH):
            yield group
            group = []
        group.append(picture)
    if group:
        yield group
