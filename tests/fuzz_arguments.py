"""Random command lines: each is understood, or refused in one sentence with exit code 2.

    python tests/fuzz_arguments.py --seconds 30 --seed 1

draws command lines of valid, odd and broken values, runs them in this process on a tiny model, and fails on
the first one that ends in a traceback, an "unexpected" error or another exit code. The test suite runs some.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

VALUES = {
    "--pruning": ["paper", "prune", "skip", "best", "none", "PAPER", "", "0.5"],
    "--method": ["stepvar", "fastvar", "sparsevar-standin", "slowvar", ""],
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
    "--seconds": ["0", "1", "-1", "x"],
    "--image": ["nowhere.png", "", "."],
    "--tile": ["1", "24", "x"],
    "--cascade": ["nowhere", ".", ""],
    "--drafted": ["0", "1", "99"],
    "--repeats": ["1", "0", "x"],
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

_PLAN = ("--pruning", "--method", "--ratios", "--skip")
_SIZE = ("--size", "--aspect", "--budget")
_SAMPLING = ("--negative", "--guidance", "--temperature", "--top-k", "--top-p")
_SETTINGS = (*_SIZE, *_SAMPLING, "--seconds", "--image", "--tile", "--dtype", "--device")


@dataclass(frozen=True)
class Command:
    """One command: how often it is drawn, whether it takes a prompt, what it always and sometimes gets."""

    words: tuple[str, ...]
    options: tuple[str, ...]
    weight: int = 1
    prompt: bool = True
    always: tuple[str, ...] = ()


COMMANDS = (
    Command(
        ("generate",),
        (*_PLAN, *_SETTINGS, "--seed", "-n", "--batch", "--batch-invariant", "-o", "--cascade", "--drafted"),
        weight=6,
    ),
    Command(("summary",), (*_PLAN, *_SETTINGS, "-n", "--cascade", "--drafted"), weight=2, prompt=False),
    Command(("compare",), (*_PLAN, *_SETTINGS, "--seed", "-o"), weight=2, always=("--repeats", "1")),
    Command(("bench",), (*_SETTINGS, "--seed", "-n"), always=("--repeats", "1")),
    Command(
        ("evaluate", "scenes"),
        (*_PLAN, *_SIZE, *_SAMPLING, "--seed", "--batch", "--batch-invariant", "--dtype", "--device"),
        prompt=False,
        always=("-n", "2"),
    ),
)


def draw_arguments(random_: random.Random) -> list[str]:
    """A random command line, without the model."""
    [command] = random_.choices(COMMANDS, [entry.weight for entry in COMMANDS])
    arguments = [*command.words]
    if command.prompt:
        arguments.append(random_.choice(PROMPTS) if random_.random() < 0.3 else "a red star")
    arguments += command.always
    for name in random_.sample(command.options, random_.choice((0, 1, 1, 2, 2, 3))):
        arguments += [name, random_.choice(VALUES[name])] if name in VALUES else [name]
    return arguments + ["--json"] * (random_.random() < 0.5)


def run_in_process(arguments: list[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line."""
    from stepvar.cli.app import app

    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            app(arguments, prog_name="stepvar")
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue(), err.getvalue()


def problem(code: int, stdout: str, stderr: str) -> str | None:
    """What is wrong with how a command line ended; None when nothing is."""
    if code not in (0, 2):
        return f"exit code {code}"
    if "Traceback" in stderr or "unexpected" in stderr:
        return "an unexpected error"
    if code == 2 and (stdout or "Error: " not in stderr):
        return "a refusal without its sentence, or with output"
    return None


def fuzz(seconds: float, seed: int) -> int:
    """Runs command lines for a time; returns how many.

    Raises:
        SystemExit: Showing the first one that ends badly.
    """
    from tiny_pipeline import make_pipeline

    random_, start, count = random.Random(seed), time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        make_pipeline().save_pretrained(model)
        place = Path(folder) / "work"
        place.mkdir()
        os.chdir(place)
        while time.monotonic() - start < seconds:
            arguments = [*draw_arguments(random_), "--model", str(model)]
            ended = run_in_process(arguments)
            found = problem(*ended)
            if found is not None:
                sys.exit(f"{found}: {arguments}\n{ended[1]}\n{ended[2]}")
            count += 1
        os.chdir(os.sep)
    return count


def main() -> None:
    """Runs the fuzzer for a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0, help="another one draws other command lines")
    options = parser.parse_args()
    count = fuzz(options.seconds, options.seed)
    sys.stdout.write(f"{count} passed, 0 failed\n")


if __name__ == "__main__":
    main()
