"""The page in a real browser: finding one, starting `stepvar ui`. As a program: is there a browser?"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_STARTS_WITHIN = 180


def find_browser() -> str | None:
    """Path of a Chromium: the system's, else playwright's own."""
    for name in _NAMES:
        if path := shutil.which(name):
            return path
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    # The small build without windows, which is all that is needed, lies beside the full one.
    shells = sorted(Path(path).parents[2].glob("chromium_headless_shell-*/*/*headless*shell"))
    return path if Path(path).exists() else (str(shells[-1]) if shells else None)


@contextmanager
def running_page(*options: str) -> Iterator[str]:
    """Runs `stepvar ui`; gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "stepvar.cli", "ui", "--port", str(port), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ})
    try:
        _wait(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait(address: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + _STARTS_WITHIN
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(process.stderr.read() if process.stderr else "the page ended")
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError("the page did not start")


@contextmanager
def running_browser() -> Iterator[object]:
    """A Chromium without a window, as playwright drives it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        yield browser
        browser.close()


def wait_until_drawn(page, timeout: float = 180.0) -> None:
    """Waits until everything is drawn and measured."""
    page.wait_for_function(
        "() => document.querySelector('#sv-status').innerText.startsWith('Done')", timeout=1000 * timeout
    )


if __name__ == "__main__":
    found = find_browser()
    sys.exit(0 if found else 1)
