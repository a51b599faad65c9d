"""`stepvar evaluate geneval | dpg | mjhq | vbench` and what scores their pictures, end to end."""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
from PIL import Image

from stepvar.cli.options import ModelOptions
from stepvar.evaluation.benchmark_run import BenchmarkRun
from stepvar.evaluation.benchmark_task import Task
from stepvar.evaluation.benchmarks import BENCHMARKS
from stepvar.evaluation.manifest import read_manifest
from stepvar.evaluation.run_folder import Shard
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

    # Two pictures and the last line of the manifest are lost: these three are written again, as they were.
    before = pictures("whole/images")
    for name in names[2:4]:
        Path("whole/images", name).unlink()
    text = Path("whole/manifest.jsonl").read_text()
    Path("whole/manifest.jsonl").write_text(text[:-40])
    again = draw(run, model_folder, geneval, "-o", "whole", "--pruning", "prune", "--seed", 5, "--batch", 3)
    assert again.code == 0 and (again.json["drawn"], again.json["found"]) == (3, 3)
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
    assert unfinished.code == 2 and "its run is not finished" in unfinished.stderr
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
        (f"""{sys.executable} -c 'print("[NaN]")'""", "printed no JSON"),
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
        (("mjhq", "org/name", "-o", "out"), "data set 'org/name' cannot be read: it has no file"),
        (("geneval", "good.jsonl", "-o", "out", "--shard", "3/2"), "--shard '3/2' is not understood"),
        (("geneval", "good.jsonl", "-o", "out", "--pruning", "papr"), "Unknown pruning preset 'papr'"),
        (("geneval", "good.jsonl", "-o", "a/b"), "no folder 'a'"),
        (("geneval", "good.jsonl", "-o", "taken"), "'taken' holds other files (thesis.txt)"),
        (("vbench", "vbench.json", "-o", "out"), "draws pictures"),
        (("fidelity", "taken", "--dense", "taken"), "no run of 'stepvar evaluate' is there"),
        (("fid", "taken", "--reference", "taken", "--features", "inceptoin"), "Unknown --features"),
        (("fid", "taken", "--reference", "taken"), "need weights"),
        (("clip", "taken", "--weights", "absent"), "no folder 'absent'"),
        (("clip", "taken", "--weights", "absent", "--device", "gpu"), "Unknown --device 'gpu'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(run, model_folder, monkeypatch, arguments, words):
    def download(*_given, **_named):
        raise huggingface_hub.utils.EntryNotFoundError("details\nof the network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
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


@pytest.mark.parametrize(
    ("benchmark", "text", "words"),
    [
        ("mjhq", "{}", "holds no prompts"),
        ("mjhq", json.dumps({"a": {"category": "..", "prompt": "x"}}), "cannot be a file name"),
        ("mjhq", json.dumps({"星" * 200: {"category": "x", "prompt": "x"}}), "600 bytes"),
        ("mjhq", "[" * 100_000, "nested too deeply"),
        ("dpg", f"item_id,text\n1,{'x' * 131_073}\n", "is no CSV"),
        ("dpg", "item_id,text\n1,a\n1,b\n", "another text for the item_id '1'"),
        ("vbench", '[{"prompt_en": "a/b", "dimension": []}]', "cannot be a file name"),
    ],
)
def test_broken_prompts_are_refused_before_a_model_is_loaded(run, benchmark, text, words):
    Path("prompts").write_text(text)
    extra = ("--video-format", "gif") if benchmark == "vbench" else ()
    result = run("evaluate", benchmark, "prompts", "-o", "out", "--model", "absent", *extra)
    assert result.code == 2 and words in result.stderr and result.stderr.count("\n") == 1
    assert not Path("out").exists()


def test_pictures_are_compared_by_several_processes(tmp_path):
    random = np.random.default_rng(0)
    for name in ("one", "two"):
        finished(tmp_path / name, [{"file": f"{number}.png"} for number in range(16)])
        for path in (tmp_path / name / "images").iterdir():
            Image.fromarray(random.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)
    folders = (tmp_path / "one", tmp_path / "two")
    assert compare_runs(*folders, processes=2) == compare_runs(*folders)
    (tmp_path / "one" / "images" / "7.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"7\.png' is no readable picture"):
        compare_runs(*folders, processes=2)


class VideoPainter:
    """Draws plain grey videos, as a video pipeline gives them."""

    draws_videos = True
    origin = "painter"
    config: dict = {}  # noqa: RUF012
    components: dict = {}  # noqa: RUF012
    transformer = SimpleNamespace(compute_dtype="torch.float32")

    def require_prompts_alone(self, purpose):
        """It needs nothing else."""

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
    task = Task.load(BENCHMARKS["vbench"], tmp_path / "info.json", samples=2, video_format="gif")
    assert BenchmarkRun(painter, task, tmp_path / "run").generate(Shard(), batch=3).missing == 0
    names = sorted(path.name for path in (tmp_path / "run" / "images").iterdir())
    assert names == ["a cat.-0.gif", "a cat.-1.gif", "a dog-0.gif", "a dog-1.gif"]
    with Image.open(tmp_path / "run" / "images" / "a dog-1.gif") as video:
        assert video.n_frames == 2 and video.size == (16, 8)
    with pytest.raises(ValueError, match="Unknown video format 'avi'"):
        Task.load(BENCHMARKS["vbench"], tmp_path / "info.json", video_format="avi")


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


def finished(folder, entries):
    """A finished run as the scorers get it, without the drawing."""
    lines = []
    for entry in entries:
        path = Path(folder, "images", entry["file"])
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (40, 80, len(lines))).save(path, "PNG")
        lines.append({"prompt": "x", "seed": 1, "width": 16, "height": 16, "group": "", **entry})
        lines[-1]["file"] = f"images/{entry['file']}"
    Path(folder, "manifest.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


class PlainClip:
    """Stands in for CLIP, whose weights are not at hand."""

    devices: list[str] = []  # noqa: RUF012

    def __init__(self, folder, device="cpu"):
        self.devices.append(device)

    def __call__(self, pictures):
        return np.ones((len(pictures), 1), dtype=np.float32)

    texts = __call__


def test_scores_tell_their_progress_and_use_the_device(run, monkeypatch):
    moves: dict[str, float] = {}

    @contextmanager
    def bar(label, total, estimate=False):
        moves[label] = 0.0

        def move(amount, note):
            moves[label] += amount / total

        yield move

    devices = []

    def load_lpips(network, device="cpu"):
        devices.append(device)
        return lambda first, second: np.zeros(len(first))

    monkeypatch.setattr("stepvar.cli.display.progress_bar", bar)
    monkeypatch.setattr("stepvar.metrics.features.ClipFeatures", PlainClip)
    monkeypatch.setattr("stepvar.metrics.perceptual.load_lpips", load_lpips)
    monkeypatch.setattr(ModelOptions, "resolve_device", lambda choice: choice.device)
    for folder in ("one", "two"):
        finished(folder, [{"file": f"{index}.png"} for index in range(19)])

    likeness = run(
        "evaluate", "fidelity", "one", "--dense", "two", "--lpips", "alex", "--device", "cuda", "--json"
    )
    assert likeness.json["lpips"]["value"] == 0.0 and moves == {"comparing": pytest.approx(1.0)}
    moves.clear()
    scored = run("evaluate", "clip", "one", "--weights", "clip", "--device", "cuda:1", "--json")
    assert scored.json["clip"]["value"] == 1.0 and moves == {"reading": pytest.approx(1.0)}
    moves.clear()
    distance = run("evaluate", "fid", "one", "--reference", "two", "--features", "clip", "--weights", "clip",
                   "--device", "cpu", "--json")  # fmt: skip
    assert distance.json["frechet"] == pytest.approx(0.0) and moves == {"reading": pytest.approx(1.0)}
    assert devices == ["cuda"] and PlainClip.devices == ["cuda:1", "cpu"]


DOCUMENT = Path(__file__).parents[2] / "docs" / "benchmarks.md"

CONDA = """
import json, pathlib, shutil, sys
environment, *words = sys.argv[4:]
assert sys.argv[1:4] == ["run", "--no-capture-output", "-n"], sys.argv
options = dict(zip(words, words[1:]))
print("Loading weights ...")
if environment == "geneval":
    assert words[:2] == ["python", "evaluation/evaluate_images.py"] and pathlib.Path("score.py").is_file()
    lines = [{"tag": tag, "correct": tag == "colors"} for tag in ("colors", "counting")]
    pathlib.Path(options["--outfile"]).write_text("\\n".join(map(json.dumps, lines)))
elif environment == "dpg":
    assert (options["--resolution"], options["--pic-num"]) == ("16", "4")
    images = pathlib.Path(options["--image-root-path"])
    lines = [f"{path}, 1.0, 0.5, 0.75" for path in sorted(images.iterdir()) if path.name != "broken.png"]
    lines += ["Model: images", "L1 category scores:", "\\tentity: 90.5", "\\tglobal: 80.0"]
    lines += ["L2 category scores:", "\\tentity - whole: 90.5", f"Image path: {images}"]
    lines += ["DPG-Bench score: 85.25"]
    pathlib.Path(options["--res-path"]).write_text("\\n".join(lines))
elif words[1] == "static_filter":
    filtered = pathlib.Path(options["--result_path"], "filtered_videos")
    filtered.mkdir()
    shutil.copy(pathlib.Path(options["--videos_path"], "a still cat-7.mp4"), filtered / "a still cat-0.mp4")
elif options["--dimension"] != "scene":
    name, videos = options["--dimension"], pathlib.Path(options["--videos_path"])
    output = pathlib.Path(options["--output_path"])
    output.mkdir()
    result = {name: [0.1 * len(list(videos.iterdir())), [{"video_path": "x", "video_results": 1}]]}
    (output / "results_now_eval_results.json").write_text(json.dumps(result))
"""

FINAL_SCORE = """
TASK_INFO = ["temporal flickering", "dynamic degree", "color"]
get_nomalized_score = dict
get_quality_score = lambda scores: scores["temporal flickering"] + scores["dynamic degree"]
get_semantic_score = lambda scores: scores["color"]
get_final_score = lambda quality, semantic: (quality + semantic) / 2
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Lays out a recipe of the documentation, with a stand-in for its `conda`; gives its command."""
    program = tmp_path / "bin" / "conda"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\n{CONDA}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    recipes = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL))

    def lay_out(name):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(recipes[name])
        return f"{sys.executable} {name}"

    return lay_out


def test_the_recipe_of_geneval(run, recipe):
    finished("drawn", [{"file": f"00000/samples/{index:04}.png"} for index in range(2)])
    result = run("evaluate", "score", "drawn", "--scorer", recipe("geneval/score.py"), "--json")
    assert result.json == {"colors": 1.0, "counting": 0.0, "overall": 0.5}


def test_the_recipe_of_dpg(run, recipe):
    finished("drawn", [{"file": f"{name}.png", "seed": [0, 1, 2, 3]} for name in ("7", "12")])
    command = recipe("ELLA/score.py")
    result = run("evaluate", "score", "drawn", "--scorer", command, "--json")
    assert result.json == {"entity": 90.5, "global": 80.0, "overall": 85.25}
    assert json.loads(Path("drawn/scores.json").read_text()) == {"command": command, "scores": result.json}
    finished("damaged", [{"file": f"{name}.png", "seed": [0, 1, 2, 3]} for name in ("7", "broken")])
    refused = run("evaluate", "score", "damaged", "--scorer", command)
    assert refused.code == 2 and "failed with exit code 1" in refused.stderr


def test_the_recipe_of_vbench(run, recipe):
    command = recipe("VBench/score.py")
    Path("VBench/scripts").mkdir()
    Path("VBench/scripts/cal_final_score.py").write_text(FINAL_SCORE)
    finished("drawn", [{"file": f"{name}.mp4"} for name in ("a red cat-0", "a red cat-1", "a still cat-7")])
    result = run("evaluate", "score", "drawn", "--scorer", command, "--json")
    scores = {"temporal_flickering": 0.1, "dynamic_degree": 0.3, "color": 0.3}
    assert result.json == pytest.approx({**scores, "quality": 0.4, "semantic": 0.3, "total": 0.35})
    assert next(iter(result.json)) == "dynamic_degree"
    part = run("evaluate", "score", "drawn", "--scorer", f"{command} color", "--json")
    assert part.json == pytest.approx({"color": 0.3})
    failed = run("evaluate", "score", "drawn", "--scorer", f"{command} color scene")
    assert failed.code == 2 and "failed with exit code 1" in failed.stderr


def test_half_precision_goes_on_with_its_batch(run, model_folder, geneval):
    """There a picture's bits depend on how many are drawn at a time, so two batches would mix."""
    for dtype, code in (("bfloat16", 2), ("float32", 0)):
        first = draw(run, model_folder, geneval, "-o", dtype, "--dtype", dtype, "--batch", 3)
        assert first.code == 0, first.stderr
        other = draw(run, model_folder, geneval, "-o", dtype, "--dtype", dtype, "--batch", 2)
        assert other.code == code
        if code:
            assert "its batch differs" in other.stderr
        assert draw(run, model_folder, geneval, "-o", dtype, "--dtype", dtype, "--batch", 3).code == 0


def test_pictures_computed_alone_go_on_with_another_batch(run, model_folder, geneval):
    alone = ("--dtype", "bfloat16", "--batch-invariant")
    assert draw(run, model_folder, geneval, "-o", "whole", *alone, "--batch", 1).code == 0
    assert draw(run, model_folder, geneval, "-o", "resumed", *alone, "--batch", 3).code == 0
    for picture in Path("resumed/images/00001").rglob("*.png"):
        picture.unlink()
    again = draw(run, model_folder, geneval, "-o", "resumed", *alone, "--batch", 2)
    assert again.code == 0 and again.json["settings"]["batch_invariant"] is True
    assert again.json["drawn"] == 2 and pictures("resumed") == pictures("whole")
    mixed = draw(run, model_folder, geneval, "-o", "whole", "--dtype", "bfloat16", "--batch", 1)
    assert mixed.code == 2 and "its settings differs" in mixed.stderr


def test_a_run_with_settings_that_this_one_lacks_is_another_run(run, model_folder, geneval):
    assert draw(run, model_folder, geneval, "-o", "whole").code == 0
    file = Path("whole/settings.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "batch": 3}))
    other = draw(run, model_folder, geneval, "-o", "whole")
    assert other.code == 2 and "its batch differs" in other.stderr
