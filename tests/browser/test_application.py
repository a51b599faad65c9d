"""What the application of `stepvar ui` answers, with gradio and without a browser."""

from __future__ import annotations

import pytest

from tiny_pipeline import make_pipeline

pytest.importorskip("gradio")

pytestmark = pytest.mark.browser


def test_the_application_answers_the_page_and_the_routes_of_the_server():
    from fastapi.testclient import TestClient

    from stepvar.serving.drawing import Drawer
    from stepvar.serving.ui.app import create_page_app

    app = create_page_app(Drawer(make_pipeline()), "tiny")
    with TestClient(app) as client:
        page = client.get("/")
        assert page.status_code == 200
        assert page.headers["content-security-policy"].startswith("default-src 'self'")
        assert "fonts.googleapis.com" not in page.text
        assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
        assert client.get("/health").json()["status"] == "ok"
        config = client.get("/config").json()
        assert config["analytics_enabled"] is False
        assert config["footer_links"] == []
        refused = client.post("/gradio_api/upload", files={"files": ("a.txt", b"x" * 100)})
        assert refused.status_code >= 400
