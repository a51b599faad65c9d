"""The server through a real OpenAI client, on a tiny model."""

from __future__ import annotations

import base64
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from tiny_pipeline import make_pipeline

pytest.importorskip("fastapi")
openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx")

PROMPT = "a red circle on grass"


class RunningServer:
    """A uvicorn server on a free port of this machine, in a thread."""

    def __init__(self, **settings) -> None:
        import uvicorn

        from stepvar.serving.app import create_app
        from stepvar.serving.drawing import Drawer
        from stepvar.serving.settings import ServerSettings

        self.pipeline = make_pipeline()
        app = create_app(Drawer(self.pipeline), "tiny", ServerSettings(**settings))
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="on"))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        deadline = time.monotonic() + 30
        while not self.server.started and time.monotonic() < deadline:
            time.sleep(0.02)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.engine = app.state.server.engine

    def client(self, key: str = "unused"):
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)


@pytest.fixture(scope="module")
def server():
    running = RunningServer()
    yield running
    running.stop()


def read(data: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_the_client_gets_the_picture_that_the_pipeline_draws(server):
    answer = server.client().images.generate(prompt=PROMPT, n=2, extra_body={"seed": 5})
    for index, entry in enumerate(answer.data):
        assert entry.seed == 5 + index
        direct = server.pipeline(PROMPT, seed=5 + index).images[0]
        np.testing.assert_array_equal(read(entry.b64_json), np.asarray(direct))


def test_a_seed_gives_the_same_picture_alone_and_among_others(server):
    client = server.client()

    def draw(seed: int) -> bytes:
        answer = client.images.generate(prompt=PROMPT, extra_body={"seed": seed})
        return base64.b64decode(answer.data[0].b64_json)

    alone = [draw(seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(draw, range(6)))
    assert together == alone
    assert len(set(alone)) == 6


def test_a_stream_grows_coarse_to_fine_and_ends_with_the_picture(server):
    events = list(
        server.client().images.generate(prompt=PROMPT, stream=True, partial_images=3, extra_body={"seed": 4})
    )
    kinds = [event.type for event in events]
    assert kinds == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
    final = read(events[-1].b64_json)
    np.testing.assert_array_equal(final, np.asarray(server.pipeline(PROMPT, seed=4).images[0]))
    distances = [np.abs(read(event.b64_json).astype(float) - final).mean() for event in events]
    assert distances[0] > 0 and distances[-1] == 0
    assert [event.partial_image_index for event in events[:-1]] == [0, 1, 2]
    assert events[-1].usage.total_tokens > 0


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "   "}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": "\U0008de2d"}, None),
        ({"prompt": PROMPT, "negative_prompt": "\U0008de2d"}, None),
        ({}, "prompt"),
        ({"prompt": "a" * 5_000}, "prompt"),
        ({"prompt": PROMPT, "n": 0}, "n"),
        ({"prompt": PROMPT, "n": 11}, "n"),
        ({"prompt": PROMPT, "size": "big"}, "size"),
        ({"prompt": PROMPT, "size": "63x64"}, "size"),
        ({"prompt": PROMPT, "quality": "hd"}, "quality"),
        ({"prompt": PROMPT, "pruning": "sharp"}, "pruning"),
        ({"prompt": PROMPT, "pruning": "paper", "quality": "fast"}, "pruning"),
        ({"prompt": PROMPT, "partial_images": 2}, "partial_images"),
        ({"prompt": PROMPT, "seed": -1}, "seed"),
        ({"prompt": PROMPT, "guidance_scale": "much"}, "guidance_scale"),
        ({"prompt": PROMPT, "steps": 4}, "steps"),
        ({"prompt": PROMPT, "style": "vivid"}, "style"),
        ({"prompt": PROMPT, "stream": True, "n": 2}, "n"),
    ],
)
def test_bad_input_is_one_sentence_in_openais_form(server, body, field):
    answer = httpx.post(f"{server.url}/v1/images/generations", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == field
    assert "\n" not in error["message"] and "/" not in error["message"].replace("WIDTHxHEIGHT", "")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"prompt": "\xff"}', b"\x00" * 10])
