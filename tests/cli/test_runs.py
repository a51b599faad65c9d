"""Runs of many prompts: files of one's own prompts, and which process draws what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from stepvar.cli.errors import InputError
from stepvar.cli.options import ModelOptions
from stepvar.cli.runs import WorkOptions, _with_ray_value
from stepvar.evaluation.benchmark_task import Task
from stepvar.evaluation.benchmarks import Item
from stepvar.evaluation.manifest import read_manifest
from stepvar.evaluation.own_prompts import PROMPTS
from stepvar.evaluation.run_folder import Shard
from tiny_pipeline import PIXELS


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*.png")}


@pytest.fixture
def no_scheduler(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)


def test_a_file_of_prompts_is_a_run(run, model_folder):
    Path("prompts.txt").write_text("a red star\na green circle on sand\n\n")
    common = (
        "generate",
        "--prompts",
        "prompts.txt",
        "--model",
        model_folder,
        "-n",
        2,
        "--json",
        "--batch",
        2,
    )
    first = run(*common, "-o", "whole")
    assert first.code == 0 and first.json["drawn"] == 4 and first.json["missing"] == 0, first.stderr
    names = [f"images/{prompt:05}-{sample}.png" for prompt in range(2) for sample in range(2)]
    entries = read_manifest(Path("whole"))
    assert [entry["file"] for entry in entries] == names
    assert [entry["seed"] for entry in entries] == [0, 1, 2, 3]
    assert entries[2]["prompt"] == "a green circle on sand"
    Path("whole", names[1]).unlink()
    again = run(*common, "-o", "whole")
    assert (again.json["drawn"], again.json["found"]) == (1, 3)
    other = run(*common, "-o", "whole", "--seed", 5)
    assert other.code == 2 and "its seed differs" in other.stderr

    # In another number of processes a run goes on with what each of the others drew.
    before = contents("whole")
    for shard in ("1/2", "2/2"):
        assert run(*common, "-o", "parts", "--shard", shard).code == 0
    assert contents("parts") == before
    Path("parts", "manifest.jsonl").unlink()
    joined = run(*common, "-o", "parts")
    assert (joined.json["drawn"], joined.json["found"]) == (0, 4)


def test_prompts_have_sizes_of_their_own(run, model_folder):
    small = f"{PIXELS}x{PIXELS}"
    lines = [{"prompt": "a red star"}, {"prompt": "a blue ring", "size": small}, {"prompt": "a blue star"}]
    Path("prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result = run("generate", "--prompts", "prompts.jsonl", "--model", model_folder, "-o", "out")
    assert result.code == 0, result.stderr
    assert {Image.open(path).size for path in Path("out/images").iterdir()} == {(PIXELS, PIXELS)}
    lines[1]["size"] = "48x30"
    Path("prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    changed = run("generate", "--prompts", "prompts.jsonl", "--model", model_folder, "-o", "out")
    assert changed.code == 2, "another size is another run, or none that this model can draw"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--prompts", "good.txt"), "--prompts draws into a folder"),
        (("--prompts", "absent.txt", "-o", "out"), "no prompts file 'absent.txt'"),
        (("--prompts", "gap.txt", "-o", "out"), "Line 2 of 'gap.txt' is empty"),
        (("--prompts", "key.jsonl", "-o", "out"), "Line 1 of 'key.jsonl' has 'seed'"),
        (("--prompts", "size.jsonl", "-o", "out"), "a size that is not understood"),
        (("--prompts", "good.txt", "-o", "out", "a red star"), "PROMPT... and --prompts were both given"),
        (("--prompts", "good.txt", "-o", "out", "--frames"), "--frames and --prompts were both given"),
        (("--prompts", "good.txt", "-o", "out", "--seed", "-1"), "The seed -1 is out of range"),
        (("--prompts", "good.txt", "-o", "out", "--shard", "auto"), "finds no number of this process"),
        (("--prompts", "good.txt", "-o", "out", "--shard", "1/2", "--ray"), "leave --shard out"),
        (("--prompts", "good.txt", "-o", "out", "--workers", "2"), "--workers is for --ray"),
        (("--prompts", "good.txt", "-o", "out", "--ray", "--device", "cuda:1"), "names one GPU"),
        (("--prompts", "good.txt", "-o", "out", "--temperature", "x", "--ray"), "--temperature 'x'"),
        (("a red star", "--shard", "1/2"), "--shard is for a run of many prompts"),
        ((), "No prompt was given"),
    ],
)
@pytest.mark.usefixtures("no_scheduler")
def test_what_cannot_be_run_is_one_sentence(run, model_folder, arguments, words):
    Path("good.txt").write_text("a red star\n")
    Path("gap.txt").write_text("a red star\n\na blue star\n")
    Path("key.jsonl").write_text('{"prompt": "a red star", "seed": 3}\n')
    Path("size.jsonl").write_text('{"prompt": "a red star", "size": "0x16"}\n')
    result = run("generate", *arguments, "--model", model_folder)
    assert result.code == 2 and words in result.stderr and result.stderr.count("\n") == 1, result.stderr
    assert not Path("out").exists()


@pytest.mark.usefixtures("no_scheduler")
def test_shards_are_numbered_by_torchrun_or_slurm(monkeypatch):
    auto = WorkOptions(shard="auto")
    monkeypatch.setenv("SLURM_PROCID", "5")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("SLURM_LOCALID", "1")
    assert auto.part() == Shard(6, 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert auto.placed(ModelOptions()).device == "cuda:1"
    assert auto.placed(ModelOptions(device="cpu")).device == "cpu"
    assert WorkOptions(shard="2/4").placed(ModelOptions()).device == "auto"
    # torchrun inside of a Slurm job numbers its own processes.
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert auto.part() == Shard(1, 2)
    # Where Slurm gives every task a GPU of its own, it sees no other.
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert auto.placed(ModelOptions()).device == "auto"
    for rank in ("2", "-1", "x", ""):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(InputError, match="do not number a process"):
            auto.part()


def test_batches_are_alike_and_fixed():
    sizes = [None, (16, 32), None, None, (16, 32), None]
    items = [Item(str(n), "x" * (7 - n % 3), size=size) for n, size in enumerate(sizes)]
    task = Task(PROMPTS, items, [1, 1, 2, 1, 1, 5])
    batches = task.batches(3)
    assert sorted(index for group in batches for index in group) == list(range(6))
    for group in batches:
        assert len({items[index].size for index in group}) == 1
        assert sum(task.samples[index] for index in group) <= 3 or len(group) == 1
    lengths = [len(items[index].prompt) for group in batches for index in group if not items[index].size]
    assert lengths == sorted(lengths)
    shares = [Shard(number, 2).of(batches) for number in (1, 2)]
    assert sorted(group for share in shares for group in share) == sorted(batches)


def test_a_bare_ray_takes_no_argument_that_is_no_address():
    assert _with_ray_value(["--ray", "-o", "x"]) == ["--ray", "any", "-o", "x"]
    assert _with_ray_value(["--ray", "prompts.jsonl"]) == ["--ray", "any", "prompts.jsonl"]
    assert _with_ray_value(["--ray", "head-1.local:6379"]) == ["--ray", "head-1.local:6379"]
    assert _with_ray_value(["--ray", "local", "x", "--ray"]) == ["--ray", "local", "x", "--ray", "any"]
    assert _with_ray_value(["--", "--ray"]) == ["--", "--ray"]
