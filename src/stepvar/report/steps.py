"""The steps of a report: each measures one thing and gives its raw numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stepvar.metrics.features import diversity, extract
from stepvar.metrics.memory import with_peak_memory
from stepvar.report import analysis as phenomena
from stepvar.report.contestants import ABLATION, DENSE, OURS, RANKS, Contestant, Field
from stepvar.report.drawing import Drawn, Job, as_rows, draw, measure
from stepvar.report.gallery import show
from stepvar.report.inputs import Models
from stepvar.report.metrics import renders
from stepvar.report.protocol import Pace, Protocol
from stepvar.scenes import evaluation_prompts

if TYPE_CHECKING:
    from stepvar.report.folder import ReportFolder

Numbers = dict[str, Any]
Advance = Callable[[float, str], None]
"""Told how much of the work was done, in dense pictures, and what comes next."""


@dataclass(frozen=True)
class Step:
    """One unit of work, done or not done.

    Attributes:
        name: Of its file of raw numbers.
        weight: What it costs, in dense pictures.
        run: Gives the raw numbers.
    """

    name: str
    weight: float
    run: Callable[[], Numbers]


class Study:
    """One model, one protocol, and all contestants.

    Args:
        models: What draws, and what looks.
        protocol: How much is measured.
        field: What is compared.
    """

    def __init__(self, models: Models, protocol: Protocol, field: Field) -> None:
        self.models, self.protocol, self.field = models, protocol, field
        prompts = evaluation_prompts(protocol.pictures, protocol.seed)
        self.jobs = [Job(prompt, protocol.seed + index) for index, prompt in enumerate(prompts)]
        self.warm = False

    def steps(self) -> list[Step]:
        """Everything to do, in order: what every table needs comes first."""
        protocol, weigh = self.protocol, self._weight
        others = [member for _, member in self.field.exhibit("others")]
        weighed = [member for member in self.field if member.rank != ABLATION or member in others]
        steps = [
            Step("costs", 0.1, self._costs),
            Step("memory", weigh(weighed), lambda: self._memory(weighed)),
        ]
        steps += [
            Step(f"gallery-{index:02}", weigh(self.field) + 1, lambda index=index: show(self, index))
            for index in range(protocol.gallery)
        ]
        steps += phenomena.steps(self)
        for index in range(protocol.central_blocks):
            members = [member for member in self.field if index < protocol.blocks(member.rank)]
            weight = protocol.batch * weigh(members)
            steps.append(
                Step(f"pictures-{index:03}", weight, lambda i=index, m=members: self._pictures(i, m))
            )
        steps += [
            Step(f"times-{turn:02}", weigh(self.field), lambda i=turn: self._times(i))
            for turn in range(protocol.rounds)
        ]
        plans = weigh([member for _, member in self.field.exhibit("decomposition")])
        steps += [
            Step(
                f"diversity-{index:02}", plans * protocol.diversity_seeds, lambda i=index: self._diversity(i)
            )
            for index in range(protocol.diversity_prompts)
        ]
        return steps

    def block(self, index: int) -> Sequence[Job]:
        """The jobs of one block."""
        return self.jobs[index * self.protocol.batch : (index + 1) * self.protocol.batch]

    def draw(self, jobs: Sequence[Job], pruning: Any) -> Drawn:
        """Draws pictures with the model alone, under any method; instruments are methods too."""
        return draw(self.models.pipeline, jobs, pruning)

    def _weight(self, members: Sequence[Contestant] | Field) -> float:
        return sum(self.models.relative_cost(member) for member in members)

    def _costs(self) -> Numbers:
        return {member.name: self.models.summary(member).as_json() for member in self.field}

    def _memory(self, members: Sequence[Contestant]) -> Numbers:
        """Growth of memory while one picture is drawn."""
        device, job = self.models.pipeline._execution_device, self.jobs[:1]
        self.draw(job, None)
        return {
            member.name: with_peak_memory(lambda m=member: self.models.draw(job, m), device)[1]
            for member in members
        }

    def _pictures(self, index: int, members: Sequence[Contestant]) -> Numbers:
        """One block of pictures of some contestants, each measured against the dense run's."""
        jobs, judges = self.block(index), self.models.judges
        dense = self.draw(jobs, None)
        measured = {}
        for member in members:
            drawn = dense if member.kind == DENSE else self.models.draw(jobs, member)
            measured[member.name] = measure(drawn, dense, jobs, judges)
        side = dense.pictures[0].shape[0]
        real = renders([job.prompt for job in jobs], [job.seed for job in jobs], side)
        return {
            "jobs": [job.as_json() for job in jobs],
            "contestants": measured,
            "real": {
                "features": as_rows(judges.extractor(real)),
                "fit": judges.fits(real, [job.prompt.text for job in jobs]),
            },
        }

    def _times(self, turn: int) -> Numbers:
        """One round: every contestant draws the same picture, in turn; another one in every round.

        Some methods decide by the picture how much they run.
        """
        jobs = [self.jobs[turn % len(self.jobs)]]
        if not self.warm:
            self.draw(self.jobs[:1], None)
            for member in self.field:
                if member.drafted or member.name == OURS:
                    self.models.draw(self.jobs[:1], member)
            self.warm = True
        times = {}
        for member in self.field:
            drawn = self.models.draw(jobs, member)
            times[member.name] = {
                "seconds": drawn.seconds,
                "stages": dict(drawn.report.stages),
                "scales": [entry.seconds for entry in drawn.report.scales],
            }
        return times

    def _diversity(self, index: int) -> Numbers:
        """How much the pictures of one prompt differ between seeds, for the main plans."""
        prompt = self.jobs[index % len(self.jobs)].prompt
        seeds = range(self.protocol.diversity_seeds)
        jobs = [Job(prompt, self.protocol.seed + 10_000 + seed) for seed in seeds]
        found = {}
        for label, member in self.field.exhibit("decomposition"):
            pictures = self.models.draw(jobs, member).pictures
            found[label] = diversity(extract(self.models.judges.extractor, pictures))
        return {"prompt": prompt.text, "distances": found}


def measure_pace(models: Models, field: Field) -> Pace:
    """Draws a few pictures to learn how long things take here."""
    trial = Study(models, Protocol(central_blocks=1, main_blocks=1, ablation_blocks=1), field)
    trial.draw(trial.jobs[:1], None)
    single = trial.draw(trial.jobs[:1], None).seconds
    # A slow machine is not made to wait for a whole batch that it would have no time for anyway.
    some = trial.jobs if single < 1.0 else trial.jobs[:2]
    dense = trial.draw(some, None)
    started = time.perf_counter()
    measure(dense, dense, some, models.judges)
    judging = (time.perf_counter() - started) / len(some)
    ranks = {rank: [member for member in field if member.rank == rank] for rank in RANKS}
    return Pace(
        single=single,
        batched=dense.seconds / len(some),
        judging=judging,
        costs={rank: sum(map(models.relative_cost, members)) for rank, members in ranks.items()},
        counts={rank: len(members) for rank, members in ranks.items()},
        scales=len(field.schedule),
    )


def run_steps(folder: ReportFolder, steps: Sequence[Step], advance: Advance | None = None) -> Iterator[str]:
    """Runs every step whose numbers the folder lacks, and writes them.

    Yields:
        The name of each step that is done, present ones included.
    """
    for step in steps:
        if folder.load(step.name) is None:
            if advance is not None:
                advance(0.0, step.name)
            folder.save(step.name, step.run())
        if advance is not None:
            advance(step.weight, step.name)
        yield step.name
