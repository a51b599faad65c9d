"""Runs on a Ray cluster of two machines, which are both this one; also when workers and machines are lost."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from stepvar.evaluation.manifest import read_manifest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]
ray = pytest.importorskip("ray", reason="make test-ray installs it")

COUNT = 40
WORDS = ("red", "blue", "green", "yellow"), ("ring", "star", "circle"), ("sand", "grass", "water", "stone")


@pytest.fixture(scope="module")
def cluster():
    """Two machines with a CPU each."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  # as Ray spells it
    from ray.cluster_utils import Cluster

    room = {"num_cpus": 1, "object_store_memory": 80_000_000}
    made = Cluster(initialize_head=True, head_node_args={**room, "include_dashboard": False})
    made.add_node(**room)
    yield made
    made.shutdown()


@pytest.fixture
def prompts(tmp_path):
    names = [[words[number % len(words)] for words in WORDS] for number in range(COUNT)]
    lines = [{"tag": "x", "prompt": f"a {colour} {shape} on {ground}"} for colour, shape, ground in names]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return ("evaluate", "geneval", "prompts.jsonl", "--samples", 1, "--json")


def contents(folder):
    """What a finished run is: pictures, what stands beside them, manifest and settings."""
    names = ("settings.json", "manifest.jsonl")
    files = [*Path(folder, "images").rglob("*"), *(Path(folder, name) for name in names)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.is_file()}


def workers():
    """Processes of pools, those of a run before included, which are about to end."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # some end meanwhile
            if process.cmdline()[:1] and "MapWorker" in process.cmdline()[0]:
                found.append(process)
    return found


def drawn(folder):
    return len(list(Path(folder).glob("images/*/samples/*.png")))


def kill_while_drawing(folder, pictures):
    """Kills all workers of a run that has so many pictures, in the middle of a batch.

    Who they are is looked up before: that takes longer than a batch, and a worker without one costs nothing.
    """

    def wait():
        while drawn(folder) < pictures:
            time.sleep(0.002)
        doomed, before = workers(), drawn(folder)
        while drawn(folder) == before:
            time.sleep(0.0005)
        for process in doomed:
            with suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def when_drawn(folder, pictures, action):
    """Does something as soon as a run has so many pictures."""

    def wait():
        while drawn(folder) < pictures:
            time.sleep(0.002)
        action()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.fixture
def sharded(run, model_folder, prompts):
    """The run in two shards, with the tiny model."""
    for shard in ("1/2", "2/2"):
        done = run(*prompts, "--model", model_folder, "--batch", 2, "-o", "sharded", "--shard", shard)
        assert done.code == 0, done.stderr
    return contents("sharded")


def test_a_run_on_ray_is_the_sharded_one(run, cluster, model_folder, prompts, sharded):
    start = (*prompts, "--model", model_folder, "--batch", 2, "--ray", cluster.address)
    first = run(*start, "-o", "ray")
    assert first.code == 0 and first.stderr == "", first.stderr
    assert (first.json["drawn"], first.json["found"], first.json["missing"]) == (COUNT, 0, 0)
    assert contents("ray") == sharded and not list(Path("ray").glob("manifest-*"))

    # It goes on with what is there, and a run in shards goes on with what it began.
    broken = [
        path for path in sorted(Path("ray/images").rglob("*.png")) if path.parent.parent.name[-1] == "3"
    ]
    broken[0].unlink()
    broken[1].write_bytes(b"half a picture")
    again = run(*start, "-o", "ray")
    assert (again.json["drawn"], again.json["found"]) == (2, COUNT - 2)
    assert contents("ray") == sharded

    killed = kill_while_drawing("lost", 6)
    lost = run(*start, "-o", "lost")
    killed.join(1)
    assert lost.code == 0 and re.search(r"[12] workers were lost", lost.stderr), lost.stderr
    assert lost.json["drawn"] == COUNT and contents("lost") == sharded


def test_what_is_wrong_is_said_before_the_pool_starts(run, cluster, model_folder, prompts):
    start = (*prompts, "--model", model_folder, "--ray", cluster.address)
    for extra, words in (
        (("--pruning", "papr"), "Unknown pruning preset 'papr'"),
        (("--device", "cuda"), "has no GPU"),
        (("--workers", 3), "room for 2 workers of 1 CPUs, not for 3"),
        (("--worker-cpus", 2), "No machine of the Ray cluster has 2 CPUs"),
    ):
        refused = run(*start, "-o", "out", *extra)
        assert refused.code == 2 and words in refused.stderr, refused.stderr
        assert refused.stderr.count("\n") == 1 and not Path("out").exists()
    nobody = run(*prompts, "--ray", "127.0.0.1:9", "-o", "out")
    assert nobody.code == 2 and "No Ray cluster answers at '127.0.0.1:9'" in nobody.stderr


def test_a_lost_machine_costs_its_unfinished_pictures(run, cluster, model_folder, prompts, sharded):
    third = cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
    start = (*prompts, "--model", model_folder, "--batch", 2, "--ray", cluster.address)
    gone = when_drawn("lost", 6, lambda: cluster.remove_node(third))
    lost = run(*start, "-o", "lost")
    gone.join(20)
    assert lost.code == 0 and lost.json["drawn"] == COUNT, lost.stderr
    assert contents("lost") == sharded
    assert len(read_manifest(Path("lost"))) == COUNT
