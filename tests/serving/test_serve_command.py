"""`stepvar serve` as a program: ready, answering a real client, stopped by a signal."""

from __future__ import annotations

import base64
import io
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from PIL import Image

pytest.importorskip("fastapi")
openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_ready(process: subprocess.Popen, port: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health").json()["status"] == "ok":
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError("the server did not become ready")


def test_the_program_answers_a_client_and_a_signal_ends_it_quietly():
    port = free_port()
    command = [sys.executable, "-m", "stepvar.cli", "serve", "--port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        wait_until_ready(process, port)
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        answer = client.images.generate(
            prompt="a red circle on grass", extra_body={"seed": 3, "quality": "fast"}
        )
        picture = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json)))
        assert picture.size == (256, 256)
        assert answer.data[0].pruning == "best"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, 143, -signal.SIGTERM)
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "embedded-video"], "draws videos"),
        (["--api-key", " "], "api_key is empty"),
        (["--model", "/nowhere"], "/nowhere"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(options, words):
    command = [sys.executable, "-m", "stepvar.cli", "serve", "--port", str(free_port()), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
