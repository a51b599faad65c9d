"""Bad input: one clear sentence, exit code 2, nothing written."""

from __future__ import annotations

import errno
import os

import pytest

GENERATE = [
    (("",), "empty"),
    (("   ",), "empty"),
    (("!?",), "empty"),
    (("a red zebra",), "'zebra'"),
    (("a red sttar",), "star"),
    ((" ".join(["red"] * 40),), "at most 24"),
    (("a red star", "--negative", " "), "--negative is empty"),
    (("a red star", "--pruning", "fast"), "none, paper, prune, skip"),
    (("a red star", "--pruning", "paper", "--skip", "8"), "not both"),
    (("a red star", "--pruning", "none", "--ratios", "8=0.5"), "not both"),
    (("a red star", "--method", "fastvar"), "give --ratios or --skip too"),
    (("a red star", "--method", "slowvar", "--ratios", "8=0.5"), "stepvar, fastvar"),
    (("a red star", "--method", "fastvar", "--pruning", "paper", "--ratios", "8=0.5"), "not both"),
    (("a red star", "--ratios", "8=1.5"), "1.5"),
    (("a red star", "--ratios", "8=-0.1"), "-0.1"),
    (("a red star", "--ratios", "8=nan"), "24=0.5,32=0.75"),
    (("a red star", "--ratios", "8:0.5"), "8:0.5"),
    (("a red star", "--ratios", "8=0.5,"), "24=0.5,32=0.75"),
    (("a red star", "--ratios", ""), "empty"),
    (("a red star", "--ratios", "8=0.5,8=0.6"), "twice"),
    (("a red star", "--ratios", "8=0.5", "--skip", "-1"), "twice"),
    (("a red star", "--ratios", "7=0.5"), "8x8"),
    (("a red star", "--ratios", "1=0.5"), "change nothing"),
    (("a red star", "--skip", "7"), "8x8"),
    (("a red star", "--skip", "eight"), "eight"),
    (("a red star", "--skip", "1,2,3,4,6,8"), "Every scale"),
    (("a red star", "--skip", "1"), "first scale"),
    (("a red star", "--size", "100x100"), "64x64"),
    (("a red star", "--size", "large"), "WIDTHxHEIGHT"),
    (("a red star", "--size", "64x64", "--aspect", "1:1"), "not both"),
    (("a red star", "--aspect", "0:1"), "4:3"),
    (("a red star", "--aspect", "1:2:3"), "4:3"),
    (("a red star", "--budget", "9M"), "64x64"),
    (("a red star", "--guidance", "3,3"), "6 scales"),
    (("a red star", "--guidance", "strong"), "strong"),
    (("a red star", "--guidance", "inf"), "inf"),
    (("a red star", "--temperature", "0"), "positive"),
    (("a red star", "--top-p", "2"), "0 to 1"),
    (("a red star", "--seed", "-1"), "-1"),
    (("a red star", "--seed", str(2**63)), "out of range"),
    (("a red star", "--dtype", "int8"), "float32"),
    (("a red star", "--device", "tpu"), "cpu"),
    (("a red star", "--device", "cuda:99"), "cpu"),
    (("a red star", "--device", "cpu", "--offload"), "GPU"),
    (("a red star", "-o", "picture.jpg"), ".png"),
    (("a red star", "-o", "missing/folder/picture.png"), "create it"),
    (("a red star", "-o", "missing/folder/"), "create it"),
    (("a red star", "-o", os.devnull), ".png"),
]


@pytest.mark.parametrize(("arguments", "words"), GENERATE)
def test_generate_refuses(run, model_folder, tmp_path, arguments, words):
    result = run("generate", *arguments, "--model", model_folder)
    assert result.code == 2, result.stdout + result.stderr
    assert result.stdout == "" and words in result.stderr
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate",),
        ("generate", "a red star", "--nonsense"),
        ("generate", "a red star", "-n", "0"),
        ("generate", "a red star", "-n", "many"),
        ("generate", "a red star", "--top-k", "-1"),
        ("generate", "a red star", "--top-p", "x"),
        ("compare", "a red star", "--repeats", "0"),
        ("evaluate", "cats"),
        ("bench", "--repeats", "x"),
        ("paint", "a red star"),
        ("convert", "only-one"),
    ],
)
def test_usage_errors_say_how(run, arguments):
    result = run(*arguments)
    assert result.code == 2 and result.stdout == ""
    assert "Error: " in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("compare", "a red star", "--pruning", "none"), "compare"),
        (("compare", ""), "empty"),
        (("summary", "--skip", "7"), "8x8"),
        (("bench", "--size", "1x1"), "64x64"),
        (("bench", ""), "empty"),
        (("evaluate", "scenes", "--reconstructions", "--pruning", "paper"), "--reconstructions"),
        (("evaluate", "scenes", "--seed", "-5"), "-5"),
    ],
)
def test_other_commands_refuse(run, model_folder, tmp_path, arguments, words):
    result = run(*arguments, "--model", model_folder)
    assert result.code == 2, result.stdout + result.stderr
    assert result.stdout == "" and words in result.stderr and result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_prompt_that_is_no_text(run, model_folder):
    result = run("generate", "a red \udcff star", "--model", model_folder)
    assert result.code == 2 and "UTF-8" in result.stderr


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk is full"),
        (PermissionError(errno.EACCES, "Permission denied"), "permission is denied"),
        (MemoryError(), "--batch 1"),
        (MemoryError(), "shorter videos (--seconds), decode videos in tiles (--tile 24)"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."), "--batch 1"),
    ],
)
def test_failing_to_write_leaves_nothing(run, model_folder, tmp_path, monkeypatch, error, words):
    def fail(*_arguments, **_options):
        raise error

    monkeypatch.setattr("pathlib.Path.write_bytes", fail)
    result = run("generate", "a red star", "--model", model_folder, "-o", "new")
    assert result.code == 2 and words in result.stderr
    assert not list(tmp_path.iterdir())


def test_an_unexpected_error_is_named_but_not_dressed_up(run, model_folder, monkeypatch):
    def fail(*_arguments, **_options):
        raise KeyError("lost")

    monkeypatch.setattr("stepvar.models.infinity.pipeline.InfinityPipeline.__call__", fail)
    result = run("generate", "a red star", "--model", model_folder)
    assert result.code == 1
    assert "unexpected KeyError" in result.stderr and "STEPVAR_DEBUG=1" in result.stderr


def test_debugging_shows_the_traceback(run, model_folder, monkeypatch):
    from stepvar.cli.app import app

    monkeypatch.setenv("STEPVAR_DEBUG", "1")
    with pytest.raises(ValueError, match="No scale"):
        app(["summary", "--model", str(model_folder), "--skip", "7"])
