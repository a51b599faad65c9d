"""Makes the pictures of docs/ui.md, the page at a desk and on a phone: python tests/browser/screenshots.py"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from browser_page import running_browser, running_page, wait_until_drawn  # noqa: E402

FOLDER = ROOT / "docs" / "images"
PROMPT, SEED = "two yellow stars above a striped blue ring on sand", "7"
_LARGEST = 200_000


def main() -> None:
    """Writes both files."""
    with running_browser() as browser, running_page() as address:
        for name, width, height, scale in (("ui", 1360, 900, 1.0), ("ui-phone", 390, 844, 1.0)):
            context = browser.new_context(
                viewport={"width": width, "height": height}, device_scale_factor=scale, color_scheme="light"
            )
            page = context.new_page()
            page.goto(address)
            page.wait_for_selector("#sv-draw")
            page.fill("#sv-prompt textarea", PROMPT)
            page.click("#sv-settings button")
            page.fill("#sv-seed textarea, #sv-seed input", SEED)
            page.click("#sv-settings button >> nth=0")
            page.click("#sv-draw")
            wait_until_drawn(page)
            page.mouse.move(0, 0)
            page.wait_for_timeout(700)
            whole = page.screenshot(full_page=True)
            _write(FOLDER / f"{name}.png", Image.open(io.BytesIO(whole)))
            context.close()


def _write(path: Path, picture: Image.Image) -> None:
    """A PNG of few colours, which is enough for a page."""
    small = picture.convert("RGB").quantize(128, Image.Quantize.MEDIANCUT, kmeans=1, dither=Image.Dither.NONE)
    small.save(path, optimize=True)
    size = path.stat().st_size
    if size > _LARGEST:
        raise SystemExit(f"{path} has {size} bytes; at most {_LARGEST} belong into the repository.")
    sys.stdout.write(f"{path.relative_to(ROOT)}: {size} bytes\n")


if __name__ == "__main__":
    main()
