"""Random arguments never end in a traceback: they are understood, or refused with exit code 2."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz_arguments import draw_arguments, problem
from stepvar.cli.errors import InputError
from stepvar.cli.values import parse_aspect, parse_numbers, parse_ratios, parse_scales, parse_size


@pytest.mark.parametrize("seed", range(60))
def test_random_arguments(run, model_folder, seed):
    arguments = draw_arguments(random.Random(seed))
    result = run(*arguments, "--model", model_folder)
    assert problem(result.code, result.stdout, result.stderr) is None, (arguments, result.stderr)
    if result.code == 0 and "--json" in arguments:
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
