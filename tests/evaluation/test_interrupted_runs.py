"""Runs that are killed, damaged or started twice: nothing is lost, nothing broken stays."""

from __future__ import annotations

import json
import os
import sys

import pytest
from PIL import Image

from kills import killed
from stepvar.evaluation.benchmark_run import BenchmarkRun
from stepvar.evaluation.benchmark_task import Task
from stepvar.evaluation.benchmarks import BENCHMARKS
from stepvar.evaluation.manifest import read_manifest, read_valid
from stepvar.evaluation.run_folder import Shard, check_run_folder
from stepvar.evaluation.scoring import compare_runs, frechet_of_folders, official_score
from stepvar.files import Staging, is_staging

PROMPTS = ("a red star", "two blue rings on sand", "a green circle")


@pytest.fixture(scope="module")
def pipeline():
    from tiny_pipeline import make_pipeline

    return make_pipeline()


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompts") / "evaluation_metadata.jsonl"
    file.write_text("\n".join(json.dumps({"tag": "colors", "prompt": prompt}) for prompt in PROMPTS))
    return Task.load(BENCHMARKS["geneval"], file, samples=2)


@pytest.fixture(scope="module")
def finished(pipeline, task, tmp_path_factory):
    """Files of an undisturbed run, by name."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert BenchmarkRun(pipeline, task, folder).generate().missing == 0
    return contents(folder)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_a_dozen_kills_lose_nothing(pipeline, task, finished, tmp_path):
    folder = tmp_path / "run"
    run = BenchmarkRun(pipeline, task, folder)
    kills, known = 0, {}
    for operation in (1, 2, 3, 4, 5, 7, 9, 11, 13, 16, 19, 22, 25):
        kills += killed(run.generate, folder, operation)
        images = contents(folder / "images") if folder.exists() else {}
        assert all(finished[f"images/{name}"] == content for name, content in images.items())
        assert known.items() <= images.items(), "what was there stays"
        known = images
        assert sum(is_staging(path) for path in tmp_path.rglob("*")) <= 2, "only what this kill left"
    assert kills >= 12
    status = run.generate()
    assert status.missing == 0 and status.found + status.generated == 6
    assert contents(folder) == finished


def test_a_run_that_was_stopped_is_not_scored(pipeline, task, finished, tmp_path):
    """Pictures that were never drawn stand in no list, so the whole list is not there before the end."""
    folder = tmp_path / "run"

    def stop(files: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        BenchmarkRun(pipeline, task, folder).generate(advance=stop)
    assert 0 < len(list(folder.rglob("*.png"))) < 6
    scorers = (
        read_manifest,
        lambda place: compare_runs(place, place),
        lambda place: official_score(place, "true"),
        lambda place: frechet_of_folders(place, place, lambda batch: batch.mean(axis=(1, 2))[:, :1]),
    )
    for score in scorers:
        with pytest.raises(ValueError, match="its run is not finished"):
            score(folder)
    assert BenchmarkRun(pipeline, task, folder).generate().found > 0
    assert len(read_manifest(folder)) == 6 and contents(folder) == finished


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
        lambda path: path.write_bytes(path.with_name("0001.png").read_bytes()),
        lambda path: path.unlink(),
        lambda path: path.parents[1].joinpath("metadata.jsonl").write_text("{"),
        lambda path: path.parents[1].joinpath("metadata.jsonl").unlink(),
    ],
)
def test_what_is_broken_is_made_again(pipeline, task, finished, tmp_path, damage):
    folder = tmp_path / "run"
    run = BenchmarkRun(pipeline, task, folder)
    for name, content in finished.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    damage(folder / "images" / "00001" / "samples" / "0000.png")
    status = run.generate()
    assert contents(folder) == finished
    assert status.generated in (0, 1) and status.generated + status.found == 6


def test_two_processes_with_one_number(pipeline, task, finished, tmp_path, monkeypatch):
    """Containers number their processes alike; what the other one is writing is neither used nor removed."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    folder = tmp_path / "run"
    run = BenchmarkRun(pipeline, task, folder)
    assert run.generate(Shard(1, 2)).missing == 2
    with Staging(folder) as other:
        (other.path / "0000.png").write_bytes(b"half a picture")
        assert run.generate(Shard(2, 2)).missing == 0
        assert (other.path / "0000.png").read_bytes() == b"half a picture"
    images = {name: content for name, content in finished.items() if name.startswith("images/")}
    assert {name: content for name, content in contents(folder).items() if name in images} == images


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"file": 3, "prompt": "x"}', "Line 2 of .* has a 'file' of the wrong type"),
        ('{"file": null, "prompt": "x"}', "'file' of the wrong type"),
        ('{"prompt": "x"}', "has no 'file'"),
        ('{"file": "images/a.png", "prompt": 3}', "'prompt' of the wrong type"),
        ('{"file": "images/a.png", "prompt": "x", "seed": "1"}', "'seed' of the wrong type"),
        ('{"file": "../../a.png", "prompt": "x"}', "outside the run's folder"),
        ('{"file": "/etc/hosts", "prompt": "x"}', "outside the run's folder"),
        ('{"file": "images/\\ud800", "prompt": "x"}', "outside the run's folder"),
        ('{"file": "images/\\u0000", "prompt": "x"}', "outside the run's folder"),
        ('{"file": "images/' + "a" * 300 + '.png", "prompt": "x"}', "no file system holds"),
        ("[1]", "is no JSON object"),
        ("{", "is no JSON"),
        ('{"file": ' + "[" * 100_000, "nested too deeply"),
    ],
)
def test_manifests_with_wrong_lines_are_one_sentence(tmp_path, line, words):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "images" / "a.png")
    good = {"file": "images/a.png", "prompt": "x", "seed": 1, "width": 16, "height": 16}
    (tmp_path / "manifest.jsonl").write_text(f"{json.dumps(good)}\n{line}\n")
    for read in (read_manifest, lambda folder: compare_runs(folder, folder)):
        with pytest.raises(ValueError, match=words):
            read(tmp_path)


def test_manifests_of_other_bytes(tmp_path):
    (tmp_path / "manifest.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="no UTF-8"):
        read_manifest(tmp_path)


def test_places_that_cannot_hold_a_run(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    for place, words in (("file", "is a file"), ("a/b", "no folder"), ("full", "other files")):
        with pytest.raises(ValueError, match=words):
            check_run_folder(tmp_path / place)
    (tmp_path / "stopped" / ".stepvar-x.partial").mkdir(parents=True)
    check_run_folder(tmp_path / "stopped")


@pytest.mark.parametrize("count", [30_000])
def test_the_start_of_many_prompts_is_quick(tmp_path, count):
    """The time of what is done before the first picture grows with the prompts, not with their square."""
    import time

    document = {f"{number:08}": {"category": "food", "prompt": f"soup {number}"} for number in range(count)}
    file = tmp_path / "meta_data.json"
    file.write_text(json.dumps(document))
    started = time.process_time()
    task = Task.load(BENCHMARKS["mjhq"], file)
    assert task.pictures == count and task.first_seeds[-1] == count - 1 and len(task.digest) == 16
    names = [name for index in range(count) for name in task.files(index)]
    assert len(set(names)) == count
    assert time.process_time() - started < 2.0


def test_a_line_with_an_impossible_name_is_no_entry(tmp_path):
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"file": "images/" + "\u20ac" * 200, "prompt": "x"}))
    assert read_valid(tmp_path / "manifest.jsonl", tmp_path) == {}
