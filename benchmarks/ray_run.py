"""Forty pictures of the embedded model in shards and on a Ray cluster of two machines, byte by byte.

    python benchmarks/ray_run.py [--pictures 40] [--batch 2] [--folder DIR]

Both machines of the cluster are this one, with a CPU each. The pictures are drawn in two shards; on Ray; on
Ray while a worker is killed; and on Ray while the whole program is killed, where the same command goes on.
Needs `pip install '.[ray]'`, and takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

COLOURS, SHAPES = ("red", "blue", "green", "yellow"), ("ring", "star", "circle")
GROUNDS = ("sand", "grass", "water", "stone")


def main() -> None:
    """Prints what each of the four runs did, and whether its bytes are the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="kept; default: a temporary one")
    given = parser.parse_args()
    # As many threads as a worker has: the last bits of a product may depend on them.
    os.environ |= {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    with tempfile.TemporaryDirectory() as temporary:
        compare(given.folder or Path(temporary), given.pictures, given.batch)


def compare(folder: Path, pictures: int, batch: int) -> None:
    """Draws everything, and compares it."""
    from ray.cluster_utils import Cluster

    folder.mkdir(exist_ok=True)
    write_prompts(folder / "prompts.jsonl", pictures)
    arguments = [str(folder / "prompts.jsonl"), "--samples", "1", "--batch", str(batch), "--json"]
    for shard in ("1/2", "2/2"):
        report(f"shard {shard}", finish(start(arguments, folder / "sharded", "--shard", shard)))
    room = {"num_cpus": 1, "object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={**room, "include_dashboard": False})
    cluster.add_node(**room)
    try:
        on_ray = ("--ray", cluster.address)
        report("Ray", finish(start(arguments, folder / "ray", *on_ray)))
        running = start(arguments, folder / "worker", *on_ray)
        when_drawn(folder / "worker", pictures // 3, kill_a_worker)
        report("Ray, a worker killed", finish(running))
        running = start(arguments, folder / "program", *on_ray)
        when_drawn(folder / "program", pictures // 3, running.kill).join()
        running.wait()
        report("Ray, the program killed", finish(start(arguments, folder / "program", *on_ray)))
    finally:
        cluster.shutdown()
    for name in ("ray", "worker", "program"):
        same = contents(folder / name) == contents(folder / "sharded")
        print(f"{name}: {'the same bytes as' if same else 'DIFFERS from'} the run in shards")


def write_prompts(file: Path, pictures: int) -> None:
    """Prompts in GenEval's format."""
    lines = []
    for number in range(pictures):
        words = COLOURS[number % 4], SHAPES[number // 4 % 3], GROUNDS[number // 12 % 4]
        lines.append(json.dumps({"tag": "x", "prompt": "a {} {} on {}".format(*words)}))
    file.write_text("\n".join(lines))


def start(arguments: list[str], output: Path, *more: str) -> subprocess.Popen[str]:
    """Starts a run of the embedded model."""
    command = [
        sys.executable,
        "-m",
        "stepvar.cli",
        "evaluate",
        "geneval",
        *arguments,
        "-o",
        str(output),
        *more,
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish(running: subprocess.Popen[str]) -> dict[str, int]:
    """Waits for a run; returns what it says of itself."""
    started = time.perf_counter()
    output = running.communicate()[0]
    found: dict[str, int] = json.loads(output)
    return {
        **{key: found[key] for key in ("drawn", "found", "missing")},
        "s": round(time.perf_counter() - started),
    }


def report(title: str, found: dict[str, int]) -> None:
    print(f"{title}: " + ", ".join(f"{count} {key}" for key, count in found.items()), flush=True)


def when_drawn(folder: Path, pictures: int, action: Callable[[], object]) -> threading.Thread:
    """Does something as soon as a run has so many pictures."""

    def wait() -> None:
        while len(list(folder.glob("images/*/samples/*.png"))) < pictures:
            time.sleep(0.01)
        action()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def kill_a_worker() -> None:
    """Kills the youngest process of a pool: older ones may be those of a run before, about to end."""
    workers = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # some end meanwhile
            if process.cmdline()[:1] and "MapWorker" in process.cmdline()[0]:
                workers.append(process)
    max(workers, key=psutil.Process.create_time).send_signal(signal.SIGKILL)


def contents(folder: Path) -> dict[str, bytes]:
    """What a finished run is: pictures, what stands beside them, manifest and settings."""
    files = [*folder.joinpath("images").rglob("*"), folder / "settings.json", folder / "manifest.jsonl"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.is_file()}


if __name__ == "__main__":
    main()
