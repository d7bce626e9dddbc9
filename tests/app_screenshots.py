"""Makes the screenshots in docs/app.md: `python tests/app_screenshots.py`, from the root of the repository.

It needs Chromium and the extra `app`.
"""

from __future__ import annotations

import base64
import io
import tempfile
import time
from pathlib import Path

from browser import Browser
from PIL import Image

from fk_steer.app import launch


DOCS = Path(__file__).parent.parent / "docs"
SIZES = {"app.png": (1280, 1345, "light"), "app-phone.png": (390, 1180, "light")}
"""Of each picture: the width, the height and the colours of the screen."""


def screenshot(browser: Browser, to: Path, width: int, height: int) -> None:
    """The upper part of the page, in 256 colours."""
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    shot = browser.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
    image = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
    image.quantize(256, kmeans=2, dither=Image.Dither.NONE).save(to, optimize=True)


def main() -> None:
    """A picture is made on each screen."""
    page = launch(device="cpu", block=False)
    try:
        for name, (width, height, scheme) in SIZES.items():
            with (
                tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
                Browser(page.local_url, Path(profile)) as browser,
            ):
                browser.look(width, scheme)
                browser.call("Page.reload")
                time.sleep(1)
                browser.wait("!!document.querySelector('#said [role]')")
                browser.click("#make")
                browser.wait("document.querySelector('#said').innerText.startsWith('Done')", 300)
                time.sleep(1)
                browser.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
                screenshot(browser, DOCS / name, width, height)
    finally:
        page.close()


if __name__ == "__main__":
    main()
