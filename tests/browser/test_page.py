"""The page of `stepvar ui` in Chromium: typed into, clicked, looked at."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from browser_page import find_browser, running_browser, running_page, wait_until_drawn

pytest.importorskip("playwright")
pytest.importorskip("gradio")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_browser() is None, reason="no Chromium; see make test-browser"),
]

REMEMBER_PREVIEWS = """() => {
    window.seen = new Set();
    const look = () => {
        const image = document.querySelector('#sv-dense .sv-growing img');
        if (image) window.seen.add(image.src);
    };
    const everything = {subtree: true, childList: true, attributes: true};
    new MutationObserver(look).observe(document.querySelector('#sv-dense'), everything);
}"""
PLAYING = (
    "() => [...document.querySelectorAll('#sv-cards video')].filter(one => one.readyState >= 2).length == 2"
)

DESK = {"viewport": {"width": 1360, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True}


@pytest.fixture(scope="module")
def browser():
    with running_browser() as found:
        yield found


@pytest.fixture(scope="module")
def address():
    with running_page() as place:
        yield place


@pytest.fixture
def open_page(browser):
    """Opens pages; at the end none of them may have asked another host for anything, or failed."""
    contexts, foreign, failures = [], [], []

    def note_foreign(place: str, url: str) -> None:
        if not url.startswith((place, "data:", "blob:")):
            foreign.append(url)

    def opened(place: str, **kind):
        context = browser.new_context(accept_downloads=True, **kind)
        contexts.append(context)
        page = context.new_page()
        local = (place, "data:", "blob:")
        page.on(
            "request", lambda request: None if request.url.startswith(local) else foreign.append(request.url)
        )
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.goto(place)
        page.wait_for_selector("#sv-draw", timeout=60_000)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not foreign
    assert not failures


def ask(page, prompt: str, seed: int) -> None:
    page.fill("#sv-prompt textarea", prompt)
    if not page.is_visible("#sv-seed textarea, #sv-seed input"):
        page.click("#sv-settings button")
    page.fill("#sv-seed textarea, #sv-seed input", str(seed))
    page.click("#sv-draw")


def test_type_draw_compare_and_save(open_page, address, tmp_path):
    page = open_page(address, **DESK)
    page.evaluate(REMEMBER_PREVIEWS)
    ask(page, "a checked red cross on grass", 7)
    wait_until_drawn(page)
    assert page.evaluate("window.seen.size") >= 4, "the picture grows while it is drawn"
    widths = page.evaluate(
        "['#sv-dense', '#sv-pruned'].map(part => document.querySelector(part + ' img').naturalWidth)"
    )
    assert widths == [256, 256]
    assert "SSIM" in page.inner_text("#sv-times h3")
    assert page.locator("#sv-times .sv-run").count() == 2
    assert page.locator("#sv-gallery figure").count() == 2
    with page.expect_download() as download:
        page.click("#sv-pruned .sv-save")
    download.value.save_as(tmp_path / "saved.png")
    settings = json.loads(Image.open(tmp_path / "saved.png").text["stepvar"])
    assert settings["prompt"] == "a checked red cross on grass" and settings["seed"] == 7


def test_a_slider_changes_the_overlay_and_a_chip_shows_another_scale(open_page, address):
    page = open_page(address, **DESK)
    ask(page, "a red ring on grass", 3)
    wait_until_drawn(page)
    shown = "#sv-kept figure:last-of-type img"
    before, dense = page.get_attribute(shown, "src"), page.get_attribute("#sv-dense img", "src")
    assert page.is_visible(shown)
    bar = page.locator("#sv-share-1 input[type=range]").bounding_box()
    page.mouse.click(bar["x"] + 0.8 * bar["width"], bar["y"] + bar["height"] / 2)
    page.wait_for_function(
        "old => document.querySelector('#sv-kept figure:last-of-type img')?.src != old",
        arg=before,
        timeout=120_000,
    )
    wait_until_drawn(page)
    assert "changed" in page.inner_text("#sv-pruned .sv-note")
    assert page.get_attribute("#sv-dense img", "src") == dense
    page.click("#sv-kept .sv-chips label:first-of-type")
    assert page.is_visible("#sv-kept figure:first-of-type img") and not page.is_visible(shown)


def test_a_preset_moves_the_sliders_and_says_what_it_runs(open_page, address):
    page = open_page(address, **DESK)
    page.click("#sv-preset input")
    page.click("ul[role=listbox] >> text=paper")
    page.wait_for_function("() => document.querySelector('#sv-summary').innerText.includes('411 of 2,240')")
    assert page.input_value("#sv-share-4 input[type=number]") == "40"
    assert page.input_value("#sv-share-1 input[type=number]") == "100"


def test_what_cannot_be_drawn_is_one_sentence(open_page, address):
    page = open_page(address, **DESK)
    ask(page, "a dragon on a bicycle", 1)
    page.wait_for_selector("#sv-status [role=alert]", timeout=60_000)
    sentence = page.inner_text("#sv-status")
    assert "dragon" in sentence and "Traceback" not in sentence
    assert page.locator("#sv-gallery figure").count() == 0


def test_a_phone_shows_both_pictures_side_by_side_and_never_scrolls_sideways(open_page, address):
    page = open_page(address, **PHONE)
    page.click("#sv-examples button:nth-of-type(2)")
    page.click("#sv-draw")
    wait_until_drawn(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    dense, pruned = (
        page.locator(f"{part} .sv-picture").bounding_box() for part in ("#sv-dense", "#sv-pruned")
    )
    assert abs(dense["y"] - pruned["y"]) < 4 and dense["x"] + dense["width"] <= pruned["x"]
    assert dense["width"] > 130


def test_stop_gives_a_picture_up(open_page, address):
    page = open_page(address, **DESK)
    ask(page, "two blue rings on sand", 2)
    page.wait_for_selector("#sv-dense .sv-growing")
    page.click("#sv-stop")
    page.wait_for_function("() => document.querySelector('#sv-status').innerText.startsWith('Stopped')")
    page.wait_for_timeout(1500)
    assert page.locator("#sv-gallery figure").count() == 0
    health = page.evaluate("fetch('health').then(answer => answer.json())")
    assert health["drawing"] == 0 and health["waiting"] == 0


def test_the_video_model_draws_videos_that_play(open_page):
    with running_page("--model", "embedded-video") as address:
        page = open_page(address, **DESK)
        page.click("#sv-draw")
        wait_until_drawn(page)
        page.wait_for_function(PLAYING)
        assert page.locator("#sv-kept figure").count() == 3
