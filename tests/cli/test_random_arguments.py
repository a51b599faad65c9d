"""Random arguments never end in a traceback: they are understood, or refused with exit code 2."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepvar.cli.errors import InputError
from stepvar.cli.values import parse_aspect, parse_numbers, parse_ratios, parse_scales, parse_size

VALUES = {
    "--pruning": ["paper", "prune", "skip", "none", "PAPER", "", "0.5"],
    "--ratios": [
        "8=0.5",
        "6=0.4,8=0.5",
        "-1=0.9",
        "8=1",
        "8=2",
        "x",
        "=",
        "8=",
        "4=0.3,4=0.3",
        "1=0.5",
        "8=1e-9",
    ],
    "--skip": ["8", "6,8", "-1", "-9", "1", "8,8", ",", "x", "8.0", "99999999999999999999"],
    "--size": ["64x64", "64X64", "63x64", "0x0", "x", "64", "999999x1", "-64x64", "64 x 64"],
    "--aspect": ["1:1", "1", "4:3", "0", "-1", "1:0", "1e-30", "1e400", "nan", ":"],
    "--budget": ["64x64", "1M", "", "0"],
    "--negative": ["a blue ring", "", "zebra", "red " * 30],
    "--guidance": ["1", "3", "1,1,1,1,1,1", "3,2", "0", "-5", "1e38", "nan", "3,,3", ""],
    "--temperature": ["0.5", "1", "0", "-1", "1e-30", "1e30", "inf", "1,1,1,1,1,0"],
    "--top-k": ["0", "1", "2", "900", "-1", "x"],
    "--top-p": ["0", "0.97", "1", "1.1", "-0.1", "nan", "x"],
    "--seed": ["0", "7", "-1", str(2**63 - 1), str(2**64), "x", "1.5"],
    "-n": ["1", "2", "0", "-3", "x"],
    "--batch": ["1", "3", "0"],
    "--dtype": ["float32", "bfloat16", "float16", "int8", ""],
    "--device": ["cpu", "auto", "cuda:77", "meta", "mps", ""],
    "-o": ["x.png", "folder", "a/b.png", "x.gif", "", ".", "..", "x" * 300 + ".png", "x" * 300],
}
PROMPTS = [
    "a red star",
    "two blue rings on sand",
    "",
    " ",
    "?",
    "star star star",
    "a zebra",
    "red " * 30,
    "\u2603",
]
COMMANDS = [["generate"], ["generate"], ["generate"], ["summary"], ["compare"]]
SUMMARY = {"--pruning", "--ratios", "--skip", "--size", "--aspect", "--budget", "--guidance", "-n", "--dtype"}


def draw_arguments(random_: random.Random) -> list[str]:
    command = random_.choice(COMMANDS)
    names = sorted(SUMMARY) if command == ["summary"] else sorted(VALUES)
    if command == ["compare"]:
        names = [name for name in names if name not in ("-n", "--batch")]
    arguments = list(command)
    if command != ["summary"]:
        arguments.append(random_.choice(PROMPTS) if random_.random() < 0.3 else "a red star")
    if command == ["compare"]:
        arguments += ["--repeats", "1"]
    for name in random_.sample(names, random_.choice((0, 1, 1, 2, 2, 3))):
        arguments += [name, random_.choice(VALUES[name])]
    return arguments + ["--json"] * (random_.random() < 0.5)


@pytest.mark.parametrize("seed", range(60))
def test_random_arguments(run, model_folder, seed):
    arguments = draw_arguments(random.Random(seed))
    result = run(*arguments, "--model", model_folder)
    assert result.code in (0, 2), (arguments, result.stderr)
    assert "Traceback" not in result.stderr
    if result.code == 2:
        assert result.stdout == "" and "Error: " in result.stderr
    elif "--json" in arguments:
        assert isinstance(result.json, dict)


@given(st.text())
def test_values_are_read_or_refused(text):
    for parse in (
        parse_ratios,
        parse_scales,
        parse_size,
        parse_aspect,
        lambda value: parse_numbers(value, "-x"),
    ):
        try:
            parse(text)
        except InputError as error:
            assert str(error)


@given(st.dictionaries(st.integers(-99, 99), st.floats(0, 1), min_size=1))
def test_ratios_are_read_back(ratios):
    assert parse_ratios(",".join(f"{name}={ratio!r}" for name, ratio in ratios.items())) == ratios


@given(st.lists(st.integers(-99, 99), min_size=1))
def test_scales_are_read_back(scales):
    assert parse_scales(" , ".join(map(str, scales))) == tuple(scales)


def test_values_by_example():
    assert parse_size("1024x768") == (768, 1024)
    assert parse_aspect("4:3") == pytest.approx(4 / 3)
    assert parse_numbers("3", "--guidance") == 3.0
    assert parse_numbers("3, 2.5", "--guidance") == [3.0, 2.5]
