"""Kills runs of `stepvar evaluate` and `stepvar convert` at random moments, and checks that nothing is lost.

Every run is stopped again and again, by SIGKILL, SIGTERM, SIGHUP or SIGINT, until it is complete. Pictures
must be those of an undisturbed run at any moment, no temporary file may stay, and a converted folder must
appear whole. Prints one JSON document of what was counted.

    python benchmarks/kill_runs.py --kills 200
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from stepvar.files import is_staging

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
PROMPTS = ("a red star", "two blue rings on sand", "a green circle", "a yellow star above a blue ring")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "stepvar.cli", *map(str, arguments)]


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of every file below a folder, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stop_once(arguments: list[str], longest: float, chance: random.Random) -> tuple[bool, float]:
    """Starts a program and stops it at a random moment; returns whether it was done before, and its time."""
    started = time.monotonic()
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, errors = process.communicate(timeout=chance.uniform(0.0, longest))
    except subprocess.TimeoutExpired:
        process.send_signal(chance.choice(SIGNALS))
        _, errors = process.communicate()
        if "Traceback" in errors:
            sys.exit(f"A traceback after a signal: {errors}")
        return process.returncode == 0, time.monotonic() - started
    if process.returncode:
        sys.exit(f"The program failed by itself: {errors}")
    return True, time.monotonic() - started


def kill_evaluation(folder: Path, kills: int, chance: random.Random) -> dict[str, Any]:
    """Stops runs of GenEval's layout until so many kills are counted."""
    prompts = folder / "evaluation_metadata.jsonl"
    prompts.write_text("\n".join(json.dumps({"tag": "x", "prompt": text}) for text in PROMPTS))
    arguments = ("evaluate", "geneval", prompts, "--samples", 4, "--batch", 2, "-o")
    started = time.monotonic()
    subprocess.run(command(*arguments, folder / "whole"), check=True, stdout=subprocess.DEVNULL)
    longest, expected = 1.2 * (time.monotonic() - started), contents(folder / "whole")
    counted = runs = 0
    while counted < kills:
        run = folder / f"run-{runs}"
        known: dict[str, bytes] = {}
        done = False
        while not done:
            done, _ = stop_once(command(*arguments, run), longest, chance)
            counted += not done
            now = contents(run / "images") if run.exists() else {}
            if not known.items() <= now.items():
                sys.exit(f"{run}: a picture that was there is lost or changed")
            if any(expected.get(f"images/{name}") != content for name, content in now.items()):
                sys.exit(f"{run}: a file below images/ is not one of the undisturbed run")
            known = now
        if contents(run) != expected:
            sys.exit(f"{run}: the finished run differs from the undisturbed one")
        runs += 1
    return {"kills": counted, "runs": runs}


def kill_conversion(folder: Path, sources: Path, kills: int, chance: random.Random) -> dict[str, Any]:
    """Stops conversions until so many kills are counted."""
    arguments = ("convert", sources / "transformer.safetensors", sources / "vae.safetensors")
    started = time.monotonic()
    subprocess.run(command(*arguments, folder / "whole"), check=True, stdout=subprocess.DEVNULL)
    longest, expected = 1.2 * (time.monotonic() - started), contents(folder / "whole")
    counted = runs = 0
    while counted < kills:
        output = folder / f"out-{runs}"
        done = False
        while not done:
            done, _ = stop_once(command(*arguments, output), longest, chance)
            counted += not done
            # The signal may come between the last rename and the end of the program.
            if output.exists():
                done = True
        if contents(output) != expected:
            sys.exit(f"{output}: a converted folder is not whole")
        runs += 1
    subprocess.run(command(*arguments, folder / "last"), check=True, stdout=subprocess.DEVNULL)
    left = [path.name for path in folder.iterdir() if is_staging(path)]
    if left:
        sys.exit(f"Temporary folders stay: {left}")
    return {"kills": counted, "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="of each of the two programs")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and signals")
    parser.add_argument(
        "--sources",
        type=Path,
        default=Path("tests/golden/infinity/tiny_d16"),
        help="folder with transformer.safetensors and vae.safetensors",
    )
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as evaluation, tempfile.TemporaryDirectory() as conversion:
        document = {
            "evaluate": kill_evaluation(Path(evaluation), options.kills, chance),
            "convert": kill_conversion(Path(conversion), options.sources, options.kills, chance),
        }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
