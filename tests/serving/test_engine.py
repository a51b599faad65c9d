"""Queue of the server: batches of equal settings, limits, cancellation, stop."""

from __future__ import annotations

import threading
import time

import pytest
from PIL import Image

from stepvar.generation.report import Report
from stepvar.serving.drawing import Cancelled, Drawn, DrawSettings, Job
from stepvar.serving.engine import Engine
from stepvar.serving.errors import RequestError
from stepvar.serving.metrics import ServerMetrics
from stepvar.serving.settings import ServerSettings

DENSE = DrawSettings(None, "none", None, False)
REPORT = Report([], {}, 0, 0, [])
FAST = DrawSettings(None, "best", None, False)


class RecordingDrawer:
    """Remembers its batches; waits at `gate` where one is given."""

    def __init__(self, gate: threading.Event | None = None) -> None:
        self.batches: list[list[Job]] = []
        self.gate = gate
        self.started = threading.Event()

    def draw(self, jobs):
        self.batches.append(list(jobs))
        self.started.set()
        if self.gate is not None:
            assert self.gate.wait(20)
        if all(job.cancelled.is_set() for job in jobs):
            raise Cancelled
        if any(job.prompt == "broken" for job in jobs):
            raise RuntimeError("/secret/path is broken")
        return [Drawn(Image.new("RGB", (4, 4), (job.seed % 256, 0, 0)), REPORT) for job in jobs]


def make_job(seed: int = 0, settings: DrawSettings = DENSE, prompt: str = "a ring") -> Job:
    return Job(prompt, None, seed, settings)


@pytest.fixture
def start():
    engines: list[Engine] = []

    def build(drawer, **settings) -> Engine:
        engine = Engine(drawer, ServerSettings(**settings), ServerMetrics())
        engine.start()
        engines.append(engine)
        return engine

    yield build
    for engine in engines:
        engine.stop()


def test_requests_that_wait_together_are_one_batch_and_each_gets_its_own_picture(start):
    gate = threading.Event()
    drawer = RecordingDrawer(gate)
    engine = start(drawer, max_batch=4, batch_wait=0.0)
    first = engine.submit([make_job(0)])
    assert drawer.started.wait(10)
    rest = [engine.submit([make_job(seed)])[0] for seed in (1, 2, 3)]
    gate.set()
    colours = [future.result(10).image.getpixel((0, 0))[0] for future in (*first, *rest)]
    assert colours == [0, 1, 2, 3]
    assert [len(batch) for batch in drawer.batches] == [1, 3]


def test_other_settings_are_another_batch_and_none_waits_forever(start):
    gate = threading.Event()
    drawer = RecordingDrawer(gate)
    engine = start(drawer, batch_wait=0.0)
    engine.submit([make_job()])
    assert drawer.started.wait(10)
    futures = [engine.submit([make_job(index, (DENSE, FAST)[index % 2])])[0] for index in range(4)]
    gate.set()
    for future in futures:
        future.result(10)
    assert [{job.settings.pruning for job in batch} for batch in drawer.batches] == [
        {"none"},
        {"none"},
        {"best"},
    ]


def test_a_lone_request_waits_no_longer_than_the_stated_bound(start):
    drawer = RecordingDrawer()
    engine = start(drawer, batch_wait=0.05)
    started = time.monotonic()
    engine.submit([make_job()])[0].result(10)
    assert 0.04 < time.monotonic() - started < 5.0


def test_a_full_queue_refuses_the_whole_request_and_says_when_to_come_back(start):
    gate = threading.Event()
    drawer = RecordingDrawer(gate)
    engine = start(drawer, max_waiting=2, batch_wait=0.0)
    engine.submit([make_job()])
    assert drawer.started.wait(10)
    engine.submit([make_job()])
    with pytest.raises(RequestError) as caught:
        engine.submit([make_job(), make_job()])
    assert caught.value.status == 429
    assert int(caught.value.headers["Retry-After"]) >= 1
    assert engine.waiting == 1
    gate.set()


def test_a_cancelled_job_is_never_drawn(start):
    gate = threading.Event()
    drawer = RecordingDrawer(gate)
    engine = start(drawer, batch_wait=0.0)
    engine.submit([make_job()])
    assert drawer.started.wait(10)
    gone = make_job(7)
    (future,) = engine.submit([gone])
    gone.cancelled.set()
    after = engine.submit([make_job(8)])[0]
    gate.set()
    after.result(10)
    assert all(job.seed != 7 for batch in drawer.batches for job in batch)
    assert future.cancelled()


def test_a_failed_batch_tells_clients_nothing_of_the_inside_and_the_next_is_drawn(start):
    engine = start(RecordingDrawer(), batch_wait=0.0)
    with pytest.raises(RequestError) as caught:
        engine.submit([make_job(prompt="broken")])[0].result(10)
    assert caught.value.status == 500
    assert "secret" not in caught.value.message
    engine.submit([make_job()])[0].result(10)


def test_stop_finishes_what_runs_and_refuses_what_waits(start):
    gate = threading.Event()
    drawer = RecordingDrawer(gate)
    engine = start(drawer, batch_wait=0.0)
    running = engine.submit([make_job(1)])[0]
    assert drawer.started.wait(10)
    waiting = engine.submit([make_job(2)])[0]
    stopper = threading.Thread(target=engine.stop)
    stopper.start()
    with pytest.raises(RequestError) as caught:
        waiting.result(10)
    assert caught.value.status == 503
    gate.set()
    assert running.result(10).image.getpixel((0, 0))[0] == 1
    stopper.join(10)
    with pytest.raises(RequestError):
        engine.submit([make_job()])
