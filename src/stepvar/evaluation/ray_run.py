"""A run on a Ray cluster: Ray Data hands the run's batches to a pool of workers, which write the pictures.

Folder, manifest and batches are those of a run in shards, so both draw the same bytes, and either goes on
with what the other began. No picture goes through Ray: what comes back of a batch is how many files it made.

Ray Data starts a worker that died again, on another machine if need be, and gives it its batch again; a
worker writes only what is missing of a batch. So a lost worker costs the pictures that it had not written.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepvar.evaluation import ray_cluster
from stepvar.evaluation.benchmark_run import Advance, RunStatus
from stepvar.evaluation.benchmark_task import Group, Task
from stepvar.evaluation.picture_writer import PictureWriter, write_extras
from stepvar.evaluation.ray_cluster import Pool, Workers
from stepvar.evaluation.run_folder import RunFolder
from stepvar.files import Staging

if TYPE_CHECKING:
    from stepvar.evaluation.benchmark_run import BenchmarkRun

OpenRun = Callable[[str], "BenchmarkRun"]
"""Opens the run on "cuda" or "cpu", in whatever process calls it: it is sent there by pickle."""

_ATTEMPTS = 5
"""How often a batch is begun: one whose worker dies each time must end, and Ray would go on for ever."""

_LISTED, _LISTED_BY_WORKERS = "manifest-ray.jsonl", "manifest-ray-*.jsonl"


@dataclass(frozen=True)
class Prepared:
    """What is found out before the pool starts.

    Attributes:
        task: What is drawn.
        identity: Of the run.
        folder_identity: What the folder's settings hold.
        fresh: Whether the folder was nobody's before.
        batch: Pictures drawn at a time.
        notes: What opening the run said on stderr.
    """

    task: Task
    identity: Mapping[str, Any]
    folder_identity: Mapping[str, Any]
    fresh: bool
    batch: int
    notes: str


@dataclass(frozen=True)
class RayStatus(RunStatus):
    """State of a run's folder when the pool has finished.

    Attributes:
        prepared: What was drawn.
        workers: Size of the pool.
        lost: Workers that died and were replaced.
    """

    prepared: Prepared
    workers: int
    lost: int


def generate_on_ray(
    open_run: OpenRun,
    folder: Path,
    batch: int = 4,
    address: str | None = None,
    workers: Workers | None = None,
    starting: Callable[[Prepared, int], Advance | None] | None = None,
) -> RayStatus:
    """Generates the files that a run lacks, or that are broken, by a pool of workers.

    Args:
        open_run: Opens the run: once to check everything, and in every worker.
        folder: Of the run, on a file system that all machines share.
        batch: Pictures generated at a time.
        address: See `ray_cluster.joined`.
        workers: By default one a GPU, or one a CPU where there are none.
        starting: Called with the size of the pool; returns what is called with numbers of finished files.

    Raises:
        ValueError: When the run cannot be carried out, with what would work.
    """
    with ray_cluster.joined(address):
        pool = ray_cluster.fit(workers or Workers())
        prepared = _prepare(open_run, batch, pool)
        run_folder = RunFolder(folder, prepared.folder_identity)
        run_folder.require_claimed()
        task, wanted = prepared.task, prepared.task.all_files()
        done = run_folder.check_pictures(folder / _LISTED, wanted)
        _remove(folder, _LISTED_BY_WORKERS)
        counts = {
            group: sum(name not in done for name in task.files_of([group]))
            for group in task.batches(prepared.batch)
        }
        groups = {group: count for group, count in counts.items() if count}
        pool = pool.limited(len(groups))
        advance = starting(prepared, pool.size) if starting is not None else None
        found = sum(name in done for name in wanted)
        if advance is not None and found:
            advance(found)
        try:
            # Removed with what is left in it, even when this process is killed: the next one does.
            with Staging(folder) as shared:
                for group in counts.keys() - groups.keys():
                    for index in group:
                        write_extras(task, index, folder, shared)
                draw = _Drawing(open_run, pool.device, prepared.batch, shared.path)
                lost = _draw(draw, groups, pool, advance) if groups else 0
        except ValueError:
            # A call that cannot be carried out claims no folder: the corrected one shall find it free.
            if prepared.fresh:
                run_folder.release()
            raise
    missing = run_folder.merge(wanted, done)
    if not missing:
        _remove(folder, _LISTED, _LISTED_BY_WORKERS)
    return RayStatus(folder, len(wanted) - found - missing, found, missing, prepared, pool.size, lost)


def _remove(folder: Path, *patterns: str) -> None:
    """Removes manifests whose lines stand in another one now."""
    for pattern in patterns:
        for manifest in folder.glob(pattern):
            manifest.unlink(missing_ok=True)


def _prepare(open_run: OpenRun, batch: int, pool: Pool) -> Prepared:
    """Opens the run on one machine of the cluster, so that what is wrong is said before the pool starts."""
    import ray

    def prepare() -> Prepared | str:
        try:
            with redirect_stderr(StringIO()) as notes:
                run = open_run(pool.device)
            size = run.at_a_time(batch)
            folder = run.folder_for(size)
            return Prepared(run.task, run.identity, folder.identity, folder.claim(), size, notes.getvalue())
        except Exception as error:
            return _described(error)

    remote = ray.remote(num_cpus=pool.cpus, num_gpus=pool.gpus, max_retries=3)(prepare)
    found: Prepared | str = ray.get(remote.remote())
    if isinstance(found, str):
        raise _as_error(found)
    return found


def _draw(drawing: _Drawing, groups: Mapping[Group, int], pool: Pool, advance: Advance | None) -> int:
    """Draws groups by a pool of workers; returns how many of these died and were replaced.

    Args:
        groups: With the number of files that each lacks.
    """
    replacements = set()
    for result in _results(drawing, groups, pool):
        if result["error"]:
            raise _as_error(result["error"])
        if result["replacement"]:
            replacements.add(result["worker"])
        if advance is not None:
            advance(result["files"])
    return len(replacements)


def _results(drawing: _Drawing, groups: Mapping[Group, int], pool: Pool) -> Iterator[dict[str, Any]]:
    """What workers say of each group, as it is finished.

    Raises:
        RuntimeError: When workers keep dying.
    """
    import ray

    # A block a group: a worker gets one at a time, and so does the one that takes over from it. The pool may
    # shrink: where a machine is gone for good, its worker starts again in the room of one that has ended.
    rows = [{"group": list(group), "files": count} for group, count in groups.items()]
    todo = ray.data.from_items(rows, override_num_blocks=len(rows))
    drawn = todo.map_batches(
        _Worker,
        fn_constructor_args=(drawing,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            min_size=1, max_size=pool.size, initial_size=pool.size, max_tasks_in_flight_per_actor=2
        ),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
    )
    try:
        yield from drawn.iter_rows()
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()
        raise RuntimeError(
            f"workers of the Ray cluster keep failing ({reason[-1] if reason else type(error).__name__}); "
            "the same command goes on with the pictures that are missing"
        ) from error


@dataclass(frozen=True)
class _Drawing:
    """What every worker is told.

    Attributes:
        open_run: Opens the run.
        device: To draw on.
        batch: Pictures drawn at a time.
        shared: A folder in the run's in which workers count how often a group was begun.
    """

    open_run: OpenRun
    device: str
    batch: int
    shared: Path


class _Worker:
    """Draws groups in a process of the pool, and writes what is missing of them."""

    def __init__(self, drawing: _Drawing) -> None:
        import ray

        self.drawing = drawing
        self.name = uuid.uuid4().hex[:12]
        self.replacement = ray.get_runtime_context().was_current_actor_reconstructed
        self.error = ""
        try:
            self.run = drawing.open_run(drawing.device)
            self.folder = self.run.folder_for(drawing.batch)
            self.folder.require_claimed()
        except Exception as error:
            self.error = _described(error)

    def __call__(self, rows: Mapping[str, Any]) -> dict[str, list[Any]]:
        error = self.error
        if not error:
            try:
                self._draw(tuple(int(index) for index in rows["group"][0]))
            except Exception as raised:
                error = _described(raised)
        return {
            "files": [int(rows["files"][0])],
            "error": [error],
            "worker": [self.name],
            "replacement": [self.replacement],
        }

    def _draw(self, group: Group) -> None:
        folder = self.run.folder
        self._count(group)
        wanted = self.run.task.files_of([group])
        # Present where this group was begun before, by a worker that died or in another run.
        present = [name for name in wanted if (folder / name).is_file()]
        missing = set(wanted) - (self.folder.find(present).keys() if present else set())
        manifest = folder / _LISTED_BY_WORKERS.replace("*", self.name)
        with (
            Staging(folder) as staging,
            PictureWriter(self.run, manifest, staging, self.drawing.batch) as writer,
        ):
            for index in group:
                write_extras(self.run.task, index, folder, staging)
            if missing:
                writer.draw(group, missing)

    def _count(self, group: Group) -> None:
        """Counts that a group is begun.

        Raises:
            RuntimeError: When workers have died of it too often.
        """
        begun = self.drawing.shared / f"begun-{group[0]}"
        with begun.open("ab") as stream:
            stream.write(b".")
        if begun.stat().st_size > _ATTEMPTS:
            prompts = ", ".join(str(index + 1) for index in group)
            raise RuntimeError(
                f"{_ATTEMPTS} workers died while they drew the prompts {prompts} of the file, "
                "which may be for want of memory: draw fewer at a time (--batch 1)"
            )


def _described(error: Exception) -> str:
    """An exception as JSON: not every exception can be pickled, and one of a worker is only to be told."""
    if isinstance(error, OSError) and error.strerror:
        return json.dumps({"number": error.errno, "text": error.strerror, "file": str(error.filename or "")})
    if isinstance(error, ValueError):
        return json.dumps({"text": str(error)})
    return json.dumps({"kind": type(error).__name__, "text": str(error)})


def _as_error(described: str) -> Exception:
    """An exception that says here what one said in a worker."""
    found = json.loads(described)
    if "number" in found:
        return OSError(found["number"], found["text"], found["file"] or None)
    if "kind" in found:
        return RuntimeError(f"{found['kind']} in a worker: {found['text']}")
    return ValueError(found["text"])
