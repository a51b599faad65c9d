"""The server against its own OpenAPI document: requests that schemathesis makes up, valid and broken ones."""

from __future__ import annotations

import threading
import time

import pytest

from tiny_pipeline import make_pipeline

schemathesis = pytest.importorskip("schemathesis")
uvicorn = pytest.importorskip("uvicorn")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from schemathesis.specs.openapi import checks  # noqa: E402

pytestmark = pytest.mark.schema


@pytest.fixture(scope="module")
def api_schema():
    from stepvar.serving.app import create_app
    from stepvar.serving.drawing import Drawer
    from stepvar.serving.settings import ServerSettings

    app = create_app(Drawer(make_pipeline()), "tiny", ServerSettings(max_pictures=2))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")
    server.should_exit = True
    thread.join(30)


def test_answers_are_what_the_document_says(api_schema):
    # A prompt of unknown words is valid JSON and still no picture: fitting the document is not enough.
    left_out = [checks.positive_data_acceptance]
    operations = [found.ok() for found in api_schema.get_all_operations()]
    assert len(operations) >= 6
    for operation in operations:

        @settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def answers(case):
            case.call_and_validate(excluded_checks=left_out)

        answers()
