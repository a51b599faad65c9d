"""Pictures of a benchmark's prompts in the layout that its official scorer reads.

A stopped run continues where it was, and shards share a folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepvar.evaluation.benchmark_task import Group, Task
from stepvar.evaluation.benchmarks import Item
from stepvar.evaluation.manifest import Entry
from stepvar.evaluation.picture_writer import PictureWriter, write_extras
from stepvar.evaluation.provenance import fingerprint, versions
from stepvar.evaluation.run_folder import RunFolder, Shard
from stepvar.files import Staging

if TYPE_CHECKING:
    from stepvar.models.pipeline import NextScalePipeline
    from stepvar.pruning.presets import Pruning

Advance = Callable[[int], None]
"""Called with the number of files that were just finished."""


@dataclass(frozen=True)
class RunStatus:
    """State of a run's folder when a process has finished.

    Attributes:
        folder: Of the run.
        generated: Files made now; found: those that were there, and whole.
        missing: Files of other shards that are not there yet; 0 when `manifest.jsonl` is complete.
    """

    folder: Path
    generated: int
    found: int
    missing: int


class BenchmarkRun:
    """One benchmark's pictures with one model, plan and set of settings.

    Args:
        pipeline: The model.
        task: The pictures that are wanted.
        folder: Of the run; new, empty, or holding this very run.
        pruning: As the pipeline takes it.
        settings: Further keyword arguments of the pipeline.

    Raises:
        ValueError: When the model cannot do the task.
    """

    def __init__(
        self,
        pipeline: NextScalePipeline,
        task: Task,
        folder: Path,
        pruning: Pruning = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.pipeline, self.task, self.folder = pipeline, task, folder
        self.pruning, self.settings = pruning, dict(settings or {})
        pipeline.require_prompts_alone("A benchmark")
        if task.benchmark.video and not pipeline.draws_videos:
            raise ValueError(
                f"{task.benchmark.name} scores videos, but {type(pipeline).__name__} draws pictures: name a "
                "video model with --model."
            )
        if pipeline.draws_videos and not task.benchmark.video:
            self.settings["seconds"] = 0
        self.identity = self._identity()

    def _identity(self) -> dict[str, Any]:
        """What two processes must share to fill one folder."""
        from stepvar.models.output import as_json_value

        method = self.pipeline.resolve_pruning(self.pruning)
        for size in sorted({item.size or (0, 0) for item in self.task.items}):
            self.pipeline.summary(method, **self._sized(size if all(size) else None))
        task = self.task
        return {
            "benchmark": task.benchmark.name,
            "prompts": task.digest,
            "number": len(task.items),
            "samples": sum(task.samples),
            "seed": task.seed,
            "model": self.pipeline.origin,
            "revision": fingerprint(self.pipeline),
            "dtype": str(self.pipeline.transformer.compute_dtype).removeprefix("torch."),
            "plan": as_json_value(method),
            "settings": as_json_value(self.settings),
            "files": task.suffix,
            "versions": versions(),
        }

    def settings_of(self, item: Item) -> dict[str, Any]:
        """Keyword arguments of the pipeline for a prompt: those of the run, at the prompt's own size."""
        return self._sized(item.size)

    def _sized(self, size: tuple[int, int] | None) -> dict[str, Any]:
        return self.settings if size is None else {**self.settings, "height": size[0], "width": size[1]}

    def at_a_time(self, batch: int) -> int:
        """How many are drawn at a time, where so many were asked for."""
        # Videos are computed one after the other, but their texts would be encoded together.
        return 1 if self.pipeline.draws_videos else batch

    def folder_for(self, batch: int) -> RunFolder:
        """The run's folder, for pictures that are drawn so many at a time."""
        invariant = self.pipeline.draws_videos or bool(self.settings.get("batch_invariant"))
        # In half precision a picture's bits depend on how many are drawn at a time.
        exact = invariant or self.identity["dtype"] == "float32"
        return RunFolder(self.folder, self.identity if exact else {**self.identity, "batch": batch})

    def generate(
        self, shard: Shard | None = None, batch: int = 4, advance: Advance | None = None
    ) -> RunStatus:
        """Generates the files that this shard lacks, or that are broken.

        Args:
            shard: Which part of the batches; by default all.
            batch: Pictures generated at a time, videos one by one; in half precision a run goes on with the
                batch it began with, unless its settings have `batch_invariant`.
            advance: Called for every file, found ones included.
        """
        shard, batch = shard or Shard(), self.at_a_time(batch)
        folder = self.folder_for(batch)
        fresh = folder.claim()
        manifest = self.folder / shard.manifest
        try:
            groups = shard.of(self.task.batches(batch))
            with Staging(self.folder) as staging:
                return self._fill(folder, groups, manifest, batch, staging, advance)
        except ValueError:
            # A call that cannot be carried out claims no folder: the corrected one shall find it free.
            if fresh:
                folder.release()
            raise

    def _fill(
        self,
        folder: RunFolder,
        groups: Sequence[Group],
        manifest: Path,
        batch: int,
        staging: Staging,
        advance: Advance | None,
    ) -> RunStatus:
        names = self.task.files_of(groups)
        done = folder.check_pictures(manifest, names)
        missing = {name for name in names if name not in done}
        found = len(names) - len(missing)
        if advance is not None and found:
            advance(found)

        def written(entry: Entry) -> None:
            done[entry["file"]] = entry
            if advance is not None:
                advance(1)

        with PictureWriter(self, manifest, staging, batch, written) as writer:
            for group in groups:
                for index in group:
                    if not missing >= set(self.task.files(index)):
                        write_extras(self.task, index, self.folder, staging)
                if not missing.isdisjoint(self.task.files_of([group])):
                    writer.draw(group, missing)
        return RunStatus(self.folder, len(missing), found, folder.merge(self.task.all_files(), done))