def test_a_body_that_is_no_json_object_is_refused(server, content):
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{server.url}/v1/images/generations", content=content, headers=headers)
    assert answer.status_code == 400
    assert "error" in answer.json()


def test_a_large_body_is_refused_with_and_without_its_length(server):
    for content in (b"x" * 100_000, iter([b"x" * 50_000, b"x" * 50_000])):
        answer = httpx.post(f"{server.url}/v1/images/generations", content=content)
        assert answer.status_code == 413
        assert "error" in answer.json()


def test_formats_and_pictures_by_url(server):
    client = server.client()
    jpeg = client.images.generate(prompt=PROMPT, output_format="jpeg", extra_body={"seed": 1})
    assert Image.open(io.BytesIO(base64.b64decode(jpeg.data[0].b64_json))).format == "JPEG"
    answer = client.images.generate(prompt=PROMPT, response_format="url", extra_body={"seed": 1})
    fetched = httpx.get(answer.data[0].url)
    assert fetched.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(fetched.content)).size == (64, 64)
    part = httpx.get(answer.data[0].url, headers={"Range": "bytes=2-5"})
    assert part.status_code == 206 and part.content == fetched.content[2:6]
    assert httpx.get(answer.data[0].url, headers={"Range": "bytes=99999999-"}).status_code == 416
    assert httpx.get(answer.data[0].url, headers={"Range": "lines=1-2"}).content == fetched.content
    assert httpx.get(f"{server.url}/v1/files/..%2F..%2Fetc%2Fpasswd").status_code == 404


def test_quality_and_pruning_reach_the_pipeline(server):
    client = server.client()
    for field, value, plan in (("quality", "fast", "best"), ("pruning", "paper", "paper")):
        answer = client.images.generate(prompt=PROMPT, extra_body={field: value, "seed": 2})
        assert answer.data[0].pruning == plan
        expected = server.pipeline(PROMPT, seed=2, pruning=plan).images[0]
        np.testing.assert_array_equal(read(answer.data[0].b64_json), np.asarray(expected))


def test_a_negative_prompt_and_guidance_reach_the_pipeline(server):
    extra = {"seed": 2, "negative_prompt": "a blue ring", "guidance_scale": 4.0}
    answer = server.client().images.generate(prompt=PROMPT, extra_body=extra)
    expected = server.pipeline(PROMPT, seed=2, negative_prompt="a blue ring", guidance_scale=4.0).images[0]
    np.testing.assert_array_equal(read(answer.data[0].b64_json), np.asarray(expected))


def test_models_health_and_metrics(server):
    client = server.client()
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    with pytest.raises(openai.NotFoundError):
        client.images.generate(prompt=PROMPT, model="other")
    assert httpx.get(f"{server.url}/health").json()["status"] == "ok"
    assert "stepvar_pictures_total" in httpx.get(f"{server.url}/metrics").text
    assert httpx.get(f"{server.url}/nowhere").json()["error"]["message"]


def test_a_key_is_asked_for_where_one_is_set():
    server = RunningServer(api_key="secret")
    try:
        with pytest.raises(openai.AuthenticationError):
            server.client("wrong").images.generate(prompt=PROMPT)
        assert server.client("secret").images.generate(prompt=PROMPT).data
        assert httpx.get(f"{server.url}/health").status_code == 200
    finally:
        server.stop()


def test_a_client_that_leaves_frees_the_queue(server):
    with pytest.raises(httpx.ReadTimeout):
        body = {"prompt": PROMPT, "n": 10}
        httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=0.05)
    deadline = time.monotonic() + 20
    while (server.engine.waiting or server.engine.drawing) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.engine.waiting == 0
    assert server.client().images.generate(prompt=PROMPT).data


def test_time_runs_out_with_a_sentence():
    server = RunningServer(timeout=0.001)
    try:
        with pytest.raises(openai.InternalServerError) as caught:
            server.client().images.generate(prompt=PROMPT)
        assert caught.value.status_code == 504
    finally:
        server.stop()
