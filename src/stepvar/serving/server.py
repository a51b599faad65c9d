"""What one server process holds: a model, its queue, metrics, and the last pictures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from fastapi import FastAPI

from stepvar.serving.drawing import Drawer, Job
from stepvar.serving.engine import Engine
from stepvar.serving.metrics import ServerMetrics
from stepvar.serving.pictures import PictureStore
from stepvar.serving.settings import ServerSettings


@dataclass
class Server:
    """One model behind one queue, whatever asks: the images routes, or the page.

    Attributes:
        drawer: The model.
        name: What it is called in /v1/models.
        settings: Limits.
        created: When it was started, in seconds since 1970.
        metrics: Counts what happens.
        engine: Queue and drawing thread; runs from start-up to shutdown of the application.
        store: The last pictures.
        warm_up: A picture to draw at the start, which nobody sees: the first one of a process is slow, and
            its time would be compared with that of the second.
    """

    drawer: Drawer
    name: str
    settings: ServerSettings
    warm_up: Job | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    metrics: ServerMetrics = field(default_factory=ServerMetrics)

    def __post_init__(self) -> None:
        self.engine = Engine(self.drawer, self.settings, self.metrics)
        self.store = PictureStore(self.settings.kept_pictures)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Starts the drawing thread, and at the end lets it finish what it draws."""
        self.engine.start()
        if self.warm_up is not None:
            self.engine.submit([self.warm_up])
        yield
        await asyncio.to_thread(self.engine.stop)
