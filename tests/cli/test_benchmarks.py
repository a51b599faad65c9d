"""`stepvar evaluate geneval | dpg | mjhq | vbench` and what scores their pictures, end to end."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from stepvar.evaluation.benchmark_folder import Shard, read_manifest
from stepvar.evaluation.benchmarks import BENCHMARKS, Run
from stepvar.evaluation.scoring import compare_runs, frechet_of_folders, official_score
from tiny_pipeline import PIXELS

PROMPTS = ("a red star", "two blue rings on sand", "a green circle")


@pytest.fixture
def geneval(tmp_path):
    lines = [json.dumps({"tag": "colors", "prompt": prompt, "include": []}) for prompt in PROMPTS]
    (tmp_path / "evaluation_metadata.jsonl").write_text("\n".join(lines))
    return "evaluation_metadata.jsonl"


def draw(run, model_folder, prompts, *extra, benchmark="geneval"):
    return run("evaluate", benchmark, prompts, "--model", model_folder, "--samples", 2, "--json", *extra)


def pictures(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*.png")}


def test_geneval_layout_manifest_and_resuming(run, model_folder, geneval):
    result = draw(run, model_folder, geneval, "-o", "whole", "--pruning", "prune", "--seed", 5, "--batch", 3)
    assert result.code == 0 and result.stderr == "", result.stderr
    assert result.json["drawn"] == result.json["pictures"] == 6 and result.json["missing"] == 0
    names = [f"{index:05}/samples/{sample:04}.png" for index in range(3) for sample in range(2)]
    assert sorted(pictures("whole/images")) == names
    assert json.loads(Path("whole/images/00001/metadata.jsonl").read_text())["prompt"] == PROMPTS[1]
    entries = read_manifest(Path("whole"))
    assert [entry["seed"] for entry in entries] == [5, 6, 7, 8, 9, 10]
    first = entries[2]
    assert (first["file"], first["prompt"], first["sample"]) == (f"images/{names[2]}", PROMPTS[1], 0)
    assert (first["width"], first["height"]) == (PIXELS, PIXELS)
    assert first["plan"]["ratios"] == {"-2": 0.5, "-1": 0.75} and first["versions"]["torch"]
    assert len(first["revision"]) == 16

    # Two pictures and the end of the manifest are lost: they alone are drawn again, as they were.
    before = pictures("whole/images")
    for name in names[2:4]:
        Path("whole/images", name).unlink()
    text = Path("whole/manifest.jsonl").read_text()
    Path("whole/manifest.jsonl").write_text(text[:-40])
    again = draw(run, model_folder, geneval, "-o", "whole", "--pruning", "prune", "--seed", 5, "--batch", 3)
    assert again.code == 0 and (again.json["drawn"], again.json["found"]) == (4, 2)
    assert pictures("whole/images") == before
    assert read_manifest(Path("whole")) == entries

    other = draw(run, model_folder, geneval, "-o", "whole", "--pruning", "skip", "--seed", 5)
    assert other.code == 2 and "holds another run (its plan differs)" in other.stderr
    assert pictures("whole/images") == before


def test_a_call_that_cannot_be_drawn_leaves_no_folder(run, model_folder, geneval):
    for extra in (("--temperature", 0), ("--top-p", 2), ("--smooth",), ("--negative", "dinosaur")):
        wrong = draw(run, model_folder, geneval, "-o", "whole", *extra)
        assert wrong.code == 2 and wrong.stderr.startswith("Error: ") and "Traceback" not in wrong.stderr
        assert not Path("whole").exists(), extra


def test_shards_make_the_same_run(run, model_folder, geneval):
    assert draw(run, model_folder, geneval, "-o", "whole").code == 0
    first = draw(run, model_folder, geneval, "-o", "parts", "--shard", "1/2")
    assert first.code == 0 and (first.json["drawn"], first.json["missing"]) == (4, 2)
    unfinished = run("evaluate", "fidelity", "parts", "--dense", "whole")
    assert unfinished.code == 2 and "some shards are not finished" in unfinished.stderr
    second = draw(run, model_folder, geneval, "-o", "parts", "--shard", "2/2")
    assert second.code == 0 and (second.json["drawn"], second.json["missing"]) == (2, 0)
    assert pictures("parts/images") == pictures("whole/images")
    assert read_manifest(Path("parts")) == read_manifest(Path("whole"))

    pruned = draw(run, model_folder, geneval, "-o", "pruned", "--pruning", "prune")
    assert pruned.code == 0
    result = run("evaluate", "fidelity", "pruned", "--dense", "whole", "--json")
    document = result.json
    assert result.code == 0 and document["n"] == 6 and 0 < document["psnr"]["value"] < 58
    assert document["psnr"]["low"] <= document["psnr"]["value"] <= document["psnr"]["high"]
    same = run("evaluate", "fidelity", "parts", "--dense", "whole", "--json").json
    assert same["ssim"]["value"] == pytest.approx(1.0) and same["fine_detail"]["value"] == pytest.approx(1.0)
    few = run("evaluate", "fidelity", "pruned", "--dense", "whole", "--features", "tokenizer",
              "--model", model_folder)  # fmt: skip
    assert few.code == 2 and "'pruned' has 6 pictures" in few.stderr and "needs more than 16" in few.stderr

    # A scorer of another environment: any program that reads folder and manifest and prints JSON.
    Path("scorer.py").write_text(
        "import json, pathlib, sys\n"
        "lines = pathlib.Path(sys.argv[2]).read_text().splitlines()\n"
        "found = len(list(pathlib.Path(sys.argv[1]).rglob('*.png')))\n"
        "print(json.dumps({'overall': found / len(lines)}))\n"
    )
    scored = run("evaluate", "score", "whole", "--scorer", f"{sys.executable} scorer.py", "--json")
    assert scored.code == 0 and json.loads(Path("whole/scores.json").read_text())["scores"] == {
        "overall": 1.0
    }
    for command, words in (
        (f"{sys.executable} -c pass", "printed no JSON"),
        (f"{sys.executable} -c 'raise SystemExit(3)'", "exit code 3"),
        ("no-such-program", "cannot be run"),
    ):
        with pytest.raises(ValueError, match=words):
            official_score(Path("whole"), command)


def test_dpg_and_mjhq_layouts(run, model_folder):
    Path("prompts").mkdir()
    for name, prompt in zip(("7", "12"), PROMPTS, strict=False):
        Path("prompts", f"{name}.txt").write_text(prompt)
    result = run("evaluate", "dpg", "prompts", "--model", model_folder, "-o", "dpg", "--json")
    assert result.code == 0 and result.json["drawn"] == 2
    assert sorted(pictures("dpg/images")) == ["12.png", "7.png"]
    grid = np.asarray(Image.open("dpg/images/7.png"))
    assert grid.shape == (2 * PIXELS, 2 * PIXELS, 3)
    quarters = [grid[y : y + PIXELS, x : x + PIXELS] for y in (0, PIXELS) for x in (0, PIXELS)]
    assert len({quarter.tobytes() for quarter in quarters}) == 4
    [_, entry] = read_manifest(Path("dpg"))
    assert entry["item"] == "7" and entry["seed"] == [4, 5, 6, 7]
    odd = run("evaluate", "dpg", "prompts", "--model", model_folder, "-o", "odd", "--samples", 3)
    assert odd.code == 2 and "grids of 4" in odd.stderr

    meta = {name: {"category": "food", "prompt": prompt} for name, prompt in zip("ab", PROMPTS, strict=False)}
    Path("meta_data.json").write_text(json.dumps(meta))
    result = run("evaluate", "mjhq", "meta_data.json", "--model", model_folder, "-o", "mjhq")
    assert result.code == 0 and "complete" in result.stdout
    assert sorted(pictures("mjhq/images")) == ["food/a.png", "food/b.png"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("geneval", "broken.jsonl", "-o", "out"), "Line 2 of 'broken.jsonl' is no JSON"),
        (("geneval", "absent.jsonl", "-o", "out"), "no prompts file 'absent.jsonl'"),
        (("geneval", "good.jsonl", "-o", "out", "--shard", "3/2"), "--shard '3/2' is not understood"),
        (("geneval", "good.jsonl", "-o", "out", "--pruning", "papr"), "Unknown pruning preset 'papr'"),
        (("geneval", "good.jsonl", "-o", "a/b"), "no folder 'a'"),
        (("geneval", "good.jsonl", "-o", "taken"), "'taken' holds other files (thesis.txt)"),
        (("vbench", "vbench.json", "-o", "out"), "draws pictures"),
        (("fidelity", "taken", "--dense", "taken"), "no run of 'stepvar evaluate' is there"),
        (("fid", "taken", "--reference", "taken", "--features", "inceptoin"), "Unknown --features"),
        (("fid", "taken", "--reference", "taken"), "need weights"),
        (("clip", "taken", "--weights", "absent"), "no folder 'absent'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(run, model_folder, arguments, words):
    good = '{"tag": "x", "prompt": "a red star"}\n'
    Path("good.jsonl").write_text(good)
    Path("broken.jsonl").write_text(good + "{\n")
    Path("vbench.json").write_text('[{"prompt_en": "a red star", "dimension": ["color"]}]')
    Path("taken").mkdir()
    Path("taken", "thesis.txt").write_text("mine")
    extra = () if arguments[0] == "clip" else ("--model", model_folder)
    result = run("evaluate", *arguments, *extra)
    assert result.code == 2 and result.stdout == "" and words in result.stderr
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr
    assert not Path("out").exists()


class VideoPainter:
    """Draws plain grey videos, as a video pipeline gives them."""

    draws_videos = True
    origin = "painter"
    config: dict = {}  # noqa: RUF012
    components: dict = {}  # noqa: RUF012
    transformer = SimpleNamespace(compute_dtype="torch.float32")

    def resolve_pruning(self, pruning):
        return pruning

    def summary(self, pruning, **size):
        return None

    def __call__(self, prompts, seed, pruning=None, seconds=5.0):
        frames = [[Image.new("RGB", (16, 8), (own % 256, 0, frame)) for frame in (0, 99)] for own in seed]
        report = SimpleNamespace(settings={"width": 16, "height": 8})
        return SimpleNamespace(frames=frames, frames_per_second=8, report=report)


def test_vbench_names_videos_as_its_scorer_wants_them(tmp_path):
    records = [{"prompt_en": prompt, "dimension": ["color"]} for prompt in ("a cat.", "a dog")]
    (tmp_path / "info.json").write_text(json.dumps(records))
    painter = VideoPainter()
    painted = Run(
        painter, BENCHMARKS["vbench"], tmp_path / "info.json", tmp_path / "run", samples=2, video_format="gif"
    )
    assert painted.draw(Shard(), batch=3).missing == 0
    names = sorted(path.name for path in (tmp_path / "run" / "images").iterdir())
    assert names == ["a cat.-0.gif", "a cat.-1.gif", "a dog-0.gif", "a dog-1.gif"]
    with Image.open(tmp_path / "run" / "images" / "a dog-1.gif") as video:
        assert video.n_frames == 2 and video.size == (16, 8)
    with pytest.raises(ValueError, match="Unknown video format 'avi'"):
        Run(painter, BENCHMARKS["vbench"], tmp_path / "info.json", tmp_path / "x", video_format="avi")


def means(batch):
    return batch.reshape(len(batch), -1, 3).mean(axis=1).astype(np.float32)


def test_distance_to_a_folder_of_real_pictures(tmp_path):
    random = np.random.default_rng(0)
    for name, count, offset in (("real", 6, 60), ("near", 5, 62), ("far", 5, 160)):
        (tmp_path / name / "sub").mkdir(parents=True)
        for index in range(count):
            size = (8 + index % 2, 9, 3)
            array = np.clip(random.normal(offset + 3 * index, 5, size), 0, 255).astype(np.uint8)
            Image.fromarray(array).save(tmp_path / name / "sub" / f"{index}.png")
    near, far = (frechet_of_folders(tmp_path / name, tmp_path / "real", means) for name in ("near", "far"))
    assert near["frechet"] < 0.1 * far["frechet"] and near["pictures"] == 5 and near["features"] == 3
    (tmp_path / "few").mkdir()
    with pytest.raises(ValueError, match="holds no pictures"):
        frechet_of_folders(tmp_path / "few", tmp_path / "real", means)
    Image.new("RGB", (8, 8)).save(tmp_path / "few" / "1.png")
    with pytest.raises(ValueError, match="has 1 pictures, but a Fréchet distance over 3"):
        frechet_of_folders(tmp_path / "few", tmp_path / "real", means)
    (tmp_path / "few" / "2.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"2\.png' is no readable picture"):
        frechet_of_folders(tmp_path / "few", tmp_path / "real", lambda batch: means(batch)[:, :1])


def test_runs_of_other_pictures_are_not_compared(tmp_path):
    for name, seed in (("one", 1), ("two", 2)):
        (tmp_path / name / "images").mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(tmp_path / name / "images" / "a.png")
        entry = {"file": "images/a.png", "prompt": "x", "seed": seed, "width": 16, "height": 16}
        (tmp_path / name / "manifest.jsonl").write_text(json.dumps(entry) + "\n")
    with pytest.raises(ValueError, match="do not draw the same pictures"):
        compare_runs(tmp_path / "one", tmp_path / "two")
    (tmp_path / "one" / "images" / "a.png").unlink()
    with pytest.raises(ValueError, match="lacks 1 of its 1 pictures"):
        compare_runs(tmp_path / "one", tmp_path / "two")
